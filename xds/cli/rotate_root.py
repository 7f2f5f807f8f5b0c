"""`xds rotate-root`."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from xds.cli import cluster
from xds.cli.options import Context, Kubeconfig, fail
from xds.mesh.controlplane.status import duration
from xds.mesh.identity.ca import Authority
from xds.mesh.identity.chain import subject
from xds.mesh.identity.keys import IdentityError, PrivateKey
from xds.mesh.identity.rotation import DEFAULT_TIMING, Authorities, Stage
from xds.mesh.kube.ca_secret import SECRET, USER_SECRET, AuthorityError, CaSecrets

EXAMPLES = """
xds rotate-root
xds rotate-root --status
"""


def rotate_root(
    *,
    status: Annotated[
        bool, typer.Option("--status", help="Print the state of a rotation without starting one.")
    ] = False,
    namespace: Annotated[
        str, typer.Option("--namespace", "-n", metavar="NAME", help="Namespace of the control plane.")
    ] = "istio-system",
    trust_domain: Annotated[
        str | None,
        typer.Option(
            "--trust-domain",
            metavar="NAME",
            help="Trust domain of the new root certificate. Default: the current trust domain.",
        ),
    ] = None,
    kubeconfig: Kubeconfig = None,
    context: Context = None,
) -> None:
    """Start the rotation of the mesh's root certificate, or print the state of a rotation in progress.

    The control plane completes the rotation without failed requests. First, sidecars trust the new root in
    addition to the old one. Then the new root issues their certificates. A day later, they stop trusting the
    old root. To rotate your own CA (Secret cacerts), change that Secret instead.

    Exit status: 0 started or printed, 1 the rotation is not possible, 2 wrong usage, 3 the API server cannot
    be reached.
    """
    asyncio.run(_rotate(status, namespace, trust_domain, kubeconfig, context))


async def _rotate(
    status: bool,
    namespace: str,
    trust_domain: str | None,
    kubeconfig: Path | None,
    context: str | None,
) -> None:
    async with cluster.connect(kubeconfig, context) as api:
        secrets = CaSecrets(api, namespace)
        try:
            authorities = (
                await _read(secrets, namespace) if status else await _begin(secrets, namespace, trust_domain)
            )
        except (AuthorityError, IdentityError) as error:
            fail(str(error), 1)
    typer.echo(_describe(authorities))


async def _read(secrets: CaSecrets, namespace: str) -> Authorities:
    stored = await secrets.read(datetime.now(UTC))
    if stored is None:
        fail(f"no CA found: xds serve creates the Secret {namespace}/{SECRET} when it starts", 1)
    return stored.authorities


async def _begin(secrets: CaSecrets, namespace: str, trust_domain: str | None) -> Authorities:
    """Start a rotation unless one is in progress; retry if another client changes the Secret meanwhile."""
    while True:
        now = datetime.now(UTC)
        stored = await secrets.read(now)
        if stored is None or stored.authorities.stage is not Stage.STEADY:
            return await _read(secrets, namespace)
        if await secrets.read_user_authority(now):
            fail(
                f"the mesh uses your own CA: change the Secret {namespace}/{USER_SECRET} to start a rotation",
                1,
            )
        domain = trust_domain or stored.authorities.authority.trust_domain
        if not domain:
            fail("the root certificate contains no trust domain: set --trust-domain", 1)
        new_root = Authority.create(PrivateKey.generate(), domain, now)
        if written := await secrets.replace(stored, stored.authorities.begin(new_root, now)):
            return written.authorities


def _describe(authorities: Authorities) -> str:
    issuer = f"certificates are issued by {subject(authorities.authority.certificate)}"
    elapsed = (datetime.now(UTC) - authorities.since).total_seconds() if authorities.since else 0.0
    match authorities.stage:
        case Stage.SPREADING:
            remaining = max(0.0, DEFAULT_TIMING.spread.total_seconds() - elapsed)
            return (
                f"step 1 of 2, for {duration(elapsed)}: the new root is trusted in addition to the old one; "
                f"{issuer}. The new root issues certificates once every connected sidecar trusts it, in "
                f"{duration(remaining)} at the earliest"
            )
        case Stage.RETIRING:
            remaining = max(0.0, DEFAULT_TIMING.retire.total_seconds() - elapsed)
            return (
                f"step 2 of 2, for {duration(elapsed)}: {issuer}. The old root stops being trusted in "
                f"{duration(remaining)}"
            )
        case Stage.STEADY:
            return f"no rotation in progress: {issuer}, until {authorities.authority.expires:%Y-%m-%d}"
