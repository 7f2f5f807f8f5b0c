"""Measure how long `xds reach` and `xds plan` take for a large mesh: python benchmarks/reach.py.

Each measurement runs in its own process, so that its peak memory can be measured. Loading the manifests is
not included in the other rows. The CPU time of a row does not depend on other load of the machine.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from manifests import PORT, Manifests

from xds.cli.manifests import read_mesh
from xds.mesh.model.mesh import Mesh
from xds.mesh.model.objects import Change, Meta, Mode, ModePolicy, Ref
from xds.mesh.policy.hops import hops
from xds.mesh.policy.prediction import predict_change


def main() -> None:
    """Run the measurements and print a line for each."""
    parser = argparse.ArgumentParser(description=__doc__.split(":")[0] + ".")
    parser.add_argument("--services", type=int, default=1000)
    parser.add_argument("--endpoints", type=int, default=10, help="endpoints of each service")
    parser.add_argument("--namespaces", type=int, default=100)
    options = parser.parse_args()
    print(f"{'':12} {'CPU, s':>7} {'rows':>6} {'connections':>12} {'peak, MiB':>9}")
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        Manifests(root=root, **vars(options)).write()
        for name, run in {
            "load": None,
            "whole mesh": whole_mesh,
            "one service": one_service,
            "plan": disable,
        }.items():
            # A new process for each row: memory that an earlier row used must not count.
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                seconds, rows, connections, peak = pool.apply(measure, (root, run))
            print(f"{name:12} {seconds:7.2f} {rows:6,} {connections:12,} {peak:9.0f}")


def measure(root: Path, run: Callable[[Mesh], tuple[int, int]] | None) -> tuple[float, int, int, float]:
    """Return the CPU time in seconds, the numbers of rows and connections, and the peak memory in MiB.

    Without `run`, measure only the time to read the manifests.
    """
    start = time.process_time()
    mesh, _ = read_mesh([str(root)])
    rows = connections = 0
    if run:
        start = time.process_time()
        rows, connections = run(mesh)
    seconds = time.process_time() - start
    return seconds, rows, connections, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def whole_mesh(mesh: Mesh) -> tuple[int, int]:
    """Decide every connection, as `xds reach` does. Return the numbers of rows and of connections."""
    rows = connections = 0
    for hop in hops(mesh):
        rows += 1
        connections += max(1, len(hop.endpoints)) * sum(len([*clients.pods]) for clients in hop.clients)
    return rows, connections


def one_service(mesh: Mesh) -> tuple[int, int]:
    """Decide the connections to one service, as `xds reach --to` does."""
    service = next(mesh.services())
    (port,) = service.ports
    assert port.port == PORT
    found = [*hops(mesh, targets=[(service, port)])]
    return len(found), sum(
        len(hop.endpoints) * len([*clients.pods]) for hop in found for clients in hop.clients
    )


def disable(mesh: Mesh) -> tuple[int, int]:
    """Compare the mesh with itself under DISABLE, as `xds plan` does: every connection changes."""
    ref = Ref("PeerAuthentication", mesh.config.root_namespace, "default")
    policy = ModePolicy(meta=Meta(ref=ref), mode=Mode.DISABLE)
    changes = predict_change(mesh, mesh.apply(Change(applied=(policy,)))).hops
    return len(changes), sum(
        len(change.endpoints) * len([*clients.pods]) for change in changes for clients in change.clients
    )


if __name__ == "__main__":
    main()
