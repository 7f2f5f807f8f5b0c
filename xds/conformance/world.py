"""What the server under test serves to a node: resources in shorthand, set through the adapter.

`await world.set(CDS="alpha=1 beta=2", RDS="alpha=1>beta")` replaces the clusters and routes of the node. Each
word is a resource's name and content, and after `>` the resource that it refers to: the assignment of a
cluster, the routes of a listener, or the cluster of a route. The content is written into the message, so a
response shows which content it carries.
"""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import grpc.aio
from google.protobuf.json_format import ParseDict
from google.protobuf.message import Message

from xds.codec import message_class, pool
from xds.conformance.v1 import adapter_pb2 as pb
from xds.snapshot import CLUSTER, ENDPOINT, LISTENER, ROUTE, TYPE_PREFIX, VIRTUAL_HOST

if TYPE_CHECKING:
    from xds.conformance.wire import Response

TYPES = {"CDS": CLUSTER, "EDS": ENDPOINT, "LDS": LISTENER, "RDS": ROUTE, "VHDS": VIRTUAL_HOST}
"""Type URL of each resource type, by its short name."""
SHORT = {url: short for short, url in TYPES.items()}
FULL = ("CDS", "LDS")
"""Types with a wildcard, whose SotW responses contain all resources."""

SET = "/xdsconformance.v1.Adapter/Set"
Set = Callable[[pb.SetRequest], Awaitable[pb.SetResponse]]
"""The adapter's method."""

_PADDING = "."
"""Fills the contents of large resources."""

_ADS = {"ads": {}, "resource_api_version": "V3"}
_ADDRESS = {"socket_address": {"address": "127.0.0.1", "port_value": 10000}}
MANAGER = "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"
_ROUTER = "envoy.extensions.filters.http.router.v3.Router"


def _cluster(name: str, content: str, ref: str) -> dict[str, Any]:
    cluster = {"name": name, "alt_stat_name": content, "connect_timeout": "1s"}
    return cluster | (
        {"type": "EDS", "eds_cluster_config": {"eds_config": _ADS, "service_name": ref}} if ref else {}
    )


def _assignment(name: str, content: str, _: str) -> dict[str, Any]:
    endpoint = {"hostname": content, "address": _ADDRESS}
    return {"cluster_name": name, "endpoints": [{"lb_endpoints": [{"endpoint": endpoint}]}]}


def _listener(name: str, content: str, ref: str) -> dict[str, Any]:
    routes = (
        {"rds": {"route_config_name": ref, "config_source": _ADS}}
        if ref
        else {"route_config": {"name": name}}
    )
    manager = {
        "@type": TYPE_PREFIX + MANAGER,
        "stat_prefix": name,
        "http_filters": [{"name": "router", "typed_config": {"@type": TYPE_PREFIX + _ROUTER}}],
        **routes,
    }
    return {
        "name": name,
        "stat_prefix": content,
        "address": _ADDRESS,
        "filter_chains": [{"filters": [{"name": "http", "typed_config": manager}]}],
    }


def _route(name: str, content: str, ref: str) -> dict[str, Any]:
    routes = [{"match": {"prefix": "/"}, "route": {"cluster": ref}}] if ref else []
    return {"name": name, "virtual_hosts": [{"name": content, "domains": ["*"], "routes": routes}]}


def _virtual_host(name: str, content: str, _: str) -> dict[str, Any]:
    return {"name": name, "domains": [content]}


_MAKE = {"CDS": _cluster, "EDS": _assignment, "LDS": _listener, "RDS": _route, "VHDS": _virtual_host}


def _encode(short: str, name: str, content: str, ref: str) -> pb.Resource:
    message = class_of(short)()
    ParseDict(_MAKE[short](name, content, ref), message, descriptor_pool=pool)
    resource = pb.Resource(name=name)
    resource.body.type_url = TYPES[short]
    resource.body.value = message.SerializeToString(deterministic=True)
    return resource


