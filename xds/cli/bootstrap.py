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
    token_file: Annotated[
        str | None,
        typer.Option(
            "--token-file",
            metavar="PATH",
            help="Have Envoy ask over TLS, and show the token in this file (of its container). Needs --ca-file.",
            show_default=False,
        ),
    ] = None,
    ca_file: Annotated[
        str | None,
        typer.Option(
            "--ca-file",
            metavar="PATH",
            help="Where Envoy finds the roots (PEM) that the control plane is verified against.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Print the Envoy bootstrap of a pod's sidecar, as JSON.

    Start it with: envoy -c FILE --drain-strategy immediate --drain-time-s 5
    """
    from xds.codec import to_json_dict  # noqa: PLC0415
    from xds.mesh.envoy import bootstrap as envoy  # noqa: PLC0415

    where = options.parse_address("--xds-address", xds_address)
    if (token_file is None) != (ca_file is None):
        options.fail(
            "--token-file and --ca-file go together: a token is shown to a control plane that is verified"
        )
    credential = envoy.TokenFile(token=token_file, roots=ca_file) if token_file and ca_file else None
    found = options.find_pod(options.load(manifests), pod)
    if not found.address:
        options.fail(f"pod {pod} has no address (status.podIP) yet", 1)
    message = envoy.bootstrap(found, where.host, where.port, sotw=sotw, credential=credential)
    typer.echo(json.dumps(to_json_dict(message), indent=2))
