"""`xds translate`."""

from __future__ import annotations

import json
from typing import Annotated, Any, get_args

import typer

from xds import snapshot
from xds.cli.manifests import read_source
from xds.cli.option_groups import grouped_options
from xds.cli.options import SourceOptions, fail
from xds.cli.output import DocumentFormat, print_document
from xds.cli.resource_types import TYPE_URLS, PublicType
from xds.codec import to_dict
from xds.mesh.envoy import translate as envoy
from xds.mesh.model.injection import NAMESPACE_LABEL
from xds.mesh.model.names import pod_named, service_named
from xds.mesh.model.objects import Service

EXAMPLES = """
xds translate sleep.shop --manifests mesh/
xds translate sleep.shop --manifests mesh/ --type listeners -o yaml
xds translate deploy/sleep.shop --manifests apps/ --manifests policies/
xds translate sleep-5d4f8-x2x7k.shop --kubernetes
xds translate sleep.shop --manifests mesh/ --service httpbin.shop
"""


@grouped_options
def translate(
    pod: Annotated[str, typer.Argument(metavar="POD.NAMESPACE", help="Pod of the sidecar.")],
    *,
    source: SourceOptions,
    only: Annotated[
        PublicType | None,
        typer.Option("--type", help="Resource type to print. Default: all types."),
    ] = None,
    service: Annotated[
        str | None,
        typer.Option(
            "--service",
            metavar="SERVICE.NS",
            help="Service to print: only what the sidecar uses to connect to it. Default: everything.",
        ),
    ] = None,
    output: Annotated[DocumentFormat, typer.Option("-o", "--output", help="Output format.")] = "json",
) -> None:
    """Print the clusters, endpoints, listeners and routes of a pod's sidecar.

    Fields have their protobuf names (snake_case), and an Any is an object with "@type". Secrets are omitted.

    Exit status: 0 printed, 1 the pod has no address or no sidecar, 2 an unknown name or wrong usage, 3 the
    API server cannot be reached.
    """
    mesh, read = read_source(source)
    read.print()
    sidecar = pod_named(mesh, pod)
    if not sidecar.address:
        fail(f"pod {pod} has no address (status.podIP) yet", 1)
    if not sidecar.has_sidecar:
        remedy = f"label its Namespace {NAMESPACE_LABEL}=enabled, or use xds inject"
        fail(f"pod {pod} has no sidecar to configure, so its traffic is plaintext ({remedy})", 1)
    translated = envoy.translate(mesh, sidecar)
    shown = {type_: list(translated.of(TYPE_URLS[type_]).values()) for type_ in get_args(PublicType)}
    resources = {
        str(type_): [to_dict(resource.type_url, resource.body) for resource in items]
        for type_, items in shown.items()
    }
    if service:
        resources = _select(service_named(mesh, service), shown, resources)
    if only:
        resources = {str(only): resources[only]}
    print_document(resources, output)


def _select(
    service: Service,
    resources: dict[PublicType, list[snapshot.Resource]],
    messages: dict[str, list[dict[str, Any]]],
) -> dict[str, list[dict[str, Any]]]:
    """Return the messages that a sidecar uses to connect to a service, and its virtual hosts in routes."""
    title = str(service.ref)
    names = {
        (resource.type_url, resource.name)
        for items in resources.values()
        for resource in items
        if any(source.partition(" (")[0] == title for source in resource.sources)
    }
    clusters = [json.dumps(name) for type_url, name in names if type_url == snapshot.CLUSTER]
    routes = []
    for message in messages["routes"]:
        hosts = [host for host in message["virtual_hosts"] if any(c in json.dumps(host) for c in clusters)]
        if hosts:
            routes.append(message | {"virtual_hosts": hosts})
            names.add((snapshot.ROUTE, message["name"]))
    selected: dict[str, list[dict[str, Any]]] = {
        str(type_): [
            message
            for resource, message in zip(items, messages[type_], strict=True)
            if not names.isdisjoint(((resource.type_url, resource.name), *resource.refs))
        ]
        for type_, items in resources.items()
    }
    return selected | {"routes": routes}
