"""A program that imports all of the library, and serves resources. It needs no extra."""

from __future__ import annotations

import asyncio
import pkgutil
from collections.abc import Iterator
from importlib import import_module

import xds
from xds.builders import cluster, endpoints, http_listener, route, routes
from xds.introspect import Introspection
from xds.server import XdsServer
from xds.store import Store
from xds.testing import EnvoyClient

NOT_THE_LIBRARY = {"xds.__main__", "xds.cli", "xds.demo", "xds.mesh"}
WITH_AN_EXTRA = {"xds.pytest_plugin", "xds.server.http", "xds.server.http_bodies", "xds.server.rest"}


def modules() -> Iterator[str]:
    """Yield the names of the library's modules, except for those that need an extra."""
    for module in pkgutil.iter_modules(xds.__path__, "xds."):
        if module.name in NOT_THE_LIBRARY | WITH_AN_EXTRA:
            continue
        yield module.name
        if module.ispkg:
            parts = pkgutil.walk_packages(import_module(module.name).__path__, f"{module.name}.")
            yield from (part.name for part in parts if part.name not in WITH_AN_EXTRA)


async def serve() -> list[str]:
    """Return the names of the clusters, endpoints, listeners and routes that a client receives."""
    store = Store()
    store.set(http_listener("listener", "127.0.0.1:10000", routes="routes"))
    store.set(routes("routes", [route("cluster")]))
    store.set(cluster("cluster"), endpoints("cluster", ["127.0.0.1:8001"]))
    async with (
        XdsServer(store, "127.0.0.1:0", added=[Introspection()]) as server,
        EnvoyClient(f"127.0.0.1:{server.port}") as client,
    ):
        await client.wait_for(lambda: client.live)
        await store.applied(at_least=1)
        return [*client.clusters, *client.endpoints, *client.listeners, *client.routes]


if __name__ == "__main__":
    for name in modules():
        import_module(name)
    print("received", *asyncio.run(serve()))
