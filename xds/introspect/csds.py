"""Envoy's client status discovery service (CSDS): the status of each resource at each client.

This is the management server's part of `envoy/service/status/v3/csds.proto`. Each stream is listed as a
separate client. A proxy with two streams, for example during a hot restart, is listed twice, with different
values of `client_scope`.
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

from xds.checkpoint import Checkpoint
from xds.codec import message_class
from xds.introspect.cooperative import batches
from xds.introspect.guard import GuardedServer
from xds.introspect.redaction import redact
from xds.protocol.limits import RequestError
from xds.protocol.status import ResourceStatus
from xds.server import ADS, DiscoveryService, Stream
from xds.snapshot import Resource

SERVICE: Final = "envoy.service.status.v3.ClientStatusDiscoveryService"

MAX_PART_SIZE: Final = 3 * 1024 * 1024
"""Maximum size of one message of a streamed answer, in bytes.

Many clients reject messages larger than 4 MiB.
"""
MAX_RESPONSE_SIZE: Final = 16 * 1024 * 1024
"""Maximum size of an answer in one message, in bytes."""
_OVERHEAD: Final = 16
"""Maximum number of bytes that a resource adds to an answer in addition to its own size."""

_MATCHES: Final[dict[str, Callable[[str, str], bool]]] = {
    "exact": str.__eq__,
    "prefix": str.startswith,
    "suffix": str.endswith,
    "contains": str.__contains__,
}
_NodeFilter: TypeAlias = Callable[[str], bool]
"""Returns whether a request selects the node with the given ID."""


class _TooLargeError(Exception):
    """An answer is too large for one message."""


def add_csds(server: GuardedServer, discovery: DiscoveryService) -> None:
    """Add the service to a server."""
    status = _ClientStatus(discovery)
    methods = {
        "FetchClientStatus": grpc.unary_unary_rpc_method_handler(status.fetch),
        "StreamClientStatus": grpc.stream_stream_rpc_method_handler(status.stream),
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, methods),))


class _ClientStatus:
    """Implements the service. Its methods receive and return encoded messages."""

    def __init__(self, discovery: DiscoveryService) -> None:
        self._discovery = discovery
        self._request: Any = None
        self._response: Any = None
        self._resource: Any = None

    def _load_classes(self) -> None:
        """Look up the classes of messages. Importing and describing their packages is slow, once."""
        self._response = message_class("envoy.service.status.v3.ClientStatusResponse")
        self._resource = message_class("envoy.service.status.v3.ClientConfig.GenericXdsConfig")
        self._request = message_class("envoy.service.status.v3.ClientStatusRequest")

    async def fetch(self, body: bytes, context: grpc.aio.ServicerContext) -> bytes:
        """Answer one request with one message."""
        try:
            (answer,) = [part async for part in self._answer(body, MAX_RESPONSE_SIZE, single=True)]
        except RequestError as error:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
        except _TooLargeError as error:
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, str(error))
        return answer

    async def stream(
        self, bodies: AsyncIterator[bytes], context: grpc.aio.ServicerContext
    ) -> AsyncIterator[bytes]:
        """Answer each request with one or more messages."""
        try:
            async for body in bodies:
                async for part in self._answer(body, MAX_PART_SIZE):
                    yield part
        except RequestError as error:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))

    async def _answer(self, body: bytes, limit: int, *, single: bool = False) -> AsyncIterator[bytes]:
        """Yield the encoded messages of an answer.

        If the resources of a client do not fit into one message, the next message continues with the same
        node and scope.

        Args:
            body: Encoded request.
            limit: Maximum size of a message, in bytes. A message with a single resource may be larger.
            single: Whether the answer must be one message.

        Raises:
            RequestError: The request is invalid.
            _TooLargeError: The answer must be one message, and exceeds `limit`.
        """
        if self._request is None:
            await asyncio.to_thread(self._load_classes)
        try:
            request = self._request.FromString(body)
        except DecodeError as error:
            raise RequestError("the request is not a ClientStatusRequest") from error
        selects = _node_filter(request.node_matchers)
        contents = None if request.exclude_resource_contents else _RedactedContents()
        response, size = self._response(), 0
        checkpoint = Checkpoint()
        for stream in sorted(self._discovery.streams, key=lambda stream: (stream.node.id, stream.opened_at)):
            if not selects(stream.node.id):
                continue
            client = _add_client(response, stream)
            async for resource in self._resources(stream, contents, checkpoint):
                added = resource.ByteSize() + _OVERHEAD
                if size and size + added > limit:
                    if single:
                        raise _TooLargeError(
                            f"the answer is larger than {limit >> 20} MiB:"
                            " select fewer nodes (node_matchers),"
                            " omit the resources (exclude_resource_contents), or use StreamClientStatus"
                        )
                    yield response.SerializeToString()
                    response, size = self._response(), 0
                    client = _add_client(response, stream)
                client.generic_xds_configs.append(resource)
                size += added
        yield response.SerializeToString()

    async def _resources(
        self, stream: Stream, contents: _RedactedContents | None, checkpoint: Checkpoint
    ) -> AsyncIterator[Any]:
        """Generate the status of a client's resources, and yield to the event loop in between."""
        await checkpoint()
        for kind in stream.session.status():
            async for batch in batches(kind, checkpoint):
                if contents:
                    await contents.prepare(batch)
                for status in batch:
                    await checkpoint()
                    yield self._describe(kind.type_url, status, contents)

    def _describe(self, type_url: str, status: ResourceStatus, contents: _RedactedContents | None) -> Any:
        """Return the message for the status of one resource."""
        config = self._resource(
            type_url=type_url,
            name=status.name,
            version_info=status.version,
            config_status=status.state.name,
        )
        resource, error = status.resource, status.error
        if status.updated_at is not None:
            _set_time(config.last_updated, status.updated_at)
        if contents and resource:
            contents.put(config.xds_config, resource)
        if error:
            failure = config.error_state
            failure.details, failure.version_info = error.message, error.version
            _set_time(failure.last_update_attempt, error.at)
            if contents and resource and resource.version == error.version:
                contents.put(failure.failed_configuration, resource)
        return config


