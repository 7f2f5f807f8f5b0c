"""The certificate that the control plane shows itself, always from the CA that issues now, without a restart."""

from __future__ import annotations

import threading
import traceback
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import NamedTuple

import grpc
import structlog

from xds.mesh.identity.ca import Authority, Leaf

log = structlog.get_logger(__name__)

NAME = "xds"
"""Of our Service, unless told otherwise."""


class Trust(NamedTuple):
    """By whom we are signed, and whose signature we take."""

    authority: Authority
    roots: bytes
    """In PEM form; certificates of clients are verified against them."""
    bridges: bytes = b""
    """Certificates of the issuing CA by those before it, in PEM form, for clients that still know only an older root."""


def service_names(namespace: str, name: str = NAME) -> tuple[str, ...]:
    """Return the DNS names of a Service, the one that clients in other namespaces use first."""
    host = f"{name}.{namespace}"
    return f"{host}.svc", f"{host}.svc.cluster.local", host, name


class ServerCertificate:
    """A server's certificate for DNS names and addresses, and gRPC's credentials with it.

    gRPC asks for it before each handshake: it is made anew when half of its life is over, or `trust` says another CA.
    If that fails, the one there is stays. IdentityError: the first one cannot be made.
    """

    def __init__(
        self,
        names: Sequence[str],
        trust: Callable[[], Trust],
        *,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._names = tuple(names)
        self._trust = trust
        self._now = now
        self._lock = threading.Lock()  # gRPC asks in threads of its own
        self._issued = self._issue(trust())
        self._failure = ""

    def credentials(self, *, certificate_required: bool) -> grpc.ServerCredentials:
        """Return credentials for a port; `certificate_required`: clients have to show one that leads to our roots."""
        served = self._issued

        def fetch() -> grpc.ServerCertificateConfiguration | None:
            nonlocal served
            current = self._current()
            if current is served:
                return None
            served = current
            return current.configuration

        return grpc.dynamic_ssl_server_credentials(
            served.configuration, fetch, require_client_authentication=certificate_required
        )

    def _current(self) -> _Issued:
        with self._lock:
            trust, now = self._trust(), self._now()
            issued = self._issued
            if issued.trust != trust or not issued.leaf.not_before <= now < issued.leaf.renew_at:
                try:
                    self._issued = self._issue(trust)
                    self._failure = ""
                except Exception as error:  # noqa: BLE001 - told in full; gRPC would only say that nothing came
                    if str(error) != self._failure:
                        self._failure = str(error)
                        log.error(  # noqa: TRY400 - as text: there may be keys among the local variables
                            "the server's certificate could not be renewed", stack=traceback.format_exc()
                        )
            return self._issued

    def _issue(self, trust: Trust) -> _Issued:
        leaf = trust.authority.issue_server(self._names, self._now())
        configuration = grpc.ssl_server_certificate_configuration(
            [(leaf.key.to_pem(), leaf.chain + trust.bridges)], root_certificates=trust.roots
        )
        log.info(
            "certificate of the server",
            names=self._names,
            fingerprint=leaf.fingerprint[:16],
            expires=leaf.not_after.isoformat(),
        )
        return _Issued(trust, leaf, configuration)


class _Issued(NamedTuple):
    trust: Trust
    leaf: Leaf
    configuration: grpc.ServerCertificateConfiguration
