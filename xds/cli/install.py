"""`xds install`."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from enum import StrEnum
from ipaddress import ip_network
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from xds.cli import options, tables
from xds.cli.install_crds import DryRun
from xds.cli.install_crds import show as show_kinds

if TYPE_CHECKING:
    from xds.mesh.kube.api import Json, KubeApi
    from xds.mesh.kube.install import InstallResult
    from xds.mesh.model.objects import MeshConfig


class Part(StrEnum):
    """What is installed."""

    CRDS = "crds"
    CONTROL_PLANE = "control-plane"
    MESH = "mesh"


class Format(StrEnum):
    """What to print."""

    TABLE = "table"
    YAML = "yaml"


def install(
    *,
    assignments: options.Assignments = None,
    mesh_config: options.MeshConfigFile = None,
    image: Annotated[
        str, typer.Option("--image", metavar="IMAGE", help="The control plane's image.")
    ] = "xds:latest",
    only: Annotated[
        list[Part] | None,
        typer.Option(
            "--only",
            help="One part only: the kinds that the cluster lacks, the control plane, or the mesh's first policies. Can be "
            "repeated.",
            show_default=False,
        ),
    ] = None,
    network_policy: Annotated[
        bool,
        typer.Option(
            "--network-policy/--no-network-policy",
            help="Install a NetworkPolicy that limits who can connect to the control plane; or delete it.",
        ),
    ] = True,
    api_server_cidr: Annotated[
        list[str] | None,
        typer.Option(
            "--api-server-cidr",
            metavar="CIDR",
            help="Network that the API server calls the webhook from, for the NetworkPolicy. Can be repeated. Without it, "
            "any address can connect to the webhook.",
            show_default=False,
        ),
    ] = None,
    dry_run: DryRun = False,
    output: Annotated[
        Format,
        typer.Option(
            "-o", "--output", help="A table of what was done; or all objects as YAML, and nothing is done."
        ),
    ] = Format.TABLE,
    kubeconfig: options.Kubeconfig = None,
    context: options.Context = None,
) -> None:
    """Install the control plane into a cluster, or bring it up to date: what is there and right is left as it is.

    --set values.global.mtls.auto=true|false is whether clients send mutual TLS by themselves; values.global.mtls.enabled is
    what the mesh begins with: MeshPolicy default, PERMISSIVE (false) or STRICT with a rule for all services (true). Policies
    that others have changed since are left as they are. Exit status: 0 done, 1 something was refused or a kind cannot be
    used, 2 wrong use, 3 the API server cannot be asked.
    """
    parts = frozenset(only or Part)
    _, config = options.settings(mesh_config, assignments)
    mesh = _mesh(mesh_config, assignments or ())
    from xds.mesh.kube import install as kube  # noqa: PLC0415

    objects = kube.control_plane(image=image, mesh=mesh, api_server_cidrs=_networks(api_server_cidr or ()))
    switched_off = [each for each in objects if each["kind"] == "NetworkPolicy" and not network_policy]
    objects = [each for each in objects if each not in switched_off]
    if output is Format.YAML:
        _print(parts, config, objects)
        return

    async def put() -> bool:
        async with options.connected(kubeconfig, context) as api:
            return await _install(api, parts, config, objects, switched_off, dry_run=dry_run)

    raise typer.Exit(not asyncio.run(put()))


def _networks(texts: Iterable[str]) -> list[str]:
    try:
        return [str(ip_network(text)) for text in texts]
    except ValueError as error:
        raise typer.BadParameter(
            f"{error}: write a network such as 10.0.0.0/24", param_hint="'--api-server-cidr'"
        ) from None


def _mesh(file: Path | None, assignments: Iterable[str]) -> dict[str, Any]:
    """Return the settings as one document; that they are good has been seen to."""
    from xds.mesh.parse import merged  # noqa: PLC0415
    from xds.mesh.sources.documents import Document, read_documents  # noqa: PLC0415

    document: dict[str, Any] = {"enableAutoMtls": True}
    for each in read_documents(file.read_text("utf-8-sig"), str(file)) if file else ():
        if isinstance(each, Document) and isinstance(each.value, dict):
            document |= each.value
    return merged(document, assignments)


def _print(parts: frozenset[Part], config: MeshConfig, objects: list[Json]) -> None:
    import yaml  # noqa: PLC0415

    from xds.mesh.kube import crds  # noqa: PLC0415
    from xds.mesh.kube import install as kube  # noqa: PLC0415

    objects = [
        *(crds.definitions() if Part.CRDS in parts else ()),
        *((kube.namespace(), *objects) if Part.CONTROL_PLANE in parts else ()),
        *(kube.default_policies(config) if Part.MESH in parts else ()),
    ]
    typer.echo(yaml.safe_dump_all(objects, sort_keys=False, width=120), nl=False)


async def _install(
    api: KubeApi,
    parts: frozenset[Part],
    config: MeshConfig,
    objects: list[Json],
    switched_off: list[Json],
    *,
    dry_run: bool,
) -> bool:
    """Install the parts, and say what was done; tell whether all kinds can be used.

    `objects`: the control plane's; `switched_off`: those of them that are not to be there.
    """
    from xds.mesh.kube import crds  # noqa: PLC0415
    from xds.mesh.kube.install import Installer  # noqa: PLC0415

    usable = True
    if Part.CRDS in parts:
        kinds = await crds.install(api, dry_run=dry_run)
        show_kinds(kinds, dry_run=dry_run)
        typer.echo()
        usable = not any(kind.problem for kind in kinds)
    installer = Installer(api, dry_run=dry_run)
    done: list[InstallResult] = []
    if Part.CONTROL_PLANE in parts:
        done += [await installer.namespace(), *await installer.control_plane(objects)]
        done += await installer.remove(switched_off)
    if Part.MESH in parts:
        done += await installer.policies(config, await crds.served_versions(api))
    _show(done, dry_run=dry_run)
    return usable


def _show(done: Iterable[InstallResult], *, dry_run: bool) -> None:
    from rich.text import Text  # noqa: PLC0415

    table = tables.Table("OBJECT", "STATUS")
    for each in done:
        said = f"{each.outcome}: {each.why}" if each.why else each.outcome.value
        if dry_run and each.outcome in ("created", "changed", "deleted"):
            said = f"would be {said}"
        table.add_row(Text(each.title), Text(said, "yellow" if each.why else ""))
    table.show()
