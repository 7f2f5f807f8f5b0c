"""`xds proxy`."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated

import typer

from xds.cli.options import fail, print_problems
from xds.codec import to_json_dict
from xds.mesh.envoy.bootstrap import loopback_address
from xds.mesh.sidecar import draining, environment, running, settings
from xds.mesh.sidecar.environment import Sidecar

EXAMPLES = """
xds proxy
xds proxy --dry-run
xds proxy --drain
"""


def proxy(
    *,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print Envoy's bootstrap as JSON without starting Envoy.")
    ] = False,
    drain: Annotated[
        bool,
        typer.Option(
            "--drain",
            help="Drain the running sidecar and wait for requests in flight. Intended as the container's "
            "preStop hook.",
        ),
    ] = False,
    envoy: Annotated[
        str, typer.Option(metavar="FILE", envvar=settings.ENVOY.name, help=settings.ENVOY.description)
    ] = "",
    sds: Annotated[
        str, typer.Option(metavar="unix:///PATH", envvar=settings.SDS.name, help=settings.SDS.description)
    ] = "",
) -> None:
    """Run Envoy as this pod's sidecar. This is the command of a sidecar container.

    The configuration is read from environment variables. POD_NAME, POD_NAMESPACE and INSTANCE_IP are
    required; docs/reference/sidecar.md lists all variables.

    Signals go to Envoy, and the exit status is Envoy's. With XDS_KEY_DIR, the command makes Envoy's key,
    requests certificates for it, and ends with Envoy. Without it, or if the kubelet keeps the key and
    certificate in a podCertificate volume, the command replaces its process with Envoy.
    """
    sidecar = _read_environment(sds)
    if drain:
        _drain(sidecar)
    elif dry_run:
        typer.echo(json.dumps(to_json_dict(sidecar.bootstrap()), indent=2))
    else:
        _become_envoy(sidecar, envoy)


def _read_environment(sds: str) -> Sidecar:
    variables = os.environ | ({settings.SDS.name: sds} if sds else {})
    file = Path(variables.get(settings.LABELS_FILE.name) or settings.LABELS_FILE.default or "")
    try:
        labels = file.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        labels = ""
    except OSError as error:
        fail(f"{file}: {error.strerror}", 1)
    sidecar, problems = environment.read(variables, labels)
    if problems:
        print_problems(problems)
        # The kubelet restarts the container, with current values of the downward API.
        raise typer.Exit(1)
    return running.with_pod_certificate(sidecar)


def _become_envoy(sidecar: Sidecar, envoy: str) -> None:
    try:
        binary = running.find_envoy(envoy)
        running.wait_for_files(sidecar, report=lambda message: typer.echo(f"xds: {message}", err=True))
        command = running.envoy_command(sidecar, binary)
        if sidecar.certificate_socket:
            running.run_beside_agent(command, sidecar)
        running.execute(command)
    except running.StartError as error:
        fail(str(error), 1)


def _drain(sidecar: Sidecar) -> None:
    try:
        remaining = draining.drain(loopback_address(sidecar.pod), sidecar.drain_seconds)
    except draining.DrainError as error:
        fail(str(error), 1)
    if remaining:
        typer.echo(
            f"xds: {remaining} connections or requests are still in flight after {sidecar.drain_seconds} s",
            err=True,
        )
