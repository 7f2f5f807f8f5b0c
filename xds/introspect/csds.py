"""Envoy's client status discovery service (CSDS): what each proxy has of each resource, and what it said to it.

`envoy/service/status/v3/csds.proto`, in the part that is a management server's. Every stream is a client of its own: a
proxy that has two, while it restarts say, is listed twice, and `client_scope` tells which is which.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterable
from typing import Any, Final, TypeAlias
from urllib.parse import unquote

import grpc
import grpc.aio
from google.protobuf.message import DecodeError

from xds.codec import message_class
from xds.introspect.cooperative import Checkpoint, batches
from xds.introspect.guard import GuardedServer
from xds.introspect.redaction import redact
from xds.protocol.limits import RequestError
from xds.protocol.status import ResourceStatus
from xds.server import ADS, DiscoveryService, Stream
from xds.snapshot import Resource

SERVICE: Final = "envoy.service.status.v3.ClientStatusDiscoveryService"

MAX_PART_SIZE: Final = 3 * 1024 * 1024
"""Bytes above which an answer on a stream is continued in another message: many clients refuse more than 4 MiB."""
MAX_RESPONSE_SIZE: Final = 16 * 1024 * 1024
"""Bytes above which there is no answer in one message."""
_OVERHEAD: Final = 16
"""Bytes that a resource takes in an answer besides its own, at most."""

_MATCHES: Final[dict[str, Callable[[str, str], bool]]] = {
    "exact": str.__eq__,
    "prefix": str.startswith,
    "suffix": str.endswith,
    "contains": str.__contains__,
}
_Wanted: TypeAlias = Callable[[str], bool]
"""Whether a node of this id is asked for."""


class _TooLargeError(Exception):
    """There is too much to say; the message tells what to do."""


def add_csds(server: GuardedServer, discovery: DiscoveryService) -> None:
    """Add the service to a server."""
    status = _ClientStatus(discovery)
    methods = {
        "FetchClientStatus": grpc.unary_unary_rpc_method_handler(status.fetch),
        "StreamClientStatus": grpc.stream_stream_rpc_method_handler(status.stream),
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, methods),))


class _ClientStatus:
    """The service, as encoded messages in both directions."""

    def __init__(self, discovery: DiscoveryService) -> None:
        self._discovery = discovery
        # Found once: to import and describe what they are made of takes a moment.
        self._request: Any = message_class("envoy.service.status.v3.ClientStatusRequest")
        self._response: Any = message_class("envoy.service.status.v3.ClientStatusResponse")
        self._resource: Any = message_class("envoy.service.status.v3.ClientConfig.GenericXdsConfig")

    async def fetch(self, body: bytes, context: grpc.aio.ServicerContext) -> bytes:
        """Answer one request with one message."""
        try:
            (answer,) = [part async for part in self._answer(body, MAX_RESPONSE_SIZE, whole=True)]
        except RequestError as error:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
        except _TooLargeError as error:
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, str(error))
        return answer

    async def stream(
        self, bodies: AsyncIterator[bytes], context: grpc.aio.ServicerContext
    ) -> AsyncIterator[bytes]:
        """Answer each request, in parts if it takes much."""
        try:
            async for body in bodies:
                async for part in self._answer(body, MAX_PART_SIZE):
                    yield part
        except RequestError as error:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))

    async def _answer(self, body: bytes, limit: int, *, whole: bool = False) -> AsyncIterator[bytes]:
        """Answer a request with messages of up to `limit` bytes each, but for a resource that alone is larger.

        A client that is not done with at the end of one goes on in the next, under the same node and scope. If there
        must not be a next one (`whole`), that is a _TooLargeError.
        """
        try:
            request = self._request.FromString(body)
        except DecodeError as error:
            raise RequestError("the request is not a ClientStatusRequest") from error
        wanted = _wanted(request.node_matchers)
        contents = None if request.exclude_resource_contents else _Contents()
        response, size = self._response(), 0
        checkpoint = Checkpoint()
        for stream in sorted(self._discovery.streams, key=lambda each: (each.node.id, each.opened_at)):
            if not wanted(stream.node.id):
                continue
            client = _add_client(response, stream)
            async for resource in self._resources(stream, contents, checkpoint):
                more = resource.ByteSize() + _OVERHEAD
                if size and size + more > limit:
                    if whole:
                        raise _TooLargeError(
                            f"the answer is larger than {limit >> 20} MiB: name fewer nodes (node_matchers), leave the "
                            "resources out (exclude_resource_contents), or use StreamClientStatus, which sends it in parts"
                        )
                    yield response.SerializeToString()
                    response, size = self._response(), 0
                    client = _add_client(response, stream)
                client.generic_xds_configs.append(resource)
                size += more
        yield response.SerializeToString()

    async def _resources(
        self, stream: Stream, contents: _Contents | None, checkpoint: Checkpoint
    ) -> AsyncIterator[Any]:
        """Go through what is known of a client's resources, giving the event loop its turn."""
        await checkpoint()
        for kind in stream.session.status():
            async for portion in batches(kind, checkpoint):
                if contents:
                    await contents.look_through(portion)
                for status in portion:
                    await checkpoint()
                    yield self._describe(kind.type_url, status, contents)

    def _describe(self, type_url: str, status: ResourceStatus, contents: _Contents | None) -> Any:
        """Make what is said of one resource."""
        made = self._resource(
            type_url=type_url,
            name=status.name,
            version_info=status.version,
            config_status=status.state.name,
        )
        resource, error = status.resource, status.error
        if status.updated_at is not None:
            _set_time(made.last_updated, status.updated_at)
        if contents and resource:
            contents.put(made.xds_config, resource)
        if error:
            failure = made.error_state
            failure.details, failure.version_info = error.message, error.version
            _set_time(failure.last_update_attempt, error.at)
            if contents and resource and resource.version == error.version:
                contents.put(failure.failed_configuration, resource)
        return made


