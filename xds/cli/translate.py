"""`xds translate`."""

from __future__ import annotations

import json
from enum import StrEnum
from typing import Annotated

import typer

from xds.cli import options


class Type(StrEnum):
    """What to print."""

    CLUSTERS = "clusters"
    ENDPOINTS = "endpoints"
    LISTENERS = "listeners"
    ROUTES = "routes"


class Format(StrEnum):
    """How to print it."""

    JSON = "json"
    YAML = "yaml"


def translate(
    pod: Annotated[
        str, typer.Argument(metavar="POD.NAMESPACE", help="The sidecar's pod.", show_default=False)
    ],
    *,
    manifests: options.Manifests,
    mesh_config: options.MeshConfigFile = None,
    assignments: options.Assignments = None,
    only: Annotated[
        Type | None, typer.Option("--type", help="Print one type of resources only.", show_default=False)
    ] = None,
    output: Annotated[Format, typer.Option("-o", "--output", help="How to print it.")] = Format.JSON,
) -> None:
    """Print the configuration that a pod's sidecar gets: clusters, endpoints, listeners and routes.

    Field names are protobuf's; an Any is an object with "@type". Secrets are not shown.
    """
    from xds import snapshot  # noqa: PLC0415
    from xds.codec import to_dict  # noqa: PLC0415
    from xds.mesh.envoy import translate  # noqa: PLC0415

    mesh = options.load(manifests, mesh_config, assignments)
    found = options.find_pod(mesh, pod)
    if not found.address:
        options.fail(f"pod {pod} has no address (status.podIP) yet", 1)
    translated = translate.translate(mesh, found)
    urls = {
        Type.CLUSTERS: snapshot.CLUSTER,
        Type.ENDPOINTS: snapshot.ENDPOINT,
        Type.LISTENERS: snapshot.LISTENER,
        Type.ROUTES: snapshot.ROUTE,
    }
    shown = {
        str(type_): [to_dict(url, resource.body) for resource in translated.of(url).values()]
        for type_, url in urls.items()
        if only in (None, type_)
    }
    if output is Format.JSON:
        typer.echo(json.dumps(shown, indent=2))
        return
    import yaml  # noqa: PLC0415

    typer.echo(yaml.dump(shown, Dumper=yaml.CSafeDumper, sort_keys=False, width=120), nl=False)
