"""Derive the caller from a credential, and decide which pods the caller may act for.

Pure: the API server's TokenReview and the certificate that TLS has verified are arguments. Error messages
never contain any part of a credential.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Any, NamedTuple

from cryptography import x509

from xds.mesh.identity import AUDIENCE
from xds.mesh.model.objects import Pod

CLOCK_SKEW = timedelta(minutes=5)
"""Tolerance for expired tokens, because the local clock can be fast.

Tokens that expired less than this long ago are left to the API server.
"""

_MAX_TOKEN_LENGTH = 16 * 1024
"""Maximum length of a token in characters. Kubernetes tokens have fewer than 2,000."""

_USER = "system:serviceaccount:"
_EXTRA = "authentication.kubernetes.io/"
_NAME = r"[A-Za-z0-9._-]+"
_ACCOUNT = re.compile(rf"({_NAME})/({_NAME})")
_SPIFFE = re.compile(rf"spiffe://([a-z0-9._-]+)/ns/({_NAME})/sa/({_NAME})")


class UnauthenticatedError(Exception):
    """A credential is invalid; the text has the reason."""


class AuthenticationUnavailableError(Exception):
    """A credential cannot be checked now; the text has the reason."""


class RateLimitedError(AuthenticationUnavailableError):
    """A credential is not checked because of a rate limit; the text has the reason."""


class CredentialKind(StrEnum):
    """Kind of credential of a caller."""

    TOKEN = "token"  # noqa: S105 - not a password
    CERTIFICATE = "certificate"


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """Authenticated caller: a service account, and its pod if known."""

    namespace: str
    """Namespace of the service account."""
    service_account: str
    """Name of the service account."""
    pod: str = ""
    """Pod that the token is bound to; empty for an unbound token or a certificate."""
    pod_uid: str = ""
    """UID of that pod."""
    credential: CredentialKind
    """Kind of credential."""

    def __str__(self) -> str:
        return f"service account {self.namespace}/{self.service_account}"


class IdentityPattern(NamedTuple):
    """Service account that an option names, as NAMESPACE/SERVICE_ACCOUNT or SPIFFE ID."""

    namespace: str
    """Namespace of the service account."""
    service_account: str
    """Name of the service account."""
    trust_domain: str = ""
    """Trust domain; empty for any trust domain of the mesh."""

    @classmethod
    def parse(cls, text: str) -> IdentityPattern:
        """Parse an option's text. Raise ValueError if the format is invalid."""
        if match := _ACCOUNT.fullmatch(text):
            return cls(*match.groups())
        if match := _SPIFFE.fullmatch(text):
            trust_domain, namespace, account = match.groups()
            return cls(namespace, account, trust_domain)
        raise ValueError(
            f"{text!r} is neither NAMESPACE/SERVICE_ACCOUNT nor spiffe://DOMAIN/ns/NAMESPACE/sa/ACCOUNT"
        )

    def matches(self, caller: Caller, trust_domains: Collection[str]) -> bool:
        """Whether a caller is this service account, in a mesh with these trust domains."""
        is_same = (self.namespace, self.service_account) == (caller.namespace, caller.service_account)
        return is_same and (not self.trust_domain or self.trust_domain in trust_domains)


def token_expiry(
    token: str, now: datetime, audience: str = AUDIENCE, *, skew: timedelta = CLOCK_SKEW
) -> datetime:
    """Return the expiry of an unverified token. Reject obviously invalid tokens without a TokenReview.

    Raises UnauthenticatedError if the token is not a JSON Web Token (RFC 7519), has another audience, has no
    expiry, or has expired.
    """
    payload = decode_claims(token)
    audiences = payload.get("aud")
    if audience not in (audiences if isinstance(audiences, list) else [audiences]):
        raise UnauthenticatedError(
            f"the token is not for audience {audience}: project a token with this audience into the pod"
        )
    try:
        end = datetime.fromtimestamp(payload["exp"], UTC)
    except (KeyError, TypeError, ValueError, OverflowError, OSError):
        raise UnauthenticatedError(
            "the token never expires: project a token with an expiry into the pod"
        ) from None
    if end <= now - skew:
        raise UnauthenticatedError(f"the token expired at {end:%Y-%m-%d %H:%M} UTC")
    return end


