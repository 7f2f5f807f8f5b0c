"""Measure the control plane's CPU time for the reports of many sidecars.

    PYTHONPATH=. python benchmarks/reports.py [SIDECARS] [SERVICES]

Each simulated sidecar sends load reports at the interval that the server asks for, with an entry for each
service and traffic to ten of them. Half of the sidecars also send ten access log entries every 10 s. The
result is the share of one core that the server process uses, without the simulation.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import grpc.aio

from tests.support import manifests
from tests.support.loopback import free_port
from xds.codec import message_class
from xds.mesh.controlplane.traffic_reports import LOAD_SERVICE, LOG_SERVICE
from xds.mesh.envoy.access_logs import FLUSH_INTERVAL
from xds.mesh.observe.reports import ACCESS_LOGS, LOAD_REPORT

NODE = "sidecar~127.1.{}.{}~pod-{}.bench~bench.svc.cluster.local"
SECONDS = 60.0
_CLOCK = os.sysconf("SC_CLK_TCK")


def node_id(number: int) -> str:
    return NODE.format(number // 250, number % 250 + 1, number)


def load_report(number: int, services: int) -> bytes:
    message: Any = message_class(LOAD_REPORT)()
    for service in range(services):
        cluster = message.cluster_stats.add(
            cluster_name=f"outbound|80||svc-{service}.bench.svc.cluster.local"
        )
        if (service - number) % services < 10:
            locality = cluster.upstream_locality_stats.add(total_issued_requests=100)
            locality.locality.sub_zone = "istio"
    return bytes(message.SerializeToString())


def access_logs(number: int) -> bytes:
    message: Any = message_class(ACCESS_LOGS)()
    for entry in range(10):
        common = message.tcp_logs.log_entry.add().common_properties
        common.downstream_remote_address.socket_address.address = f"127.1.0.{(number + entry) % 250 + 1}"
        common.downstream_local_address.socket_address.port_value = 8080
        common.access_log_type = 6
    return bytes(message.SerializeToString())


async def report(
    channel: grpc.aio.Channel, number: int, count: int, services: int, start: asyncio.Event
) -> None:
    """Open the streams of one sidecar, and send its reports from `start` on until cancelled."""
    load = channel.stream_stream(f"/{LOAD_SERVICE}/StreamLoadStats")()
    first: Any = message_class(LOAD_REPORT)()
    first.node.id = node_id(number)
    await load.write(first.SerializeToString())
    response: Any = message_class("envoy.service.load_stats.v3.LoadStatsResponse").FromString(
        await load.read()
    )
    interval = response.load_reporting_interval.seconds
    logs = None
    if number % 2:
        logs = channel.stream_stream(f"/{LOG_SERVICE}/StreamAccessLogs")()
        opening: Any = message_class(ACCESS_LOGS)()
        opening.identifier.node.id = node_id(number)
        await logs.write(opening.SerializeToString())
    body, entries = load_report(number, services), access_logs(number)
    await start.wait()

    async def repeat(call: grpc.aio.StreamStreamCall, message: bytes, seconds: float) -> None:
        await asyncio.sleep(seconds * number / count)
        while True:
            await call.write(message)
            await asyncio.sleep(seconds)

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(repeat(load, body, interval))
        if logs:
            tasks.create_task(repeat(logs, entries, FLUSH_INTERVAL.total_seconds()))


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _CLOCK


def write_mesh(folder: Path, sidecars: int, services: int) -> None:
    objects = []
    for number in range(sidecars):
        address = node_id(number).split("~")[1]
        labels = {"app": f"svc-{number % services}"}
        objects.append(
            manifests.pod(f"pod-{number}", "bench", address, labels=labels, account=f"a{number % 100}")
        )
    objects += [manifests.service(f"svc-{n}", "bench", {"http": (80, 8080)}) for n in range(services)]
    (folder / "mesh.json").write_text(json.dumps({"apiVersion": "v1", "kind": "List", "items": objects}))


def main(sidecars: int, services: int) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_mesh(folder, sidecars, services)
        port, admin = free_port(), free_port()
        command = [sys.executable, "-m", "xds", "serve", "--manifests", name]
        command += ["--xds-address", f"127.0.0.1:{port}", "--admin-address", f"127.0.0.1:{admin}"]
        with subprocess.Popen(command, stderr=subprocess.DEVNULL) as server:
            try:
                asyncio.run(measure(server.pid, port, sidecars, services))
            finally:
                server.terminate()


async def measure(pid: int, port: int, sidecars: int, services: int) -> None:
    channels = [
        grpc.aio.insecure_channel(f"127.0.0.1:{port}", (("grpc.use_local_subchannel_pool", 1),))
        for _ in range(sidecars)
    ]
    await asyncio.wait_for(channels[0].channel_ready(), 120)
    start = asyncio.Event()
    tasks = [asyncio.create_task(report(c, n, sidecars, services, start)) for n, c in enumerate(channels)]
    await asyncio.sleep(20)
    before = cpu_seconds(pid), time.monotonic()
    await asyncio.sleep(20)
    idle = (cpu_seconds(pid) - before[0]) / (time.monotonic() - before[1])
    start.set()
    await asyncio.sleep(20)
    before = cpu_seconds(pid), time.monotonic()
    await asyncio.sleep(SECONDS)
    busy = (cpu_seconds(pid) - before[0]) / (time.monotonic() - before[1])
    failed = sum(task.done() for task in tasks)
    print(
        f"{sidecars} sidecars, {services} services: {busy - idle:.1%} of a core (idle: {idle:.1%}), "
        f"{failed} reporters failed"
    )
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


if __name__ == "__main__":
    arguments = [int(word) for word in sys.argv[1:]]
    main(*(arguments + [1000, 100][len(arguments) :]))
