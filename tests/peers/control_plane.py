"""A control plane to be killed: it serves the world of one service, and prints a line once it does.

control_plane.py PORT CLUSTER BACKEND_PORT
"""

from __future__ import annotations

import asyncio
import sys

import structlog

from tests.peers.meshless import world
from xds.server import XdsServer
from xds.store import Store


async def serve(port: int, cluster: str, backend: int) -> None:
    """Serve for ever."""
    store = Store()
    store.set(*world(cluster, backend))
    server = XdsServer(store, f"127.0.0.1:{port}")
    await server.start()
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    await asyncio.Event().wait()


if __name__ == "__main__":
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    asyncio.run(serve(int(sys.argv[1]), sys.argv[2], int(sys.argv[3])))
