"""`xds init`."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Annotated, NoReturn, TypeVar

import typer

from xds.cli.options import fail
from xds.mesh.parse.redirection import parse_interfaces, parse_networks, parse_ports
from xds.mesh.sidecar import iptables, rules
from xds.mesh.sidecar.settings import PROXY_ID, SIDECAR_PORTS

EXAMPLES = """
xds init
xds init --istio-local-exclude-ports 15020,22 --dry-run
xds init --undo
"""

T = TypeVar("T")

_MODES = ("REDIRECT", "NONE")


def init(
    *,
    envoy_port: Annotated[
        int,
        typer.Option("--envoy-port", "-p", min=1, max=65535, help="Port of the sidecar's outbound listener."),
    ] = 15001,
    inbound_capture_port: Annotated[
        int,
        typer.Option(
            "--inbound-capture-port",
            "-z",
            min=1,
            max=65535,
            help="Port of the sidecar's inbound listener.",
        ),
    ] = 15006,
    proxy_uid: Annotated[
        int, typer.Option("--proxy-uid", "-u", min=0, help="User ID of the sidecar.")
    ] = PROXY_ID,
    proxy_gid: Annotated[
        int,
        typer.Option(
            "--proxy-gid",
            "-g",
            min=0,
            help="Group ID of the sidecar. Traffic of processes with this user and group is not redirected.",
        ),
    ] = PROXY_ID,
    interception_mode: Annotated[
        str,
        typer.Option(
            "--istio-inbound-interception-mode",
            "-m",
            metavar="|".join(_MODES),
            help="Interception mode. NONE redirects no traffic.",
        ),
    ] = "REDIRECT",
    service_cidr: Annotated[
        str,
        typer.Option(
            "--istio-service-cidr",
            "-i",
            metavar="NETWORKS",
            help="Outbound networks to redirect, or * for all.",
        ),
    ] = "*",
    service_exclude_cidr: Annotated[
        str,
        typer.Option(
            "--istio-service-exclude-cidr",
            "-x",
            metavar="NETWORKS",
            help="Outbound networks to exclude from redirection. Default: none.",
        ),
    ] = "",
    inbound_ports: Annotated[
        str,
        typer.Option(
            "--istio-inbound-ports", "-b", metavar="PORTS", help="Inbound ports to redirect, or * for all."
        ),
    ] = "*",
    local_exclude_ports: Annotated[
        str,
        typer.Option(
            "--istio-local-exclude-ports",
            "-d",
            metavar="PORTS",
            help="Inbound ports to exclude from redirection.",
        ),
    ] = ",".join(map(str, SIDECAR_PORTS)),
    outbound_ports: Annotated[
        str,
        typer.Option(
            "--istio-outbound-ports",
            "-q",
            metavar="PORTS",
            help="Outbound ports to redirect for all networks, in addition to -i. Default: none.",
        ),
    ] = "",
    local_outbound_ports_exclude: Annotated[
        str,
        typer.Option(
            "--istio-local-outbound-ports-exclude",
            "-o",
            metavar="PORTS",
            help="Outbound ports to exclude from redirection. Default: none.",
        ),
    ] = "",
    exclude_interfaces: Annotated[
        str,
        typer.Option(
            "--istio-exclude-interfaces",
            "-c",
            metavar="NAMES",
            help="Network interfaces to exclude from redirection. Default: none.",
        ),
    ] = "",
    undo: Annotated[bool, typer.Option("--undo", help="Remove the rules instead of applying them.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", "-n", help="Print the IPv4 rules without applying them.")
    ] = False,
    yes: Annotated[
        bool, typer.Option("--yes", "-y", help="Do not ask for confirmation on a terminal.")
    ] = False,
) -> None:
    """Redirect a pod's traffic to its sidecar with iptables. This is the command of an init container.

    Accepts the flags of istio-iptables. Idempotent and atomic: all rules take effect at once, or none.
    """
    if interception_mode not in _MODES:
        _fail_option("-m", f"{interception_mode!r} is not {' or '.join(_MODES)}")
    interception = rules.RedirectConfig(
        outbound_port=envoy_port,
        inbound_port=inbound_capture_port,
        uid=proxy_uid,
        gid=proxy_gid,
        inbound_ports=_parse("-b", parse_ports, inbound_ports),
        exclude_inbound_ports=_require_list("-d", _parse("-d", parse_ports, local_exclude_ports)),
        networks=_parse("-i", parse_networks, service_cidr),
        exclude_networks=_require_list("-x", _parse("-x", parse_networks, service_exclude_cidr)),
        outbound_ports=_require_list("-q", _parse("-q", parse_ports, outbound_ports)),
        exclude_outbound_ports=_require_list("-o", _parse("-o", parse_ports, local_outbound_ports_exclude)),
        exclude_interfaces=_parse("-c", parse_interfaces, exclude_interfaces),
    )
    if interception_mode == "NONE":
        typer.echo("interception mode is NONE: no traffic is redirected", err=True)
        return
    if dry_run:
        typer.echo(rules.redirect_rules(interception), nl=False)
        return
    if sys.stdin.isatty() and not (undo or yes):
        typer.confirm(
            "Redirect the TCP connections of this machine or container to a sidecar that listens on ports "
            f"{envoy_port} and {inbound_capture_port}? `xds init --undo` ends that.",
            abort=True,
            err=True,
        )
    try:
        if undo:
            iptables.remove_rules()
        else:
            iptables.install_rules(interception, warn=lambda message: typer.echo(f"xds: {message}", err=True))
    except iptables.IptablesError as error:
        fail(str(error), 1)


def _parse(option: str, parser: Callable[[str], T], text: str) -> T:
    try:
        return parser(text)
    except ValueError as error:
        _fail_option(option, str(error))


def _require_list(option: str, values: tuple[T, ...] | None) -> tuple[T, ...]:
    if values is None:
        _fail_option(option, "'*' is not allowed: set a comma-separated list")
    return values


def _fail_option(option: str, message: str) -> NoReturn:
    raise typer.BadParameter(message, param_hint=f"'{option}'")