def decode_claims(token: str) -> Mapping[str, Any]:
    """Return the unverified claims of a token. Raise UnauthenticatedError if it is malformed."""
    parts = token.split(".") if len(token) <= _MAX_TOKEN_LENGTH and token.isascii() else []
    try:
        _, payload, _ = parts
        decoded = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
    except (ValueError, RecursionError):
        decoded = None
    if not isinstance(decoded, Mapping):
        raise UnauthenticatedError("this is not a service account token")
    return decoded


def from_review(status: Any, audience: str = AUDIENCE) -> Caller:
    """Return the caller in the `status` of a TokenReview (authentication.k8s.io/v1).

    Raises UnauthenticatedError if the API server rejected the token, if the token has another audience, or if
    its user is not a service account.
    """
    status = status if isinstance(status, Mapping) else {}
    if status.get("authenticated") is not True:
        raise UnauthenticatedError(
            "the API server rejects the token: it is expired or forged, or its pod or service account is gone"
        )
    if audience not in (status.get("audiences") or ()):
        raise UnauthenticatedError(f"the API server does not confirm audience {audience} for the token")
    user = status.get("user") or {}
    namespace, name = parse_username(str(user.get("username", "")))
    if not name:
        raise UnauthenticatedError("the token belongs to no service account")
    extra = user.get("extra") or {}
    return Caller(
        namespace=namespace,
        service_account=name,
        pod=_first_extra(extra, "pod-name"),
        pod_uid=_first_extra(extra, "pod-uid"),
        credential=CredentialKind.TOKEN,
    )


def username(namespace: str, account: str) -> str:
    """Return the Kubernetes user name of a service account."""
    return f"{_USER}{namespace}:{account}"


def parse_username(username: str) -> tuple[str, str]:
    """Return the namespace and name of a service account; two empty strings for other users."""
    namespace, _, name = username.removeprefix(_USER).partition(":")
    if not username.startswith(_USER) or not _ACCOUNT.fullmatch(f"{namespace}/{name}"):
        return "", ""
    return namespace, name


def _first_extra(extra: Mapping[str, Any], key: str) -> str:
    values = extra.get(_EXTRA + key) or ("",)
    return str(values[0])


def from_certificate(pem: bytes, trust_domains: Collection[str], now: datetime) -> Caller:
    """Return the caller in a certificate (X.509-SVID) that TLS has verified with the mesh's roots.

    Raises UnauthenticatedError if the certificate has no workload identity of these trust domains, or is not
    valid now.
    """
    try:
        certificate = x509.load_pem_x509_certificate(pem)
        extensions = certificate.extensions
    except (ValueError, x509.DuplicateExtension):
        raise UnauthenticatedError("the certificate is malformed") from None
    try:
        names = extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        identities = names.get_values_for_type(x509.UniformResourceIdentifier)
    except x509.ExtensionNotFound:
        identities = []
    match = _SPIFFE.fullmatch(identities[0]) if len(identities) == 1 else None
    if not match:
        raise UnauthenticatedError(
            "the certificate has no SPIFFE ID of a service account: use a workload certificate"
        )
    trust_domain, namespace, account = match.groups()
    if trust_domain not in trust_domains:
        raise UnauthenticatedError(f"the certificate is from trust domain {trust_domain}, not from this mesh")
    if not certificate.not_valid_before_utc <= now < certificate.not_valid_after_utc:
        raise UnauthenticatedError(
            f"the certificate is valid from {certificate.not_valid_before_utc:%Y-%m-%d %H:%M} "
            f"to {certificate.not_valid_after_utc:%Y-%m-%d %H:%M} UTC"
        )
    return Caller(namespace=namespace, service_account=account, credential=CredentialKind.CERTIFICATE)


def denial_reason(caller: Caller, namespace: str, name: str, pod: Pod | None) -> str:
    """Return why a caller may not act for a pod; empty if it may. `pod` is None for an unknown pod.

    A certificate is valid for all pods of its service account. A token can be bound to a single pod.
    """
    if caller.namespace != namespace:
        reason = "the pod is in another namespace"
    elif caller.pod and caller.pod != name:
        reason = f"its token is bound to pod {caller.pod}"
    elif pod is None:
        return ""
    elif caller.service_account != pod.service_account:
        reason = "the pod has another service account"
    elif caller.pod_uid and pod.meta.uid and caller.pod_uid != pod.meta.uid:
        reason = "its token belongs to an earlier pod of that name"
    else:
        return ""
    return f"{caller} may not act for pod {namespace}/{name}: {reason}"
