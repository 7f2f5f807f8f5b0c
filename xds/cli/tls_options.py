"""Options of `xds serve` for its TLS listeners, and the configuration made from them."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated

import typer

from xds.cli.options import Address, fail, parse_address
from xds.cli.runtime import SecureListeners
from xds.mesh.controlplane.controller import Controller
from xds.mesh.identity.auth import AdminAuthorizer, Authentication, TokenVerifier
from xds.mesh.identity.claims import IdentityPattern
from xds.mesh.identity.keys import IdentityError
from xds.mesh.identity.rotation import Authorities
from xds.mesh.identity.server_tls import ServerCertificate, Trust

DEFAULT_TLS_ADDRESS = "0.0.0.0:15012"
"""Default of --xds-tls-address with --kubernetes."""
DEFAULT_MTLS_ADDRESS = "0.0.0.0:15013"
"""Default of --xds-mtls-address with --kubernetes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TlsOptions:
    """Options for xDS over TLS."""

    xds_tls_address: Annotated[
        str | None,
        typer.Option(
            "--xds-tls-address",
            metavar="HOST:PORT",
            help="Address of the TLS xDS listener, for sidecars that authenticate with a service account "
            "token. With --manifests, requires --state-dir and accepts tokens issued by xds token. "
            "Default: 0.0.0.0:15012 with --kubernetes, else disabled.",
        ),
    ] = None
    xds_mtls_address: Annotated[
        str | None,
        typer.Option(
            "--xds-mtls-address",
            metavar="HOST:PORT",
            help="Address of the mTLS xDS listener, for clients with a certificate signed by the mesh CA. "
            "Default: 0.0.0.0:15013 with --kubernetes, else disabled.",
        ),
    ] = None
    tls_names: Annotated[
        list[str] | None,
        typer.Option(
            "--tls-name",
            metavar="NAME",
            help="DNS name or IP address to add to the server certificate, which always contains the names "
            "of the Service, localhost and the listen addresses. Can be repeated.",
        ),
    ] = None
    admin_identities: Annotated[
        list[str] | None,
        typer.Option(
            "--admin-identity",
            metavar="IDENTITY",
            help="Identity that may use the admin services over TLS (xds status, reflection, CSDS, "
            "channelz): NAMESPACE/SERVICE_ACCOUNT or a SPIFFE ID. Can be repeated. Default: the control "
            "plane's service account.",
        ),
    ] = None

    advertise_address: Annotated[
        str | None,
        typer.Option(
            "--advertise-address",
            metavar="IP",
            help="IP address at which other replicas reach this one's mTLS xDS listener, to merge observed "
            "traffic. Requires --kubernetes. Default: the IP address of --xds-mtls-address, unless that is "
            "0.0.0.0 or [::].",
        ),
    ] = None

    def parse(self, *, kubernetes: bool, can_verify_tokens: bool) -> TlsListeners:
        """Validate the options; exit with status 2 if they are invalid."""
        tls = self.xds_tls_address or (DEFAULT_TLS_ADDRESS if kubernetes else None)
        mtls = self.xds_mtls_address or (DEFAULT_MTLS_ADDRESS if kubernetes else None)
        listeners = TlsListeners(
            tls=parse_address("--xds-tls-address", tls) if tls else None,
            mtls=parse_address("--xds-mtls-address", mtls) if mtls else None,
            names=tuple(self.tls_names or ()),
            admins=tuple(map(_parse_identity, self.admin_identities or ())),
            advertised_host=_advertised_host(self.advertise_address, mtls),
        )
        if self.advertise_address and not kubernetes:
            fail("--advertise-address requires --kubernetes")
        if (listeners.names or listeners.admins) and not listeners.addresses:
            option = "--tls-name" if listeners.names else "--admin-identity"
            fail(f"{option} requires --xds-tls-address or --xds-mtls-address")
        if listeners.tls and not can_verify_tokens:
            fail(
                "--xds-tls-address requires --state-dir, which contains the key that signs the tokens of "
                "`xds token`"
            )
        return listeners


@dataclass(frozen=True, slots=True, kw_only=True)
class TlsListeners:
    """The configuration of the TLS listeners."""

    tls: Address | None
    """Address for clients with or without a certificate; None if there is no such listener."""
    mtls: Address | None
    """Address for clients with a certificate; None if there is no such listener."""
    names: tuple[str, ...]
    """Additional names in the server certificate."""
    admins: tuple[IdentityPattern, ...]
    """Identities that may use the admin services."""
    advertised_host: str = ""
    """IP address at which other replicas reach this one; empty if it is not known."""

    @property
    def accept_tokens(self) -> bool:
        """Whether clients can authenticate with a token."""
        return self.tls is not None

    @property
    def addresses(self) -> tuple[Address, ...]:
        """The addresses of the listeners."""
        return tuple(address for address in (self.tls, self.mtls) if address)

    def open(
        self,
        controller: Controller,
        authorities: Callable[[], Authorities],
        *,
        token_verifier: TokenVerifier | None,
        service_names: Iterable[str] = (),
        own_identity: IdentityPattern | None = None,
    ) -> SecureListeners | None:
        """Return the TLS listeners for the xDS server; None if there are no addresses.

        Args:
            controller: the source of the mesh's settings.
            authorities: returns the issuing CA and the trusted roots.
            token_verifier: verifies tokens; None if no tokens are accepted.
            service_names: DNS names of the control plane's Service.
            own_identity: the control plane's own identity, which is an admin by default; None if it is
                unknown.
        """
        if not self.addresses:
            return None
        names = dict.fromkeys((*service_names, *self.names, *_local_names(self.addresses)))

        def trust() -> Trust:
            current = authorities()
            return Trust(current.authority, current.trusted_pem, current.bridges_pem)

        try:
            certificate = ServerCertificate(tuple(names), trust)
        except IdentityError as error:
            fail(f"--tls-name: {error}")
        credentials = [
            (str(address), certificate.credentials(certificate_required=required))
            for address, required in ((self.tls, False), (self.mtls, True))
            if address
        ]

        def trust_domains() -> Sequence[str]:
            return controller.mesh.config.trust_domains

        authentication = Authentication(trust_domains, token_verifier)
        own = (own_identity,) if own_identity else ()
        return SecureListeners(
            credentials,
            authentication,
            AdminAuthorizer(authentication, self.admins or own, trust_domains),
            AdminAuthorizer(authentication, own, trust_domains, denial="is not a replica"),
        )


def _parse_identity(text: str) -> IdentityPattern:
    try:
        return IdentityPattern.parse(text)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="'--admin-identity'") from error


def _local_names(addresses: Iterable[Address]) -> tuple[str, ...]:
    """Return the names that clients on this machine, or of a forwarded port, connect to."""
    hosts = [address.host for address in addresses if address.host and not _is_unspecified(address.host)]
    return ("localhost", "127.0.0.1", "::1", *hosts)


def _is_unspecified(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_unspecified
    except ValueError:
        return False


def _advertised_host(option: str | None, mtls: str | None) -> str:
    """Return the IP address at which other replicas reach this one; empty if it is not known."""
    host = option or (parse_address("--xds-mtls-address", mtls).host if mtls else "")
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        if option:
            raise typer.BadParameter(
                f"{option!r} is not an IP address", param_hint="'--advertise-address'"
            ) from None
        return ""
    return "" if address.is_unspecified else host
