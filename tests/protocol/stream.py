"""A client in shorthand: a session, its requests, and its responses as `CDS a=1 b=2 -gone`.

Requests are encoded and responses decoded with classes of envoy_data_plane, not with the codec under test.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from xds.codec import message_class
from xds.protocol.events import Event
from xds.protocol.session import Session, Variant
from xds.snapshot import (
    CLUSTER,
    ENDPOINT,
    EXTENSION_CONFIG,
    LB_ENDPOINT,
    LISTENER,
    ROUTE,
    RUNTIME,
    SCOPED_ROUTE,
    SECRET,
    VIRTUAL_HOST,
    Resource,
    ResourceKey,
    ResourceSet,
    Snapshot,
)
from xds.testing import Request
from xds.testing.messages import response_class

TYPES = {
    "CDS": CLUSTER,
    "EDS": ENDPOINT,
    "LDS": LISTENER,
    "RDS": ROUTE,
    "SDS": SECRET,
    "SRDS": SCOPED_ROUTE,
    "VHDS": VIRTUAL_HOST,
    "RTDS": RUNTIME,
    "ECDS": EXTENSION_CONFIG,
    "LEDS": LB_ENDPOINT,
}
SHORT = {url: name for name, url in TYPES.items()}
REFERS = {"CDS": ENDPOINT, "LDS": ROUTE, "SRDS": ROUTE}
NODE = "sidecar~127.0.0.1~client.ns~ns.svc.cluster.local"

_ASSIGNMENT = message_class("envoy.config.endpoint.v3.ClusterLoadAssignment")


def world(*unserved: str, **types: str) -> Snapshot:
    """Make a snapshot: `CDS="a=1 b=2"`, `LDS="l=1>r,s"`. A cluster refers to its assignment."""
    sets = {}
    for short, text in types.items():
        url = TYPES.get(short, short)
        sets[url] = ResourceSet(_resource(short, url, word) for word in text.split())
    return Snapshot({url: ResourceSet() for url in unserved} | sets)


def _resource(short: str, url: str, word: str) -> Resource:
    named, _, referred = word.partition(">")
    name, _, version = named.partition("=")
    names = referred.split(",") if referred else [name] if short == "CDS" else []
    refs: tuple[ResourceKey, ...] = tuple((REFERS.get(short, ""), ref) for ref in names)
    return Resource.of(url, name, named.encode(), version=version, refs=refs, sources=(f"Object ns/{name}",))


@dataclass(frozen=True)
class Reply:
    """A decoded response."""

    type: str
    nonce: str
    version: str
    resources: Mapping[str, str]
    """Versions by name."""
    removed: tuple[str, ...]
    identifier: str
    heartbeats: Mapping[str, str]
    """Versions by name, of resources without a body."""
    unknown: tuple[str, ...]
    """Aliases of no resource."""

    def __str__(self) -> str:
        words = [f"{name}={version}" for name, version in sorted(self.resources.items())]
        words += [f"~{name}={version}" for name, version in sorted(self.heartbeats.items())]
        words += [f"?{alias}" for alias in sorted(self.unknown)]
        return " ".join((self.type, *words, *(f"-{name}" for name in sorted(self.removed))))


class Stream:
    """A session and a client that answers only when the test says so."""

    def __init__(self, variant: Variant, snapshot: Snapshot | None = None, **options: object) -> None:
        self.variant = variant
        self.session = Session(variant, **options)
        self.now = 0.0
        self.last: dict[str, Reply] = {}
        self.replies: list[Reply] = []
        self.names: dict[str, tuple[str, ...]] = {}
        self._node: dict[str, str] | None = {"id": NODE}
        if snapshot:
            self.session.serve(snapshot)

    def serve(self, snapshot: Snapshot) -> None:
        self.session.serve(snapshot)

    def ask(
        self,
        short: str,
        *names: str,
        nonce: str = "",
        error: str = "",
        unsubscribe: tuple[str, ...] = (),
        initial: Mapping[str, str] | None = None,
        version: str = "",
    ) -> list[Event]:
        """Send a request. In the delta variant, `names` are added to the subscription."""
        request = Request(
            type_url=TYPES.get(short, short),
            names=names,
            unsubscribe=unsubscribe,
            version=version,
            initial_versions=initial or {},
            nonce=nonce,
            error=error or None,
        )
        return self.send(request)

    def send(self, request: Request) -> list[Event]:
        """Send a request as it is."""
        self.names[SHORT.get(request.type_url, request.type_url)] = request.names
        node, self._node = self._node, None
        return self.session.receive(request.encode(self.variant, node), self.now)

    def ack(self, short: str, *, nonce: str = "") -> list[Event]:
        """ACK the last response of a type."""
        names = self.names[short] if self.variant is Variant.SOTW else ()
        return self.ask(short, *names, nonce=nonce or self.last[short].nonce)

    def nack(self, short: str, error: str = "no", *, nonce: str = "") -> list[Event]:
        """NACK the last response of a type."""
        names = self.names[short] if self.variant is Variant.SOTW else ()
        return self.ask(short, *names, nonce=nonce or self.last[short].nonce, error=error)

    def push(self, *unserved: str, **types: str) -> list[str]:
        """Serve a world, and return all responses that are due now."""
        self.serve(world(*unserved, **types))
        return self.get()

    def get(self) -> list[str]:
        """Return all responses that are due now."""
        taken, has_more = [], True
        while (data := self.session.next(self.now)) is not None:
            assert has_more, "the writer of a stream would not have sent this"
            has_more = self.session.has_more
            taken.append(self._decode(data))
        assert has_more or self.session.deadline() is None
        return [str(reply) for reply in taken]

    def settle(self, *unserved: str, **types: str) -> list[str]:
        """Serve a world, if one is given, and ACK all responses until no more are due."""
        if unserved or types:
            self.serve(world(*unserved, **types))
        taken = []
        while (data := self.session.next(self.now)) is not None:
            reply = self._decode(data)
            taken.append(str(reply))
            self.ack(reply.type)
        return taken

    def _decode(self, data: bytes) -> Reply:
        message = response_class(self.variant).FromString(data)
        resources, heartbeats, unknown = {}, {}, []
        if self.variant is Variant.SOTW:
            version, removed = message.version_info, ()
            for any_ in message.resources:
                assert any_.type_url == message.type_url
                name, _, of = any_.value.decode().rpartition("=")
                if not name:  # An empty assignment, which the session made itself.
                    name, of = _ASSIGNMENT.FromString(any_.value).cluster_name, "empty"
                    assert any_.value == _ASSIGNMENT(cluster_name=name).SerializeToString()
                assert name not in resources, (
                    "duplicate names in a response are rejected by clients (R30, O9)"
                )
                resources[name] = of
        else:
            version, removed = message.system_version_info, tuple(message.removed_resources)
            for resource in message.resources:
                if not resource.HasField("resource"):
                    if resource.version:
                        assert resource.HasField("ttl")
                        heartbeats[resource.name] = resource.version
                    else:
                        assert [*resource.aliases] == [resource.name]
                        unknown.append(resource.name)
                    continue
                assert resource.resource.type_url == message.type_url
                assert resource.resource.value == f"{resource.name}={resource.version}".encode()
                assert resource.name not in resources
                resources[resource.name] = resource.version
            assert not resources.keys() & set(removed)
        reply = Reply(
            type=SHORT.get(message.type_url, message.type_url),
            nonce=message.nonce,
            version=version,
            resources=resources,
            removed=removed,
            identifier=message.control_plane.identifier,
            heartbeats=heartbeats,
            unknown=tuple(unknown),
        )
        self.last[reply.type] = reply
        self.replies.append(reply)
        return reply


def subscribed(variant: Variant, snapshot: Snapshot, **names: str) -> Stream:
    """Make a client that subscribes to types (without names: to all), and has ACKed no response yet."""
    stream = _asking(variant, snapshot, names)
    stream.get()
    return stream


def synced(variant: Variant, snapshot: Snapshot, **names: str) -> Stream:
    """Make a client that subscribes to types, and has ACKed all responses."""
    stream = _asking(variant, snapshot, names)
    stream.settle()
    return stream


def _asking(variant: Variant, snapshot: Snapshot, names: Mapping[str, str]) -> Stream:
    stream = Stream(variant, snapshot)
    for short, text in names.items():
        stream.ask(short, *text.split())
    return stream


def connect(variant: Variant, snapshot, *, names=("old", "new"), **options) -> Stream:
    """Make a client that has ACKed all resources of a snapshot."""
    stream = Stream(variant, snapshot, **options)
    stream.ask("CDS")
    stream.ask("EDS", *names)
    stream.ask("SDS", "default")
    stream.ask("LDS")
    stream.ask("RDS", "r")
    stream.settle()
    stream.replies.clear()
    return stream
