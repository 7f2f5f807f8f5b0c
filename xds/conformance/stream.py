"""A client of one stream, which records its conversation.

It ACKs every response at once, unless a check holds ACKs back. What it received forms its view of each type.
Checks compare the view instead of single responses, because a server may split or merge responses.
"""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

import grpc
import grpc.aio

from xds.conformance.wire import EndedError, NotApplicableError, Response, Variant, decode, path_of
from xds.conformance.world import FULL, TYPES, CheckError, World, parse
from xds.testing import Request
from xds.testing.streams import SocketStream

_MAX_REPEATS = 20
"""Number of equal responses in a row after which a client stops waiting for another one."""
_MAX_LINE = 400
"""Longest line of a conversation, in characters."""


def shorten(line: str) -> str:
    """Return a line without the middle, if it is long."""
    if len(line) <= _MAX_LINE:
        return line
    half = _MAX_LINE // 2
    return f"{line[:half]} ... ({len(line)} characters) ... {line[-half:]}"


class Stream:
    """One stream, opened by its first request.

    Args:
        channel: Connection to the server.
        variant: Variant of the protocol.
        world: What the node is served. The stream uses its unrequested resources for probes.
        say: Records a line of the conversation.
        timeout: Seconds to wait for a response that must come.
        quiet: Seconds to wait for a response that must not come, before a probe is sent.
        repeat_node: Whether all requests contain the node.
        features: Features that the client declares.
    """

    def __init__(
        self,
        channel: grpc.aio.Channel,
        variant: Variant,
        world: World,
        say: Callable[[str], None],
        *,
        timeout: float,
        quiet: float,
        repeat_node: bool = False,
        features: tuple[str, ...] = (),
    ) -> None:
        self.variant, self.world = variant, world
        self.responses: list[Response] = []
        self.view: defaultdict[str, dict[str, str]] = defaultdict(dict)
        """By type: name and content of what the client has."""
        self.versions: defaultdict[str, dict[str, str]] = defaultdict(dict)
        self.gone: defaultdict[str, set[str]] = defaultdict(set)
        """By type: names that the server reported as removed."""
        self.held: set[str] = set()
        """Types whose responses the check ACKs itself."""
        self.names: defaultdict[str, list[str]] = defaultdict(list)
        self.reading = asyncio.Event()
        """Whether the client reads. Clear it to make the client slow."""
        self.reading.set()
        self.answers_parts: bool | None = None
        """Whether SotW requests for only some of the resources get responses; None without such requests."""
        self._channel, self._say, self._timeout, self._quiet = channel, say, timeout, quiet
        self._repeat_node, self._features = repeat_node, features
        self._stream: SocketStream | None = None
        self._reader: asyncio.Task[None] | None = None
        self._queue: asyncio.Queue[Response | Exception] = asyncio.Queue()
        self._legacy: set[str] = set()
        self._last: dict[str, Response] = {}
        self._accepted: dict[str, str] = {}
        self._unseen: Counter[str] = Counter()
        self._probes: set[str] = set()
        self._repeats: Counter[str] = Counter()

    # --- requests ---

    async def ask(self, short: str, *names: str, sees: str | None = None, **fields: Any) -> None:
        """Subscribe to more names of a type. A first request without names is a legacy wildcard.

        Args:
            short: Short name of the type.
            names: Names to subscribe to.
            sees: Resources to wait for, as for the method `sees`; None not to wait.
            fields: Other fields of the request.
        """
        if not names and not self.names[short]:
            self._legacy.add(short)
        elif not self.variant.is_delta:
            self._legacy.discard(short)
        self.names[short] += [name for name in names if name not in self.names[short]]
        self.gone[short] -= {*names}
        await self.request(short, subscribe=names, **fields)
        if sees is not None:
            await self.sees(short, sees)

    async def leave(self, short: str, *names: str, **fields: Any) -> None:
        """Unsubscribe from names."""
        self.names[short] = [name for name in self.names[short] if name not in names]
        dropped = self.view[short].keys() - {*self.names[short]} if "*" in names else names
        self.forget(short, *dropped)
        await self.request(short, unsubscribe=names, **fields)

    async def end_wildcard(self, short: str) -> None:
        """Delta: leave the legacy wildcard."""
        self._legacy.discard(short)
        await self.leave(short, "*")

    async def ack(self, short: str, *names: str, **fields: Any) -> None:
        """ACK the last response of a type, and subscribe to more names in the same request."""
        last = self._last[short]
        self._accepted[short] = last.version
        self.names[short] += names
        await self.request(short, subscribe=names, nonce=last.nonce, **fields)

    async def nack(self, short: str, *names: str) -> None:
        """Reject the last response of a type, and subscribe to more names in the same request."""
        self.names[short] += names
        await self.request(short, subscribe=names, nonce=self._last[short].nonce, error="rejected by a test")

    async def request(
        self,
        short: str,
        *,
        subscribe: tuple[str, ...] = (),
        unsubscribe: tuple[str, ...] = (),
        names: tuple[str, ...] | None = None,
        nonce: str | None = None,
        version: str | None = None,
        error: str = "",
        node: str | None = None,
        type_url: str | None = None,
        initial: Mapping[str, str] | None = None,
        more: bytes = b"",
    ) -> None:
        """Send a request. A SotW request contains all names that the client subscribes to, or `names`.

        The node is in the first request, or in all if the stream repeats it. `node` is the ID of another one,
        or empty for none. `more` is appended to the encoded request.
        """
        subscribe = tuple(self.world.real(short, name) for name in subscribe)
        unsubscribe = tuple(self.world.real(short, name) for name in unsubscribe)
        initial = {self.world.real(short, name): version for name, version in (initial or {}).items()}
        if self.variant.is_delta:
            version, nonce = "", nonce or ""
        else:
            all_names = self.names[short] if names is None else names
            subscribe = tuple(self.world.real(short, name) for name in all_names)
            last = self._last.get(short)
            version = self._accepted.get(short, "") if version is None else version
            nonce = (last.nonce if last else "") if nonce is None else nonce
        request = Request(
            type_url=TYPES.get(short, short) if type_url is None else type_url,
            names=subscribe,
            unsubscribe=unsubscribe,
            version=version,
            initial_versions=initial,
            nonce=nonce,
            error=error or None,
        )
        if node is None:
            node = self.world.node if self._stream is None or self._repeat_node else ""
        fields: dict[str, str | Sequence[str]] = {"id": node}
        if self._features:
            fields["client_features"] = self._features
        said = [
            *self._describe(request),
            *[f"node={node}"] * bool(node),
            *[f"features={','.join(self._features)}"] * bool(node and self._features),
            *["and an unknown field"] * bool(more),
        ]
        data = request.encode(self.variant.protocol, fields if node else None) + more
        await self.send(short, data, f"{short} {shorten(' '.join(said))}")

    def _describe(self, request: Request) -> Iterator[str]:
        if self.variant.is_delta:
            known = [f"{name}@{version}" for name, version in request.initial_versions.items()]
            fields = {"subscribe": request.names, "unsubscribe": request.unsubscribe, "initial": known}
            yield from (f"{field}={','.join(values)}" for field, values in fields.items() if values)
        else:
            yield f"names={','.join(request.names)}"
            yield f"version={request.version}"
        yield f"nonce={request.nonce}"
        if request.error:
            yield "NACK"

    async def send(self, short: str, data: bytes, what: str) -> None:
        """Send bytes as a request."""
        if self._stream is None:
            self._stream = SocketStream(self._channel, path_of(short, self.variant))
            self._reader = asyncio.create_task(self._read(self._stream))
        self._say(f"->   {what}")
        await self._stream.write(data)

    # --- expectations ---

    async def sees(self, short: str, text: str = "", *, gone: str = "") -> None:
        """Receive responses until the client has exactly these resources of a type, by at least one response.

        Args:
            short: Short name of the type.
            text: Resources, such as `alpha=1 beta=2`.
            gone: Names that must have been reported as removed.
        """
        expected, removed = parse(text), {*gone.split()}
        for name in expected:
            self.world.real(short, name)  # Raises an error if the server has too few resources.
        end = self._after(self._timeout)
        try:
            while not (self._unseen[short] and self._has(short, expected) and removed <= self.gone[short]):
                await self._receive(end)
        except TimeoutError:
            wanted = " ".join([text or "no resources", *(f"-{name}" for name in sorted(removed))])
            found = " ".join(f"{name}={content}" for name, content in sorted(self.view[short].items()))
            got = f"the client has {found or 'nothing'}" if self._unseen[short] else "no response came"
            self._note_part(short)
            raise CheckError(f"{short}: expected {wanted} within {self._timeout:g} s, but {got}") from None
        self._note_part(short)
        self._unseen[short] = 0

    async def gets(self, short: str, what: str, test: Callable[[Response], bool]) -> Response:
        """Receive responses until one of a type passes a test, and return it.

        Args:
            short: Short name of the type.
            what: What the test requires, for the error.
            test: Whether a response is the expected one.
        """
        before, end = len(self.responses), self._after(self._timeout)
        try:
            while True:
                await self._receive(end)
                if self.responses[-1].type == short and test(self.responses[-1]):
                    self._unseen[short] = 0
                    return self.responses[-1]
        except TimeoutError:
            count = len(self.responses) - before
            raise CheckError(
                f"{short}: {what}: none of {count} responses within {self._timeout:g} s"
            ) from None

    async def nothing(self, short: str, *, probe: bool = True) -> None:
        """Require that no response of a type is sent.

        Wait for the quiet time. Then request a resource that the client never had, if there is one: its
        response must be the next one. With a wildcard, add a resource instead.
        """
        await self.settle(short)
        if self._unseen[short]:
            raise CheckError(f"{short}: unexpected response {self._last[short].nonce!r}")
        self._say(f"--   no {short} response in {self._quiet:g} s")
        if probe:
            await self._probe(short)

    async def settle(self, short: str) -> None:
        """Wait for the quiet time, or until another response of a type comes."""
        before, end = self._unseen[short], self._after(self._quiet)
        with suppress(TimeoutError):
            while self._unseen[short] == before:
                await self._receive(end)

    async def refused(self) -> None:
        """Require that the last request is not answered. The server may end the stream with an error."""
        before = len(self.responses)
        try:
            await self._receive(self._after(self._quiet))
        except TimeoutError:
            self._say("--   no response")
        except EndedError as error:
            if error.code in (grpc.StatusCode.OK, grpc.StatusCode.UNIMPLEMENTED):
                raise
        if len(self.responses) > before:
            raise CheckError("the request is answered")

    async def ends(self) -> grpc.StatusCode:
        """Wait until the server ends the stream, and return the status."""
        end = self._after(self._timeout)
        try:
            while True:
                await self._receive(end)
        except EndedError as error:
            return error.code
        except TimeoutError:
            raise CheckError(f"the server did not end the stream within {self._timeout:g} s") from None

    def forget(self, short: str, *names: str) -> None:
        """Forget resources, as a client does that dropped them: all of a type, if no names are given."""
        for name in names or tuple(self.view[short]):
            self.view[short].pop(name, None)
            self.gone[short].discard(name)

    def has_unseen(self, short: str) -> bool:
        """Whether a response of a type has come since the client last saw what it expected."""
        return self._unseen[short] > 0

    def since(self, position: int, short: str) -> list[str]:
        """Return the names of a type that were sent after a number of responses."""
        return [
            name
            for response in self.responses[position:]
            if response.type == short
            for name in response.resources
        ]

    def received(self, short: str, word: str) -> bool:
        """Whether a response contained a resource with this content, such as `alpha=2`."""
        return any(
            response.type == short and parse(word).items() <= response.resources.items()
            for response in self.responses
        )

    async def close(self) -> None:
        """End the stream."""
        if self._stream is not None and self._reader is not None:
            self._reader.cancel()
            await asyncio.wait([self._reader])
            await self._stream.close()

    # --- responses ---

    def _has(self, short: str, expected: dict[str, str]) -> bool:
        names = {*self.names[short]}
        wildcard = short in self._legacy or "*" in names
        if wildcard and self.world.is_fixed:  # The server may have more resources than checks use.
            wildcard, names = False, {*self.world.names(short), *expected}
        view = {name: content for name, content in self.view[short].items() if wildcard or name in names}
        return {
            name: content for name, content in view.items() if name not in self._probes - expected.keys()
        } == expected

    def _note_part(self, short: str) -> None:
        """Record whether a SotW request got a response, if it named only some of the resources."""
        names = {*self.names[short]}
        is_part = bool(names) and "*" not in names and not names.issuperset(self.world.names(short))
        if is_part and not self.variant.is_delta:
            self.answers_parts = bool(self.answers_parts or self._unseen[short])

    async def _probe(self, short: str) -> None:
        """Make the server send a response of a type, which must be the next one."""
        before = len(self.responses)
        known = {*self.names[short], *self.since(0, short)}
        name = next((name for name in self.world.names(short) if name not in known), "")
        if short in self._legacy or "*" in self.names[short]:
            if self.world.is_fixed:
                return
            name = f"probe-{len(self._probes)}"
            self._probes.add(name)
            await self.world.add(short, name)
        elif name:
            self._probes.add(name)
            await self.ask(short, name)
        else:
            return
        end = self._after(self._timeout)
        try:
            while not self._unseen[short]:
                await self._receive(end)
        except TimeoutError:
            self._note_part(short)
            raise CheckError(f"{short}: no response with {name} within {self._timeout:g} s") from None
        if name not in self.since(before, short):
            raise CheckError(
                f"{short}: unexpected response {self._last[short].nonce!r} before the one with {name}"
            )
        self._unseen[short] = 0

    @staticmethod
    def _after(seconds: float) -> float:
        return asyncio.get_running_loop().time() + seconds

    async def _receive(self, end: float) -> None:
        """Take the next response into the view, and ACK it.

        Args:
            end: Time until which to wait for the response, in seconds of the event loop's clock. It must not
                interrupt the ACK: gRPC cancels a stream whose write is cancelled.

        Raises:
            TimeoutError: No response has come, or the server sends responses without end.
        """
        if asyncio.get_running_loop().time() >= end:
            raise TimeoutError
        async with asyncio.timeout_at(end):
            item = await self._queue.get()
        if isinstance(item, Exception):
            self._queue.put_nowait(item)
            if isinstance(item, EndedError) and item.code is grpc.StatusCode.UNIMPLEMENTED:
                raise NotApplicableError("the server does not implement this service")
            raise item
        short, last = item.type, self._last.get(item.type)
        self.responses.append(item)
        self._repeats[short] += 1
        if last is None or (item.version, item.resources) != (last.version, last.resources) or item.ttls:
            self._repeats[short] = 0
        self._last[short] = item
        if self._repeats[short] == _MAX_REPEATS:
            raise CheckError(f"{short}: the server has sent the same response {_MAX_REPEATS} times")
        self._unseen[short] += 1
        view = self.view[short]
        if not self.variant.is_delta and short in FULL:
            view.clear()
        view.update(item.resources)
        self.versions[short].update(item.versions)
        for name in item.removed:
            view.pop(name, None)
        for name in [name for name, content in view.items() if not content]:
            del view[name]  # An empty assignment.
        self.gone[short] -= item.resources.keys()
        self.gone[short] |= item.removed
        if short not in self.held:
            await self.ack(short)

    async def _read(self, stream: SocketStream) -> None:
        try:
            await self.reading.wait()
            while (data := await stream.read()) is not None:
                response = decode(data, delta=self.variant.is_delta)
                self._say(f"<-   {shorten(str(response))}")
                self._queue.put_nowait(self.world.seen(response))
                await self.reading.wait()
            error: Exception = EndedError(*await stream.status())
        except CheckError as failed:
            error = failed
        self._say(f"<-   {error}")
        self._queue.put_nowait(error)
