"""Tokens signed by the control plane: their claims, and how they are verified."""

from __future__ import annotations

import base64
import json
import pickle
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from tests.identity.credentials import token
from xds.mesh.identity.claims import Caller, CredentialKind, UnauthenticatedError
from xds.mesh.identity.keys import IdentityError
from xds.mesh.identity.tokens import TokenKey

NOW = datetime(2030, 1, 1, 12, tzinfo=UTC)
HOUR = timedelta(hours=1)
KEY = TokenKey.generate()
WEB = Caller(
    namespace="shop", service_account="seller", pod="web-0", pod_uid="11-22", credential=CredentialKind.TOKEN
)
UNBOUND = Caller(namespace="ops", service_account="admin", credential=CredentialKind.TOKEN)


def read(part: str) -> dict[str, Any]:
    return json.loads(base64.urlsafe_b64decode(part + "=" * (-len(part) % 4)))  # type: ignore[no-any-return]


def altered(encoded: str, part: int, **changes: Any) -> str:
    """Return a token with changed claims in one part, and its original signature."""
    parts = encoded.split(".")
    claims = json.dumps(read(parts[part]) | changes).encode()
    parts[part] = base64.urlsafe_b64encode(claims).decode().rstrip("=")
    return ".".join(parts)


@pytest.mark.parametrize("caller", [WEB, UNBOUND], ids=["bound", "unbound"])
def test_token_identifies_its_caller_until_it_expires(caller: Caller) -> None:
    encoded = KEY.issue(caller, NOW, HOUR)
    assert KEY.verify(encoded, NOW) == caller
    assert KEY.verify(encoded, NOW + HOUR - timedelta(seconds=1)) == caller
    with pytest.raises(UnauthenticatedError, match="expired at 2030-01-01 13:00 UTC"):
        KEY.verify(encoded, NOW + HOUR)


def test_claims_match_a_projected_token() -> None:
    header, claims, _ = KEY.issue(WEB, NOW, HOUR).split(".")
    assert read(header) == {"alg": "HS256", "typ": "JWT"}
    began = int(NOW.timestamp())
    assert read(claims) == {
        "iss": "xds",
        "aud": ["xds-ca"],
        "sub": "system:serviceaccount:shop:seller",
        "iat": began,
        "nbf": began,
        "exp": began + 3600,
        "kubernetes.io": {
            "namespace": "shop",
            "serviceaccount": {"name": "seller"},
            "pod": {"name": "web-0", "uid": "11-22"},
        },
    }


def test_signature_matches_the_rfc_example() -> None:
    """Example of RFC 7515, appendix A.1. Only genuine tokens get an error about their audience."""
    key = "AyM1SysPpbyDfgZld3umj1qzKObwVMkoqQ-EstJQLr_T-1qS0gZH75aKtMN3Yj0iPS4hcgUuTwjAzZr1Z9CAow=="
    encoded = (
        "eyJ0eXAiOiJKV1QiLA0KICJhbGciOiJIUzI1NiJ9"
        ".eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFtcGxlLmNvbS9pc19yb290Ijp0cnVlfQ"
        ".dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk"
    )
    with pytest.raises(UnauthenticatedError, match="not for audience xds-ca"):
        TokenKey(base64.urlsafe_b64decode(key)).verify(encoded, NOW)
    with pytest.raises(UnauthenticatedError, match="not signed"):
        TokenKey(base64.urlsafe_b64decode(key)).verify(
            encoded[:-1] + "l", NOW
        )  # the same bytes, encoded differently


GOOD = KEY.issue(WEB, NOW, HOUR)
LATER = int((NOW + HOUR).timestamp())


@pytest.mark.parametrize(
    ("encoded", "why"),
    [
        ("", "not a service account token"),
        ("garbage", "not a service account token"),
        (GOOD.replace(".", ".é", 1), "not a service account token"),
        ("\udcff" + GOOD, "not a service account token"),
        (token({"aud": "xds-ca", "exp": LATER}), "not signed by this control plane"),
        (TokenKey.generate().issue(WEB, NOW, HOUR), "not signed by this control plane"),
        (GOOD.rpartition(".")[0] + ".", "not signed by this control plane"),
        (altered(GOOD, 0, alg="none"), "not signed by this control plane"),
        (altered(GOOD, 0, alg="none").rpartition(".")[0] + ".", "not signed by this control plane"),
        (altered(GOOD, 0, alg="RS256"), "not signed by this control plane"),
        (altered(GOOD, 1, sub="system:serviceaccount:shop:other"), "not signed by this control plane"),
        (altered(GOOD, 1, exp=LATER + 3600), "not signed by this control plane"),
        (GOOD + "A", "not signed by this control plane"),
        (KEY.issue(WEB, NOW - 2 * HOUR, HOUR), "expired at 2030-01-01 11:00 UTC"),
        (KEY.issue(WEB, NOW - HOUR, HOUR), "expired at 2030-01-01 12:00 UTC"),
        (KEY.issue(WEB, NOW + HOUR, HOUR), "not valid yet"),
    ],
)
def test_invalid_token_is_rejected(encoded: str, why: str) -> None:
    with pytest.raises(UnauthenticatedError, match=why) as refused:
        KEY.verify(encoded, NOW)
    assert not encoded or encoded not in str(refused.value)


def test_small_clock_skew_is_tolerated() -> None:
    assert KEY.verify(KEY.issue(WEB, NOW + timedelta(minutes=4), HOUR), NOW) == WEB


def test_token_key_round_trips_as_text_only() -> None:
    text = KEY.to_text()
    assert TokenKey.from_text(text) == KEY != TokenKey.generate()
    assert len(bytes.fromhex(text.decode())) == 32
    assert text.decode().strip() not in repr(KEY)
    with pytest.raises(TypeError):
        pickle.dumps(KEY)


@pytest.mark.parametrize("text", [b"", b"00" * 31, b"00" * 33, b"x" * 64, b"\xff" * 64])
def test_invalid_token_key_is_rejected_without_quoting_it(text: bytes) -> None:
    with pytest.raises(IdentityError, match="64 hexadecimal digits") as refused:
        TokenKey.from_text(text)
    assert not text or text.decode(errors="replace") not in str(refused.value)
