"""`xds describe`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Literal

import typer

from xds.cli.explain_output import listed, print_rows, proxy_text, refused_rows, side_rows
from xds.cli.hop_cells import format_clients
from xds.cli.mesh_options import MeshOptions
from xds.cli.option_groups import grouped_options
from xds.cli.output import Format, print_document
from xds.mesh.model.objects import printable
from xds.mesh.v1 import policies_pb2 as pb

EXAMPLES = """
xds describe pod httpbin-1.shop
xds describe pod httpbin-1.shop --manifests mesh/
xds describe pod httpbin-1.shop --kubernetes -o yaml
"""

DescribedKind = Literal["pod"]
"""A kind of object to describe."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DescribeOptions:
    """The arguments and options."""

    kind: Annotated[DescribedKind, typer.Argument(metavar="KIND", help="Kind to describe: pod.")]
    name: Annotated[
        str,
        typer.Argument(metavar="POD.NAMESPACE", help="Pod to describe, or a prefix of its name."),
    ]
    mesh: MeshOptions
    output: Annotated[Format, typer.Option("-o", "--output", help="Output format.")] = "table"


@grouped_options
def describe(options: DescribeOptions) -> None:
    """Print a pod's Services, what each of its ports accepts and why, and the clients that cannot reach it.

    Queries a running control plane, and also prints what the sidecar has ACKed. With --manifests or
    --kubernetes, prints only what policies require. The clients are listed as NAMESPACE/ACCOUNT, as by
    `xds reach`. `xds explain` shows more about one client.

    Exit status: 0 all clients reach the pod, 1 a client does not, 2 an unknown name or wrong usage, 3 the
    control plane or the API server cannot be reached.
    """
    with options.mesh.open() as policies:
        found = policies.describe_pod(options.name)
    if options.output == "table":
        _print(found)
    else:
        print_document(found, options.output)
    if any(port.refused_clients for port in found.ports):
        raise typer.Exit(1)


def _print(pod: pb.PodDescription) -> None:
    typer.echo(printable(f"Pod {pod.pod}"))
    services = dict.fromkeys(name.partition(":")[0] for port in pod.ports for name in port.service_ports)
    rows = [
        ("Sidecar:", proxy_text(pod.proxy, pod.time) if pod.HasField("proxy") else _has_sidecar(pod)),
        ("Identity:", pod.identity),
        *listed("Services:", services or ["none"]),
        *refused_rows(pod.refused),
    ]
    print_rows(rows)
    for port in pod.ports:
        typer.echo(f"\nPort {port.port}" if port.HasField("port") else "\nAll other ports")
        print_rows(_rows(port))


def _has_sidecar(pod: pb.PodDescription) -> str:
    return "yes" if pod.sidecar else "no"


def _rows(port: pb.PodPort) -> Iterator[tuple[str, str]]:
    yield from listed("Service ports:", port.service_ports)
    yield from side_rows("Accepts:", port.accepts)
    yield from listed(
        "Unreachable for:", [f"{format_clients(item.clients)}: {item.why}" for item in port.refused_clients]
    )
