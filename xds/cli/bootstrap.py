"""`xds bootstrap`."""

from __future__ import annotations

import ipaddress
import json
from collections.abc import Iterator
from typing import Annotated

import typer

from xds.cli.manifests import read_mesh
from xds.cli.options import Manifests, fail, parse_address, print_problems
from xds.codec import to_json_dict
from xds.mesh.envoy import bootstrap as envoy
from xds.mesh.model.names import pod_named
from xds.mesh.model.objects import INTERCEPTION_MODE, Interception, Pod, Problem

EXAMPLES = """
xds bootstrap httpbin-1.shop --manifests mesh/ > bootstrap.json
envoy -c bootstrap.json --drain-strategy immediate --drain-time-s 5
"""


def bootstrap(
    pod: Annotated[str, typer.Argument(metavar="POD.NAMESPACE", help="Pod of the sidecar.")],
    *,
    manifests: Manifests,
    xds_address: Annotated[
        str, typer.Option("--xds-address", metavar="HOST:PORT", help="xDS address of the control plane.")
    ] = "127.0.0.1:15010",
    sotw: Annotated[
        bool, typer.Option("--sotw", help="Use state-of-the-world xDS instead of incremental xDS.")
    ] = False,
    token_file: Annotated[
        str | None,
        typer.Option(
            "--token-file",
            metavar="PATH",
            help="Path, in Envoy's container, of the token to authenticate with. Enables TLS; requires "
            "--ca-file.",
        ),
    ] = None,
    ca_file: Annotated[
        str | None,
        typer.Option(
            "--ca-file",
            metavar="PATH",
            help="Path, in Envoy's container, of the root certificates (PEM) to verify the control plane "
            "against. Requires --token-file.",
        ),
    ] = None,
) -> None:
    """Print the Envoy bootstrap of a pod's sidecar, as JSON."""
    address = parse_address("--xds-address", xds_address)
    if (token_file is None) != (ca_file is None):
        fail(
            "--token-file and --ca-file must be used together: a token is only sent to a verified control "
            "plane"
        )
    try:
        credential = envoy.TokenFile(token=token_file, roots=ca_file) if token_file and ca_file else None
    except ValueError as error:
        fail(f"--token-file: {error}")
    mesh, read = read_mesh(manifests, reads_workloads=False)
    read.print()
    sidecar = pod_named(mesh, pod)
    if not sidecar.address:
        fail(f"pod {pod} has no address (status.podIP) yet", 1)
    print_problems(_interception_problem(sidecar))
    message = envoy.bootstrap(sidecar, address.host, address.port, sotw=sotw, credential=credential)
    typer.echo(json.dumps(to_json_dict(message), indent=2))


def _interception_problem(pod: Pod) -> Iterator[Problem]:
    """Yield a problem if the sidecar of a pod on loopback would get no traffic."""
    if pod.interception is Interception.REDIRECT and ipaddress.ip_address(pod.address).is_loopback:
        yield Problem(
            where=pod.meta.origin,
            what=f"{pod.ref}: has the loopback address {pod.address} and interception mode REDIRECT, so its "
            "sidecar gets no traffic: iptables rules do not redirect traffic on loopback",
            hint=f"set the annotation {INTERCEPTION_MODE}: NONE",
        )
