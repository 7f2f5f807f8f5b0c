"""Another root, without a request that fails: three steps, each a state that can be kept and gone on from by anybody.

1. SPREADING: the new root is trusted beside the old one; certificates are still the old CA's.
2. RETIRING: certificates are the new CA's; those of the old one, which peers may show for as long as they live, are trusted.
3. STEADY: only the new root is trusted.

Pure: the time is an argument, and whether everybody trusts the new root is for the caller to know.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import StrEnum
from typing import NamedTuple

from cryptography import x509

from xds.mesh.identity import chain
from xds.mesh.identity.ca import LEAF_LIFETIME, Authority
from xds.mesh.identity.keys import IdentityError

CERTIFICATE, KEY, ROOT, CHAIN = "ca-cert.pem", "ca-key.pem", "root-cert.pem", "cert-chain.pem"
"""What a CA is kept under: Istio's names."""
OLD_ROOTS, BRIDGES, SINCE, NEXT = "old-roots.pem", "bridges.pem", "rotation-since", "next-"
"""The rest of a rotation's state; the new CA is under the same names with `next-` before them."""


MAX_BRIDGES = 8
"""That are kept: they make each handshake with the control plane longer."""


class Timing(NamedTuple):
    """How long each step of a rotation lasts."""

    spread: timedelta = timedelta(minutes=10)
    """How long a new root is trusted before certificates are its: for replicas, files in pods and proxies to get it."""
    give_up: timedelta = LEAF_LIFETIME
    """How long a proxy that does not take the new root holds this up. After that it has no valid certificate any more anyway."""
    retire: timedelta = LEAF_LIFETIME + timedelta(hours=1)
    """How long the old root is trusted after that: no certificate of its CA lives longer."""


DEFAULT_TIMING = Timing()


class Stage(StrEnum):
    """How far a rotation is."""

    STEADY = "steady"
    SPREADING = "spreading"
    RETIRING = "retiring"


@dataclass(frozen=True, slots=True, kw_only=True)
class Authorities:
    """The CA whose certificates are given out, and what becomes or became of others."""

    authority: Authority
    """The one that issues."""
    upcoming: Authority | None = None
    """The one that will, once its root is trusted everywhere."""
    retired: tuple[x509.Certificate, ...] = ()
    """Roots of those that did."""
    bridges: tuple[x509.Certificate, ...] = ()
    """Certificates of roots by the CAs before them, the newest first. Envoy reads the roots by which it knows the control plane
    once: a sidecar that is older than a root knows it by these."""
    since: datetime | None = None
    """Since when the stage is what it is; None if no rotation is under way."""

    @property
    def stage(self) -> Stage:
        """How far the rotation is."""
        if self.upcoming:
            return Stage.SPREADING
        return Stage.RETIRING if self.retired else Stage.STEADY

    @property
    def trusted(self) -> tuple[x509.Certificate, ...]:
        """All roots that are trusted, each once; the issuing CA's first."""
        upcoming = self.upcoming.roots if self.upcoming else ()
        return tuple(dict.fromkeys((*self.authority.roots, *upcoming, *self.retired)))

    @property
    def trusted_pem(self) -> bytes:
        """They in PEM form."""
        return chain.to_pem(self.trusted)

    @property
    def extra_roots(self) -> tuple[bytes, ...]:
        """Those that are not the issuing CA's, each in PEM form."""
        return tuple(chain.to_pem([root]) for root in self.trusted if root not in self.authority.roots)

    def begin(self, new: Authority, now: datetime) -> Authorities:
        """Take another CA; one whose roots are trusted already issues from now on."""
        started = replace(self, upcoming=new, since=now)
        return started._promote(now) if set(new.roots) <= set(self.trusted) and not self.upcoming else started

    def advance(
        self, now: datetime, *, is_trusted_everywhere: bool, timing: Timing = DEFAULT_TIMING
    ) -> Authorities:
        """Take the next step if it is time for it; else return the same.

        Args:
            now: the time.
            is_trusted_everywhere: whether all connected proxies have taken the roots that are trusted now.
            timing: how long the steps last.
        """
        elapsed = now - (self.since or now)
        match self.stage:
            case Stage.SPREADING if elapsed >= timing.spread and (
                is_trusted_everywhere or elapsed >= timing.give_up
            ):
                return self._promote(now)
            case Stage.RETIRING if elapsed >= timing.retire:
                return Authorities(authority=self.authority, bridges=self.bridges)
        return self

    def _promote(self, now: datetime) -> Authorities:
        new = self.upcoming or self.authority
        retired = tuple(root for root in self.trusted if root not in new.roots)
        bridge = self.authority.bridge(new, now)
        bridges = ((*chain.read(bridge), *self.bridges) if bridge else self.bridges)[:MAX_BRIDGES]
        return Authorities(
            authority=new,
            retired=retired,
            bridges=tuple(bridge for bridge in bridges if bridge.not_valid_after_utc > now),
            since=now if retired else None,
        )

    @property
    def bridges_pem(self) -> bytes:
        """The bridges in PEM form: what the control plane shows besides its own chain."""
        return chain.to_pem(self.bridges)

    def to_data(self) -> dict[str, bytes]:
        """Return what is to be kept, keys and all: it must not be logged."""
        data = _to_data(self.authority)
        if self.upcoming:
            data |= {NEXT + name: pem for name, pem in _to_data(self.upcoming).items()}
        if self.retired:
            data[OLD_ROOTS] = chain.to_pem(self.retired)
        if self.bridges:
            data[BRIDGES] = chain.to_pem(self.bridges)
        if self.since:
            data[SINCE] = self.since.isoformat().encode()
        return data

    @classmethod
    def from_data(cls, data: Mapping[str, bytes], now: datetime) -> Authorities:
        """Read what was kept. IdentityError: it cannot be used, and why."""
        upcoming = read_authority(data, now, NEXT) if NEXT + CERTIFICATE in data else None
        retired = chain.read(data[OLD_ROOTS]) if OLD_ROOTS in data else ()
        bridges = chain.read(data[BRIDGES]) if BRIDGES in data else ()
        since = None
        if upcoming or retired:
            try:
                since = datetime.fromisoformat(data[SINCE].decode())
            except (KeyError, ValueError):
                raise IdentityError(f"{SINCE} does not say since when the rotation waits") from None
            if since.tzinfo is None:
                raise IdentityError(f"{SINCE} has no time zone")
        return cls(
            authority=read_authority(data, now),
            upcoming=upcoming,
            retired=retired,
            bridges=bridges,
            since=since,
        )


def read_authority(data: Mapping[str, bytes], now: datetime, prefix: str = "") -> Authority:
    """Read a CA that is kept under Istio's names. IdentityError: it cannot be used, and why."""
    for name in (CERTIFICATE, KEY):
        if not data.get(prefix + name, b"").strip():
            raise IdentityError(f"{prefix}{name} is missing")
    optional = {"root": data.get(prefix + ROOT, b""), "chain": data.get(prefix + CHAIN, b"")}
    return Authority.load(data[prefix + CERTIFICATE], data[prefix + KEY], now, **optional)


def _to_data(ca: Authority) -> dict[str, bytes]:
    data = {CERTIFICATE: ca.certificate_pem, KEY: ca.key.to_pem(), ROOT: chain.to_pem(ca.roots)}
    if ca.issuers:
        data[CHAIN] = chain.to_pem([ca.certificate, *ca.issuers])
    return data
