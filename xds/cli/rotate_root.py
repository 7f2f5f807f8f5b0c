"""`xds rotate-root`."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import typer

from xds.cli import options

if TYPE_CHECKING:
    from xds.mesh.identity.rotation import Authorities
    from xds.mesh.kube.ca_secret import Secrets


def rotate_root(
    *,
    status: Annotated[
        bool, typer.Option("--status", help="Only say how far a rotation is that is under way.")
    ] = False,
    namespace: Annotated[
        str, typer.Option("--namespace", "-n", metavar="NAME", help="Where the control plane is.")
    ] = "istio-system",
    trust_domain: Annotated[
        str | None,
        typer.Option(
            "--trust-domain",
            metavar="NAME",
            help="The new root's. Without it: the old one's.",
            show_default=False,
        ),
    ] = None,
    kubeconfig: options.Kubeconfig = None,
    context: options.Context = None,
) -> None:
    """Begin to replace the mesh's root certificate, or say how far that is.

    The control plane does the rest, without a request that fails: first the new root is trusted beside the old one, then
    certificates are issued from it, and after a day the old one goes. A CA of your own (Secret cacerts) is replaced by changing
    that Secret. Exit status: 0 done, 1 it cannot be done, 2 wrong use, 3 the API server cannot be asked.
    """
    asyncio.run(_rotate(status, namespace, trust_domain, kubeconfig, context))


async def _rotate(
    status: bool,
    namespace: str,
    trust_domain: str | None,
    kubeconfig: options.Kubeconfig,
    context: options.Context,
) -> None:
    from xds.mesh.identity.keys import IdentityError  # noqa: PLC0415
    from xds.mesh.kube.ca_secret import AuthorityError, Secrets  # noqa: PLC0415

    async with options.connected(kubeconfig, context) as api:
        secrets = Secrets(api, namespace)
        try:
            found = (
                await _found(secrets, namespace) if status else await _begun(secrets, namespace, trust_domain)
            )
        except (AuthorityError, IdentityError) as error:
            options.fail(str(error), 1)
    typer.echo(_words(found))


async def _found(secrets: Secrets, namespace: str) -> Authorities:
    from xds.mesh.kube.ca_secret import SECRET  # noqa: PLC0415

    kept = await secrets.read(datetime.now(UTC))
    if kept is None:
        options.fail(f"there is no CA yet: xds serve makes the Secret {namespace}/{SECRET} when it starts", 1)
    return kept.authorities


async def _begun(secrets: Secrets, namespace: str, trust_domain: str | None) -> Authorities:
    from xds.mesh.identity.ca import Authority  # noqa: PLC0415
    from xds.mesh.identity.keys import PrivateKey  # noqa: PLC0415
    from xds.mesh.identity.rotation import Stage  # noqa: PLC0415
    from xds.mesh.kube.ca_secret import USERS  # noqa: PLC0415

    while True:
        now = datetime.now(UTC)
        kept = await secrets.read(now)
        if kept is None or kept.authorities.stage is not Stage.STEADY:
            return await _found(secrets, namespace)
        if await secrets.users(now):
            options.fail(
                f"the mesh's CA is your own: put another into the Secret {namespace}/{USERS}, and the rotation begins",
                1,
            )
        domain = trust_domain or kept.authorities.authority.trust_domain
        if not domain:
            options.fail("the root does not say whose trust domain it is: say --trust-domain", 1)
        new = Authority.create(PrivateKey.generate(), domain, now)
        if written := await secrets.replace(kept, kept.authorities.begin(new, now)):
            return written.authorities


def _words(found: Authorities) -> str:
    from xds.mesh.controlplane.status import duration  # noqa: PLC0415
    from xds.mesh.identity.chain import subject  # noqa: PLC0415
    from xds.mesh.identity.rotation import DEFAULT_TIMING, Stage  # noqa: PLC0415

    issuer = f"certificates are issued by {subject(found.authority.certificate)}"
    waited = (datetime.now(UTC) - found.since).total_seconds() if found.since else 0.0
    match found.stage:
        case Stage.SPREADING:
            left = max(0.0, DEFAULT_TIMING.spread.total_seconds() - waited)
            return (
                f"step 1 of 2, since {duration(waited)}: the new root is trusted beside the old one; {issuer}. In "
                f"{duration(left)} at the earliest, and once every connected sidecar has taken it, they are the new one's"
            )
        case Stage.RETIRING:
            left = max(0.0, DEFAULT_TIMING.retire.total_seconds() - waited)
            return f"step 2 of 2, since {duration(waited)}: {issuer}. The old root goes in {duration(left)}"
        case Stage.STEADY:
            return f"no rotation is under way: {issuer}, until {found.authority.expires:%Y-%m-%d}"