def read(short: str, body: bytes) -> tuple[str, str]:
    """Return the name and the content of an encoded resource. The content of an empty assignment is empty."""
    message: Any = class_of(short).FromString(body)
    name, content = message.cluster_name if short == "EDS" else message.name, ""
    match short:
        case "CDS":
            content = message.alt_stat_name
        case "EDS":
            hosts = [host.endpoint.hostname for group in message.endpoints for host in group.lb_endpoints]
            content = hosts[0] if hosts else ""
        case "LDS":
            content = message.stat_prefix
        case "RDS":
            content = message.virtual_hosts[0].name if message.virtual_hosts else ""
        case "VHDS":
            content = message.domains[0] if message.domains else ""
    return name, content.rstrip(_PADDING)


def class_of(short: str) -> type[Message]:
    """Return the class of a type's messages."""
    return message_class(TYPES[short].removeprefix(TYPE_PREFIX))


def parse(text: str) -> dict[str, str]:
    """Return the contents by name: `alpha=1 beta=2>alpha`."""
    return {
        name: content for name, _, content in (word.partition(">")[0].partition("=") for word in text.split())
    }


class CheckError(Exception):
    """The server breaks the rule."""


class AdapterError(Exception):
    """The adapter failed, so the server cannot be judged."""


class World:
    """The resources of one node. `say` records each change."""

    is_fixed = False
    """Whether the resources cannot be changed, because the server has no adapter."""

    def __init__(self, adapter: Set, node: str, say: Callable[[str], None]) -> None:
        self.node = node
        self.ttl: dict[str, float] = {}
        """Seconds after which a client drops a resource, by its name. Set it before the resource."""
        self.aliases: dict[str, tuple[str, ...]] = {}
        """Other names of a virtual host, by its name. Set them before the resource."""
        self.padding = 0
        """Number of bytes that fill up each resource."""
        self._adapter, self._say = adapter, say
        self._types: dict[str, dict[str, pb.Resource]] = {}

    def names(self, short: str) -> list[str]:
        """Return the names of the resources of a type."""
        return list(self._types.get(short, ()))

    def version(self, short: str) -> str:
        """Return the version that the adapter got for a type."""
        digest = hashlib.sha256()
        for _, resource in sorted(self._types[short].items()):
            digest.update(resource.body.value)
        return digest.hexdigest()[:16]

    def real(self, short: str, name: str) -> str:  # noqa: ARG002
        """Return the name that a resource has in messages."""
        return name

    def seen(self, response: Response) -> Response:
        """Return a response with the names that checks use."""
        return response

    async def set(self, **types: str) -> None:
        """Replace the resources of some types, such as `CDS="alpha=1 beta=1"`, and wait for the server."""
        for short, text in types.items():
            self._types[short] = {}
            for word in text.split():
                named, _, ref = word.partition(">")
                name, _, content = named.partition("=")
                self._types[short][name] = self._encode(short, name, content, ref)
        await self._send(" ".join(f"{short}[{text}]" for short, text in types.items()))

    async def add(self, short: str, name: str, content: str = "1") -> None:
        """Add or change one resource."""
        self._types.setdefault(short, {})[name] = self._encode(short, name, content, "")
        await self._send(f"{short} {name}={content}")

    async def clear(self) -> None:
        """Let the server forget the node."""
        if self._types:
            await self._adapter(pb.SetRequest(node=self.node))

    def _encode(self, short: str, name: str, content: str, ref: str) -> pb.Resource:
        resource = _encode(short, name, content + _PADDING * self.padding, ref)
        resource.aliases.extend(self.aliases.get(name, ()))
        if name in self.ttl:
            resource.ttl.FromTimedelta(timedelta(seconds=self.ttl[name]))
        return resource

    async def _send(self, what: str) -> None:
        said = [f"ttl={ttl:g}s for {name}" for name, ttl in self.ttl.items()]
        said += [f"aliases={','.join(aliases)} for {name}" for name, aliases in self.aliases.items()]
        said += [f"{self.padding} bytes each"] * bool(self.padding)
        self._say(" ".join([f"set  {what} for node {self.node}", *said]))
        request = pb.SetRequest(node=self.node)
        for short, resources in self._types.items():
            request.types.add(
                type_url=TYPES[short], version=self.version(short), resources=resources.values()
            )
        try:
            await self._adapter(request)
        except grpc.aio.AioRpcError as error:
            raise AdapterError(f"the adapter failed: {error.code().name}: {error.details()}") from None
