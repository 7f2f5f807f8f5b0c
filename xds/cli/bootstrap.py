"""`xds bootstrap`."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from xds.cli import options


def bootstrap(
    pod: Annotated[
        str, typer.Argument(metavar="POD.NAMESPACE", help="The sidecar's pod.", show_default=False)
    ],
    *,
    manifests: options.Manifests,
    xds_address: Annotated[
        str, typer.Option("--xds-address", metavar="HOST:PORT", help="Where the control plane listens.")
    ] = "127.0.0.1:15010",
    sotw: Annotated[
        bool, typer.Option("--sotw", help="Use state-of-the-world xDS instead of incremental.")
    ] = False,
) -> None:
    """Print the Envoy bootstrap of a pod's sidecar, as JSON.

    Start it with: envoy -c FILE --drain-strategy immediate --drain-time-s 5
    """
    from xds.descriptors import to_json_dict  # noqa: PLC0415
    from xds.envoy import bootstrap as envoy  # noqa: PLC0415

    where = options.address("--xds-address", xds_address)
    found = options.find_pod(options.load(manifests), pod)
    if not found.address:
        options.fail(f"pod {pod} has no address (status.podIP) yet", 1)
    message = envoy.bootstrap(found, where.host, where.port, sotw=sotw)
    typer.echo(json.dumps(to_json_dict(message), indent=2))
