"""Certificates and trusted roots of sidecars, and when they are renewed."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import suppress
from datetime import datetime, timedelta

from xds.mesh.controlplane.signing import ExternalIssuer
from xds.mesh.controlplane.stats import CertificateStats
from xds.mesh.envoy.features import Features
from xds.mesh.identity import ROOTS
from xds.mesh.identity.ca import LEAF_LIFETIME, Authority, Certificate
from xds.mesh.identity.chain import bundle, to_pem
from xds.mesh.identity.external import read_request, require_names
from xds.mesh.identity.keys import PublicKey
from xds.mesh.identity.secrets import Issuer, file_secret
from xds.mesh.model.objects import MeshConfig, Pod, PodKey
from xds.mesh.sidecar.settings import CREDENTIAL_BUNDLE
from xds.snapshot import EMPTY, Resource, ResourceSet

RETRY_DELAY = 1.0
"""Seconds after which a failed renewal is retried."""
CLOCK_CHECK_INTERVAL = 60.0
"""Seconds after which renewals are checked again, in case the clock was set or the machine was suspended."""


POD_CERTIFICATE_BACKDATE = timedelta(minutes=1)
"""Amount by which certificates of kubelets are backdated. The API server's limit is 5 minutes."""
REQUEST_RESULTS = ("signed", "refused", "failed")
"""Results of certificate requests. A failed request may succeed later."""


