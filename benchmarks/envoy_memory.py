"""Measure the memory of a sidecar by the services that it sees: python benchmarks/envoy_memory.py.

Each row has its own control plane and its own Envoy, without traffic.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from manifests import Manifests
from page import Server
from probe import memory

from xds.testing import EnvoyProcess


def main() -> None:
    """Run the measurements and print a line for each."""
    parser = argparse.ArgumentParser(description=__doc__.split(":")[0] + ".")
    parser.add_argument("--services", type=int, default=1000)
    parser.add_argument("--endpoints", type=int, default=10, help="endpoints of each service")
    parser.add_argument("--namespaces", type=int, default=100)
    parser.add_argument(
        "--visible", type=int, nargs="*", default=[20, 1], help="numbers of services that the sidecar sees"
    )
    options = parser.parse_args()
    print(f"{'services seen':>13} {'clusters':>8} {'allocated, MiB':>14} {'resident, MiB':>13}")
    for visible in (0, *options.visible):
        with tempfile.TemporaryDirectory() as folder:
            mesh = Manifests(
                root=Path(folder, "mesh"),
                services=options.services,
                endpoints=options.endpoints,
                namespaces=options.namespaces,
                visible=visible,
            )
            mesh.write()
            server = Server(mesh.root, Path(folder, "serve.log"))
            try:
                clusters, *sizes = asyncio.run(measure(bootstrap(mesh, server), Path(folder)))
            finally:
                server.process.terminate()
                server.process.wait()
        print(f"{visible or mesh.services:13,} {clusters:8,} {sizes[0]:14.1f} {sizes[1]:13.1f}", flush=True)


def bootstrap(mesh: Manifests, server: Server) -> dict[str, Any]:
    """Return the bootstrap of a sidecar, with a free port for its admin interface."""
    node = mesh.node(0, 0)
    command = [
        *(sys.executable, "-m", "xds", "bootstrap", f"{node.pod}.{node.namespace}"),
        *("--manifests", str(mesh.root), "--xds-address", f"127.0.0.1:{server.xds}"),
    ]
    made: dict[str, Any] = json.loads(subprocess.check_output(command))
    made["admin"]["address"]["socket_address"]["port_value"] = 0
    return made


async def measure(bootstrap: dict[str, Any], folder: Path) -> tuple[int, float, float]:
    """Return the number of clusters of an Envoy, and its allocated and resident memory in MiB."""
    # It is ready when it has its whole configuration.
    async with EnvoyProcess("envoy", bootstrap, folder) as envoy:
        clusters = await envoy.admin.stat("cluster_manager.active_clusters")
        allocated = int((await envoy.admin.json("/memory"))["allocated"]) / 2**20
        return clusters, allocated, await asyncio.to_thread(memory, "VmRSS", envoy.pid)


if __name__ == "__main__":
    main()
