"""Options of `xds serve` for its listeners, except that of the webhooks."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from xds.cli.options import fail, file_option, parse_address
from xds.mesh.controlplane.page.access import check_token
from xds.mesh.controlplane.parts import Settings
from xds.mesh.identity.ca import server_name
from xds.mesh.identity.claims import IdentityPattern
from xds.mesh.identity.keys import IdentityError
from xds.mesh.model.names import host_port

DEFAULT_TLS_ADDRESS = "0.0.0.0:15012"
"""Default of --xds-tls-address with --kubernetes."""
DEFAULT_MTLS_ADDRESS = "0.0.0.0:15013"
"""Default of --xds-mtls-address with --kubernetes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ListenOptions:
    """Options for listeners and connections."""

    xds_address: Annotated[
        str,
        typer.Option("--xds-address", metavar="HOST:PORT", help="Address of the plaintext xDS listener."),
    ] = "127.0.0.1:15010"
    rest_address: Annotated[
        str | None,
        typer.Option(
            "--rest-address",
            metavar="HOST:PORT",
            help="Address of the plaintext REST xDS listener (POST /v3/discovery:clusters etc.), which "
            "serves no private keys. Default: disabled.",
        ),
    ] = None
    insecure_xds: Annotated[
        bool,
        typer.Option(
            "--insecure-xds",
            help="Allow --xds-address and --rest-address to be reachable from other machines, without "
            "authentication. Plaintext listeners then serve no private keys.",
        ),
    ] = False
    admin_address: Annotated[
        str,
        typer.Option(
            "--admin-address",
            metavar="HOST:PORT",
            help="HTTP address of the page (/), /healthz, /ready and /metrics.",
        ),
    ] = "127.0.0.1:15014"
    admin_token: Annotated[
        Path | None,
        file_option(
            "--admin-token",
            "File with a token that clients need for the page and its API, as a bearer token or as the "
            "password. Default: none; only local clients are admitted, without a token.",
        ),
    ] = None
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
    max_connection_age: Annotated[
        float,
        typer.Option(
            "--max-connection-age",
            metavar="SECONDS",
            min=0,
            help="Maximum age of a sidecar's connection, in seconds (+/-10%). The sidecar then reconnects, "
            "possibly to another replica. 0 disables the limit.",
        ),
    ] = 1800

    def parse(self, *, kubernetes: bool, can_verify_tokens: bool) -> Settings:
        """Return the settings; exit with status 2 if they are invalid or not allowed."""
        tls = self.xds_tls_address or (DEFAULT_TLS_ADDRESS if kubernetes else None)
        mtls = self.xds_mtls_address or (DEFAULT_MTLS_ADDRESS if kubernetes else None)
        settings = Settings(
            xds=parse_address("--xds-address", self.xds_address),
            rest=parse_address("--rest-address", self.rest_address) if self.rest_address else None,
            admin=parse_address("--admin-address", self.admin_address),
            xds_tls=parse_address("--xds-tls-address", tls) if tls else None,
            xds_mtls=parse_address("--xds-mtls-address", mtls) if mtls else None,
            names=tuple(self.tls_names or ()),
            admin_token=self._read_admin_token(),
            admins=tuple(map(_parse_identity, self.admin_identities or ())),
            advertised_host=_advertised_host(self.advertise_address, mtls),
            max_connection_age=self.max_connection_age or None,
        )
        if (exposed := exposed_options(settings)) and not self.insecure_xds:
            fail(
                f"{exposed[0]} is reachable from other machines, without encryption or authentication: "
                "listen on 127.0.0.1, or add --insecure-xds (plaintext listeners then serve no private keys)"
            )
        if self.advertise_address and not kubernetes:
            fail("--advertise-address requires --kubernetes")
        if (settings.names or settings.admins) and not (tls or mtls):
            option = "--tls-name" if settings.names else "--admin-identity"
            fail(f"{option} requires --xds-tls-address or --xds-mtls-address")
        if tls and not can_verify_tokens:
            fail(
                "--xds-tls-address requires --state-dir, which contains the key that signs the tokens of "
                "`xds token`"
            )
        addresses = {"--xds-tls-address": settings.xds_tls, "--xds-mtls-address": settings.xds_mtls}
        hosts = [(option, address[0]) for option, address in addresses.items() if address]
        for option, name in (*hosts, *(("--tls-name", name) for name in settings.names)):
            try:
                server_name(name)
            except IdentityError as error:
                fail(f"{option}: {error}")
        return settings

    def _read_admin_token(self) -> str | None:
        if self.admin_token is None:
            return None
        try:
            return check_token(self.admin_token.read_text("utf-8"))
        except (OSError, ValueError) as error:
            fail(f"--admin-token {self.admin_token}: {error}")


def exposed_options(settings: Settings) -> list[str]:
    """Return the plaintext listeners that other machines can reach, each as `OPTION ADDRESS`."""
    return [f"--{name}-address {host_port(*address)}" for name, address in settings.exposed.items()]


def _parse_identity(text: str) -> IdentityPattern:
    try:
        return IdentityPattern.parse(text)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="'--admin-identity'") from error


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
