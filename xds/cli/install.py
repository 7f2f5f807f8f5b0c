"""`xds install`."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from enum import StrEnum
from ipaddress import ip_network
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml
from rich.text import Text

from xds.cli import cluster
from xds.cli.install_crds import DryRun, print_definitions
from xds.cli.manifests import load_settings
from xds.cli.options import Assignments, Context, Kubeconfig, MeshConfigFile
from xds.cli.output import ManifestFormat
from xds.cli.tables import Table
from xds.mesh.kube import crds
from xds.mesh.kube import install as kube
from xds.mesh.kube.api import Json, KubeApi
from xds.mesh.kube.install import Installer, InstallResult
from xds.mesh.model.objects import MeshConfig
from xds.mesh.parse import merged
from xds.mesh.sources.documents import Document, read_documents

EXAMPLES = """
xds install --image registry.example/xds:1.0
xds install --set values.global.mtls.enabled=true
xds install --dry-run
xds install -o yaml | kubectl apply -f -
"""


class Part(StrEnum):
    """A part of the installation."""

    CRDS = "crds"
    CONTROL_PLANE = "control-plane"
    MESH = "mesh"


def install(
    *,
    assignments: Assignments = None,
    mesh_config: MeshConfigFile = None,
    image: Annotated[
        str, typer.Option("--image", metavar="IMAGE", help="Image of the control plane.")
    ] = "xds:latest",
    only: Annotated[
        list[Part] | None,
        typer.Option(
            "--only",
            help="Part to install: missing CRDs, the control plane, or the mesh's initial policies. Can be "
            "repeated. Default: all parts.",
        ),
    ] = None,
    network_policy: Annotated[
        bool,
        typer.Option(
            "--network-policy/--no-network-policy",
            help="Install a NetworkPolicy that restricts connections to the control plane, or delete it.",
        ),
    ] = True,
    api_server_cidr: Annotated[
        list[str] | None,
        typer.Option(
            "--api-server-cidr",
            metavar="CIDR",
            help="Network that the API server calls the webhook from. The NetworkPolicy then admits no other "
            "address to the webhook. Can be repeated. Default: any address.",
        ),
    ] = None,
    enforce_plan: Annotated[
        bool,
        typer.Option(
            "--enforce-plan",
            help="Refuse policies and DestinationRules that break connections, or whose effects could not be "
            "checked, instead of printing warnings.",
        ),
    ] = False,
    dry_run: DryRun = False,
    output: Annotated[
        ManifestFormat,
        typer.Option(
            "-o", "--output", help="Output format. yaml prints the objects without installing them."
        ),
    ] = "table",
    kubeconfig: Kubeconfig = None,
    context: Context = None,
) -> None:
    """Install or upgrade the control plane in a Kubernetes cluster.

    Idempotent: objects that are up to date are left untouched. So are the initial policies once another
    client, such as kubectl, has changed them.

    --set values.global.mtls.auto=BOOL sets whether clients use automatic mutual TLS.
    --set values.global.mtls.enabled=BOOL sets the initial policies: MeshPolicy default is PERMISSIVE (false),
    or STRICT with a DestinationRule for all services (true).

    Exit status: 0 installed, 1 the API server rejected a request or a kind cannot be used, 2 wrong usage, 3
    the API server cannot be reached.
    """
    parts = frozenset(only or Part)
    _, config = load_settings(mesh_config, assignments)
    mesh = _merge_settings(mesh_config, assignments or ())
    objects = kube.control_plane(
        image=image,
        mesh=mesh,
        api_server_cidrs=_networks(api_server_cidr or ()),
        enforce_plan=enforce_plan,
    )
    disabled = [item for item in objects if item["kind"] == "NetworkPolicy" and not network_policy]
    objects = [item for item in objects if item not in disabled]
    if output == "yaml":
        _print_yaml(parts, config, objects)
        return

    async def connect_and_install() -> bool:
        async with cluster.connect(kubeconfig, context) as api:
            return await _install(api, parts, config, objects, disabled, dry_run=dry_run)

    raise typer.Exit(not asyncio.run(connect_and_install()))


def _networks(texts: Iterable[str]) -> list[str]:
    try:
        return [str(ip_network(text)) for text in texts]
    except ValueError as error:
        raise typer.BadParameter(
            f"{_network_problem(error)}; use a network such as 10.0.0.0/24", param_hint="'--api-server-cidr'"
        ) from None


def _network_problem(error: ValueError) -> str:
    return str(error).replace("does not appear to be an IPv4 or IPv6 network", "is not a network")


def _merge_settings(file: Path | None, assignments: Iterable[str]) -> dict[str, Any]:
    """Return the settings, which must be valid, as one MeshConfig."""
    settings: dict[str, Any] = {"enableAutoMtls": True}
    for document in read_documents(file.read_text("utf-8-sig"), str(file)) if file else ():
        if isinstance(document, Document) and isinstance(document.value, dict):
            settings |= document.value
    return merged(settings, assignments)


def _print_yaml(parts: frozenset[Part], config: MeshConfig, objects: list[Json]) -> None:
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
    disabled: list[Json],
    *,
    dry_run: bool,
) -> bool:
    """Install the parts and print the results; return whether all kinds can be used.

    Args:
        api: the API server.
        parts: the parts to install.
        config: the settings of the mesh.
        objects: the control plane's objects to create or update.
        disabled: the control plane's objects to delete.
        dry_run: whether to send only dry-run requests.
    """
    all_usable = True
    if Part.CRDS in parts:
        definitions = await crds.install(api, dry_run=dry_run)
        print_definitions(definitions, dry_run=dry_run)
        typer.echo()
        all_usable = not any(definition.problem for definition in definitions)
    installer = Installer(api, dry_run=dry_run)
    results: list[InstallResult] = []
    # Until the control plane is ready, an enforcing webhook would refuse the policies.
    enforcing = [item for item in objects if kube.refuses_policies(item)]
    if Part.CONTROL_PLANE in parts:
        others = (item for item in objects if item not in enforcing)
        results += [await installer.namespace(), *await installer.control_plane(others)]
        results += await installer.remove(disabled)
    if Part.MESH in parts:
        results += await installer.policies(config, await crds.served_versions(api))
    if Part.CONTROL_PLANE in parts:
        results += await installer.control_plane(enforcing)
    _print_results(results, dry_run=dry_run)
    return all_usable


def _print_results(results: Iterable[InstallResult], *, dry_run: bool) -> None:
    table = Table("OBJECT", "STATUS")
    for result in results:
        status = f"{result.outcome}: {result.why}" if result.why else result.outcome.value
        if dry_run and result.outcome in ("created", "changed", "deleted"):
            status = f"would be {status}"
        table.add_row(result.title, Text(status, "yellow" if result.why else ""))
    table.show()
