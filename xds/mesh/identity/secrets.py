"""Secrets (SDS) of a sidecar: its certificate and key, and the trusted roots.

Each pod has its own key. Keys exist only in memory, and never affect versions, names or logs.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, TypeAlias

from envoy_data_plane.envoy.config.core.v3 import DataSource, WatchedDirectory
from envoy_data_plane.envoy.extensions.transport_sockets.tls.v3 import (
    CertificateValidationContext,
    Secret,
    TlsCertificate,
)

from xds.codec import message_class, serialize
from xds.mesh.identity import CERTIFICATE, ROOTS, chain
from xds.mesh.identity.ca import CLOCK_SKEW, LEAF_LIFETIME, Authority, Certificate, Leaf
from xds.mesh.identity.keys import PublicKey
from xds.mesh.model.objects import Pod, PodKey
from xds.resources import SECRET, Resource, resource
from xds.snapshot import TYPE_PREFIX

Owner: TypeAlias = tuple[str, str, str, datetime | None]
"""Owner of a key: service account, trust domain, pod UID and creation time.

The UID and time ensure that a new pod with the same name gets a new key."""


def owner(pod: Pod, trust_domain: str) -> Owner:
    """Return the owner of a pod's key."""
    return pod.service_account, trust_domain, pod.meta.uid, pod.meta.created


def certificate_secret(leaf: Leaf) -> Resource:
    """Return the secret `default`. Its version depends only on the certificate."""
    # Each sidecar has one. It is built with protobuf, which is ten times faster than betterproto2.
    secret: Any = message_class(SECRET.removeprefix(TYPE_PREFIX))(name=CERTIFICATE)
    secret.tls_certificate.certificate_chain.inline_bytes = leaf.chain
    secret.tls_certificate.private_key.inline_bytes = leaf.key.to_pem()
    return Resource.of(SECRET, CERTIFICATE, serialize(secret), version=leaf.fingerprint[:16])


def file_secret(path: str) -> Resource:
    """Return the secret `default` of a sidecar whose key and certificate the kubelet keeps in a file.

    Envoy reads the file again when the kubelet has replaced it.
    """
    certificate = TlsCertificate(
        certificate_chain=DataSource(filename=path),
        private_key=DataSource(filename=path),
        watched_directory=WatchedDirectory(path=path.rpartition("/")[0]),
    )
    return resource(Secret(name=CERTIFICATE, tls_certificate=certificate))


def roots_secret(roots: Iterable[bytes]) -> Resource:
    """Return the secret `ROOTCA` with these PEM roots."""
    trusted = DataSource(inline_bytes=chain.bundle(roots))
    secret = Secret(name=ROOTS, validation_context=CertificateValidationContext(trusted_ca=trusted))
    return resource(secret)


def trusted_roots(authority: Authority, extra_roots: Iterable[bytes] = ()) -> Resource:
    """Return the secret `ROOTCA` with the roots of an authority and extra roots."""
    return roots_secret((chain.to_pem(authority.roots), *extra_roots))


@dataclass(frozen=True, slots=True)
class Issued:
    """A pod's certificate."""

    owner: Owner
    """Owner of its key."""
    leaf: Leaf
    """The certificate and its key."""
    secret: Resource
    """The secret `default`."""


class Issuer:
    """Issue the secrets of pods. Certificates are renewed, with a new key, after half of their lifetime."""

    def __init__(
        self, authority: Authority, *, extra_roots: Iterable[bytes] = (), lifetime: timedelta = LEAF_LIFETIME
    ) -> None:
        self._issued: dict[PodKey, Issued] = {}
        """Issued certificates by namespace and name of the pod."""
        self.issued = 0
        """Number of issued certificates."""
        self._authority = authority
        self._lifetime = lifetime
        self.roots = trusted_roots(authority, extra_roots)
        """Secret `ROOTCA`, the same for all pods."""

    def rotate(self, authority: Authority, extra_roots: Iterable[bytes] = ()) -> None:
        """Change the trusted roots. If the authority changed, all certificates are due for renewal."""
        if authority.certificate != self._authority.certificate:
            self._issued.clear()
        self._authority = authority
        self.roots = trusted_roots(authority, extra_roots)

    def certify(
        self,
        identity: str,
        key: PublicKey,
        now: datetime,
        lifetime: timedelta | None,
        backdate: timedelta = CLOCK_SKEW,
    ) -> Certificate:
        """Issue a certificate for a key of a pod; `lifetime` can only shorten its lifetime."""
        self.issued += 1
        lifetime = min(lifetime or self._lifetime, self._lifetime)
        return self._authority.certify(identity, key, now, lifetime, backdate)

    def secrets_for(self, pod: Pod, trust_domain: str, now: datetime) -> tuple[Resource, Resource]:
        """Return the secrets `default` and `ROOTCA` of a pod, unchanged until renewal is due."""
        issued = self.find(pod, trust_domain, now)
        if issued is None or now >= issued.leaf.renew_at:
            leaf = self._authority.issue(pod.identity(trust_domain), now, self._lifetime)
            issued = self.store(pod, trust_domain, leaf)
        return issued.secret, self.roots

    def find(self, pod: Pod, trust_domain: str, now: datetime) -> Issued | None:
        """Return the pod's certificate; None if it has none that is valid."""
        issued = self._issued.get(pod.key)
        # Check not_before as well: if the clock was set back, the certificate is not valid yet.
        is_valid = (
            issued
            and issued.owner == owner(pod, trust_domain)
            and issued.leaf.not_before <= now < issued.leaf.not_after
        )
        return issued if is_valid else None

    def store(self, pod: Pod, trust_domain: str, leaf: Leaf) -> Issued:
        """Store a new certificate of a pod."""
        issued = Issued(owner(pod, trust_domain), leaf, certificate_secret(leaf))
        self._issued[pod.key] = issued
        self.issued += 1
        return issued

    def renew_at(self, pod: Pod) -> datetime | None:
        """Return when the pod's certificate is due for renewal; None if it has none."""
        issued = self._issued.get(pod.key)
        return issued.leaf.renew_at if issued else None

    def expires_at(self, pod: Pod) -> datetime | None:
        """Return when the pod's certificate expires; None if it has none."""
        issued = self._issued.get(pod.key)
        return issued.leaf.not_after if issued else None

    def expiries(self) -> list[datetime]:
        """Return the expiry times of the issued certificates."""
        return [issued.leaf.not_after for issued in self._issued.values()]

    def forget(self, pod: Pod) -> None:
        """Forget the certificate and key of a deleted pod."""
        self._issued.pop(pod.key, None)
