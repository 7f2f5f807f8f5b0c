"""`xds config`."""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterable, Iterator
from http import HTTPStatus
from typing import Annotated, Any, Literal

import typer

from xds import snapshot
from xds.cli import admin_client
from xds.cli.client_options import ConnectionOptions
from xds.cli.option_groups import grouped_options
from xds.cli.options import EXIT_UNREACHABLE, Address, fail, parse_address
from xds.cli.output import Format, print_document
from xds.cli.resource_types import TYPE_URLS, Type
from xds.cli.tables import Table
from xds.codec import message_class, to_dict
from xds.introspect.diff import ResourceDiff
from xds.mesh.controlplane.status import resource_word
from xds.mesh.envoy.dump import COMPARED_TYPES, Config, active_config, comparable
from xds.mesh.model.names import natural_key
from xds.mesh.model.objects import printable
from xds.mesh.v1 import proxies_pb2 as pb
from xds.protocol.types import short_name

EXAMPLES = """
xds config sleep.shop
xds config sleep.shop -o yaml
xds config sleep.shop --type clusters --name 'outbound|80||httpbin.shop.svc.cluster.local' -o yaml
kubectl port-forward sleep 15000 & xds config sleep.shop --diff envoy
"""

ADMIN_TIMEOUT = 10.0
"""Timeout of a request to Envoy's admin interface, in seconds."""

Diff = Literal["envoy"]
"""What to compare the served configuration with."""


@grouped_options
def config(
    *,
    proxy: Annotated[
        str,
        typer.Argument(metavar="PROXY", help="Sidecar: POD.NAMESPACE, a node ID, or a prefix of either."),
    ],
    only: Annotated[
        Type | None,
        typer.Option("--type", help="Resource type to print. Default: all types."),
    ] = None,
    name: Annotated[
        str | None,
        typer.Option("--name", metavar="NAME", help="Resource to print. Default: all resources."),
    ] = None,
    diff: Annotated[
        Diff | None,
        typer.Option(
            "--diff",
            help="Print the differences to what its Envoy uses, which requires access to Envoy's admin "
            "interface.",
        ),
    ] = None,
    envoy_admin: Annotated[
        str,
        typer.Option("--envoy-admin", metavar="HOST:PORT", help="Envoy's admin address, for --diff envoy."),
    ] = "127.0.0.1:15000",
    output: Annotated[
        Format,
        typer.Option("-o", "--output", help="Output format. json and yaml print the contents of resources."),
    ] = "table",
    connection: ConnectionOptions,
) -> None:
    """Print the configuration that a running control plane serves to a connected sidecar.

    The table lists the resources, whether the sidecar has ACKed the current version (synced), and the objects
    that each was made from.

    -o json and yaml print the contents. Fields have their protobuf names (snake_case), and an Any is an
    object with "@type". Private keys are redacted. xds translate prints the same for manifests.

    With --diff envoy, print the differences between what is served (+) and what Envoy uses (-), as a unified
    diff. It compares endpoints by address and TLS mode, does not compare secrets, and ignores warming
    resources and routes of draining listeners.

    Exit status: 0 printed, or no difference, 1 a difference, 2 the sidecar or the resource does not exist or
    wrong usage, 3 the control plane or Envoy cannot be reached.
    """
    if diff == "envoy" and only == "secrets":
        fail("--diff envoy cannot compare secrets, because Envoy redacts them")
    admin = parse_address("--envoy-admin", envoy_admin)
    with connection.open() as client:
        full_name = client.resolve_proxy(proxy, "")
        found = client.list_proxies({"proxy": full_name, "namespace": ""}, unsynced=False)
        if not found.proxies:
            fail(f"proxy {full_name} is not connected to {client.address}")
        node_id = found.proxies[0].node_id
        is_table = output == "table" and diff is None
        listed = [
            resource
            for resource in (client.list_resources(node_id) if is_table else ())
            if only in {None, _type_of(resource.type_url)} and name in {None, resource.name}
        ]
        served = {
            (type_url, resource): body
            for type_url, resource, body in (() if is_table else _read_served(client, node_id))
            if only in {None, _type_of(type_url)} and name in {None, resource}
        }
    if name and not (listed or served):
        fail(f"{full_name} is not served {only or 'a resource'} {name}")
    if is_table:
        _print_table(listed)
    elif diff:
        _print_differences(_differences(served, _read_envoy(admin, only, name)))
    else:
        _print(served, output)


