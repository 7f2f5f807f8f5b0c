"""Replace the mesh root without failed requests, as a state machine that any replica can resume.

1. SPREADING: both roots are trusted; the old CA issues certificates.
2. RETIRING: the new CA issues certificates; the old root stays trusted until its last certificate expires.
3. STEADY: only the new root is trusted.

Pure: the caller passes the time, and whether all proxies trust the new root.
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
"""Keys of a stored CA; Istio's names."""
TLS_CERTIFICATE, TLS_KEY, TLS_ROOT = "tls.crt", "tls.key", "ca.crt"
"""Keys of a user's CA as cert-manager stores it. `tls.crt` also contains the chain, without the root."""
OLD_ROOTS, BRIDGES, SINCE, NEXT = "old-roots.pem", "bridges.pem", "rotation-since", "next-"
"""Keys of the rotation state. The keys of the new CA have the prefix `next-`."""

MAX_BRIDGES = 8
"""Maximum number of bridges. Every handshake with the control plane includes them."""


class Timing(NamedTuple):
    """Durations of the steps of a rotation."""

    spread: timedelta = timedelta(minutes=10)
    """Time to distribute the new root to replicas, pods and proxies before the new CA issues certificates."""
    give_up: timedelta = LEAF_LIFETIME
    """Maximum wait for proxies that do not ACK the new root. By then, their certificates have expired."""
    retire: timedelta = LEAF_LIFETIME + timedelta(hours=1)
    """Time that the old root stays trusted once the new CA issues certificates. By then, the old CA's last
    certificate has expired."""


DEFAULT_TIMING = Timing()


class Stage(StrEnum):
    """Step of a rotation."""

    STEADY = "steady"
    SPREADING = "spreading"
    RETIRING = "retiring"


@dataclass(frozen=True, slots=True, kw_only=True)
class Authorities:
    """The issuing CA, its successor during a rotation, and the roots of its predecessors."""

    authority: Authority
    """CA that issues certificates."""
    upcoming: Authority | None = None
    """CA that issues certificates once its root is trusted everywhere; None without a rotation."""
    retired: tuple[x509.Certificate, ...] = ()
    """Roots of the previous CAs."""
    bridges: tuple[x509.Certificate, ...] = ()
    """Roots cross-signed by their predecessors, newest first.

    Envoy reads the control plane's roots only at startup. A sidecar that started before the current root
    existed verifies the control plane through these bridges."""
    since: datetime | None = None
    """Start of the current stage; None without a rotation."""

    @property
    def stage(self) -> Stage:
        """Current step of the rotation."""
        if self.upcoming:
            return Stage.SPREADING
        return Stage.RETIRING if self.retired else Stage.STEADY

    @property
    def trusted(self) -> tuple[x509.Certificate, ...]:
        """All trusted roots without duplicates, the issuing CA's roots first."""
        upcoming = self.upcoming.roots if self.upcoming else ()
        return tuple(dict.fromkeys((*self.authority.roots, *upcoming, *self.retired)))

    @property
    def trusted_pem(self) -> bytes:
        """All trusted roots in PEM form."""
        return chain.to_pem(self.trusted)

    @property
    def extra_roots(self) -> tuple[bytes, ...]:
        """Trusted roots of other CAs, each in PEM form."""
        return tuple(chain.to_pem([root]) for root in self.trusted if root not in self.authority.roots)

    def begin(self, new: Authority, now: datetime) -> Authorities:
        """Start a rotation to another CA. If its roots are already trusted, the CA issues at once."""
        started = replace(self, upcoming=new, since=now)
        return started._promote(now) if set(new.roots) <= set(self.trusted) and not self.upcoming else started

    def advance(
        self, now: datetime, *, is_trusted_everywhere: bool, timing: Timing = DEFAULT_TIMING
    ) -> Authorities:
        """Return the state after the next step, or this state if the step is not due.

        Args:
            now: current time.
            is_trusted_everywhere: whether all connected proxies have ACKed the currently trusted roots.
            timing: durations of the steps.
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
        """Bridges in PEM form. The control plane sends them after its own chain."""
        return chain.to_pem(self.bridges)

    def to_data(self) -> dict[str, bytes]:
        """Return the state to store. It contains private keys; never log it."""
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
        """Read a stored state. Raise IdentityError if it is invalid."""
        upcoming = read_authority(data, now, NEXT) if NEXT + CERTIFICATE in data else None
        retired = chain.read(data[OLD_ROOTS]) if OLD_ROOTS in data else ()
        bridges = chain.read(data[BRIDGES]) if BRIDGES in data else ()
        since = None
        if upcoming or retired:
            try:
                since = datetime.fromisoformat(data[SINCE].decode())
            except (KeyError, ValueError):
                raise IdentityError(f"{SINCE} is missing or not an ISO 8601 time") from None
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
    """Read a CA stored under Istio's names. Raise IdentityError if it is invalid."""
    _require(data, prefix + CERTIFICATE, prefix + KEY)
    optional = {"root": data.get(prefix + ROOT, b""), "chain": data.get(prefix + CHAIN, b"")}
    return Authority.load(data[prefix + CERTIFICATE], data[prefix + KEY], now, **optional)


def read_user_authority(data: Mapping[str, bytes], now: datetime) -> Authority:
    """Read a user's CA, under Istio's or cert-manager's names. Raise IdentityError if it is invalid."""
    if not {TLS_CERTIFICATE, TLS_KEY} & set(data):
        return read_authority(data, now)
    if both := sorted({CERTIFICATE, KEY, ROOT, CHAIN} & set(data)):
        raise IdentityError(f"it contains both {TLS_CERTIFICATE} and {both[0]}: keep one of the forms")
    _require(data, TLS_CERTIFICATE, TLS_KEY, TLS_ROOT)
    return Authority.load(data[TLS_CERTIFICATE], data[TLS_KEY], now, root=data[TLS_ROOT])


def _require(data: Mapping[str, bytes], *names: str) -> None:
    for name in names:
        if not data.get(name, b"").strip():
            raise IdentityError(f"{name} is missing")


def _to_data(ca: Authority) -> dict[str, bytes]:
    data = {CERTIFICATE: ca.certificate_pem, KEY: ca.key.to_pem(), ROOT: chain.to_pem(ca.roots)}
    if ca.issuers:
        data[CHAIN] = chain.to_pem([ca.certificate, *ca.issuers])
    return data
