"""`xds status`."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any, NoReturn, Self, TypeVar

import typer

from xds.cli import options, tables

if TYPE_CHECKING:
    import grpc
    from google.protobuf.message import Message
    from google.protobuf.timestamp_pb2 import Timestamp

    from xds.api import proxies_pb2 as pb
    from xds.cli.options import Address

_Answer = TypeVar("_Answer")

SERVICE = "xds.mesh.v1.Proxies"
WITHIN = 10.0
"""Seconds for an answer."""
CANNOT_ASK = 3
"""The exit status if there is nobody to ask, or who is there does not answer."""

_TITLES = ("PROXY", "TYPE", "RESOURCES", "STATUS")


class Format(StrEnum):
    """How to print it."""

    TABLE = "table"
    JSON = "json"


def status(
    *,
    proxy: Annotated[
        str | None,
        typer.Argument(
            metavar="PROXY",
            help="One sidecar only: POD.NAMESPACE, its node id, or how one of these begins. Its resources that are "
            "not synced are told too.",
            show_default=False,
        ),
    ] = None,
    namespace: Annotated[
        str, typer.Option("-n", "--namespace", metavar="NS", help="One namespace only.", show_default=False)
    ] = "",
    output: Annotated[
        Format,
        typer.Option(
            "-o", "--output", help="A table for people, or JSON for programs, as grpcurl prints it."
        ),
    ] = Format.TABLE,
    watch: Annotated[
        bool, typer.Option("-w", "--watch", help="Go on, and tell what changes, until Ctrl-C.")
    ] = False,
    xds_address: Annotated[
        str, typer.Option("--xds-address", metavar="HOST:PORT", help="Where the control plane serves xDS.")
    ] = "127.0.0.1:15010",
) -> None:
    """Say for every connected sidecar and type of resource: synced, waiting for what, or rejected and why.

    A running control plane is asked (service xds.mesh.v1.Proxies). Exit status: 0 all sidecars have what they should,
    1 some do not yet or rejected something, 2 wrong use, 3 the control plane cannot be asked.
    """
    where = options.address("--xds-address", xds_address)
    with _Asking(where) as asking:
        chosen = {"proxy": asking.find(proxy, namespace) if proxy else "", "namespace": namespace}
        if watch:
            with suppress(KeyboardInterrupt):  # the end that was asked for
                _follow(asking.watch(chosen, unsynced=output is Format.JSON), output)
            return
        answer = asking.list(chosen, unsynced=bool(proxy) or output is Format.JSON)
        if output is Format.JSON:
            typer.echo(json.dumps(_as_json(answer), indent=2))
        elif answer.proxies:
            _print(answer.proxies, answer.time, resources=bool(proxy))
        else:
            typer.echo(
                f"no proxy {f'of namespace {namespace} ' if namespace else ''}is connected to {where}",
                err=True,
            )
        from xds.status import settled  # noqa: PLC0415

        if not all(settled(each) for each in answer.proxies):
            raise typer.Exit(1)


class _Asking:
    """A control plane that can be asked; what goes wrong ends the command."""

    def __init__(self, where: Address) -> None:
        import grpc  # noqa: PLC0415

        self._where = where
        # Everything about a large mesh is more than the default 4 MiB, and a proxy for the web cannot know this port.
        settings = (("grpc.max_receive_message_length", -1), ("grpc.enable_http_proxy", 0))
        self._channel: grpc.Channel = grpc.insecure_channel(str(where), settings)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._channel.close()

    def list(self, chosen: dict[str, str], *, unsynced: bool) -> pb.ListProxiesResponse:
        """Ask how far proxies are."""
        from xds.api import proxies_pb2 as pb  # noqa: PLC0415

        ask = self._channel.unary_unary(
            f"/{SERVICE}/List",
            request_serializer=pb.ListProxiesRequest.SerializeToString,
            response_deserializer=pb.ListProxiesResponse.FromString,
        )
        request = pb.ListProxiesRequest(**chosen, unsynced=unsynced)
        answer: pb.ListProxiesResponse = self._or_end(lambda: ask(request, timeout=WITHIN))
        return answer

    def watch(self, chosen: dict[str, str], *, unsynced: bool) -> Iterator[pb.WatchProxiesResponse]:
        """Ask how far proxies are, and go on."""
        from xds.api import proxies_pb2 as pb  # noqa: PLC0415

        ask = self._channel.unary_stream(
            f"/{SERVICE}/Watch",
            request_serializer=pb.WatchProxiesRequest.SerializeToString,
            response_deserializer=pb.WatchProxiesResponse.FromString,
        )
        responses = iter(ask(pb.WatchProxiesRequest(**chosen, unsynced=unsynced)))
        while True:
            response = self._or_end(lambda: next(responses, None))
            if response is None:
                return
            yield response

    def find(self, proxy: str, namespace: str) -> str:
        """Return what names the one proxy that is meant, or end with what could have been."""
        from xds.status import proxy_name  # noqa: PLC0415

        found = self.list({"proxy": proxy, "namespace": namespace}, unsynced=False).proxies
        if not found:
            others = self.list({"proxy": "", "namespace": namespace}, unsynced=False).proxies
            if not others:
                options.fail(f"there is no proxy {proxy}: none is connected to {self._where}")
            known = dict.fromkeys(proxy_name(each.node_id) for each in others)
            options.unknown("proxy", proxy, list(known), "POD.NAMESPACE")
        names = list(dict.fromkeys(proxy_name(each.node_id) for each in found))
        if len(names) > 1:
            shown = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
            options.fail(f"{proxy} may be each of {shown}: say which")
        return proxy

    def _or_end(self, ask: Callable[[], _Answer]) -> _Answer:
        import grpc  # noqa: PLC0415

        try:
            return ask()
        except grpc.RpcError as error:
            self._end(error)

    def _end(self, error: grpc.RpcError) -> NoReturn:
        from grpc import StatusCode  # noqa: PLC0415

        from xds.model import printable  # noqa: PLC0415

        match error.code():
            case StatusCode.UNAVAILABLE:
                what = (
                    f"no control plane answers at {self._where}: start `xds serve` first, or say with --xds-address "
                    f"where it serves xDS"
                )
            case StatusCode.UNIMPLEMENTED:
                what = f"who answers at {self._where} does not have {SERVICE}: it is no `xds serve`, or an older one"
            case StatusCode.DEADLINE_EXCEEDED:
                what = f"who listens at {self._where} does not answer within {WITHIN:.0f} s"
            case code:
                what = f"{self._where} answers {code.name}"
        details = error.details() or ""
        options.fail(what + (f" ({printable(details)})" if details else ""), CANNOT_ASK)


def _follow(responses: Iterable[pb.WatchProxiesResponse], output: Format) -> None:
    """Print what comes, one after the other."""
    first = True
    for response in responses:
        if output is Format.JSON:
            typer.echo(json.dumps(_as_json(response)))
        else:
            _print(response.proxies, response.time, gone=response.gone, header=first)
        first = False


def _as_json(answer: Message) -> dict[str, Any]:
    from google.protobuf.json_format import MessageToDict  # noqa: PLC0415

    return MessageToDict(answer, always_print_fields_with_no_presence=True)


def _print(
    proxies: Iterable[pb.Proxy],
    now: Timestamp,
    *,
    gone: Iterable[str] = (),
    header: bool = True,
    resources: bool = False,
) -> None:
    from rich.text import Text  # noqa: PLC0415

    from xds.api import proxies_pb2 as pb  # noqa: PLC0415
    from xds.model import printable  # noqa: PLC0415
    from xds.status import proxy_name, short, stream_words, types, words  # noqa: PLC0415

    styles = {pb.SYNCED: "green", pb.WAITING: "yellow", pb.REJECTED: "red"}
    proxies = tuple(proxies)
    if resources:
        for proxy in proxies:
            agent = printable(f" {proxy.agent} {proxy.agent_version}".rstrip())
            for stream in proxy.streams:
                typer.echo(f"{proxy_name(proxy.node_id)}:{agent}, {stream_words(stream, now)}")
        typer.echo()
    table = tables.table(*_TITLES, header=header)
    for proxy in proxies:
        for kind in types(proxy):
            count = kind.resources
            total = count.synced + count.stale + count.not_sent + count.error
            said = Text(words(kind, proxy.missing, now), styles.get(kind.state, ""))
            table.add_row(
                Text(proxy_name(proxy.node_id)),
                Text(short(kind.type_url)),
                Text(f"{count.synced}/{total}"),
                said,
            )
    for node_id in gone:
        table.add_row(Text(proxy_name(node_id)), Text("-"), Text("-"), Text("gone"))
    tables.show(table)
    listed = [(kind, each) for proxy in proxies for kind in types(proxy) for each in kind.unsynced]
    if resources and listed:
        _print_resources(listed, now)


def _print_resources(listed: Iterable[tuple[pb.Type, pb.Resource]], now: Timestamp) -> None:
    from rich.text import Text  # noqa: PLC0415

    from xds.model import printable  # noqa: PLC0415
    from xds.status import resource_words, short  # noqa: PLC0415

    table = tables.table("TYPE", "RESOURCE", "STATE")
    for kind, resource in listed:
        name = Text(printable(resource.name))
        table.add_row(Text(short(kind.type_url)), name, Text(resource_words(resource, now)))
    typer.echo()
    tables.show(table)
