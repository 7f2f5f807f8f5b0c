"""The rules, their checks, and why the other rules are not judged."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Container, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from enum import StrEnum

import grpc.aio

from xds.conformance.sources import SOURCES, Source
from xds.conformance.stream import Stream
from xds.conformance.wire import NeedsAdapterError, Variant, connect
from xds.conformance.world import FULL, World

SOTW = (Variant.SOTW, Variant.SOTW_ADS)
DELTA = (Variant.DELTA, Variant.DELTA_ADS)
ADS = (Variant.SOTW_ADS, Variant.DELTA_ADS)
PER_TYPE = (Variant.SOTW, Variant.DELTA)


RULES_VERSION = 3
"""Version of the rules: it increases when a change can make a server fail that passed before."""


class Level(StrEnum):
    """Why a server has to follow a rule, from the strongest reason to the weakest."""

    SPEC_MUST = "spec-must"
    """A document requires it: with `must`, or by stating what a server does."""
    CLIENT_DEPENDENT = "client-dependent"
    """No document requires it, but Envoy or gRPC relies on it."""
    SPEC_SHOULD = "spec-should"
    """A document recommends it, or a sentence that requires it has another reading."""
    ROBUSTNESS = "robustness"
    """This project recommends it. No document does, or the documents contradict each other."""

    def reaches(self, lowest: Level) -> bool:
        """Whether this level is as strong as another one, or stronger."""
        levels = [*Level]
        return levels.index(self) <= levels.index(lowest)

    @classmethod
    def strongest(cls, levels: Container[Level | None]) -> Level | None:
        """Return the strongest of some levels; None without one."""
        return next((level for level in cls if level in levels), None)


@dataclass(slots=True, kw_only=True)
class Run:
    """One check of one variant: its node, its streams and their conversation."""

    target: str
    credentials: grpc.ChannelCredentials | None
    worlds_of: Callable[[int, Callable[[str], None]], World]
    """Makes the first, second and so on node of the check."""
    variant: Variant
    timeout: float
    quiet: float
    repeat_node: bool = False
    type: str = ""
    """Short name of the resource type that the check is run for."""
    conversation: list[str] = field(default_factory=list)
    worlds: list[World] = field(default_factory=list)
    streams: list[Stream] = field(default_factory=list)
    _channel: grpc.aio.Channel | None = None

    @property
    def channel(self) -> grpc.aio.Channel:
        """Connection of this check to the server."""
        if self._channel is None:
            self._channel = connect(self.target, self.credentials)
        return self._channel

    async def world(self, **types: str) -> World:
        """Return a new node, with these resources. Without any, the server does not know the node.

        Raises:
            NeedsAdapterError: The server has no adapter, and the check needs one.
        """
        world = self.worlds_of(len(self.worlds) + 1, self.conversation.append)
        if world.is_fixed and not types:
            raise NeedsAdapterError
        self.worlds.append(world)
        if types:
            await world.set(**types)
        return world

    def stream(
        self, world: World, channel: grpc.aio.Channel | None = None, *, features: tuple[str, ...] = ()
    ) -> Stream:
        """Return a new stream of a node, on the check's connection unless another one is given.

        Args:
            world: The node.
            channel: Another connection.
            features: Features that the client declares.
        """
        number = len(self.streams) + 1

        def say(line: str) -> None:
            self.conversation.append(f"{line}   (stream {number})" if number > 1 else line)

        stream = Stream(
            channel or self.channel,
            self.variant,
            world,
            say,
            timeout=self.timeout,
            quiet=self.quiet,
            repeat_node=self.repeat_node,
            features=features,
        )
        self.streams.append(stream)
        return stream

    async def start(self, **types: str) -> tuple[World, Stream]:
        """Return a node with these resources, and a stream of it."""
        world = await self.world(**types)
        return world, self.stream(world)

    async def subscribed(self, *, hold: bool = False) -> tuple[World, Stream]:
        """Return a node, and a stream that has its resource alpha of the check's type.

        As Envoy does, it subscribes to all clusters or listeners, or to an assignment or route by name.

        Args:
            hold: Whether the check ACKs responses itself.
        """
        is_full = self.type in FULL
        world, stream = await self.start(**{self.type: "alpha=1" if is_full else "alpha=1 beta=1"})
        if hold:
            stream.held.add(self.type)
        await stream.ask(self.type, *(() if is_full else ("alpha",)), sees="alpha=1")
        return world, stream

    async def close(self) -> None:
        """Close the streams and the connection, and let the server forget the nodes."""
        for stream in self.streams:
            await stream.close()
        for world in self.worlds:
            with suppress(grpc.aio.AioRpcError):
                await world.clear()
        if self._channel is not None:
            await self._channel.close()


Function = Callable[[Run], Awaitable[None]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """A check of a rule: an async function. Its docstring says what it requires."""

    rule: str
    function: Function
    variants: tuple[Variant, ...]
    types: tuple[str, ...]
    level: Level
    source: Source
    breaks: str
    """What goes wrong in which client, if the level is `client-dependent`."""
    alone: bool
    by_chance: bool

    @property
    def requires(self) -> str:
        """What the check requires, in one sentence."""
        return (self.function.__doc__ or "").partition("\n")[0]

    def name(self, kind: str) -> str:
        """Return the name of the check, and the resource type that it is run for."""
        return f"{self.function.__name__} {kind}".strip()

    def key(self, variant: Variant, kind: str) -> str:
        """Return the key of a result: the rule, the variant, and the check with its resource type."""
        return f"{self.rule} {variant} {self.name(kind)}"


CHECKS: list[Check] = []


def check(
    rule: str,
    *,
    on: Iterable[Variant] = Variant,
    types: tuple[str, ...] = ("",),
    level: Level = Level.SPEC_MUST,
    source: Source | None = None,
    breaks: str = "",
    alone: bool = False,
    by_chance: bool = False,
) -> Callable[[Function], Function]:
    """Register a check.

    Args:
        rule: Number of the rule.
        on: Variants that it is run for.
        types: Short names of the resource types that it is run for.
        level: Level of the check.
        source: Source of the check; None for that of the rule.
        breaks: What goes wrong in which client, if the level is `client-dependent`.
        alone: Whether no other check of the same node may run at the same time: servers limit what it uses.
        by_chance: Whether a server that breaks the rule sometimes passes.
    """

    def register(function: Function) -> Function:
        CHECKS.append(
            Check(
                rule=rule,
                function=function,
                variants=tuple(on),
                types=types,
                level=level,
                source=source or SOURCES[rule],
                breaks=breaks,
                alone=alone,
                by_chance=by_chance,
            )
        )
        return function

    return register


TITLES = {
    "R1": "only the first request's node counts",
    "R2": "a per-type stream implies its type and rejects others; ADS requires one",
    "R3": "an unsupported type gets no response and does not affect others",
    "R4": "every response has its own nonce",
    "R5": "equal content has equal versions",
    "R6": "SotW: a request that answers an older response changes nothing",
    "R7": "SotW: a nonce of an earlier stream is ignored",
    "R8": "delta: subscription changes always apply",
    "R9": "later requests supersede earlier ones",
    "R10": "only error_detail makes a NACK",
    "R11": "an ACK or NACK may change the subscription",
    "R12": "a rejected resource is not sent again until it changes",
    "R13": "delta: each ACK or NACK refers to one of several responses",
    "R14": "unchanged content is not sent",
    "R15": "an ACK gets no response",
    "R16": "SotW: a new name gets a response",
    "R17": "SotW: fewer names get no response",
    "R18": "a resource is sent again after the client unsubscribed and subscribed",
    "R19": "delta: a repeated subscription gets a response",
    "R20": "delta: unsubscribing from an unknown name does no harm",
    "R21": "delta: unsubscribing from a name inside a wildcard gets a response",
    "R22": "the wildcard is `*` or an empty first request, and can be left",
    "R23": "the legacy wildcard is for clusters and listeners only (the documents disagree)",
    "R24": "entering the wildcard gets all resources, leaving it gets no response",
    "R25": "a missing resource is sent when it appears",
    "R26": "delta: a missing resource is reported as removed",
    "R27": "a deleted resource is reported as the variant allows",
    "R28": "requested resources are sent, and no others",
    "R29": "names are a set",
    "R30": "a response contains a name once",
    "R31": "delta: virtual hosts have aliases",
    "R32": "an empty first request for virtual hosts gets no response",
    "R33": "delta: on-demand clusters are sent or reported as missing",
    "R34": "names that end in `/*` are collections",
    "R35": "SotW: a reconnecting client gets the resources that it names",
    "R36": "delta: a reconnecting client gets what changed",
    "R37": "delta: reported resources that are not subscribed to are ignored",
    "R38": "an assignment is sent again with its cluster",
    "R39": "routes are not sent again with their listener",
    "R40": "responses are ordered: clusters, endpoints, listeners, routes",
    "R41": "a resource is removed after its users have changed",
    "R42": "listeners wait for the ACK of clusters",
    "R43": "a route follows its cluster",
    "R44": "a TTL is sent, renewed and removed, for clients that support it",
    "R45": "client features",
    "R46": "system_version_info and control_plane are set",
    "R47": "unknown fields are ignored",
    "R48": "(withdrawn)",
    "R49": "Fetch is supported",
    "R50": "all discovery services are served",
    "R51": "streams of one node are independent",
    "R52": "a slow client does not delay others",
    "R53": "a late ACK gets the last state",
    "R54": "dead clients are detected",
    "R55": "connections end after a while",
    "R56": "many streams share a connection",
    "R57": "large requests are accepted",
    "R58": "large responses are split",
    "R59": "a client that the server does not know yet stays connected",
    "R60": "a malformed request ends its own stream only",
    "R61": "an ended stream leaves no state behind",
    "R62": "compression is not offered",
}  # fmt: skip
"""Title of each rule."""

NOT_JUDGED = {
    "R9": "a permission, not a requirement",
    "R45": "not visible to clients: features change nothing that a rule requires",
    "R48": "withdrawn: no document forbids canary, and no client reads it",
    "R54": "needs a client whose host dies, and minutes",
    "R55": "each server has an age of its own, from minutes to hours",
    "R61": "not visible to clients",
    "R62": "not visible: a client decompresses what a server compresses",
}
"""Why a rule has no check."""
