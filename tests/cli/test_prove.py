"""`xds prove` and `xds diff`: tables, JSON, exit statuses, mistakes and git revisions."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from tests.cli.commands import MANIFESTS, SERVICE, STRICT, write_folder, xds
from tests.sources.fake_apiserver import FakeApiServer

PLURALS = {
    "AuthorizationPolicy": "authorizationpolicies",
    "PeerAuthentication": "peerauthentications",
    "Pod": "pods",
    "Service": "services",
}
ONLY = """
assertions:
- name: only the client calls web
  only:
    from:
    - serviceAccounts: [shop/default]
    to:
    - services: [web.shop:80]
"""
ENCRYPTED = "- name: no plaintext\n  encrypted: {to: [{services: [web.shop]}]}\n"
POLICY = """
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: web, namespace: shop}
spec: {rules: [{from: [{source: {serviceAccounts: [default]}}]}]}
"""
ROLLOUT = """---
apiVersion: argoproj.io/v1alpha1
kind: Rollout
metadata: {name: new, namespace: shop}
spec: {template: {metadata: {}, spec: {containers: [{name: a}]}}, workloadRef: {}}
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_folder(tmp_path, all=MANIFESTS)


@pytest.fixture
def assertions(tmp_path: Path) -> Path:
    path = tmp_path / "assertions.yaml"
    path.write_text(ONLY + ENCRYPTED)
    return path


def lines(text: str) -> list[str]:
    return [" ".join(line.split()) for line in text.splitlines()]


def test_counterexamples_are_rows(folder: Path, assertions: Path) -> None:
    (folder / "policy.yaml").write_text(
        POLICY.replace("default]", '"*"]').replace("serviceAccounts", "principals")
    )
    result = xds("prove", "-f", assertions, "--manifests", folder)
    assert (result.exit_code, result.stderr) == (1, "")
    by = "allowed by AuthorizationPolicy shop/web"
    assert lines(result.stdout) == [
        "ASSERTION VERDICT CLIENTS MODE SERVERS REASON",
        f"only the client calls web fails other/other (does not exist yet) mtls web.shop:80 {by}",
        "no plaintext holds - - - -",
        "",
        "1 of 2 assertions hold",
    ]


def test_exit_status_is_0_if_all_hold(folder: Path, assertions: Path) -> None:
    (folder / "policy.yaml").write_text(f"{POLICY}---{STRICT}")
    result = xds("prove", "-f", assertions, "--manifests", folder)
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout.endswith("2 of 2 assertions hold\n")


def test_json(folder: Path, assertions: Path) -> None:
    result = xds("prove", "-f", assertions, "--manifests", folder, "-o", "json")
    found = json.loads(result.stdout)
    assert (result.exit_code, found["notConsidered"]) == (1, [])
    first, second = found["assertions"]
    assert (first["name"], first["claim"], first["verdict"]) == ("only the client calls web", "only", "fails")
    assert first["place"] == f"{assertions}:3"
    reason = "mode PERMISSIVE (MeshPolicy default); no AuthorizationPolicy applies"
    assert second["counterexamples"] == [
        {
            "accounts": [],
            "moreAccounts": 0,
            "identity": "",
            "mode": "plaintext",
            "servers": ["web.shop:80"],
            "reason": reason,
            "decidedBy": ["MeshPolicy default"],
        }
    ]


def test_yaml_is_the_same_as_json(folder: Path, assertions: Path) -> None:
    (folder.parent / "strict").mkdir()
    (folder.parent / "strict" / "all.yaml").write_text(f"{MANIFESTS}---{STRICT}")
    for words in (
        ("prove", "-f", assertions, "--manifests", folder),
        ("diff", folder.parent / "strict", folder),
    ):
        texts = [xds(*words, "-o", output).stdout for output in ("yaml", "json")]
        assert yaml.safe_load(texts[0]) == json.loads(texts[1])


