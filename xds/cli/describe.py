"""`xds describe`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from enum import StrEnum
from typing import Annotated, Any

import typer
from google.protobuf.json_format import MessageToDict

from xds.cli.explanation import listed, print_rows, side_rows
from xds.cli.hops import clients_json
from xds.cli.manifests import find_pod, load_mesh
from xds.cli.options import (
    Assignments,
    Context,
    FromKubernetes,
    Kubeconfig,
    Manifests,
    MeshConfigFile,
    MeshConfigMap,
    XdsNamespace,
    parse_cluster,
)
from xds.cli.output import Format, print_document
from xds.mesh.controlplane.explanation import side_message
from xds.mesh.model.mesh import Exposure, Mesh
from xds.mesh.model.objects import Pod, printable
from xds.mesh.policy import describe as policy
from xds.mesh.policy.describe import OTHER_PORTS, PortDescription, RefusedClients
from xds.mesh.policy.hop_text import format_clients

EXAMPLES = """
xds describe pod httpbin-1.shop --manifests mesh/
xds describe pod httpbin-1.shop --kubernetes -o yaml
"""


class Kind(StrEnum):
    """A kind of object to describe."""

    POD = "pod"


def describe(
    kind: Annotated[Kind, typer.Argument(metavar="KIND", help="Kind to describe: pod.")],  # noqa: ARG001
    name: Annotated[
        str, typer.Argument(metavar="POD.NAMESPACE", help="Pod to describe.", show_default=False)
    ],
    *,
    manifests: Manifests = None,
    kubernetes: FromKubernetes = False,
    kubeconfig: Kubeconfig = None,
    context: Context = None,
    xds_namespace: XdsNamespace = None,
    mesh_config_map: MeshConfigMap = None,
    mesh_config: MeshConfigFile = None,
    assignments: Assignments = None,
    output: Annotated[Format, typer.Option("-o", "--output", help="Output format.")] = Format.TABLE,
) -> None:
    """Print a pod's Services, what each of its ports accepts and why, and the clients that cannot reach it.

    The clients are listed as NAMESPACE/ACCOUNT, as by `xds reach`. `xds explain` shows more about one client.

    Exit status: 0 all clients reach the pod, 1 a client does not, 2 an unknown name or wrong usage, 3 the
    API server cannot be reached.
    """
    cluster = parse_cluster(kubernetes, kubeconfig, context, xds_namespace, mesh_config_map)
    mesh = load_mesh(manifests, mesh_config, assignments, cluster=cluster)
    pod = find_pod(mesh, name)
    ports = list(policy.describe(mesh, pod))
    if output is Format.TABLE:
        _print(mesh, pod, ports)
    else:
        print_document(_to_json(mesh, pod, ports), output)
    if any(port.refused for port in ports):
        raise typer.Exit(1)


def _print(mesh: Mesh, pod: Pod, ports: Sequence[PortDescription]) -> None:
    typer.echo(printable(f"Pod {pod.name}.{pod.namespace}"))
    services = dict.fromkeys(_service(exposure) for port in ports for exposure in port.exposures)
    print_rows(
        [
            ("Sidecar:", "yes" if pod.has_sidecar else "no"),
            ("Identity:", pod.identity(mesh.config.trust_domain)),
            *listed("Services:", services or ["none"]),
        ]
    )
    for port in ports:
        typer.echo(f"\nPort {port.port}" if port.port != OTHER_PORTS else "\nAll other ports")
        print_rows(_rows(mesh, port))


def _rows(mesh: Mesh, port: PortDescription) -> Iterator[tuple[str, str]]:
    yield from listed("Service ports:", [_service_port(exposure) for exposure in port.exposures])
    yield from side_rows("Accepts:", side_message(mesh, port.server))
    yield from listed("Unreachable for:", [_refused(item) for item in port.refused])


def _refused(refused: RefusedClients) -> str:
    return f"{format_clients(refused.clients)}: {refused.why}"


def _service(exposure: Exposure) -> str:
    return f"{exposure.service.name}.{exposure.service.namespace}"


def _service_port(exposure: Exposure) -> str:
    return f"{_service(exposure)}:{exposure.port.port}"


def _to_json(mesh: Mesh, pod: Pod, ports: Sequence[PortDescription]) -> dict[str, Any]:
    return {
        "pod": f"{pod.name}.{pod.namespace}",
        "sidecar": pod.has_sidecar,
        "identity": pod.identity(mesh.config.trust_domain),
        "ports": [
            {
                "port": port.port if port.port != OTHER_PORTS else None,
                "servicePorts": [_service_port(exposure) for exposure in port.exposures],
                "accepts": MessageToDict(
                    side_message(mesh, port.server), always_print_fields_with_no_presence=True
                ),
                "refusedClients": [
                    {"clients": clients_json(item.clients), "why": item.why} for item in port.refused
                ],
            }
            for port in ports
        ],
    }