class _Contents:
    """The resources themselves, without secrets; each is looked through once, however many clients have it."""

    def __init__(self) -> None:
        self._shown: dict[int, tuple[bytes, bytes | None]] = {}
        """By a body's identity: the body, so that nothing else can get that identity, and what is shown of it."""

    async def look_through(self, statuses: Iterable[ResourceStatus]) -> None:
        """Have a thread look through what is new: to import and describe what is in it may take a while."""
        resources = (status.resource for status in statuses)
        new = [each for each in resources if each and id(each.body) not in self._shown]
        if new:
            await asyncio.to_thread(self._look_through, new)

    def _look_through(self, resources: Iterable[Resource]) -> None:
        for resource in resources:
            self._shown[id(resource.body)] = resource.body, redact(resource.type_url, resource.body)

    def put(self, packed: Any, resource: Resource) -> None:
        """Fill an Any with what was looked through, unless it is not known what is in it."""
        shown = self._shown[id(resource.body)][1]
        if shown is not None:
            packed.type_url, packed.value = resource.type_url, shown


def _add_client(response: Any, stream: Stream) -> Any:
    node = stream.node
    client = response.config.add(client_scope=_scope(stream))
    client.node.id = node.id
    client.node.cluster = node.cluster
    client.node.user_agent_name = node.user_agent_name
    if node.user_agent_version:
        client.node.user_agent_version = node.user_agent_version
    client.node.client_features.extend(node.client_features)
    return client


def _scope(stream: Stream) -> str:
    """Tell streams of the same node apart: by what they are for, and where they come from."""
    info = stream.info
    service = info.type_url.rpartition(".")[2] or ADS.rpartition(".")[2]
    return f"{service} ({info.variant.value}) from {unquote(info.peer)}"


def _set_time(timestamp: Any, at: float) -> None:
    """Set a Timestamp from a time of the event loop's clock, which is not that of the wall: to the millisecond."""
    timestamp.FromMilliseconds(round((time.time() - asyncio.get_running_loop().time() + at) * 1e3))


def _wanted(matchers: Iterable[Any]) -> _Wanted:
    """Return what tells whether a node is asked for: one matcher is enough, and without any all are. RequestError: it cannot be told."""
    wanted = [_matcher(f"node_matchers[{number}]", matcher) for number, matcher in enumerate(matchers)]
    return lambda node_id: not wanted or any(each(node_id) for each in wanted)


def _matcher(where: str, matcher: Any) -> _Wanted:
    if matcher.node_metadatas:
        raise RequestError(
            f"{where}.node_metadatas is not supported, as metadata of nodes is not kept: use node_id"
        )
    if not matcher.HasField("node_id"):
        return lambda _: True
    pattern = matcher.node_id
    kind = pattern.WhichOneof("match_pattern")
    if kind not in _MATCHES:
        known = ", ".join(_MATCHES)
        problem = f"{where}.node_id.{kind} is not supported" if kind else f"{where}.node_id has no pattern"
        raise RequestError(f"{problem}: use one of {known}")
    matches, text, ignore_case = _MATCHES[kind], getattr(pattern, kind), pattern.ignore_case
    if ignore_case:
        return lambda node_id: matches(node_id.lower(), text.lower())
    return lambda node_id: matches(node_id, text)
