"""A control plane to be killed: it serves the world of one service, and says on which port.

control_plane.py CLUSTER BACKEND_PORT
"""

from __future__ import annotations

import asyncio
import sys

import structlog

from tests.peers.meshless import world
from xds.server import XdsServer
from xds.store import Store


async def serve(cluster: str, port: int) -> None:
    """Serve for ever."""
    store = Store()
    store.set(*world(cluster, port))
    server = XdsServer(store, "127.0.0.1:0")
    await server.start()
    sys.stdout.write(f"{server.port}\n")
    sys.stdout.flush()
    await asyncio.Event().wait()


if __name__ == "__main__":
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    asyncio.run(serve(sys.argv[1], int(sys.argv[2])))
