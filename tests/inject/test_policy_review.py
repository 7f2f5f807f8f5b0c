"""Reviews of policies: what breaks, what is invalid, and when an object is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from tests.inject.webhooks import policy, request
from tests.policy.world import HTTP, peer, pod, rule, service
from tests.support.authorization import authorization_policy
from xds.cli import app
from xds.mesh.inject.policy_review import (
    MAX_MESSAGE_LENGTH,
    MAX_SENTENCES,
    MAX_WARNING_LENGTH,
    NAMESPACE_CONTROLLER,
    Effects,
    Proposal,
    read_proposal,
    respond,
    summarize,
)
from xds.mesh.model.mesh import Mesh
from xds.mesh.model.objects import ENFORCE_PLAN, Change, Mode, Ref
from xds.mesh.policy.prediction import predict_change

REF = Ref("PeerAuthentication", "shop", "default")


def answer(proposal: Proposal, *args: Any, enforce: bool = False) -> tuple[str, Any]:
    result, response = respond(proposal, *args, enforce=enforce)
    assert response.pop("uid") == "705ab4f5"
    return result, response


def test_creation_proposes_the_object() -> None:
    proposal = read_proposal(request("CREATE", policy(), dryRun=True))
    assert proposal.change
    [fact] = proposal.change.applied
    assert (fact.ref, fact.mode, proposal.title) == (REF, Mode.STRICT, "PeerAuthentication shop/default")
    assert (proposal.errors, proposal.notices, proposal.dry_run) == ((), (), True)


def test_deletion_proposes_the_removal_even_if_the_object_is_invalid() -> None:
    for old in (policy(), policy({"mtls": {"mode": "STRICKT"}})):
        proposal = read_proposal(request("DELETE", old=old))
        assert (proposal.change, proposal.errors) == (Change(removed=(REF,)), ())
    assert proposal.command == "xds plan --kubernetes --delete PeerAuthentication/shop/default"


INVALID = [
    policy({"mtls": {"mode": "STRICKT"}}),
    policy({"selector": {"matchLabels": {"app": 1}}, "mtls": {"mdoe": "STRICT"}}),
    policy() | {"apiVersion": "security.istio.io/v7"},
    {
        "apiVersion": "networking.istio.io/v1",
        "kind": "DestinationRule",
        "metadata": {"name": "web", "namespace": "shop"},
        "spec": {"trafficPolicy": {"tls": {"mode": "MUTUL"}}},
    },
    {
        "apiVersion": "authentication.istio.io/v1alpha1",
        "kind": "MeshPolicy",
        "metadata": {"name": "other"},
        "spec": {"peers": [{"mtls": {}}]},
    },
]


def test_end_of_a_dry_run_is_a_change() -> None:
    tried = authorization_policy("shop", {}, action="DENY", dry_run=True)
    enforced = authorization_policy("shop", {}, action="DENY")
    for old, new in ((tried, enforced), (enforced, tried)):
        assert read_proposal(request("UPDATE", new, old)).change
    assert read_proposal(request("UPDATE", enforced, enforced)).change is None
    first, second = (read_proposal(request("CREATE", each)).key for each in (tried, enforced))
    assert first != second, "the effects of one must not be taken for those of the other"


@pytest.mark.parametrize("document", INVALID, ids=lambda document: str(document["spec"]))
def test_invalid_object_is_refused_with_the_words_of_validate(document: Any, tmp_path: Path) -> None:
    file = tmp_path / "policy.json"
    file.write_text(json.dumps(document))
    validated = CliRunner().invoke(app, ["validate", "-f", str(file), "-o", "json"], prog_name="xds")
    # A refused object is not stored, so nothing applies until it is repaired.
    expected = [
        f"{finding['message'].partition('; until it is repaired, ')[0]} ({finding['hint']})".removesuffix(
            " ()"
        )
        for finding in json.loads(validated.stdout)
        if finding["level"] == "problem"
    ]
    assert expected
    for operation in ("CREATE", "UPDATE"):
        proposal = read_proposal(request(operation, document, old=policy({})))
        result, response = answer(proposal, None)
        assert (result, response["allowed"], response["status"]["code"]) == ("refused", False, 422)
        assert sorted(response["status"]["message"].split("\n")) == sorted(expected)


def test_metadata_of_an_invalid_object_can_change() -> None:
    """Otherwise, its finalizers could not be removed."""
    invalid = {"mtls": {"mode": "STRICKT"}}
    proposal = read_proposal(request("UPDATE", policy(invalid, labels={"a": "b"}), old=policy(invalid)))
    assert (proposal.change, proposal.errors) == (None, ())
    result, response = answer(proposal, None, enforce=True)
    assert (result, response["allowed"]) == ("warned", True)
    assert "STRICKT" in response["warnings"][0]
    deleted = policy(invalid, deletionTimestamp="2026-01-01T00:00:00Z")
    assert read_proposal(request("UPDATE", deleted, old=policy())).errors == ()


def test_unchanged_spec_needs_no_plan() -> None:
    proposal = read_proposal(request("UPDATE", policy(labels={"a": "b"}), old=policy()))
    assert proposal.change is None
    assert answer(proposal, None, enforce=True) == ("allowed", {"allowed": True})


@pytest.mark.parametrize(
    "other",
    [
        request("CONNECT", policy()),
        request("CREATE", {"apiVersion": "v1", "kind": "Pod", "metadata": {}}),
        request("UPDATE", policy(), subResource="status"),
        request("DELETE", old=policy(), userInfo={"username": NAMESPACE_CONTROLLER}),
        request("CREATE", policy() | {"apiVersion": "example.com/v1"}),
    ],
)
def test_other_requests_are_allowed(other: dict[str, Any]) -> None:
    proposal = read_proposal(other)
    assert (proposal.change, answer(proposal, None, enforce=True)[1]["allowed"]) == (None, True)


@pytest.mark.parametrize("operation", ["CREATE", "UPDATE", "DELETE"])
def test_request_without_object_is_malformed(operation: str) -> None:
    with pytest.raises(ValueError, match=f"the request for {operation} has no object"):
        read_proposal(request(operation, "text", "text"))


def test_equal_changes_have_equal_keys() -> None:
    created = read_proposal(request("CREATE", policy(uid="2", annotations={"a": "b"})))
    others = [policy({}), policy(name="other"), policy(creationTimestamp="2026-01-01T00:00:00Z")]
    keys = {read_proposal(request("CREATE", other)).key for other in (policy(), *others)}
    keys.add(read_proposal(request("DELETE", old=policy())).key)
    assert created.key in keys
    assert len(keys) == 5


APPLIED = read_proposal(request("CREATE", policy()))
EXEMPT = read_proposal(request("CREATE", policy(annotations={ENFORCE_PLAN: "false"})))
DELETED = read_proposal(request("DELETE", old=policy()))
BROKEN = Effects(("a -> b would fail", "c -> d would fail"), 7, "breaks: 7", ("it has no effect",))


def test_breaking_connections_are_warnings() -> None:
    assert answer(APPLIED, BROKEN) == (
        "warned",
        {
            "allowed": True,
            "warnings": [
                "a -> b would fail",
                "c -> d would fail",
                "breaks: 7; run xds plan --kubernetes -f FILE",
                "it has no effect",
            ],
        },
    )


def test_enforcement_refuses_what_breaks_and_names_the_annotation() -> None:
    for proposal, advice in (
        (APPLIED, 'set the annotation sidecar.xds/enforce-plan: "false" to apply it anyway'),
        (DELETED, "annotate the object with sidecar.xds/enforce-plan=false to delete it anyway"),
    ):
        result, response = answer(proposal, BROKEN, enforce=True)
        assert (result, response["status"]["code"], response["status"]["reason"]) == (
            "refused",
            403,
            "Forbidden",
        )
        lines = response["status"]["message"].split("\n")
        assert lines[:2] == ["a -> b would fail", "c -> d would fail"]
        assert lines[-1] == f"follow the advice above, or {advice}"


def test_annotation_turns_the_refusal_into_warnings() -> None:
    assert answer(EXEMPT, BROKEN, enforce=True) == answer(APPLIED, BROKEN)
    assert answer(EXEMPT, None, "it took too long", enforce=True)[0] == "unchecked"
    for value in ("true", "", "no"):
        proposal = read_proposal(request("CREATE", policy(annotations={ENFORCE_PLAN: value})))
        assert answer(proposal, BROKEN, enforce=True)[0] == "refused"


def test_unknown_effect_is_a_warning_or_a_refusal() -> None:
    assert answer(APPLIED, None, "it took too long") == (
        "unchecked",
        {"allowed": True, "warnings": ["the effect was not checked: it took too long"]},
    )
    result, response = answer(APPLIED, None, "it took too long", enforce=True)
    assert (result, response["status"]["code"]) == ("refused", 403)
    assert response["status"]["message"] == (
        "the effect was not checked: it took too long\n"
        'try again, or set the annotation sidecar.xds/enforce-plan: "false" to apply it anyway'
    )


def test_objects_without_breaking_connections_are_allowed_under_enforcement() -> None:
    found = Effects((), 0, "plaintext: 1", ("it has no effect",))
    assert answer(APPLIED, found, enforce=True)[0] == "warned"
    assert answer(APPLIED, Effects(), enforce=True) == ("allowed", {"allowed": True})


def test_texts_are_limited_and_printable() -> None:
    found = Effects(("\x1b" * 300,), 1, "", ("x" * 300,))
    for warning in answer(APPLIED, found)[1]["warnings"]:
        assert len(warning) <= MAX_WARNING_LENGTH
        assert warning.isprintable()
        assert warning.endswith("...")
    message = answer(APPLIED, Effects(("y" * 9000,), 1), enforce=True)[1]["status"]["message"]
    assert len(message) <= MAX_MESSAGE_LENGTH


def test_first_breaking_hops_are_named_and_all_are_counted() -> None:
    services = [service(f"web{number}", "shop", HTTP) for number in range(MAX_SENTENCES + 2)]
    servers = [pod(each.name, "shop", app=each.name) for each in services]
    before = Mesh([*services, *servers, pod("client", "zoo", sidecar=False)])
    after = before.apply(Change(applied=(peer("shop", "STRICT"),)))
    found = summarize(predict_change(before, after), ())
    assert len(found.sentences) == MAX_SENTENCES
    assert (found.breaks, found.summary) == (MAX_SENTENCES + 2, f"breaks: {MAX_SENTENCES + 2}")
    assert found.sentences[0].startswith("zoo/client -> web0.shop:80 would fail: server-requires-mtls (")


def test_summary_is_left_out_if_all_is_said() -> None:
    before = Mesh([service("web", "shop", HTTP), pod("web", "shop"), pod("client", "zoo", sidecar=False)])
    strict = before.apply(Change(applied=(peer("shop", "STRICT"),)))
    assert summarize(predict_change(before, strict), ()).summary == ""
    assert summarize(predict_change(strict, before), ()) == Effects()
    plain = before.apply(Change(applied=(rule("shop", "web.shop.svc.cluster.local", "DISABLE"),)))
    assert summarize(predict_change(before, plain), ()).summary == "plaintext: 1"
