"""A changing world, and the library's model of Envoy, as a client in shorthand."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from tests.protocol.stream import TYPES, Reply, Stream
from xds.snapshot import ENDPOINT, ROUTE, Resource, ResourceSet, Snapshot
from xds.testing import EnvoyModel, Rejection, Response

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


class Client(EnvoyModel):
    """The library's model of Envoy, with an inbox and an outbox."""

    def open(self, stream: Stream) -> None:
        """Open a stream, and report the resources of the last one."""
        self.stream = stream
        self.inbox: deque[Reply] = deque()
        self.stop_warming()  # Resources that warm when a stream breaks wait for their timeout.
        self.outbox = deque(self.connect())

    @property
    def have(self) -> dict[str, dict[str, str]]:
        """Versions by type and name."""
        return {
            short: {name: of.version for name, of in self.resources.get(type_url, {}).items()}
            for short, type_url in TYPES.items()
        }

    @property
    def used_routes(self) -> set[str]:
        """Names of the routes of active and draining listeners."""
        active = {name for listener in self.active.values() for _, name in listener.refs}
        return active | {name for _, name in self.draining}

    def process(self) -> None:
        """Process the next response, and send the requests that result from it."""
        reply = self.inbox.popleft()
        response = Response(
            type_url=TYPES[reply.type],
            nonce=reply.nonce,
            version=reply.version,
            resources=tuple(resource(reply.type, *item) for item in reply.resources.items()),
            removed=reply.removed,
        )
        self.outbox += self.receive(response)

    def rejection(self, resource: Resource) -> Rejection | None:
        name, version = resource.name, resource.version
        if UNREADABLE in version:
            said = "" if NAMELESS in version else f'name: "{name}"'
            return Rejection(message=f"Proto constraint validation failed {said}", whole=True)
        return Rejection(message=f"no: {name}") if BAD in version else None

    def send_drain(self) -> None:
        """Close the last connections of removed listeners."""
        self.outbox += self.drain()
