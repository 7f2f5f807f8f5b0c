"""`xds translate`."""

from __future__ import annotations

import json
from enum import StrEnum
from typing import Annotated

import typer
import yaml

from xds import snapshot
from xds.cli.manifests import find_pod, load_mesh
from xds.cli.options import (
    Assignments,
    Context,
    FromKubernetes,
    Kubeconfig,
    Manifests,
    MeshConfigFile,
    fail,
    parse_cluster,
)
from xds.codec import to_dict
from xds.mesh.envoy import translate as envoy

EXAMPLES = """
xds translate sleep.shop --manifests mesh/
xds translate sleep.shop --manifests mesh/ --type listeners -o yaml
xds translate deploy/sleep.shop --manifests apps/ --manifests policies/
xds translate sleep-5d4f8-x2x7k.shop --kubernetes
"""


class Type(StrEnum):
    """A resource type."""

    CLUSTERS = "clusters"
    ENDPOINTS = "endpoints"
    LISTENERS = "listeners"
    ROUTES = "routes"


class Format(StrEnum):
    """An output format."""

    JSON = "json"
    YAML = "yaml"


_TYPE_URLS = {
    Type.CLUSTERS: snapshot.CLUSTER,
    Type.ENDPOINTS: snapshot.ENDPOINT,
    Type.LISTENERS: snapshot.LISTENER,
    Type.ROUTES: snapshot.ROUTE,
}


def translate(
    pod: Annotated[
        str, typer.Argument(metavar="POD.NAMESPACE", help="Pod of the sidecar.", show_default=False)
    ],
    *,
    manifests: Manifests = None,
    kubernetes: FromKubernetes = False,
    kubeconfig: Kubeconfig = None,
    context: Context = None,
    mesh_config: MeshConfigFile = None,
    assignments: Assignments = None,
    only: Annotated[
        Type | None,
        typer.Option("--type", help="Resource type to print. Default: all types.", show_default=False),
    ] = None,
    output: Annotated[Format, typer.Option("-o", "--output", help="Output format.")] = Format.JSON,
) -> None:
    """Print the clusters, endpoints, listeners and routes of a pod's sidecar.

    Fields have their protobuf names (snake_case), and an Any is an object with "@type". Secrets are omitted.
    """
    cluster = parse_cluster(kubernetes, kubeconfig, context)
    mesh = load_mesh(manifests, mesh_config, assignments, cluster=cluster)
    sidecar = find_pod(mesh, pod)
    if not sidecar.address:
        fail(f"pod {pod} has no address (status.podIP) yet", 1)
    translated = envoy.translate(mesh, sidecar)
    resources = {
        str(type_): [to_dict(url, resource.body) for resource in translated.of(url).values()]
        for type_, url in _TYPE_URLS.items()
        if only in (None, type_)
    }
    if output is Format.JSON:
        typer.echo(json.dumps(resources, indent=2))
    else:
        typer.echo(yaml.dump(resources, Dumper=yaml.CSafeDumper, sort_keys=False, width=120), nl=False)