class Certificates:
    """Issue the secrets of sidecars, and report when certificates are due for renewal."""

    def __init__(
        self,
        authority: Authority,
        extra_roots: Iterable[bytes],
        lifetime: timedelta,
        now: Callable[[], datetime],
        external: ExternalIssuer | None = None,
    ) -> None:
        """Create an issuer.

        Args:
            authority: the CA that issues certificates.
            extra_roots: further trusted root certificates, in PEM form.
            lifetime: the lifetime of certificates.
            now: returns the current time.
            external: signs certificates instead of the CA, only for keys that sidecars make; None without
                one.
        """
        self._authority, self._extra_roots = authority, tuple(extra_roots)
        self._external, self._lifetime = external, lifetime
        self._issuer = Issuer(authority, extra_roots=self._extra_roots, lifetime=lifetime)
        self._now = now
        self._served: dict[PodKey, ResourceSet] = {}
        """The secrets of each pod, by its namespace and name."""
        self._only_roots = EMPTY
        """The secrets of sidecars that get no private key."""
        self._file = file_secret(CREDENTIAL_BUNDLE)
        self._with_file = EMPTY
        """The secrets of sidecars whose kubelet keeps the key and certificate in a file."""
        self._certified: dict[PodKey, tuple[datetime, datetime]] = {}
        """When certificates for keys made on nodes expire, and until when that is known, by pod."""
        self.requests = Counter[str](dict.fromkeys(REQUEST_RESULTS, 0))
        """Number of certificate requests of authenticated callers, by result."""
        self._changed = asyncio.Event()
        """Set when a certificate is due for renewal before the next check."""
        self._next_at: datetime | None = None
        """When the first certificate is due for renewal, as of the last check; None if there was none."""

    @property
    def trust(self) -> tuple[Authority, bytes]:
        """The current CA, and all trusted roots in PEM form."""
        return self._authority, bundle((to_pem(self._authority.roots), *self._extra_roots))

    @property
    def roots(self) -> Resource:
        """The secret with the trusted roots."""
        return (self._external or self._issuer).roots

    def rotate(self, authority: Authority, extra_roots: Iterable[bytes]) -> None:
        """Issue all certificates from a new CA. Trust its roots and `extra_roots`."""
        self._authority, self._extra_roots = authority, tuple(extra_roots)
        self._issuer.rotate(authority, self._extra_roots)

    def secrets_for(self, pod: Pod, config: MeshConfig, features: Features, *, with_key: bool) -> ResourceSet:
        """Return the secrets of a pod's sidecar, with its private key only if `with_key` is set.

        If the sidecar has a key of its own, the control plane makes and keeps none. With an external signer,
        it never makes one.
        """
        if config.sds_socket:
            return EMPTY  # An SDS server on this socket serves certificates and roots to sidecars.
        if features.has_key:
            self.forget_key(pod)
        if features.has_key or not with_key or self._external:
            if self._only_roots.get(ROOTS) is not self.roots:
                self._only_roots = ResourceSet((self.roots,))
                self._with_file = ResourceSet((self._file, self.roots))
            return self._with_file if features.pod_certificate else self._only_roots
        key = pod.key
        known = self._served.get(key, EMPTY)
        secrets = self._issuer.secrets_for(pod, config.trust_domain, self._now())
        if any(known.get(secret.name) is not secret for secret in secrets):
            known = ResourceSet(secrets)
        self._served[key] = known
        at = self._issuer.renew_at(pod)
        if at and (self._next_at is None or at < self._next_at):
            self._changed.set()
        return known

    def read_request(self, pem: bytes, identity: str) -> PublicKey:
        """Return the key of a signing request in PEM form, after the request has been checked.

        Args:
            pem: the request.
            identity: SPIFFE ID of the authenticated caller.

        Raises:
            IdentityError: the request is refused.
        """
        request, key = read_request(pem)
        if self._external:
            require_names(request, identity)  # An external signer copies the names.
        return key

    async def certify(
        self, pem: bytes, key: PublicKey, identity: str, lifetime: timedelta | None
    ) -> tuple[Certificate, bytes]:
        """Return a certificate for the key of a checked signing request, and the trusted roots in PEM form.

        Args:
            pem: the request, in PEM form.
            key: its key, from `read_request`.
            identity: SPIFFE ID of the authenticated caller, for which the certificate is.
            lifetime: requested lifetime; None for the default, which is also the maximum.

        Raises:
            IdentityError: the CA cannot issue certificates, because its own has expired.
            SignerError: the external signer failed.
        """
        if self._external:
            certificate = await self._external.certify(pem, key, identity)
            trusted = self._external.roots_pem
        else:
            certificate = self._issuer.certify(identity, key, self._now(), lifetime)
            trusted = self.trust[1]
        return certificate, trusted

    def certify_for_kubelet(self, key: PublicKey, identity: str, lifetime: timedelta) -> Certificate:
        """Return a certificate for a key that a kubelet made for a pod.

        Args:
            key: the key, from `read_request`.
            identity: SPIFFE ID of the pod.
            lifetime: maximum time between the start and the end of its validity.

        Raises:
            IdentityError: the CA cannot issue certificates, because its own has expired.
        """
        backdate = POD_CERTIFICATE_BACKDATE
        lifetime = min(lifetime, LEAF_LIFETIME) - backdate
        return self._issuer.certify(identity, key, self._now(), lifetime, backdate)

    def record_certified(self, pod: PodKey, not_after: datetime, known_until: datetime | None = None) -> None:
        """Remember when the certificate of a sidecar with its own key expires.

        After `known_until`, it is not known any more: the sidecar renews its certificate before that time,
        and another replica may sign it.
        """
        self._certified[pod] = not_after, known_until or not_after

    def _certified_until(self, pod: PodKey) -> datetime | None:
        """Return when the certificate for a sidecar's own key expires; None if that is not known."""
        not_after, known_until = self._certified.get(pod, (None, None))
        return not_after if known_until and self._now() < known_until else None

    def renew_at(self, pod: Pod) -> datetime | None:
        """Return when the pod's certificate is due for renewal; None if it has none."""
        return self._issuer.renew_at(pod)

    def expires_at(self, pod: Pod) -> datetime | None:
        """Return when the pod's certificate expires; None if it has none."""
        return self._issuer.expires_at(pod) or self._certified_until(pod.key)

    @property
    def key_problem(self) -> str:
        """Why a sidecar gets no key from the control plane; empty if it gets one."""
        if not self._external:
            return ""
        return (
            "it asks the control plane for a key, but --signer-command signs only keys that sidecars make: "
            "start Envoy with xds proxy and XDS_KEY_DIR"
        )

    @property
    def signer_expiry(self) -> datetime | None:
        """Time when the first root of the external signer expires; None without one."""
        return self._external.root_expiry if self._external else None

    @property
    def signer_roots(self) -> bytes:
        """Roots of the external signer, in PEM form; empty without one."""
        return self._external.roots_pem if self._external else b""

    @property
    def lifetime(self) -> timedelta:
        """Longest lifetime of certificates that the CA issues."""
        return self._lifetime

    def forget(self, pod: Pod) -> None:
        """Forget the certificate and key of a deleted pod."""
        self.forget_key(pod)
        self._certified.pop(pod.key, None)

    def forget_key(self, pod: Pod) -> None:
        """Forget the key that was made for a pod, and its certificate."""
        self._issuer.forget(pod)
        self._served.pop(pod.key, None)

    def stats(self) -> CertificateStats:
        """Return certificate statistics."""
        now = self._now()
        self._certified = {pod: times for pod, times in self._certified.items() if now < times[1]}
        expiries = [*self._issuer.expiries(), *(not_after for not_after, _ in self._certified.values())]
        return CertificateStats(
            issued=(self._external or self._issuer).issued,
            current=len(expiries),
            soonest_expiry=min(expiries, default=None),
            root_expiry=self.signer_expiry or self._authority.expires,
        )

    async def run(self, connected: Callable[[], Iterable[Pod]], renew: Callable[[Pod], None]) -> None:
        """Call `renew` for each connected pod whose secrets change or are due, until cancelled."""

        def renew_all() -> None:
            for pod in connected():
                renew(pod)

        async with asyncio.TaskGroup() as tasks:
            if self._external:
                tasks.create_task(self._external.run(renew_all))
            tasks.create_task(self._follow_renewals(connected, renew))

    async def _follow_renewals(
        self, connected: Callable[[], Iterable[Pod]], renew: Callable[[Pod], None]
    ) -> None:
        while True:
            self._changed.clear()
            due_at = {pod.ref: (at, pod) for pod in connected() if (at := self._issuer.renew_at(pod))}
            now = self._now()
            for at, pod in due_at.values():
                if at <= now:
                    renew(pod)
            self._next_at = min((at for at, _ in due_at.values()), default=None)
            seconds = (self._next_at - now).total_seconds() if self._next_at else CLOCK_CHECK_INTERVAL
            with suppress(TimeoutError):
                async with asyncio.timeout(min(max(seconds, RETRY_DELAY), CLOCK_CHECK_INTERVAL)):
                    await self._changed.wait()
