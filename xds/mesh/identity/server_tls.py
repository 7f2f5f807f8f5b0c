"""TLS certificate of the control plane's servers. It is renewed without a restart."""

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
"""Default name of the control plane's Service."""


class Trust(NamedTuple):
    """The CA of the server certificate, and the roots for client certificates."""

    authority: Authority
    """CA that issues the server certificate."""
    roots: bytes
    """PEM roots that verify client certificates."""
    bridges: bytes = b""
    """PEM roots cross-signed by previous CAs, for clients that trust only an older root."""


def service_names(namespace: str, name: str = NAME) -> tuple[str, ...]:
    """Return the DNS names of a Service, the name for clients in other namespaces first."""
    host = f"{name}.{namespace}"
    return f"{host}.svc", f"{host}.svc.cluster.local", host, name


class ServerCertificate:
    """Server certificate for DNS names and addresses, as gRPC credentials.

    gRPC fetches the certificate before each handshake. It is renewed after half of its lifetime, or when
    `trust` returns another CA. If renewal fails, the old certificate stays in use. The constructor raises
    IdentityError if it cannot issue a certificate.
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
        self._lock = threading.Lock()  # gRPC calls from its own threads
        self._issued = self._issue(trust())
        self._failure = ""

    def credentials(self, *, certificate_required: bool) -> grpc.ServerCredentials:
        """Return credentials for a port. With `certificate_required`, clients must present a certificate."""
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
                except Exception as error:  # noqa: BLE001 - gRPC would hide the reason
                    if str(error) != self._failure:
                        self._failure = str(error)
                        log.error(  # noqa: TRY400 - log.exception would include keys in local variables
                            "server certificate renewal failed", stack=traceback.format_exc()
                        )
            return self._issued

    def _issue(self, trust: Trust) -> _Issued:
        leaf = trust.authority.issue_server(self._names, self._now())
        configuration = grpc.ssl_server_certificate_configuration(
            [(leaf.key.to_pem(), leaf.chain + trust.bridges)], root_certificates=trust.roots
        )
        log.info(
            "server certificate issued",
            names=self._names,
            fingerprint=leaf.fingerprint[:16],
            expires=leaf.not_after.isoformat(),
        )
        return _Issued(trust, leaf, configuration)


class _Issued(NamedTuple):
    trust: Trust
    leaf: Leaf
    configuration: grpc.ServerCertificateConfiguration