def _read_served(client: admin_client.AdminClient, node_id: str) -> Iterator[tuple[str, str, bytes]]:
    """Yield the type URL, name and encoded content of each resource that a proxy is served."""
    request: Any = message_class("envoy.service.status.v3.ClientStatusRequest")()
    request.node_matchers.add().node_id.exact = node_id
    response_class: Any = message_class("envoy.service.status.v3.ClientStatusResponse")
    for response in client.stream_client_status(request, response_class):
        for stream in response.config:
            for resource in stream.generic_xds_configs:
                if resource.HasField("xds_config"):
                    yield resource.type_url, resource.name, resource.xds_config.value


def _type_of(type_url: str) -> Type | None:
    return next((type_ for type_, url in TYPE_URLS.items() if url == type_url), None)


def _print_table(resources: Iterable[pb.ServedResource]) -> None:
    table = Table("TYPE", "NAME", "STATE", "MADE FROM")
    rows = [
        (_type_of(resource.type_url) or short_name(resource.type_url), resource) for resource in resources
    ]
    for type_, resource in sorted(rows, key=lambda row: (row[0], natural_key(row[1].name))):
        table.add_row(type_, resource.name, resource_word(resource.state), ", ".join(resource.sources) or "-")
    table.show()


def _print(served: dict[tuple[str, str], bytes], output: Format) -> None:
    document: dict[str, list[dict[str, Any]]] = {}
    for (type_url, _), body in sorted(served.items()):
        if type_ := _type_of(type_url):
            document.setdefault(type_, []).append(to_dict(type_url, body))
    print_document({type_: document[type_] for type_ in TYPE_URLS if type_ in document}, output)


def _read_envoy(admin: Address, only: Type | None, name: str | None) -> Config:
    """Return what Envoy uses, of a type and name. Exit if there is no admin interface at the address."""
    unreadable = f"cannot read Envoy's configuration at {admin}"
    connection = http.client.HTTPConnection(*admin, timeout=ADMIN_TIMEOUT)
    try:
        connection.request("GET", "/config_dump?include_eds")
        response = connection.getresponse()
        if response.status != HTTPStatus.OK:
            fail(f"{unreadable}: HTTP status {response.status}", EXIT_UNREACHABLE)
        active = active_config(json.load(response))
    except (OSError, http.client.HTTPException, ValueError) as error:
        fail(f"{unreadable}: {printable(str(error))}", EXIT_UNREACHABLE)
    except (LookupError, TypeError, AttributeError):
        fail(
            f"{unreadable}: the response is not a config dump; set --envoy-admin to Envoy's admin address",
            EXIT_UNREACHABLE,
        )
    finally:
        connection.close()
    return {
        (type_url, resource): content
        for (type_url, resource), content in active.items()
        if only in {None, _type_of(type_url)} and name in {None, resource}
    }


def _differences(served: dict[tuple[str, str], bytes], active: Config) -> Iterator[ResourceDiff]:
    """Yield the differences between what is served and what Envoy uses."""
    expected = {
        key: comparable(key[0], to_dict(key[0], body))
        for key, body in served.items()
        if key[0] in COMPARED_TYPES
    }
    # Envoy also lists endpoints of static clusters, and routes of draining listeners.
    extra = {
        key for key in active.keys() - expected.keys() if key[0] in (snapshot.CLUSTER, snapshot.LISTENER)
    }
    for key in expected.keys() | extra:
        if expected.get(key) != active.get(key):
            yield ResourceDiff(*key, _readable(active.get(key)), _readable(expected.get(key)))


def _readable(content: Any) -> Any:
    """Return endpoints as sorted lines, and other content unchanged."""
    if not isinstance(content, set):
        return content
    return sorted(f"{host}:{port} {mode or 'plaintext'}" for host, port, mode in content)


def _print_differences(differences: Iterable[ResourceDiff]) -> None:
    """Print a unified diff of each resource that differs. Exit with status 1 if one does."""
    ordered = sorted(differences, key=lambda resource: (resource.type_url, resource.name))
    for resource in ordered:
        for line in resource.text("Envoy", "served").splitlines():
            typer.echo(printable(line))
    if ordered:
        raise typer.Exit(1)
    typer.echo("no differences")
