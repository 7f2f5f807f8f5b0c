"""Tokens that we sign: what is in them, and which are good."""

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


def altered(shown: str, part: int, **changes: Any) -> str:
    """Return a token of which a part says something else, under the signature that it has."""
    parts = shown.split(".")
    said = json.dumps(read(parts[part]) | changes).encode()
    parts[part] = base64.urlsafe_b64encode(said).decode().rstrip("=")
    return ".".join(parts)


@pytest.mark.parametrize("who", [WEB, UNBOUND], ids=["bound", "unbound"])
def test_who_shows_a_token_is_whom_it_was_made_for_until_it_expires(who: Caller) -> None:
    shown = KEY.issue(who, NOW, HOUR)
    assert KEY.verify(shown, NOW) == who
    assert KEY.verify(shown, NOW + HOUR - timedelta(seconds=1)) == who
    with pytest.raises(UnauthenticatedError, match="expired at 2030-01-01 13:00 UTC"):
        KEY.verify(shown, NOW + HOUR)


def test_the_claims_are_those_of_a_projected_token() -> None:
    header, said, _ = KEY.issue(WEB, NOW, HOUR).split(".")
    assert read(header) == {"alg": "HS256", "typ": "JWT"}
    began = int(NOW.timestamp())
    assert read(said) == {
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


def test_signature_matches_rfc_7515() -> None:
    """Use the example of RFC 7515, appendix A.1. The audience is checked only if the signature is valid."""
    key = "AyM1SysPpbyDfgZld3umj1qzKObwVMkoqQ-EstJQLr_T-1qS0gZH75aKtMN3Yj0iPS4hcgUuTwjAzZr1Z9CAow=="
    shown = (
        "eyJ0eXAiOiJKV1QiLA0KICJhbGciOiJIUzI1NiJ9"
        ".eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFtcGxlLmNvbS9pc19yb290Ijp0cnVlfQ"
        ".dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk"
    )
    with pytest.raises(UnauthenticatedError, match="not for audience xds-ca"):
        TokenKey(base64.urlsafe_b64decode(key)).verify(shown, NOW)
    with pytest.raises(UnauthenticatedError, match="not signed"):
        TokenKey(base64.urlsafe_b64decode(key)).verify(
            shown[:-1] + "l", NOW
        )  # the same bytes, in another spelling


GOOD = KEY.issue(WEB, NOW, HOUR)
LATER = int((NOW + HOUR).timestamp())


@pytest.mark.parametrize(
    ("shown", "why"),
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
def test_what_proves_nothing(shown: str, why: str) -> None:
    with pytest.raises(UnauthenticatedError, match=why) as refused:
        KEY.verify(shown, NOW)
    assert not shown or shown not in str(refused.value)


def test_a_clock_that_is_a_little_ahead_does_no_harm() -> None:
    assert KEY.verify(KEY.issue(WEB, NOW + timedelta(minutes=4), HOUR), NOW) == WEB


def test_the_key_is_kept_as_text_and_shows_itself_nowhere_else() -> None:
    text = KEY.to_text()
    assert TokenKey.from_text(text) == KEY != TokenKey.generate()
    assert len(bytes.fromhex(text.decode())) == 32
    assert text.decode().strip() not in repr(KEY)
    with pytest.raises(TypeError):
        pickle.dumps(KEY)


@pytest.mark.parametrize("text", [b"", b"00" * 31, b"00" * 33, b"x" * 64, b"\xff" * 64])
def test_a_text_that_is_no_key_is_refused_and_not_quoted(text: bytes) -> None:
    with pytest.raises(IdentityError, match="64 hexadecimal digits") as refused:
        TokenKey.from_text(text)
    assert not text or text.decode(errors="replace") not in str(refused.value)
