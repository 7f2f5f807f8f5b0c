"""The resources that a server without an adapter has: they are looked up, and checks use them as they are.

Checks name resources alpha, beta and so on. Here, these are the first resources of a type that the server has
for the node, and the content of each is 1.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import grpc
import grpc.aio

from xds.codec import message_class
from xds.conformance.stream import Stream
from xds.conformance.v1 import adapter_pb2 as pb
from xds.conformance.wire import EndedError, NeedsAdapterError, NotApplicableError, Response, Variant, connect
from xds.conformance.world import FULL, MANAGER, CheckError, World, class_of, parse

ServedNames = Mapping[str, tuple[str, ...]]
"""Names of the resources that a server has, by the short name of their type."""
MAX_NAMES = 10
"""Number of resources of a type that are looked up. No check needs more."""


async def _no_adapter(_: pb.SetRequest) -> pb.SetResponse:
    raise NeedsAdapterError


class ServedWorld(World):
    """The resources that the server has for a node. They are set once, which gives them other names."""

    is_fixed = True

    def __init__(self, node: str, say: Callable[[str], None], served: ServedNames) -> None:
        super().__init__(_no_adapter, node, say)
        self._served, self._say = served, say
        self._real: dict[str, dict[str, str]] = {}
        self._needed: dict[str, list[str]] = {}

    def names(self, short: str) -> list[str]:
        """Return the names that checks use for the resources of a type."""
        return list(self._real.get(short, ()))

    def real(self, short: str, name: str) -> str:
        """Return the name of a resource in messages.

        Raises:
            NotApplicableError: The server has too few resources.
        """
        found = self._real.get(short, {})
        needed = self._needed.get(short, [])
        if name in needed and name not in found:
            count = f"{len(found) or 'none'} for node {self.node}"
            raise NotApplicableError(
                f"needs {needed.index(name) + 1} {short} resources, and the server has {count}"
            )
        return found.get(name, name)

    def seen(self, response: Response) -> Response:
        """Return a response with the names that checks use."""
        names = {real: name for name, real in self._real.get(response.type, {}).items()}

        def named(values: Mapping[str, Any]) -> dict[str, Any]:
            return {names.get(name, name): value for name, value in values.items()}

        return replace(
            response,
            resources=dict.fromkeys(named(response.resources), "1"),
            versions=named(response.versions),
            ttls=named(response.ttls),
            repeated={names.get(name, name) for name in response.repeated},
            removed=frozenset(names.get(name, name) for name in response.removed),
        )

    async def set(self, **types: str) -> None:
        """Use the first resources of some types under the given names."""
        if self._real or self.ttl or self.aliases or self.padding:
            raise NeedsAdapterError
        for short, text in types.items():
            if "/" in text or {*parse(text).values()} != {"1"}:
                raise NeedsAdapterError
            self._needed[short] = [*parse(text)]
            self._real[short] = dict(zip(parse(text), self._served.get(short, ()), strict=False))
            used = " ".join(f"{name}={real}" for name, real in self._real[short].items())
            self._say(f"use  {short} {used or '(none)'}")

    async def add(self, short: str, name: str, content: str = "1") -> None:  # noqa: ARG002
        """Raise an error, because resources cannot be added."""
        raise NeedsAdapterError

    async def clear(self) -> None:
        """Do nothing: the resources are the server's own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Lookup:
    """Looks up the resources that a server has for a node, as a client does.

    Args:
        target: Address of the server.
        credentials: Credentials for it; None for plaintext.
        node: ID of the node.
        timeout: Seconds to wait for the first response of a type.
        quiet: Seconds to wait for more responses.
    """

    target: str
    credentials: grpc.ChannelCredentials | None
    node: str
    timeout: float
    quiet: float
    errors: list[str] = field(default_factory=list)
    """Errors that the server ended streams with."""

    async def resources(self, variant: Variant) -> ServedNames:
        """Return the resources: clusters, listeners, and the assignments and routes that they refer to."""
        async with connect(self.target, self.credentials) as channel:
            received = partial(self._received, channel, variant)
            clusters, listeners = await asyncio.gather(received("CDS"), received("LDS"))
            assignments = filter(None, map(_assignment_of, clusters.values()))
            routes = (name for body in listeners.values() for name in _routes_of(body))
            found = await asyncio.gather(
                received("EDS", *dict.fromkeys(assignments)), received("RDS", *dict.fromkeys(routes))
            )
        kinds = ("CDS", "LDS", "EDS", "RDS")
        return dict(zip(kinds, map(tuple, (clusters, listeners, *found)), strict=True))

    async def _received(
        self, channel: grpc.aio.Channel, variant: Variant, short: str, *names: str
    ) -> dict[str, bytes]:
        """Return the resources of a type by name, encoded: all clusters or listeners, or the named ones."""
        if not names and short not in FULL:
            return {}
        world = World(_no_adapter, self.node, lambda _: None)
        stream = Stream(channel, variant, world, lambda _: None, timeout=self.timeout, quiet=self.quiet)
        bodies: dict[str, bytes] = {}
        try:
            await stream.ask(short, *names)
            await stream.gets(short, "no resources", lambda _: True)
            await stream.settle(short)
        except EndedError as error:
            self.errors.append(str(error))
        except (CheckError, NotApplicableError):
            pass  # The server has none, or not this service.
        finally:
            await stream.close()
        for response in stream.responses:
            bodies |= response.bodies
        return dict(sorted(bodies.items())[:MAX_NAMES])


def _assignment_of(body: bytes) -> str:
    """Return the name of a cluster's assignment; empty if the cluster has no EDS."""
    cluster: Any = class_of("CDS").FromString(body)
    if not cluster.HasField("eds_cluster_config"):
        return ""
    return str(cluster.eds_cluster_config.service_name or cluster.name)


def _routes_of(body: bytes) -> list[str]:
    """Return the names of the routes that a listener refers to."""
    listener: Any = class_of("LDS").FromString(body)
    chains = [*listener.filter_chains, listener.default_filter_chain]
    configs = [each.typed_config for chain in chains for each in chain.filters]
    managers: list[Any] = [
        message_class(MANAGER).FromString(config.value)
        for config in (*configs, listener.api_listener.api_listener)
        if config.type_url.endswith(MANAGER)
    ]
    return [manager.rds.route_config_name for manager in managers if manager.HasField("rds")]
