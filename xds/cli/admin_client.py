"""How subcommands ask a running control plane how far its proxies, and changes of mode, are."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn, Self, TypeVar

import typer

from xds.cli import options

if TYPE_CHECKING:
    import grpc
    from google.protobuf.message import Message

    from xds.cli.options import Address
    from xds.mesh.v1 import proxies_pb2 as pb
    from xds.mesh.v1 import rollouts_pb2 as rollouts_pb

_Response = TypeVar("_Response")
_Message = TypeVar("_Message", bound="Message")

PROXIES = "xds.mesh.v1.Proxies"
ROLLOUTS = "xds.mesh.v1.Rollouts"
RPC_TIMEOUT = 10.0
"""Seconds for an answer."""
EXIT_UNREACHABLE = 3
"""The exit status if there is nobody to ask, or who is there does not answer."""


def _file(option: str, about: str) -> Any:
    return typer.Option(option, metavar="FILE", exists=True, dir_okay=False, help=about, show_default=False)


CaFile = Annotated[
    Path | None,
    _file("--ca-file", "Ask over TLS, and verify the control plane against these roots (PEM)."),
]
TokenFile = Annotated[
    Path | None,
    _file("--token-file", "Over TLS: the token of a service account that may ask (audience xds-ca)."),
]
CertFile = Annotated[
    Path | None, _file("--cert-file", "Over TLS: the certificate of a service account that may ask (PEM).")
]
KeyFile = Annotated[Path | None, _file("--key-file", "The key of --cert-file (PEM).")]


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientCredentials:
    """How to ask over TLS; without roots it is asked in plaintext."""

    roots: Path | None = None
    token: Path | None = None
    certificate: Path | None = None
    key: Path | None = None

    def credentials(self) -> grpc.ChannelCredentials | None:
        """Read the files. What is missing or cannot be read ends the command."""
        import grpc  # noqa: PLC0415

        if (self.certificate is None) != (self.key is None):
            options.fail("--cert-file and --key-file go together")
        if self.roots is None:
            if self.token or self.certificate:
                options.fail(
                    "a credential is shown over TLS only: say with --ca-file how the control plane is verified"
                )
            return None
        try:
            made = grpc.ssl_channel_credentials(
                self.roots.read_bytes(),
                self.key.read_bytes() if self.key else None,
                self.certificate.read_bytes() if self.certificate else None,
            )
            if self.token:
                token = grpc.access_token_call_credentials(self.token.read_text().strip())
                made = grpc.composite_channel_credentials(made, token)
        except (OSError, ValueError) as error:
            options.fail(str(error))
        return made


class AdminClient:
    """A control plane that can be asked; what goes wrong ends the command."""

    def __init__(self, where: Address, proof: ClientCredentials = ClientCredentials()) -> None:
        import grpc  # noqa: PLC0415

        self._where = where
        # Everything about a large mesh is more than the default 4 MiB, and a proxy for the web cannot know this port.
        settings = (("grpc.max_receive_message_length", -1), ("grpc.enable_http_proxy", 0))
        credentials = proof.credentials()
        self._channel: grpc.Channel = (
            grpc.secure_channel(str(where), credentials, settings)
            if credentials
            else grpc.insecure_channel(str(where), settings)
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._channel.close()

    def list(self, chosen: dict[str, str], *, unsynced: bool) -> pb.ListProxiesResponse:
        """Ask how far proxies are."""
        from xds.mesh.v1 import proxies_pb2 as pb  # noqa: PLC0415

        request = pb.ListProxiesRequest(**chosen, unsynced=unsynced)
        return self._once(PROXIES, request, pb.ListProxiesResponse)

    def watch(self, chosen: dict[str, str], *, unsynced: bool) -> Iterator[pb.WatchProxiesResponse]:
        """Ask how far proxies are, and go on for as long as the control plane is there."""
        from xds.mesh.v1 import proxies_pb2 as pb  # noqa: PLC0415

        request = pb.WatchProxiesRequest(**chosen, unsynced=unsynced)
        return self._on(PROXIES, request, pb.WatchProxiesResponse)

    def rollouts(self, namespace: str) -> rollouts_pb.ListRolloutsResponse:
        """Ask how far changes of mode are."""
        from xds.mesh.v1 import rollouts_pb2 as pb  # noqa: PLC0415

        return self._once(ROLLOUTS, pb.ListRolloutsRequest(namespace=namespace), pb.ListRolloutsResponse)

    def watch_rollouts(self, namespace: str) -> Iterator[rollouts_pb.ListRolloutsResponse]:
        """Ask how far changes of mode are, and go on for as long as the control plane is there."""
        from xds.mesh.v1 import rollouts_pb2 as pb  # noqa: PLC0415

        return self._on(ROLLOUTS, pb.ListRolloutsRequest(namespace=namespace), pb.ListRolloutsResponse)

    def _once(self, service: str, request: Message, answer: type[_Message]) -> _Message:
        ask = self._channel.unary_unary(
            f"/{service}/List",
            request_serializer=type(request).SerializeToString,
            response_deserializer=answer.FromString,
        )
        found: _Message = self._or_end(service, lambda: ask(request, timeout=RPC_TIMEOUT))
        return found

    def _on(self, service: str, request: Message, answer: type[_Message]) -> Iterator[_Message]:
        import grpc  # noqa: PLC0415

        ask = self._channel.unary_stream(
            f"/{service}/Watch",
            request_serializer=type(request).SerializeToString,
            response_deserializer=answer.FromString,
        )
        responses = iter(ask(request))
        first = self._or_end(service, lambda: next(responses, None))
        try:
            if first:
                yield first
            yield from responses
        except grpc.RpcError as error:
            if error.code() not in {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED}:
                self._end(service, error)
        options.fail(f"the control plane at {self._where} went away", EXIT_UNREACHABLE)

    def find(self, proxy: str, namespace: str) -> str:
        """Return what names the one proxy that is meant, or end with what could have been."""
        from xds.mesh.controlplane.status import proxy_name  # noqa: PLC0415

        def names(answer: pb.ListProxiesResponse) -> list[str]:
            found = dict.fromkeys(proxy_name(each.node_id) for each in answer.proxies)
            if not (found and answer.not_connected.may_be_elsewhere):
                found |= dict.fromkeys(f"{each.pod}.{each.namespace}" for each in answer.not_connected.pods)
            return list(found)

        found = names(self.list({"proxy": proxy, "namespace": namespace}, unsynced=False))
        if not found:
            known = names(self.list({"proxy": "", "namespace": namespace}, unsynced=False))
            if not known:
                options.fail(f"there is no proxy {proxy}: none is connected to {self._where}")
            options.fail_unknown("proxy", proxy, known, "POD.NAMESPACE")
        if len(found) > 1:
            shown = ", ".join(found[:5]) + (", ..." if len(found) > 5 else "")
            options.fail(f"{proxy} may be each of {shown}: say which")
        return found[0] if found[0].startswith(proxy) else proxy

    def _or_end(self, service: str, ask: Callable[[], _Response]) -> _Response:
        import grpc  # noqa: PLC0415

        try:
            return ask()
        except grpc.RpcError as error:
            self._end(service, error)

    def _end(self, service: str, error: grpc.RpcError) -> NoReturn:
        from grpc import StatusCode  # noqa: PLC0415

        from xds.mesh.model.objects import printable  # noqa: PLC0415

        match error.code():
            case StatusCode.UNAVAILABLE:
                what = (
                    f"no control plane answers at {self._where}: start `xds serve` first, or say with --xds-address "
                    f"where it serves xDS"
                )
            case StatusCode.UNAUTHENTICATED | StatusCode.PERMISSION_DENIED:
                what = f"{self._where} does not let us ask"
            case StatusCode.UNIMPLEMENTED:
                what = f"who answers at {self._where} does not have {service}: it is no `xds serve`, or an older one"
            case StatusCode.DEADLINE_EXCEEDED:
                what = f"who listens at {self._where} does not answer within {RPC_TIMEOUT:.0f} s"
            case code:
                what = f"{self._where} answers {code.name}"
        details = error.details() or ""
        options.fail(what + (f" ({printable(details)})" if details else ""), EXIT_UNREACHABLE)
