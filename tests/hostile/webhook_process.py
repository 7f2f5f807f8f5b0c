"""Webhooks and an admin port in a process of their own, for attacks.

Prints their ports and the CA as JSON, then the event loop's lag, and serves until its input ends. An argument
divides the CPU time that an address may use: so a test need not use up all of it.
"""

from __future__ import annotations

import asyncio
import json
import sys
from datetime import UTC, datetime

import structlog
from prometheus_client import generate_latest

from tests.policy.world import HTTP, pod, service
from xds.mesh.controlplane.admin import AdminServer
from xds.mesh.identity.ca import Authority
from xds.mesh.identity.keys import PrivateKey
from xds.mesh.inject import InjectionSettings
from xds.mesh.inject.policy_webhook import PolicyReviewer
from xds.mesh.inject.webhook import WebhookServer
from xds.mesh.model.mesh import Mesh
from xds.mesh.model.objects import Fact
from xds.server.fair_share import CpuShare

NAME = "xds.istio-system.svc"


async def main() -> None:
    """Serve until the end of stdin."""
    structlog.configure(logger_factory=structlog.WriteLoggerFactory(sys.stderr))
    divisor = float(sys.argv[1])
    CpuShare.BURST /= divisor
    CpuShare.SHARE /= divisor
    now = datetime.now(UTC)
    ca = Authority.create(PrivateKey.generate(), "cluster.local", now)
    mesh = _mesh()
    server = WebhookServer(
        InjectionSettings,
        lambda: ca.issue_server([NAME], now),
        "127.0.0.1",
        0,
        policies=PolicyReviewer(lambda: mesh),
    )
    task = asyncio.create_task(server.run())
    admin = AdminServer(lambda: None, "127.0.0.1", 0, metrics=lambda _: (generate_latest(), "text/plain"))
    await admin.start()
    await server.listening.wait()
    ports = {"port": server.port, "admin": admin.port}
    print(json.dumps(ports | {"ca": ca.certificate_pem.decode()}), flush=True)
    lags = asyncio.create_task(_lag())
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    lags.cancel()
    task.cancel()
    await admin.stop()
    await asyncio.gather(task, lags, return_exceptions=True)


def _mesh() -> Mesh:
    """Return a mesh of 500 services with 10 pods each; a tenth of the pods has no sidecar."""
    facts: list[Fact] = []
    for number in range(500):
        name, namespace = f"s{number}", f"ns{number % 50}"
        facts.append(service(name, namespace, HTTP))
        facts += [pod(f"{name}-{copy}", namespace, sidecar=copy > 0, app=name) for copy in range(10)]
    return Mesh(facts)


async def _lag() -> None:
    """Print the maximum lag of the event loop every half second."""
    loop = asyncio.get_running_loop()
    while True:
        worst, until = 0.0, loop.time() + 0.5
        while loop.time() < until:
            due = loop.time() + 0.005
            await asyncio.sleep(0.005)
            worst = max(worst, loop.time() - due)
        print(json.dumps({"lag": worst}), flush=True)


if __name__ == "__main__":
    asyncio.run(main())
