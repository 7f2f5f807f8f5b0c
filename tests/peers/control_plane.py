"""A control plane to be killed: it serves the world of one service, and says on which port.

control_plane.py ADDRESS CLUSTER BACKEND_PORT
"""

from __future__ import annotations

import asyncio
import sys

import structlog

from tests.peers.meshless import world
from xds.server import XdsServer
from xds.store import Store


async def serve(address: str, cluster: str, port: int) -> None:
    """Serve for ever."""
    store = Store()
    store.set(*world(cluster, port))
    server = XdsServer(store, address)
    await server.start()
    sys.stdout.write(f"{server.port}\n")
    sys.stdout.flush()
    await asyncio.Event().wait()


if __name__ == "__main__":
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    asyncio.run(serve(sys.argv[1], sys.argv[2], int(sys.argv[3])))
