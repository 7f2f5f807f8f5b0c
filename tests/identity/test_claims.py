"""The identity that each credential proves, and the pods that its caller may act for."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from tests.identity.credentials import certificate, token
from xds.mesh.identity import claims
from xds.mesh.identity.ca import Authority
from xds.mesh.identity.claims import Caller, CredentialKind, IdentityPattern, UnauthenticatedError
from xds.mesh.identity.keys import PrivateKey
from xds.mesh.model.objects import Meta, Pod, Ref

NOW = datetime(2030, 1, 1, 12, tzinfo=UTC)
CA = Authority.create(PrivateKey.generate(), "cluster.local", NOW)
LATER = int((NOW + timedelta(hours=1)).timestamp())
SLEEP = "spiffe://cluster.local/ns/full/sa/sleep"
MESH = ("cluster.local", "old.example")


def review(**changes: Any) -> dict[str, Any]:
    """Return the status of a TokenReview, as a real API server does."""
    user = {
        "username": "system:serviceaccount:full:sleep",
        "uid": "0c5f",
        "groups": ["system:serviceaccounts", "system:serviceaccounts:full", "system:authenticated"],
        "extra": {
            "authentication.kubernetes.io/credential-id": ["JTI=2f0a"],
            "authentication.kubernetes.io/pod-name": ["sleep-1"],
            "authentication.kubernetes.io/pod-uid": ["11-22"],
        },
    }
    return {"authenticated": True, "user": user, "audiences": ["xds-ca"]} | changes


@pytest.mark.parametrize("audience", ["xds-ca", ["xds-ca"], ["other", "xds-ca"]])
def test_token_expiry_is_read_from_its_claims(audience):
    assert claims.token_expiry(token({"aud": audience, "exp": LATER}), NOW) == NOW + timedelta(hours=1)


def test_recently_expired_token_is_still_reviewed():
    ended = int((NOW - timedelta(minutes=4)).timestamp())
    assert claims.token_expiry(token({"aud": "xds-ca", "exp": ended}), NOW) < NOW


@pytest.mark.parametrize(
    ("credential", "why"),
    [
        ("", "not a service account token"),
        ("secret", "not a service account token"),
        ("a.b", "not a service account token"),
        ("a.b.c.d", "not a service account token"),
        ("..", "not a service account token"),
        ("a.é.c", "not a service account token"),
        ("a.AAAA.c", "not a service account token"),
        (token([]), "not a service account token"),
        (token("x" * 20_000), "not a service account token"),
        ("." + "W1tb" * 3000 + ".", "not a service account token"),
        (token({}), "not for audience xds-ca"),
        (token({"aud": "istio-ca", "exp": LATER}), "not for audience xds-ca"),
        (token({"aud": ["https://kubernetes.default.svc"], "exp": LATER}), "not for audience xds-ca"),
        (token({"aud": {"xds-ca": 1}, "exp": LATER}), "not for audience xds-ca"),
        (token({"aud": "xds-ca"}), "never expires"),
        (token({"aud": "xds-ca", "exp": "soon"}), "never expires"),
        (token({"aud": "xds-ca", "exp": 1e300}), "never expires"),
        (token({"aud": "xds-ca", "exp": float("nan")}), "never expires"),
        (token({"aud": "xds-ca", "exp": LATER - 7200}), "expired at 2030-01-01 11:00 UTC"),
    ],
)
def test_obviously_invalid_token_is_not_reviewed(credential, why):
    with pytest.raises(UnauthenticatedError, match=why) as refused:
        claims.token_expiry(credential, NOW)
    assert not credential or credential not in str(refused.value)


def test_token_review_identifies_account_and_pod():
    assert claims.from_review(review()) == Caller(
        namespace="full",
        service_account="sleep",
        pod="sleep-1",
        pod_uid="11-22",
        credential=CredentialKind.TOKEN,
    )


def test_token_may_be_unbound():
    caller = claims.from_review(review(user={"username": "system:serviceaccount:full:sleep"}))
    assert (caller.pod, caller.pod_uid) == ("", "")


@pytest.mark.parametrize(
    ("status", "why"),
    [
        (None, "rejects the token"),
        ({}, "rejects the token"),
        (review(authenticated=False, error="token expired"), "rejects the token"),
        (review(authenticated="true"), "rejects the token"),
        (review(audiences=[]), "audience xds-ca"),
        (review(audiences=None), "audience xds-ca"),
        (review(audiences=["istio-ca"]), "audience xds-ca"),
        (review(user=None), "no service account"),
        (review(user={"username": "kubernetes-admin"}), "no service account"),
        (review(user={"username": "system:serviceaccount:full"}), "no service account"),
        (review(user={"username": "system:serviceaccount:full:"}), "no service account"),
        (review(user={"username": "system:serviceaccount:full:a:b"}), "no service account"),
        (review(user={"username": "system:serviceaccount:full/x:sleep"}), "no service account"),
        (review(user={"username": "system:node:one"}), "no service account"),
    ],
)
def test_unauthenticated_token_review_is_rejected(status, why):
    with pytest.raises(UnauthenticatedError, match=why):
        claims.from_review(status)


def test_issued_certificate_identifies_the_account():
    leaf = CA.issue(SLEEP, NOW)
    assert claims.from_certificate(leaf.chain, MESH, NOW) == Caller(
        namespace="full", service_account="sleep", credential=CredentialKind.CERTIFICATE
    )


def test_certificate_of_a_former_trust_domain_is_accepted():
    credential, _ = certificate(CA, NOW, uris=("spiffe://old.example/ns/full/sa/sleep",))
    assert claims.from_certificate(credential, MESH, NOW).namespace == "full"


@pytest.mark.parametrize(
    ("credential", "why"),
    [
        (b"", "malformed"),
        (b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", "malformed"),
        (CA.issue_server(["xds.istio-system.svc"], NOW).chain, "no SPIFFE ID"),
        (CA.root_pem, "no SPIFFE ID"),
        (certificate(CA, NOW)[0], "no SPIFFE ID"),
        (certificate(CA, NOW, dns=("sleep.full",))[0], "no SPIFFE ID"),
        (certificate(CA, NOW, uris=("spiffe://cluster.local",))[0], "no SPIFFE ID"),
        (certificate(CA, NOW, uris=("https://cluster.local/ns/full/sa/sleep",))[0], "no SPIFFE ID"),
        (certificate(CA, NOW, uris=(f"{SLEEP}/x",))[0], "no SPIFFE ID"),
        (certificate(CA, NOW, uris=(SLEEP, "spiffe://cluster.local/ns/full/sa/x"))[0], "no SPIFFE ID"),
        (certificate(CA, NOW, uris=("spiffe://other/ns/full/sa/sleep",))[0], "trust domain other"),
        (
            certificate(CA, NOW, uris=(SLEEP,), lifetime=timedelta(seconds=-1))[0],
            "valid from 2029-12-30 12:00 to 2030-01-01 11:59 UTC",
        ),
        (certificate(CA, NOW + timedelta(days=3), uris=(SLEEP,))[0], "valid from 2030-01-02"),
    ],
)
def test_invalid_certificate_is_rejected(credential, why):
    with pytest.raises(UnauthenticatedError, match=why):
        claims.from_certificate(credential, MESH, NOW)


TOKEN = Caller(
    namespace="full", service_account="sleep", pod="sleep-1", pod_uid="11-22", credential=CredentialKind.TOKEN
)
UNBOUND = replace(TOKEN, pod="", pod_uid="")
CERTIFICATE = Caller(namespace="full", service_account="sleep", credential=CredentialKind.CERTIFICATE)


def pod(account: str = "sleep", uid: str = "11-22") -> Pod:
    return Pod(meta=Meta(ref=Ref("Pod", "full", "sleep-1"), uid=uid), service_account=account)


@pytest.mark.parametrize("caller", [TOKEN, UNBOUND, CERTIFICATE])
@pytest.mark.parametrize("known", [None, pod(), pod(uid="")])
def test_matching_caller_may_act_for_the_pod(caller, known):
    assert claims.denial_reason(caller, "full", "sleep-1", known) == ""


@pytest.mark.parametrize(
    ("caller", "namespace", "name", "known", "why"),
    [
        (TOKEN, "legacy", "sleep-1", None, "another namespace"),
        (UNBOUND, "legacy", "sleep-1", pod(), "another namespace"),
        (CERTIFICATE, "legacy", "sleep-1", None, "another namespace"),
        (TOKEN, "full", "sleep-2", None, "bound to pod sleep-1"),
        (TOKEN, "full", "we/sleep-1", pod(), "bound to pod sleep-1"),
        (TOKEN, "full", "sleep-1", pod("httpbin"), "another service account"),
        (UNBOUND, "full", "sleep-1", pod("httpbin"), "another service account"),
        (CERTIFICATE, "full", "sleep-1", pod("httpbin"), "another service account"),
        (TOKEN, "full", "sleep-1", pod(uid="33-44"), "an earlier pod"),
    ],
)
def test_other_callers_may_not_act_for_the_pod(caller, namespace, name, known, why):
    reason = claims.denial_reason(caller, namespace, name, known)
    assert why in reason
    assert reason.startswith(f"service account full/sleep may not act for pod {namespace}/{name}: ")


@pytest.mark.parametrize("text", ["full/sleep", SLEEP, "spiffe://old.example/ns/full/sa/sleep"])
def test_identity_is_parsed_from_account_or_spiffe_id(text):
    identity = IdentityPattern.parse(text)
    assert identity.matches(TOKEN, MESH)
    assert identity.matches(CERTIFICATE, MESH)
    assert not identity.matches(replace(TOKEN, namespace="legacy"), MESH)
    assert not identity.matches(replace(TOKEN, service_account="httpbin"), MESH)


def test_identity_of_another_trust_domain_does_not_match():
    assert not IdentityPattern.parse("spiffe://other/ns/full/sa/sleep").matches(TOKEN, MESH)


@pytest.mark.parametrize(
    "text", ["", "sleep", "a/b/c", "spiffe://x/ns/a", "full/", "spiffe://X/ns/a/sa/b", "full/*"]
)
def test_invalid_identity_is_rejected(text):
    with pytest.raises(ValueError, match="is neither NAMESPACE/SERVICE_ACCOUNT nor"):
        IdentityPattern.parse(text)
