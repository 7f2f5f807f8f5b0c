"""A changing world, and a model of Envoy's observed behaviour (O1-O18).

The model subscribes to the assignments of its clusters and to the routes of its listeners, ACKs clusters only
when they are warm, keeps a listener active until the new one has its routes, and accepts the valid part of a
rejected response of clusters or listeners, but nothing of another rejected response.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from tests.protocol.stream import TYPES, Reply, Stream
from xds.protocol.session import Variant
from xds.snapshot import ENDPOINT, ROUTE, Resource, ResourceSet, Snapshot

CLUSTERS, LISTENERS, ROUTES = ("a", "b", "c"), ("l", "m"), ("r", "s")
STAYS_BAD = "n"
"""Listener that the client always rejects."""
FULL = ("CDS", "LDS")
ORDER = ("CDS", "EDS", "SDS", "LDS", "RDS")
BAD = "bad"
"""Version that the client rejects individually."""
UNREADABLE = "unreadable"
"""Version for which the client rejects the whole response, and names the resource."""
NAMELESS = "unreadable-nameless"
"""Version for which the client rejects the whole response, and names no resource."""
EMPTY = "empty"


@dataclass
class World:
    """Desired versions by type and name. A version also contains the references of its resource."""

    versions: dict[str, dict[str, str]] = field(default_factory=lambda: {short: {} for short in TYPES})
    count: int = 0

    def put(self, short: str, name: str, *refs: str, bad: str = "") -> None:
        self.count += 1
        self.versions[short][name] = f"{self.count}{bad}/{'+'.join(refs)}"

    def snapshot(self) -> Snapshot:
        return Snapshot(
            {
                TYPES[short]: _layered(
                    [resource(short, name, version) for name, version in versions.items()],
                    outdated=[resource(short, name, "0/") for name in versions],
                    layer=self.count % 3,
                )
                for short, versions in self.versions.items()
            }
        )


def _layered(resources: list[Resource], outdated: list[Resource], layer: int) -> ResourceSet:
    """Return a set with the first resources in a layer. Every second one replaces a resource of the root."""
    root = ResourceSet(outdated[:layer:2] + resources[layer:])
    return ResourceSet(resources[:layer], base=root) if layer else root


def resource(short: str, name: str, version: str) -> Resource:
    refs = {"CDS": ((ENDPOINT, name),), "LDS": tuple((ROUTE, ref) for ref in referred(version))}
    body = f"{name}={version}".encode()
    return Resource.of(TYPES[short], name, body, version=version, refs=refs.get(short, ()))


def referred(version: str) -> list[str]:
    return [name for name in version.partition("/")[2].split("+") if name]


class Client:
    """A model of Envoy: its resources and its requests."""

    def __init__(self, variant: Variant) -> None:
        self.variant = variant
        self.have: dict[str, dict[str, str]] = {short: {} for short in TYPES}
        self.active: dict[str, str] = {}
        """Routes of each active listener."""
        self.draining: set[str] = set()
        """Routes of removed listeners that still have connections."""
        self.warming: set[str] = set()
        self.warm: set[str] = set()
        """Clusters that have been warm, and can be used."""

    def connect(self, stream: Stream) -> None:
        """Open a stream, and report the resources of the last one."""
        self.stream = stream
        self.inbox: deque[Reply] = deque()
        self.outbox: deque[tuple[str, tuple[str, ...], dict]] = deque()
        self.nonces: dict[str, str] = {}
        self.subscribed: dict[str, tuple[str, ...]] = {}
        self.withheld: list[str] = []
        self.warm |= self.warming
        self.warming.clear()  # Resources that warm when a stream breaks wait for their timeout.
        for short, names in (
            ("CDS", ()),
            ("EDS", self.wanted("EDS")),
            ("LDS", ()),
            ("RDS", self.wanted("RDS")),
        ):
            if short in FULL or names:
                brought = {
                    name: self.have[short][name]
                    for name in names or self.have[short]
                    if name in self.have[short]
                }
                known = "known" if self.have[short] else ""
                initial = {"initial": brought} if self.variant is Variant.DELTA else {"version": known}
                self.subscribed[short] = names
                self.outbox.append((short, names, initial))

    def wanted(self, short: str) -> tuple[str, ...]:
        if short == "EDS":
            return tuple(sorted(self.have["CDS"]))
        listeners = [ref for version in self.have["LDS"].values() for ref in referred(version)]
        return tuple(sorted({*listeners, *self.active.values(), *self.draining}))

    def process(self) -> None:
        """Process the next response, and send the requests that result from it."""
        reply = self.inbox.popleft()
        short = reply.type
        self.nonces[short] = reply.nonce
        for name, version in reply.resources.items():
            if UNREADABLE in version:
                said = "" if NAMELESS in version else f'name: "{name}"'
                self.answer(short, reply.nonce, error=f"Proto constraint validation failed {said}")
                return
        bad = [name for name, version in reply.resources.items() if BAD in version]
        good = {name: version for name, version in reply.resources.items() if name not in bad}
        if bad and short not in FULL:
            good = {}
        if self.variant is Variant.SOTW and short in FULL:
            for name in self.have[short].keys() - reply.resources.keys():
                self.lose(short, name)
        for name in reply.removed:
            if short in FULL:
                self.lose(short, name)
            elif short == "EDS" and name in self.have["CDS"]:
                self.warmed(name)
        for name, version in good.items():
            self.take(short, name, version)
        for listener, version in self.have["LDS"].items():
            if all(ref in self.have["RDS"] for ref in referred(version)):
                self.use(listener, referred(version)[0])
        if short in FULL and bad:
            self.resubscribe("EDS" if short == "CDS" else "RDS")
            what = "cluster" if short == "CDS" else "listener"
            said = ", ".join(f"{name}: no" for name in bad)
            self.answer(short, reply.nonce, error=f"Error adding/updating {what}(s) {said}")
        elif short == "CDS":
            self.resubscribe("EDS")
            self.withheld.append(reply.nonce)
        elif short == "LDS":
            # The ACK may be sent first. It then lacks the routes that the client subscribes to next.
            self.answer(short, reply.nonce)
            self.resubscribe("RDS")
        else:
            self.answer(short, reply.nonce, error=f"no: {bad[0]}" if bad else "")
            self.resubscribe("RDS")
        if not self.warming:
            while self.withheld:
                self.answer("CDS", self.withheld.pop(0))

    def take(self, short: str, name: str, version: str) -> None:
        if short not in FULL and name not in self.subscribed.get(short, ()):
            return
        if short == "CDS" and self.have["CDS"].get(name) != version:
            self.warming.add(name)
        if short == "EDS" and name in self.have["CDS"]:
            self.warmed(name)
        self.have[short][name] = version

    def warmed(self, name: str) -> None:
        self.warming.discard(name)
        self.warm.add(name)

    def lose(self, short: str, name: str) -> None:
        self.have[short].pop(name, None)
        if short == "CDS":
            self.warming.discard(name)
            self.warm.discard(name)
        elif name in self.active:
            self.draining.add(self.active.pop(name))

    def use(self, listener: str, route: str) -> None:
        before = self.active.get(listener, route)
        self.active[listener] = route
        if before != route:
            self.draining.add(before)

    def drain(self) -> None:
        """Close the last connections of removed listeners."""
        self.draining.clear()
        self.resubscribe("RDS")

    def resubscribe(self, short: str) -> None:
        """Subscribe and unsubscribe as clusters and listeners change."""
        names, before = self.wanted(short), self.subscribed.get(short, ())
        if names == before:
            return
        self.subscribed[short] = names
        gone = tuple(name for name in before if name not in names)
        for name in gone:
            self.have[short].pop(name, None)
        if self.variant is Variant.SOTW:
            self.outbox.append((short, names, {"nonce": self.nonces.get(short, "")}))
        else:
            added = tuple(name for name in names if name not in before)
            self.outbox.append((short, added, {"unsubscribe": gone}))

    def answer(self, short: str, nonce: str, error: str = "") -> None:
        if self.variant is Variant.SOTW and nonce != self.nonces[short]:
            return  # An answer to the latest response answers all earlier ones.
        names = self.subscribed.get(short, ()) if self.variant is Variant.SOTW else ()
        self.outbox.append((short, names, {"nonce": nonce, "error": error}))
