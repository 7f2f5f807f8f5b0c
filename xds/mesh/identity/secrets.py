"""What a sidecar's SDS gives out: its own certificate and key, and the roots that it trusts.

Every pod has a key of its own. Keys live in memory only, and no version, name or log is made from them.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TypeAlias

from envoy_data_plane.envoy.config.core.v3 import DataSource
from envoy_data_plane.envoy.extensions.transport_sockets.tls.v3 import (
    CertificateValidationContext,
    Secret,
    TlsCertificate,
)

from xds.codec import encode
from xds.mesh.identity import CERTIFICATE, ROOTS, chain
from xds.mesh.identity.ca import LEAF_LIFETIME, Authority, Leaf
from xds.mesh.model.objects import Pod
from xds.resources import SECRET, Resource, resource

_Owner: TypeAlias = tuple[str, str, str, datetime | None]
"""Service account, trust domain, the pod's uid and its creation: whose key it is. A pod's successor of the same name is not
given its predecessor's key, not even within the second that times are told in."""


def certificate_secret(leaf: Leaf) -> Resource:
    """Return a leaf and its key as the secret `default`. Its version is the certificate's, whatever the key."""
    secret = Secret(
        name=CERTIFICATE,
        tls_certificate=TlsCertificate(
            certificate_chain=DataSource(inline_bytes=leaf.chain),
            private_key=DataSource(inline_bytes=leaf.key.to_pem()),
        ),
    )
    return Resource.of(SECRET, CERTIFICATE, encode(secret), version=leaf.fingerprint[:16])


def roots_secret(roots: Iterable[bytes]) -> Resource:
    """Return root certificates in PEM form as the secret `ROOTCA`. Several: all are trusted, as a rotation needs."""
    trusted = DataSource(inline_bytes=chain.bundle(roots))
    secret = Secret(name=ROOTS, validation_context=CertificateValidationContext(trusted_ca=trusted))
    return resource(secret)


def trusted_roots(authority: Authority, extra_roots: Iterable[bytes] = ()) -> Resource:
    """Return the secret `ROOTCA` of an authority: its roots, and further ones."""
    return roots_secret((chain.to_pem(authority.roots), *extra_roots))


@dataclass(frozen=True, slots=True)
class _Issued:
    owner: _Owner
    leaf: Leaf
    secret: Resource


class Issuer:
    """Gives each pod its secrets, and a new certificate with a new key once half of the old one's life is over."""

    def __init__(
        self, authority: Authority, *, extra_roots: Iterable[bytes] = (), lifetime: timedelta = LEAF_LIFETIME
    ) -> None:
        self._authority = authority
        self._lifetime = lifetime
        self.roots = trusted_roots(authority, extra_roots)
        """What everybody trusts: the secret `ROOTCA`."""
        self._issued: dict[tuple[str, str], _Issued] = {}
        """By the pod's namespace and name."""
        self.issued = 0
        """How many certificates it has given out."""

    def rotate(self, authority: Authority, extra_roots: Iterable[bytes] = ()) -> None:
        """From now on trust these roots; if the authority is another, everybody's next certificate is due, and is its."""
        if authority.certificate != self._authority.certificate:
            self._issued.clear()
        self._authority = authority
        self.roots = trusted_roots(authority, extra_roots)

    def secrets_for(self, pod: Pod, trust_domain: str, now: datetime) -> tuple[Resource, Resource]:
        """Return the pod's `default` and `ROOTCA`: the same as before until renewal is due."""
        owner = (pod.service_account, trust_domain, pod.meta.uid, pod.meta.created)
        issued = self._issued.get((pod.namespace, pod.name))
        # The lower bound: a clock that was set back must not leave a pod with a certificate from the future.
        if (
            issued is None
            or issued.owner != owner
            or not issued.leaf.not_before <= now < issued.leaf.renew_at
        ):
            leaf = self._authority.issue(pod.identity(trust_domain), now, self._lifetime)
            issued = _Issued(owner, leaf, certificate_secret(leaf))
            self._issued[pod.namespace, pod.name] = issued
            self.issued += 1
        return issued.secret, self.roots

    def renew_at(self, pod: Pod) -> datetime | None:
        """Return when the pod's certificate is due for renewal; None if it has none."""
        issued = self._issued.get((pod.namespace, pod.name))
        return issued.leaf.renew_at if issued else None

    def expiries(self) -> list[datetime]:
        """Return until when the certificates are good that pods have."""
        return [issued.leaf.not_after for issued in self._issued.values()]

    def forget(self, pod: Pod) -> None:
        """Drop the key of a pod that is gone."""
        self._issued.pop((pod.namespace, pod.name), None)
