"""`xds dashboard`."""

from __future__ import annotations

import http.client
import webbrowser
from typing import Annotated

import typer

from xds.cli.admin_client import EXIT_UNREACHABLE
from xds.cli.options import Address, fail, parse_address
from xds.mesh.model.objects import printable

EXAMPLES = """
xds dashboard
xds dashboard --admin-address 127.0.0.1:25014 --no-browser
"""

TIMEOUT = 5.0
"""Timeout of the request that checks the address, in seconds."""


def dashboard(
    *,
    admin_address: Annotated[
        str,
        typer.Option(
            "--admin-address",
            metavar="HOST:PORT",
            help="Admin address of the control plane, or of a port-forward.",
        ),
    ] = "127.0.0.1:15014",
    browser: Annotated[
        bool,
        typer.Option("--browser/--no-browser", help="Whether to open a browser, or only print the address."),
    ] = True,
) -> None:
    """Print the address of the control plane's page, and open it in a browser.

    In a cluster, forward the port first: kubectl -n istio-system port-forward deploy/xds 15014.

    Exit status: 0 printed, 2 wrong usage, 3 the control plane cannot be reached.
    """
    address = parse_address("--admin-address", admin_address)
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
        fail(
            f"no control plane at {address}: {reason} (choose another with --admin-address)", EXIT_UNREACHABLE
        )
    finally:
        connection.close()
    if status != http.HTTPStatus.OK:
        fail(f"no control plane at {address}: HTTP status {status} for /healthz", EXIT_UNREACHABLE)
