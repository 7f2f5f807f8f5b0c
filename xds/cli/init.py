"""`xds init`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, NoReturn, TypeVar

import typer

from xds.cli import options
from xds.mesh.sidecar import iptables, rules
from xds.mesh.sidecar.settings import PROXY_ID, SIDECAR_PORTS

T = TypeVar("T")

_MODES = ("REDIRECT", "NONE")


def init(
    *,
    envoy_port: Annotated[
        int,
        typer.Option("--envoy-port", "-p", min=1, max=65535, help="Where the sidecar takes what leaves."),
    ] = 15001,
    inbound_capture_port: Annotated[
        int,
        typer.Option(
            "--inbound-capture-port", "-z", min=1, max=65535, help="Where the sidecar takes what comes."
        ),
    ] = 15006,
    proxy_uid: Annotated[
        int, typer.Option("--proxy-uid", "-u", min=0, help="User that the sidecar runs as.")
    ] = PROXY_ID,
    proxy_gid: Annotated[
        int,
        typer.Option(
            "--proxy-gid",
            "-g",
            min=0,
            help="Group that the sidecar runs as. Traffic of processes with this user and this group is left alone.",
        ),
    ] = PROXY_ID,
    interception_mode: Annotated[
        str,
        typer.Option(
            "--istio-inbound-interception-mode", "-m", metavar="|".join(_MODES), help="NONE: change nothing."
        ),
    ] = "REDIRECT",
    service_cidr: Annotated[
        str,
        typer.Option(
            "--istio-service-cidr", "-i", metavar="NETWORKS", help="Redirect what leaves for these; *: all."
        ),
    ] = "*",
    service_exclude_cidr: Annotated[
        str,
        typer.Option(
            "--istio-service-exclude-cidr",
            "-x",
            metavar="NETWORKS",
            help="Do not redirect what leaves for these.",
        ),
    ] = "",
    inbound_ports: Annotated[
        str,
        typer.Option(
            "--istio-inbound-ports", "-b", metavar="PORTS", help="Redirect what comes for these; *: all."
        ),
    ] = "*",
    local_exclude_ports: Annotated[
        str,
        typer.Option(
            "--istio-local-exclude-ports", "-d", metavar="PORTS", help="Do not redirect what comes for these."
        ),
    ] = ",".join(map(str, SIDECAR_PORTS)),
    outbound_ports: Annotated[
        str,
        typer.Option(
            "--istio-outbound-ports",
            "-q",
            metavar="PORTS",
            help="Redirect what leaves for these, whatever -i says.",
        ),
    ] = "",
    local_outbound_ports_exclude: Annotated[
        str,
        typer.Option(
            "--istio-local-outbound-ports-exclude",
            "-o",
            metavar="PORTS",
            help="Do not redirect what leaves for these.",
        ),
    ] = "",
    exclude_interfaces: Annotated[
        str,
        typer.Option(
            "--istio-exclude-interfaces", "-c", metavar="NAMES", help="Leave these interfaces alone."
        ),
    ] = "",
    undo: Annotated[bool, typer.Option("--undo", help="Take the rules away again.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", "-n", help="Print the rules for IPv4, and change nothing.")
    ] = False,
) -> None:
    """Redirect a pod's traffic to its sidecar, with iptables: what an init container does.

    Takes the flags of Istio's own. To run it twice is to run it once; all of it takes effect at once, or nothing.
    """
    if interception_mode not in _MODES:
        _wrong("-m", f"{interception_mode!r} is not {' or '.join(_MODES)}")
    wanted = rules.RedirectConfig(
        outbound_port=envoy_port,
        inbound_port=inbound_capture_port,
        uid=proxy_uid,
        gid=proxy_gid,
        inbound_ports=_read("-b", rules.parse_ports, inbound_ports),
        exclude_inbound_ports=_listed("-d", _read("-d", rules.parse_ports, local_exclude_ports)),
        networks=_read("-i", rules.parse_networks, service_cidr),
        exclude_networks=_listed("-x", _read("-x", rules.parse_networks, service_exclude_cidr)),
        outbound_ports=_listed("-q", _read("-q", rules.parse_ports, outbound_ports)),
        exclude_outbound_ports=_listed("-o", _read("-o", rules.parse_ports, local_outbound_ports_exclude)),
        exclude_interfaces=_read("-c", rules.parse_interfaces, exclude_interfaces),
    )
    if interception_mode == "NONE":
        typer.echo("interception mode NONE: nothing is redirected", err=True)
        return
    if dry_run:
        typer.echo(rules.redirect_rules(wanted), nl=False)
        return
    try:
        if undo:
            iptables.remove_rules()
        else:
            iptables.install_rules(wanted, warn=lambda message: typer.echo(f"xds: {message}", err=True))
    except iptables.IptablesError as error:
        options.fail(str(error), 1)


def _read(option: str, reader: Callable[[str], T], text: str) -> T:
    try:
        return reader(text)
    except ValueError as error:
        _wrong(option, str(error))


def _listed(option: str, found: tuple[T, ...] | None) -> tuple[T, ...]:
    if found is None:
        _wrong(option, "'*' would be everything: list them")
    return found


def _wrong(option: str, message: str) -> NoReturn:
    raise typer.BadParameter(message, param_hint=f"'{option}'")