def test_truncated_counterexamples_are_told(
    folder: Path, assertions: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("xds.mesh.policy.prove.MAX_COUNTEREXAMPLES", 1)
    assertions.write_text("assertions: [{name: everything, encrypted: {}}]")
    words = ("prove", "-f", assertions, "--manifests", folder)
    assert "everything fails - - - not all servers were examined after 100 counterexamples" in lines(
        xds(*words).stdout
    )
    assert json.loads(xds(*words, "-o", "json").stdout)["assertions"][0]["truncated"] is True


def test_unknown_kinds_leave_it_not_known(folder: Path, assertions: Path) -> None:
    (folder / "policy.yaml").write_text(f"{POLICY}---{STRICT}{ROLLOUT.replace('template:', 'pods:')}")
    result = xds("prove", "-f", assertions, "--manifests", folder)
    assert result.exit_code == 1
    assert "only the client calls web not known - - - see Not considered" in lines(result.stdout)
    assert "Not considered: 1 Rollout" in result.stdout
    ignored = xds("prove", "-f", assertions, "--manifests", folder, "--ignore-kind", "Rollout")
    assert ignored.exit_code == 0


async def test_invalid_objects_of_a_cluster_leave_it_not_known(assertions: Path, tmp_path: Path) -> None:
    """Its control plane may enforce an earlier version, which allows more."""
    async with FakeApiServer(tmp_path) as server:
        server.serve_istio()
        server.add("security.istio.io", "v1", "authorizationpolicies", "AuthorizationPolicy")
        for obj in yaml.safe_load_all(f"{MANIFESTS}---{STRICT}---{POLICY.replace('from:', 'form:')}"):
            group = obj["apiVersion"].rpartition("/")[0]
            await server.put(PLURALS[obj["kind"]], obj, group)
        source = ("--kubernetes", "--kubeconfig", server.kubeconfig())
        result = await asyncio.to_thread(xds, "prove", "-f", assertions, *source)
    assert result.exit_code == 1
    assert "only the client calls web not known - - - see Not considered" in lines(result.stdout)
    assert "Not considered: invalid objects (1): AuthorizationPolicy shop/web" in result.stdout


@pytest.mark.parametrize(
    ("text", "error"),
    [
        (
            "assertions: [{name: x, onlyy: {}}]",
            ":1: problem: assertions[0].onlyy is not a known field (did you mean only?)",
        ),
        (
            "assertions: [{name: x, strict: {}}, {name: x, strict: {}}]",
            "an assertion named 'x' is already at ",
        ),
        ("assertions: [", "cannot be read as YAML"),
        ("assertions: [{name: x, name: y, strict: {}}]", "assertions[0].name is set twice"),
        ("", "cannot prove anything: no assertion"),
        ("assertions: [{name: x, strict: {to: [{services: [wbe.shop]}]}}]", "x: service wbe.shop not found"),
    ],
)
def test_mistakes_are_status_2(folder: Path, assertions: Path, text: str, error: str) -> None:
    assertions.write_text(text)
    result = xds("prove", "-f", assertions, "--manifests", folder)
    assert (result.exit_code, result.stdout) == (2, "")
    assert error in result.stderr


def test_unknown_client_is_a_notice(folder: Path, assertions: Path) -> None:
    assertions.write_text(ONLY.replace("shop/default", "shop/defaultt"))
    result = xds("prove", "-f", assertions, "--manifests", folder)
    assert (
        "notice: service account shop/defaultt not found (from); did you mean shop/default?" in result.stderr
    )
    assert xds("prove", "-f", "-", "--manifests", "-").stderr.startswith("xds: stdin (-) can be either")
    assert xds("prove", "-f", assertions).stderr.startswith(
        "xds: use either --manifests PATH or --kubernetes"
    )


# --- diff ---------------------------------------------------------------------------------------------------


def test_gained_access_is_status_1(folder: Path, tmp_path: Path) -> None:
    proposal = shutil.copytree(folder, tmp_path / "proposal")
    (proposal / "policy.yaml").write_text(f"{POLICY}---{STRICT}")
    result = xds("diff", proposal, folder)
    assert (result.exit_code, result.stderr) == (1, "")
    reason = "mode PERMISSIVE (MeshPolicy default); no AuthorizationPolicy applies"
    assert lines(result.stdout) == [
        "ACCESS CLIENTS MODE SERVERS REASON",
        f"gained any client plaintext web.shop:80 {reason}",
    ]
    assert xds("diff", proposal, folder, "--allow-gained").exit_code == 0
    lost = xds("diff", folder, proposal, "-o", "json")
    assert lost.exit_code == 0
    changes = json.loads(lost.stdout)["changes"]
    assert [(each["effect"], each["mode"]) for each in changes] == [("lost", "plaintext"), ("lost", "mtls")]
    same = xds("diff", folder, folder)
    assert (same.exit_code, same.stdout) == (0, "no access changes\n")


def test_git_revisions(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def git(*words: str) -> None:
        options = ("-c", "user.name=x", "-c", "user.email=x@example.com", "-c", "commit.gpgsign=false")
        subprocess.run(["git", *options, *words], cwd=folder.parent, check=True, capture_output=True)

    git("init", "-q")
    git("add", folder.name)
    git("commit", "-qm", "open")
    (folder / "strict.yaml").write_text(STRICT)
    (folder / "policy.yaml").write_text(POLICY)
    monkeypatch.chdir(folder)
    before = f"git:HEAD:{folder.name}"
    result = xds("diff", before, folder)
    assert (result.exit_code, result.stderr) == (0, "")
    assert "lost" in result.stdout
    git("add", folder.name)
    git("commit", "-qm", "closed")
    assert xds("diff", before, f"git:HEAD~1:{folder.name}/").exit_code == 1
    for name, error in (
        ("-", "xds: stdin (-) cannot be compared"),
        ("git:HEAD", "xds: git:HEAD is not git:REVISION:FOLDER"),
        ("git:--help:x", "xds: git:--help:x is not git:REVISION:FOLDER"),
        (f"git:nope:{folder.name}", "xds: git read-tree nope:"),
        ("git:HEAD:nope", "xds: git read-tree HEAD:nope: fatal"),
    ):
        failed = xds("diff", name, folder)
        assert failed.exit_code == 2
        assert failed.stderr.startswith(error)


def test_incomplete_comparison_is_status_1(folder: Path) -> None:
    (folder / "rollout.yaml").write_text(ROLLOUT.replace("template:", "pods:"))
    result = xds("diff", folder, folder)
    assert result.exit_code == 1
    assert result.stdout.startswith(
        "no access changes among the objects that were considered\nNot considered: "
    )
    ignored = xds("diff", folder, folder, "--ignore-kind", "Rollout", "-o", "json")
    assert (ignored.exit_code, json.loads(ignored.stdout)["notConsidered"]) == (0, [])
    (folder / "empty.yaml").write_text(SERVICE.replace("name: web", "name: empty").replace("web}", "empty}"))
    empty = xds("diff", folder, folder, "--ignore-kind", "Rollout", "-o", "json")
    assert (empty.exit_code, json.loads(empty.stdout)["notConsidered"]) == (1, ["pods of empty.shop:80"])
