"""Who somebody is: what a credential proves, and for which pod its owner may speak.

Pure: what an API server says of a token and what TLS says of a certificate are arguments. Whatever is wrong with a credential is
told without any part of it.
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
"""How far our clock may be ahead of the one that a token's end was set by: until then, who issued it is asked."""

_MAX_TOKEN_LENGTH = 16 * 1024
"""Characters; Kubernetes' own have less than two thousand."""

_USER = "system:serviceaccount:"
_EXTRA = "authentication.kubernetes.io/"
_NAME = r"[A-Za-z0-9._-]+"
_ACCOUNT = re.compile(rf"({_NAME})/({_NAME})")
_SPIFFE = re.compile(rf"spiffe://([a-z0-9._-]+)/ns/({_NAME})/sa/({_NAME})")


class UnauthenticatedError(Exception):
    """A credential proves nothing; the text says why."""


class AuthenticationUnavailableError(Exception):
    """Who can tell whether a credential is good cannot be asked now; the text says why."""


class RateLimitedError(AuthenticationUnavailableError):
    """Nobody is asked for now, because of how often that was in vain."""


class Credential(StrEnum):
    """With what somebody proved who they are."""

    TOKEN = "token"  # noqa: S105 - the word, not one
    CERTIFICATE = "certificate"


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """Who somebody proved to be."""

    namespace: str
    service_account: str
    pod: str = ""
    """The one that the token is bound to; empty if it is to none, and for a certificate."""
    pod_uid: str = ""
    credential: Credential

    def __str__(self) -> str:
        return f"service account {self.namespace}/{self.service_account}"


class Identity(NamedTuple):
    """A service account, as options name it: NAMESPACE/SERVICE_ACCOUNT or a SPIFFE id."""

    namespace: str
    service_account: str
    trust_domain: str = ""
    """Empty: the mesh's own."""

    @classmethod
    def parse(cls, text: str) -> Identity:
        """Read one. ValueError: it has another form."""
        if match := _ACCOUNT.fullmatch(text):
            return cls(*match.groups())
        if match := _SPIFFE.fullmatch(text):
            trust_domain, namespace, account = match.groups()
            return cls(namespace, account, trust_domain)
        raise ValueError(
            f"{text!r} is neither NAMESPACE/SERVICE_ACCOUNT nor spiffe://DOMAIN/ns/NAMESPACE/sa/ACCOUNT"
        )

    def matches(self, caller: Caller, trust_domains: Collection[str]) -> bool:
        """Whether this is who somebody proved to be, in a mesh with these trust domains."""
        same = (self.namespace, self.service_account) == (caller.namespace, caller.service_account)
        return same and (not self.trust_domain or self.trust_domain in trust_domains)


def token_expiry(
    token: str, now: datetime, audience: str = AUDIENCE, *, skew: timedelta = CLOCK_SKEW
) -> datetime:
    """Return until when a token says that it is good. What it says is proved by nobody yet.

    UnauthenticatedError: it need not be shown to an API server, because it is none of a service account (a JSON Web Token,
    RFC 7519), is not for the audience, or has expired.
    """
    payload = decode_claims(token)
    audiences = payload.get("aud")
    if audience not in (audiences if isinstance(audiences, list) else [audiences]):
        raise UnauthenticatedError(
            f"the token is not for audience {audience}: project one for it into the pod"
        )
    try:
        end = datetime.fromtimestamp(payload["exp"], UTC)
    except (KeyError, TypeError, ValueError, OverflowError, OSError):
        raise UnauthenticatedError("the token never expires: project one for the pod that does") from None
    if end <= now - skew:
        raise UnauthenticatedError(f"the token expired at {end:%Y-%m-%d %H:%M} UTC")
    return end


def decode_claims(token: str) -> Mapping[str, Any]:
    """Return the claims of a token. UnauthenticatedError: it has not the form of one."""
    parts = token.split(".") if len(token) <= _MAX_TOKEN_LENGTH and token.isascii() else []
    try:
        _, payload, _ = parts
        decoded = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
    except (ValueError, RecursionError):
        decoded = None
    if not isinstance(decoded, Mapping):
        raise UnauthenticatedError("this is no token of a service account")
    return decoded


def from_review(status: Any, audience: str = AUDIENCE) -> Caller:
    """Return whose token it is by the `status` of a TokenReview (authentication.k8s.io/v1).

    UnauthenticatedError: nobody's, not for this audience, or a user's who is no service account.
    """
    status = status if isinstance(status, Mapping) else {}
    if status.get("authenticated") is not True:
        raise UnauthenticatedError(
            "the API server does not accept the token: it expired, its pod or its account is gone, or it is forged"
        )
    if audience not in (status.get("audiences") or ()):
        raise UnauthenticatedError(f"the API server does not say that the token is for audience {audience}")
    user = status.get("user") or {}
    namespace, name = parse_username(str(user.get("username", "")))
    if not name:
        raise UnauthenticatedError("the token is of no service account")
    extra = user.get("extra") or {}
    return Caller(
        namespace=namespace,
        service_account=name,
        pod=_only(extra, "pod-name"),
        pod_uid=_only(extra, "pod-uid"),
        credential=Credential.TOKEN,
    )


def username(namespace: str, account: str) -> str:
    """Return the user that a service account is."""
    return f"{_USER}{namespace}:{account}"


def parse_username(username: str) -> tuple[str, str]:
    """Return the namespace and name of the service account that a user is; both empty if it is none."""
    namespace, _, name = username.removeprefix(_USER).partition(":")
    if not username.startswith(_USER) or not _ACCOUNT.fullmatch(f"{namespace}/{name}"):
        return "", ""
    return namespace, name


def _only(extra: Mapping[str, Any], key: str) -> str:
    values = extra.get(_EXTRA + key) or ("",)
    return str(values[0])


def from_certificate(pem: bytes, trust_domains: Collection[str], now: datetime) -> Caller:
    """Return whose certificate it is, one that TLS has found to be of our CA: as the X.509-SVID standard has it.

    UnauthenticatedError: it is none of a workload of these trust domains, or is not valid now.
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
            "the certificate has no SPIFFE id of a service account: only a workload's is taken"
        )
    trust_domain, namespace, account = match.groups()
    if trust_domain not in trust_domains:
        raise UnauthenticatedError(
            f"the certificate is of trust domain {trust_domain}, which is not this mesh's"
        )
    if not certificate.not_valid_before_utc <= now < certificate.not_valid_after_utc:
        raise UnauthenticatedError(
            f"the certificate is valid from {certificate.not_valid_before_utc:%Y-%m-%d %H:%M} "
            f"to {certificate.not_valid_after_utc:%Y-%m-%d %H:%M} UTC"
        )
    return Caller(namespace=namespace, service_account=account, credential=Credential.CERTIFICATE)


def denial_reason(caller: Caller, namespace: str, name: str, pod: Pod | None) -> str:
    """Say why somebody may not speak for a pod; empty: they may, as far as the pod is known.

    A certificate is its service account's, and so good for each of the account's pods; a token may be bound to one pod.
    """
    prefix = f"{caller} may not speak for pod {namespace}/{name}"
    if caller.namespace != namespace:
        return f"{prefix}: that is in another namespace"
    if caller.pod and caller.pod != name:
        return f"{prefix}: its token is bound to pod {caller.pod}"
    if pod is None:
        return ""
    if caller.service_account != pod.service_account:
        return f"{prefix}: that has another service account"
    if caller.pod_uid and pod.meta.uid and caller.pod_uid != pod.meta.uid:
        return f"{prefix}: its token is of an earlier pod of that name"
    return ""
