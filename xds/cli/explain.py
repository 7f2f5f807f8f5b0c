"""`xds explain`."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from xds.cli import admin_client
from xds.cli.client_options import DEFAULT_XDS_ADDRESS, CaFile, CertFile, KeyFile, TokenFile
from xds.cli.explanation import print_explanation
from xds.cli.manifests import load_mesh
from xds.cli.options import (
    Assignments,
    Context,
    FromKubernetes,
    Kubeconfig,
    Manifests,
    MeshConfigFile,
    MeshConfigMap,
    XdsNamespace,
    fail,
    parse_address,
    parse_cluster,
)
from xds.cli.output import Format, print_document
from xds.mesh.controlplane.explanation import explanation_message
from xds.mesh.model.mesh import Mesh
from xds.mesh.model.names import UnknownNameError, pod_named, ports_named
from xds.mesh.policy import explain as policy
from xds.mesh.policy.reach import Result
from xds.mesh.v1 import policies_pb2 as pb

EXAMPLES = """
xds explain sleep.shop httpbin.shop
xds explain sleep.shop httpbin.shop:8000 --manifests mesh/
xds explain sleep.shop httpbin.shop --kubernetes -o json
xds explain sleep.shop httpbin.shop --xds-address localhost:15012 --ca-file root-cert.pem --token-file token
"""


def explain(
    client: Annotated[
        str, typer.Argument(metavar="CLIENT", help="Client pod: POD.NAMESPACE.", show_default=False)
    ],
    service: Annotated[
        str,
        typer.Argument(
            metavar="SERVICE",
            help="Service to call: SERVICE.NAMESPACE[:PORT], with the number or name of a port. Default: all "
            "ports.",
            show_default=False,
        ),
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
    xds_address: Annotated[
        str | None,
        typer.Option(
            "--xds-address",
            metavar="HOST:PORT",
            help="xDS address of the control plane to query, without --manifests and --kubernetes. Default: "
            "127.0.0.1:15010.",
            show_default=False,
        ),
    ] = None,
    ca_file: CaFile = None,
    token_file: TokenFile = None,
    cert_file: CertFile = None,
    key_file: KeyFile = None,
    output: Annotated[Format, typer.Option("-o", "--output", help="Output format.")] = Format.TABLE,
) -> None:
    """Print why a client's connections to a service use mutual TLS, use plaintext, or fail.

    For each group of endpoints: what the client sends, what the server accepts, and the objects that decided
    and that they override, with the place where each was read.

    Queries a running control plane, and also prints what it serves now, what the sidecars have ACKed, and
    what a rollout waits for. With --manifests or --kubernetes, prints only what policies require.

    Exit status: 0 every connection works, 1 a connection fails, 2 an unknown name or wrong usage, 3 the
    control plane or the API server cannot be reached.
    """
    cluster = parse_cluster(kubernetes, kubeconfig, context, xds_namespace, mesh_config_map)
    if manifests or cluster:
        if xds_address:
            fail("--xds-address cannot be combined with --manifests or --kubernetes: query one of them")
        mesh = load_mesh(manifests, mesh_config, assignments, cluster=cluster)
        found = _explain_mesh(mesh, client, service)
    else:
        if mesh_config or assignments:
            fail("--mesh-config and --set require --manifests or --kubernetes: a control plane has settings")
        default = os.environ.get("XDS_ADDRESS") or DEFAULT_XDS_ADDRESS
        address = parse_address("--xds-address", xds_address or default)
        credentials = admin_client.ClientCredentials(
            roots=ca_file, token=token_file, certificate=cert_file, key=key_file
        )
        with admin_client.AdminClient(address, credentials) as connection:
            found = connection.explain(client, service)
    if output is Format.TABLE:
        print_explanation(found)
    else:
        print_document(found, output)
    if any(group.outcome == Result.FAILS for group in found.groups):
        raise typer.Exit(1)


def _explain_mesh(mesh: Mesh, client_name: str, service_name: str) -> pb.Explanation:
    try:
        client = pod_named(mesh, client_name)
        service, ports = ports_named(mesh, service_name)
    except UnknownNameError as error:
        fail(str(error))
    return explanation_message(mesh, client, service, policy.explain(mesh, client, service, ports))
