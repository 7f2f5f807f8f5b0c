"""A client that behaves as Envoy does, for tests of xDS servers."""

from __future__ import annotations

import asyncio
import inspect
import textwrap
from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import Any, Self

import grpc
import grpc.aio

from xds.codec import message_class
from xds.protocol.session import Variant
from xds.protocol.types import short_name
from xds.server import Proxies
from xds.snapshot import CLUSTER, ENDPOINT, LISTENER, ROUTE, SECRET, Resource, ResourceKey
from xds.testing.envoy import DEFAULT_CLUSTER
from xds.testing.messages import Conversation, Request, Response
from xds.testing.model import EnvoyModel, Rejection
from xds.testing.streams import ClientStream, MemoryStream, SocketStream, method_of

_MAX_SOURCE_LENGTH = 200
"""Maximum length of a condition's source in an error, in characters."""
DEFAULT_TIMEOUT = 10.0
"""Default maximum time of `EnvoyClient.wait_for`, in seconds."""


class EnvoyClient:
    """An Envoy without traffic: subscribes, warms, ACKs and NACKs as Envoy does, on one aggregated stream.

    Use it as an asynchronous context manager, which opens the stream:

        async with EnvoyClient(store) as client:
            await client.wait_for(lambda: "web" in client.clusters)

    The client holds resources as Envoy does, but opens no listeners and sends no requests to clusters.
    `xds.testing.EnvoyModel` describes its behaviour.

    Args:
        target: Address of an xDS server, a channel to it, or a `Proxies` such as a `Store`, which the client
            uses in memory, without a socket.
        variant: Variant of the protocol.
        node: ID of the client's node.
        cluster: Cluster of the client's node.
        timeout: Maximum time of `wait_for`, in seconds.
    """

    def __init__(
        self,
        target: str | grpc.aio.Channel | Proxies,
        *,
        variant: Variant = Variant.DELTA,
        node: str = "envoy",
        cluster: str = DEFAULT_CLUSTER,
        timeout: float = DEFAULT_TIMEOUT,
    ) -> None:
        self.model = EnvoyModel(variant)
        """State of the client."""
        self.conversation = Conversation()
        """Messages of all streams of the client."""
        self.node = node
        self.status: tuple[grpc.StatusCode, str] | None = None
        """Code and message with which the server ended the stream; None while it is open."""
        self._target = target
        self._node = {"id": node, "cluster": cluster, "user_agent_name": "envoy"}
        self.timeout = timeout
        """Maximum time of `wait_for`, in seconds."""
        self._channel: grpc.aio.Channel | None = None
        self._stream: ClientStream | None = None
        self._reader: asyncio.Task[None] | None = None
        self._sending = asyncio.Lock()
        self._changed = asyncio.Event()
        self._held: defaultdict[str, list[Response]] = defaultdict(list)
        self._holds: set[str] = set()

    async def __aenter__(self) -> Self:
        await self.connect()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.disconnect()

    # --- streams ---

    async def connect(self) -> None:
        """Open a stream, and send the first requests. They report the resources of an earlier stream.

        Raises:
            RuntimeError: The client is connected.
        """
        if self._stream:
            raise RuntimeError(f"{self.node} is connected: call reconnect(), or disconnect() first")
        self.status = None
        self._held.clear()
        variant = self.model.variant
        stream = self._stream = self._open(variant)
        self.conversation.open(self.node, variant)
        async with self._sending:
            first, *others = self.model.connect()
            self.conversation.add(first)
            await stream.write(first.encode(variant, self._node))
            await self._send(others)
        self._reader = asyncio.create_task(self._read(stream))
        self._reader.add_done_callback(lambda _: self._changed.set())

    async def disconnect(self) -> None:
        """Cancel the stream. The client keeps its resources."""
        stream, self._stream = self._stream, None
        reader, self._reader = self._reader, None
        if reader:
            reader.cancel()
            await asyncio.wait((reader,))
        if stream:
            await stream.close()
        if self._channel:
            await self._channel.close()
            self._channel = None

    async def reconnect(self, target: str | grpc.aio.Channel | Proxies | None = None) -> None:
        """Open a new stream, and report the resources of the last one.

        Args:
            target: Another server; the default is the same one.
        """
        await self.disconnect()
        self._target = self._target if target is None else target
        await self.connect()

    # --- what the client has ---

    @property
    def resources(self) -> Mapping[str, Mapping[str, Resource]]:
        """Accepted resources by type URL and name, with versions and encoded messages."""
        return self.model.resources

    @property
    def clusters(self) -> dict[str, Any]:
        """Accepted clusters by name, as protobuf messages. They may be warming."""
        return self.messages(CLUSTER)

    @property
    def endpoints(self) -> dict[str, Any]:
        """Accepted endpoint assignments by name, as protobuf messages."""
        return self.messages(ENDPOINT)

    @property
    def listeners(self) -> dict[str, Any]:
        """Accepted listeners by name, as protobuf messages. They may be warming."""
        return self.messages(LISTENER)

    @property
    def routes(self) -> dict[str, Any]:
        """Accepted route configurations by name, as protobuf messages."""
        return self.messages(ROUTE)

    @property
    def secrets(self) -> dict[str, Any]:
        """Accepted secrets by name, as protobuf messages."""
        return self.messages(SECRET)

    def messages(self, type_url: str) -> dict[str, Any]:
        """Return the accepted resources of a type by name, as protobuf messages."""
        resources = self.model.resources.get(type_url, {})
        return {name: _decode(type_url, resource) for name, resource in resources.items()}

    @property
    def warming(self) -> frozenset[ResourceKey]:
        """Type URLs and names of the clusters and listeners that cannot be used yet in their new version.

        They wait for resources that they refer to.
        """
        return self.model.warming

    @property
    def live(self) -> bool:
        """Whether the first clusters and listeners have arrived and are warm, even if there are none.

        Envoy is then live, and the client has answered all of their responses.
        """
        return self.model.is_live

    async def wait_for(self, condition: Callable[[], object], what: str = "") -> None:
        """Wait until a condition is true. It is checked after each response that the client processes.

        Args:
            condition: Called without arguments, such as `lambda: "web" in client.clusters`.
            what: Description for the error; the default is the condition's name, or the source of a lambda.

        Raises:
            AssertionError: The condition is still false after the timeout, or when the stream ends. The
                message contains the conversation.
        """
        what = what or _describe(condition)
        try:
            async with asyncio.timeout(self.timeout):
                while not condition():
                    if self._reader and self._reader.done():
                        self._reader.result()  # Raise what the client failed with.
                    if self.status:
                        code, message = self.status
                        raise AssertionError(
                            f"{self.node}: the stream ended with {code.name} ({message}) before"
                            f" {what}\n{self.describe()}"
                        )
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            raise AssertionError(
                f"{self.node}: not within {self.timeout} s: {what}\n{self.describe()}"
            ) from None

    def describe(self) -> str:
        """Return the conversation and the state of the client, as text for error messages."""
        warming = ", ".join(sorted(f"{short_name(kind)} {name}" for kind, name in self.warming))
        held = ", ".join(
            f"{names} ({short_name(kind)})"
            for kind, resources in self.model.resources.items()
            if (names := " ".join(sorted(resources)))
        )
        return f"{self.conversation}\nhas: {held or 'nothing'}\nwarming: {warming or 'nothing'}"

    # --- what the client does on demand ---

    def reject(
        self,
        type_url: str,
        name: str = "",
        message: str = "rejected by the test",
        *,
        whole: bool = False,
        when: Callable[[Any], bool] | None = None,
    ) -> None:
        """Reject a resource, or all of a type, from now on.

        Of a response with rejected clusters or listeners, the client accepts all others, as Envoy does. Of a
        response of another type, it accepts nothing.

        Args:
            type_url: Type URL of the resource.
            name: Name of the resource; the default is all resources of the type.
            message: Error message of the NACK.
            whole: Whether to accept nothing of a response with this resource, as if it violated a proto
                constraint.
            when: Condition on the resource, which gets it as protobuf message, such as
                `lambda cluster: not cluster.load_assignment.endpoints`; the default is always.
        """
        if whole:
            message = f'name: "{name}"\n: Proto constraint validation failed ({message})'

        def matches(resource: Resource) -> bool:
            return when is None or when(_decode(type_url, resource))

        self.model.rejected[type_url, name] = Rejection(message=message, whole=whole, when=matches)

    def accept(self, type_url: str, name: str = "") -> None:
        """Stop rejecting a resource. The server sends it again when it changes."""
        self.model.rejected.pop((type_url, name), None)

    def hold(self, type_url: str) -> None:
        """Do not process responses of a type, and so do not answer them, until `release`.

        Assignments that arrive after held clusters are held as well, because they are for these clusters.
        """
        self._holds.add(type_url)

    async def release(self, type_url: str) -> None:
        """Process the responses of a type that were held."""
        self._holds.discard(type_url)
        for response in self._held.pop(type_url, ()):
            await self._process(response)
        if type_url == CLUSTER:
            await self._release_assignments()

    async def answer(self, type_url: str, error: str = "") -> Response:
        """Process and answer one response of a type that the client holds. Wait until there is one.

        The client goes on to hold the type.

        Args:
            type_url: Type URL of the response.
            error: Error message with which the client rejects all resources of the response. It applies
                nothing of a response without resources. By default, it rejects those of `reject`.

        Returns:
            The response.

        Raises:
            AssertionError: No response has come before the timeout, or before the stream ends.
        """
        await self.wait_for(lambda: self.held(type_url), f"a response of {short_name(type_url)}")
        response = self._held[type_url].pop(0)
        await self._act(lambda: self.model.receive(response, error))
        if type_url == CLUSTER:
            await self._release_assignments()
        return response

    def held(self, type_url: str) -> list[Response]:
        """Return the responses of a type that have arrived while the client holds the type."""
        return list(self._held.get(type_url, ()))

    async def demand(self, type_url: str, *names: str) -> None:
        """Subscribe to resources on demand, such as virtual hosts or clusters that a request needs."""
        await self._act(lambda: self.model.demand(type_url, *names))

    async def drain(self) -> None:
        """Close the connections of replaced and removed listeners, and unsubscribe from their routes."""
        await self._act(self.model.drain)

    async def stop_warming(self) -> None:
        """Use clusters although resources are missing, as Envoy does 15 s after it has requested them."""
        await self._act(self.model.stop_warming)

    # --- internals ---

    async def _release_assignments(self) -> None:
        """Process the assignments that were held because of clusters."""
        if not self._held.get(CLUSTER) and ENDPOINT not in self._holds:
            await self.release(ENDPOINT)

    def _open(self, variant: Variant) -> ClientStream:
        if isinstance(self._target, str):
            self._channel = grpc.aio.insecure_channel(self._target)
            return SocketStream(self._channel, method_of(variant))
        if isinstance(self._target, grpc.aio.Channel):
            return SocketStream(self._target, method_of(variant))
        return MemoryStream(self._target, variant)

    async def _read(self, stream: ClientStream) -> None:
        while (data := await stream.read()) is not None:
            response = Response.decode(data, self.model.variant)
            self.conversation.add(response)
            waits_for_cluster = response.type_url == ENDPOINT and self._held.get(CLUSTER)
            if response.type_url in self._holds or waits_for_cluster:
                self._held[response.type_url].append(response)
                self._changed.set()
            else:
                await self._process(response)
        self.status = await stream.status()
        self._changed.set()

    async def _process(self, response: Response) -> None:
        await self._act(lambda: self.model.receive(response))

    async def _act(self, action: Callable[[], list[Request]]) -> None:
        """Change the model, and send the requests that result."""
        async with self._sending:
            await self._send(action())
        self._changed.set()

    async def _send(self, requests: list[Request]) -> None:
        if self._stream is None:
            return
        for request in requests:
            self.conversation.add(request)
            await self._stream.write(request.encode(self.model.variant))


def _decode(type_url: str, resource: Resource) -> Any:
    return message_class(type_url.rpartition("/")[2]).FromString(resource.body)


def _describe(condition: Callable[[], object]) -> str:
    """Return the name of a function, or the source lines of a lambda."""
    name = getattr(condition, "__name__", repr(condition))
    code = getattr(condition, "__code__", None)
    # For a lambda from `eval`, Python 3.13 returns the source of the program in `python -c`.
    if name == "<lambda>" and code and code.co_filename != "<string>":
        try:
            source = inspect.getsource(condition)
        except (OSError, TypeError, SyntaxError):  # As in an interactive shell.
            return name
        return textwrap.shorten(source, _MAX_SOURCE_LENGTH, placeholder=" ...")
    return name
