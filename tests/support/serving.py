"""The library's server and store with one world for everybody, and what is known of who takes it."""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from tests.support.world import HOST, World
from xds.protocol.events import Acked, Event, Nacked, Response, Subscribed
from xds.protocol.session import Variant
from xds.server import Stream as ServerStream
from xds.server import XdsServer
from xds.snapshot import CLUSTER, LISTENER, Resource
from xds.store import Store


@dataclass(slots=True)
class Stream:
    """What was sent on a stream, and what became of it."""

    variant: Variant
    node: str
    answers: list[Acked | Nacked] = field(default_factory=list)
    taken: defaultdict[str, dict[str, str]] = field(default_factory=lambda: defaultdict(dict))
    """By type: name and version of what was acknowledged."""
    responses: Counter[str] = field(default_factory=Counter)
    """By type: how many were sent."""
    asked: Counter[str] = field(default_factory=Counter)
    """By type: how many requests changed the subscription."""

    def sent(self, response: Response) -> None:
        self.responses[response.type_url] += 1

    def received(self, event: Event) -> None:
        match event:
            case Subscribed():
                self.asked[event.type_url] += 1
            case Acked() | Nacked():
                self._answered(event)

    def _answered(self, answer: Acked | Nacked) -> None:
        self.answers.append(answer)
        taken = self.taken[answer.type_url]
        if isinstance(answer, Acked):
            if self.variant is Variant.SOTW and answer.type_url in (CLUSTER, LISTENER):
                taken.clear()
            for name in answer.removed:
                taken.pop(name, None)
        spoiled = () if isinstance(answer, Acked) else answer.culprits or answer.resources
        taken.update(
            {resource.name: resource.version for resource in answer.resources if resource not in spoiled}
        )

    @property
    def rejections(self) -> list[Nacked]:
        return [answer for answer in self.answers if isinstance(answer, Nacked)]

    def lacks(self, resources: Sequence[Resource]) -> list[str]:
        """Name what the proxy needs of a world and has not acknowledged."""
        return [
            f"{resource.type_url.rpartition('.')[2]} {resource.name}"
            for resource in _used(resources)
            if self.taken[resource.type_url].get(resource.name) != resource.version
        ]


class OneWorld:
    """Gives every stream the same world, from a store, and takes notes. An `Observer` for the server."""

    def __init__(self, world: World) -> None:
        self.store = Store()
        self.streams: list[Stream] = []
        """All that there ever were."""
        self.open: dict[ServerStream, Stream] = {}
        self._news = asyncio.Event()
        self.publish(world)

    def publish(self, world: World) -> None:
        self._resources = world.resources()
        self.store.replace(self._resources)

    def opened(self, stream: ServerStream) -> None:
        self.open[stream] = Stream(stream.info.variant, stream.node.id)
        self.streams.append(self.open[stream])
        self._news.set()

    def sent(self, stream: ServerStream, size: int) -> None:
        if response := stream.session.sent:
            self.open[stream].sent(response)

    def received(self, stream: ServerStream, event: Event) -> None:
        self.open[stream].received(event)
        self._news.set()

    def closed(self, stream: ServerStream) -> None:
        del self.open[stream]
        self._news.set()

    async def until(self, check: Callable[[], Any], timeout: float = 60) -> Any:
        """Ask again whenever a proxy has said something, until the answer is true; return that."""
        async with asyncio.timeout(timeout):
            while not (found := check()):
                self._news.clear()
                await self._news.wait()
            return found

    async def settled(self, timeout: float = 60) -> None:
        """Wait until every open stream, and at least one, has all that it needs of the latest world.

        The store says when. That it is right is seen from what the proxies have acknowledged.
        """
        try:
            await self.until(lambda: self.open, timeout)
            await asyncio.wait_for(self.store.applied(), timeout)
        except TimeoutError:
            raise AssertionError(f"not within {timeout} s: {self.lacking()}") from None
        assert not any(self.lacking()), self.lacking()

    def lacking(self) -> list[list[str]]:
        """Say for each open stream what it lacks of the latest world."""
        return [stream.lacks(self._resources) for stream in self.open.values()]


@asynccontextmanager
async def serving(world: World) -> AsyncIterator[tuple[OneWorld, int]]:
    """Serve a world in this process, at the port that comes with it."""
    proxies = OneWorld(world)
    server = XdsServer(proxies.store, f"{HOST}:0", observer=proxies)
    await server.start()
    try:
        yield proxies, server.port
    finally:
        await server.stop()


def _used(resources: Sequence[Resource]) -> list[Resource]:
    """List the clusters and listeners, and what those make a proxy ask for."""
    used = [resource for resource in resources if resource.type_url in (CLUSTER, LISTENER)]
    refs = {ref for resource in used for ref in resource.refs}
    return used + [resource for resource in resources if (resource.type_url, resource.name) in refs]
