"""Tokens that the control plane signs, for sidecars outside Kubernetes.

They are JSON Web Tokens (RFC 7519) with the claims of a projected service account token, signed with
HMAC-SHA256 (HS256). A symmetric key suffices, because issuer and verifier read the same state directory.
"""

from __future__ import annotations

import base64
import hmac
import json
import secrets
from datetime import datetime, timedelta
from typing import Any, NoReturn

from xds.mesh.identity import AUDIENCE, claims
from xds.mesh.identity.claims import CLOCK_SKEW, Caller, CredentialKind, UnauthenticatedError
from xds.mesh.identity.keys import IdentityError

DEFAULT_LIFETIME = timedelta(hours=1)
"""Default lifetime of a token, the same as the kubelet's."""

_ISSUER = "xds"
_KEY_BYTES = 32


class TokenKey:
    """Key that signs tokens. Never log the result of `to_text`."""

    __slots__ = ("_key",)

    def __init__(self, key: bytes) -> None:
        self._key = key

    @classmethod
    def generate(cls) -> TokenKey:
        """Generate a key."""
        return cls(secrets.token_bytes(_KEY_BYTES))

    @classmethod
    def from_text(cls, text: bytes) -> TokenKey:
        """Read a key in the format of `to_text`. Raise IdentityError, without the text, if it is invalid."""
        try:
            key = bytes.fromhex(text.decode())
        except ValueError:
            key = b""
        if len(key) != _KEY_BYTES:
            raise IdentityError(f"this is not a token key ({2 * _KEY_BYTES} hexadecimal digits)")
        return cls(key)

    def to_text(self) -> bytes:
        """Return the key in hexadecimal."""
        return self._key.hex().encode() + b"\n"

    def issue(self, caller: Caller, now: datetime, lifetime: timedelta = DEFAULT_LIFETIME) -> str:
        """Return a token for a caller."""
        issued = int(now.timestamp())
        pod = {"name": caller.pod} | ({"uid": caller.pod_uid} if caller.pod_uid else {})
        payload = {
            "iss": _ISSUER,
            "aud": [AUDIENCE],
            "sub": claims.username(caller.namespace, caller.service_account),
            "iat": issued,
            "nbf": issued,
            "exp": int((now + lifetime).timestamp()),
            "kubernetes.io": {
                "namespace": caller.namespace,
                "serviceaccount": {"name": caller.service_account},
                **({"pod": pod} if caller.pod else {}),
            },
        }
        signed = ".".join(map(_part, ({"alg": "HS256", "typ": "JWT"}, payload)))
        return f"{signed}.{self._signature(signed)}"

    def verify(self, token: str, now: datetime) -> Caller:
        """Return the caller that a token identifies.

        Raises UnauthenticatedError if this control plane did not sign the token, or if it is not valid now.
        """
        payload = claims.decode_claims(token)
        signed, _, signature = token.rpartition(".")
        # The token's `alg` is ignored: only HS256 is supported, and the signature covers the header.
        if not hmac.compare_digest(signature.encode(), self._signature(signed).encode()):
            raise UnauthenticatedError(
                "the token is not signed by this control plane: it is forged, or was created with another "
                "--state-dir"
            )
        claims.token_expiry(token, now, skew=timedelta())
        if payload["nbf"] > (now + CLOCK_SKEW).timestamp():
            raise UnauthenticatedError("the token is not valid yet: the clock of its issuer is ahead")
        namespace, account = claims.parse_username(payload["sub"])
        pod = payload["kubernetes.io"].get("pod", {})
        return Caller(
            namespace=namespace,
            service_account=account,
            pod=pod.get("name", ""),
            pod_uid=pod.get("uid", ""),
            credential=CredentialKind.TOKEN,
        )

    def _signature(self, signed: str) -> str:
        return _base64(hmac.digest(self._key, signed.encode(), "sha256"))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, TokenKey) and hmac.compare_digest(self._key, other._key)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return "<TokenKey: hidden>"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a token key cannot be copied or pickled")


def _part(value: Any) -> str:
    return _base64(json.dumps(value, separators=(",", ":")).encode())


def _base64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")