class _RedactedContents:
    """Redacted contents of resources. Each resource is redacted once for all clients that have it."""

    def __init__(self) -> None:
        self._redacted: dict[int, tuple[bytes, bytes | None]] = {}
        """Original and redacted body, by `id(original)`. Storing the original reserves its id."""

    async def prepare(self, statuses: Iterable[ResourceStatus]) -> None:
        """Redact new resources in a thread, because importing and describing their packages is slow."""
        resources = (status.resource for status in statuses)
        new = [resource for resource in resources if resource and id(resource.body) not in self._redacted]
        if new:
            await asyncio.to_thread(self._redact, new)

    def _redact(self, resources: Iterable[Resource]) -> None:
        for resource in resources:
            self._redacted[id(resource.body)] = resource.body, redact(resource.type_url, resource.body)

    def put(self, packed: Any, resource: Resource) -> None:
        """Fill an Any with a redacted resource. Leave it empty if the resource cannot be redacted."""
        body = self._redacted[id(resource.body)][1]
        if body is not None:
            packed.type_url, packed.value = resource.type_url, body


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
    """Return a description that distinguishes the streams of one node: service, variant and peer."""
    info = stream.info
    service = info.type_url.rpartition(".")[2] or ADS.rpartition(".")[2]
    return f"{service} ({info.variant.value}) from {unquote(info.peer)}"


def _set_time(timestamp: Any, at: float) -> None:
    """Set a Timestamp from a time of the event loop's clock, rounded to milliseconds."""
    timestamp.FromMilliseconds(round((time.time() - asyncio.get_running_loop().time() + at) * 1e3))


def _node_filter(matchers: Iterable[Any]) -> _NodeFilter:
    """Return a filter for nodes that match one of the matchers. Without matchers, all nodes match.

    Raises:
        RequestError: A matcher is not supported.
    """
    filters = [_matcher(f"node_matchers[{number}]", matcher) for number, matcher in enumerate(matchers)]
    return lambda node_id: not filters or any(matches(node_id) for matches in filters)


def _matcher(where: str, matcher: Any) -> _NodeFilter:
    if matcher.node_metadatas:
        raise RequestError(f"{where}.node_metadatas is not supported: use node_id")
    if not matcher.HasField("node_id"):
        return lambda _: True
    pattern = matcher.node_id
    kind = pattern.WhichOneof("match_pattern")
    if kind not in _MATCHES:
        supported = ", ".join(_MATCHES)
        problem = f"{where}.node_id.{kind} is not supported" if kind else f"{where}.node_id has no pattern"
        raise RequestError(f"{problem}: use one of {supported}")
    matches, text, ignore_case = _MATCHES[kind], getattr(pattern, kind), pattern.ignore_case
    if ignore_case:
        return lambda node_id: matches(node_id.lower(), text.lower())
    return lambda node_id: matches(node_id, text)
