"""`xds dashboard`."""

from __future__ import annotations

import http.client
import webbrowser
from contextlib import suppress
from typing import Annotated

import typer

from xds.cli.client_options import forward_to
from xds.cli.options import (
    Address,
    ClusterReference,
    Context,
    ControlPlaneNamespace,
    Kubeconfig,
    fail,
    fail_unreachable,
    parse_address,
)
from xds.mesh.model.objects import printable

EXAMPLES = """
xds dashboard
xds dashboard --context staging
xds dashboard --admin-address 127.0.0.1:25014 --no-browser
"""

ADMIN_ADDRESS = Address("127.0.0.1", 15014)
"""Admin address of a control plane on this machine, and in its pod."""
TIMEOUT = 5.0
"""Timeout of the request that checks the address, in seconds."""


def dashboard(
    *,
    admin_address: Annotated[
        str | None,
        typer.Option(
            "--admin-address",
            metavar="HOST:PORT",
            help=f"Admin address of the control plane. Default: {ADMIN_ADDRESS}, else a port-forward to its "
            "pod in the cluster of the kubeconfig.",
        ),
    ] = None,
    kubeconfig: Kubeconfig = None,
    context: Context = None,
    xds_namespace: ControlPlaneNamespace = None,
    browser: Annotated[
        bool,
        typer.Option("--browser/--no-browser", help="Whether to open a browser, or only print the address."),
    ] = True,
) -> None:
    """Print the address of the control plane's page, and open it in a browser.

    A port-forward to a control plane in a cluster stays open until Ctrl-C.

    Exit status: 0 printed, 2 wrong usage, 3 the control plane cannot be reached.
    """
    cluster = ClusterReference(kubeconfig, context, xds_namespace)
    if admin_address and any(cluster):
        fail(
            "--admin-address cannot be combined with --kubeconfig, --context or --xds-namespace, which find "
            "the control plane in a cluster"
        )
    address = parse_address("--admin-address", admin_address) if admin_address else ADMIN_ADDRESS
    forward = None if admin_address else forward_to(address.port, cluster, local=address)
    if forward is None:
        _open(address, browser=browser)
        return
    try:
        _open(parse_address("", forward.target), browser=browser)
        with suppress(KeyboardInterrupt):
            forward.lost.wait()
            fail_unreachable(forward.error)
    finally:
        forward.close()


def _open(address: Address, *, browser: bool) -> None:
    """Print the address of the page, and open it. Exit if no control plane serves it there."""
    _check(address)
    url = f"http://{address}/"
    typer.echo(url)
    if browser and not webbrowser.open(url):
        typer.echo("xds: no browser found: open the address yourself", err=True)


def _check(address: Address) -> None:
    """Exit if no control plane serves the page at an address."""
    connection = http.client.HTTPConnection(address.host, address.port, timeout=TIMEOUT)
    try:
        connection.request("GET", "/healthz")
        status = connection.getresponse().status
    except (OSError, http.client.HTTPException) as error:
        reason = printable(str(error))
        fail_unreachable(f"no control plane at {address}: {reason} (choose another with --admin-address)")
    finally:
        connection.close()
    if status != http.HTTPStatus.OK:
        fail_unreachable(f"no control plane at {address}: HTTP status {status} for /healthz")
