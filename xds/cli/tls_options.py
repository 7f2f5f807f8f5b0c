"""How `xds serve` lets others in than this machine: where it listens with TLS, and for whom."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from xds.cli import options
from xds.cli.options import Address

if TYPE_CHECKING:
    from xds.cli.runtime import Door
    from xds.mesh.controlplane.controller import Hub
    from xds.mesh.identity.auth import TokenVerifier
    from xds.mesh.identity.claims import Identity
    from xds.mesh.identity.rotation import Authorities
    from xds.mesh.kube.api import KubeApi

TlsAddress = Annotated[
    str | None,
    typer.Option(
        "--xds-tls-address",
        metavar="HOST:PORT",
        help="Where sidecars connect over TLS, and show a service account's token. With --kubernetes 0.0.0.0:15012 "
        "unless said. With --manifests off unless said; it takes the tokens of xds token, and needs --state-dir.",
        show_default=False,
    ),
]
MtlsAddress = Annotated[
    str | None,
    typer.Option(
        "--xds-mtls-address",
        metavar="HOST:PORT",
        help="Where the same is served to who shows a client certificate of our CA. With --kubernetes 0.0.0.0:15013 "
        "unless said.",
        show_default=False,
    ),
]
TlsNames = Annotated[
    list[str] | None,
    typer.Option(
        "--tls-name",
        metavar="NAME",
        help="A DNS name or an address that clients reach us by over TLS, besides those of the Service and of this "
        "machine. Can be repeated.",
        show_default=False,
    ),
]
AdminIdentities = Annotated[
    list[str] | None,
    typer.Option(
        "--admin-identity",
        metavar="IDENTITY",
        help="Who may ask about the control plane over TLS (xds status, reflection, CSDS, channelz): "
        "NAMESPACE/SERVICE_ACCOUNT or a SPIFFE id. Can be repeated. Without it: the control plane's own account.",
        show_default=False,
    ),
]

TLS, MTLS = "0.0.0.0:15012", "0.0.0.0:15013"


class Doors:
    """What the options said; `tokens`: somebody can judge them."""

    def __init__(
        self,
        *,
        kubernetes: bool,
        tokens: bool,
        tls: str | None,
        mtls: str | None,
        names: Iterable[str] | None,
        admins: Iterable[str] | None,
    ) -> None:
        self._tls = _address("--xds-tls-address", tls or (TLS if kubernetes else None))
        self._mtls = _address("--xds-mtls-address", mtls or (MTLS if kubernetes else None))
        self._names = tuple(names or ())
        self._admins = tuple(map(_identity, admins or ()))
        given = self._names or self._admins
        if given and not self.addresses:
            which = "--tls-name" if self._names else "--admin-identity"
            options.fail(f"{which} is for --xds-tls-address and --xds-mtls-address: say one of them")
        if self._tls and not tokens:
            options.fail(
                "--xds-tls-address takes the tokens of `xds token`: say with --state-dir where the key is kept that signs them"
            )

    @property
    def takes_tokens(self) -> bool:
        """Whether somebody has to judge tokens."""
        return self._tls is not None

    @property
    def addresses(self) -> tuple[Address, ...]:
        """Where TLS is spoken."""
        return tuple(each for each in (self._tls, self._mtls) if each)

    async def door(
        self,
        hub: Hub,
        ca: Callable[[], Authorities],
        *,
        judge: TokenVerifier | None,
        api: KubeApi | None = None,
        namespace: str = "",
    ) -> Door | None:
        """Return what opens; None: nothing does.

        `ca` says who issues and which roots are trusted, `judge` whose a token is, `namespace` where the control plane is, if it
        is in a cluster.
        """
        if not self.addresses:
            return None
        from xds.cli.runtime import Door  # noqa: PLC0415
        from xds.mesh.identity.auth import AdminAuthorizer, Authentication  # noqa: PLC0415
        from xds.mesh.identity.keys import IdentityError  # noqa: PLC0415
        from xds.mesh.identity.server_tls import ServerCertificate, Trust, service_names  # noqa: PLC0415

        names = (*(service_names(namespace) if api else ()), *self._names, *_here(self.addresses))

        def trust() -> Trust:
            now = ca()
            return Trust(now.authority, now.trusted_pem, now.bridges_pem)

        try:
            own = ServerCertificate(tuple(dict.fromkeys(names)), trust)
        except IdentityError as error:
            options.fail(f"--tls-name: {error}")
        places = [(self._tls, False), (self._mtls, True)]
        secure = [(str(at), own.credentials(certificate_required=required)) for at, required in places if at]

        def trust_domains() -> Sequence[str]:
            return hub.mesh.config.trust_domains

        authentication = Authentication(trust_domains, judge)
        admins = self._admins or (await _own_identity(api) if api else ())
        return Door(secure, authentication, AdminAuthorizer(authentication, admins, trust_domains))


async def _own_identity(api: KubeApi) -> tuple[Identity, ...]:
    """Return who we are in the cluster; nobody if that is no service account, or cannot be told."""
    from xds.mesh.identity.claims import Identity  # noqa: PLC0415
    from xds.mesh.kube.api import KubeError  # noqa: PLC0415
    from xds.mesh.kube.tokens import own_account  # noqa: PLC0415

    try:
        namespace, account = await own_account(api)
    except KubeError as error:
        import structlog  # noqa: PLC0415

        structlog.get_logger("xds.cli.serve").warning(
            "nobody may ask about the control plane over TLS: say who with --admin-identity",
            problem=str(error),
        )
        return ()
    return (Identity(namespace, account),) if account else ()


def _address(option: str, text: str | None) -> Address | None:
    return options.address(option, text) if text else None


def _identity(text: str) -> Identity:
    from xds.mesh.identity.claims import Identity  # noqa: PLC0415

    try:
        return Identity.parse(text)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="'--admin-identity'") from error


def _here(addresses: Iterable[Address]) -> tuple[str, ...]:
    """Return by which names this machine reaches us, and a forwarded port does."""
    hosts = [each.host for each in addresses if each.host and not _is_any(each.host)]
    return ("localhost", "127.0.0.1", "::1", *hosts)


def _is_any(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_unspecified
    except ValueError:
        return False
