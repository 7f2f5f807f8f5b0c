"""Measure the control plane's CPU time for the reports of many sidecars.

    PYTHONPATH=. python benchmarks/reports.py [--sidecars 1000] [--services 100] [--interval 10]

Each simulated sidecar sends a load report per interval, with an entry for each service and traffic to ten of
them. Half of the sidecars also send ten access log entries per interval. The results are the share of one
core that the server process uses in addition to its use while the streams are idle, and the CPU time of one
report.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import grpc.aio
from control import cpu_seconds, raise_file_limit
from report import machine

from tests.support import manifests
from tests.support.loopback import free_port
from xds.codec import message_class
from xds.mesh.controlplane.traffic_reports import LOAD_SERVICE, LOG_SERVICE
from xds.mesh.observe.report_reader import ACCESS_LOGS, LOAD_REPORT

NODE = "sidecar~127.1.{}.{}~pod-{}.bench~bench.svc.cluster.local"
TRAFFIC = 10
"""Number of services that a sidecar calls, and of clients in its access logs."""
SETTLE = 5.0
"""Seconds between the phases of the measurement."""


def node_id(number: int) -> str:
    return NODE.format(number // 250, number % 250 + 1, number)


def load_report(number: int, services: int) -> bytes:
    message: Any = message_class(LOAD_REPORT)()
    for service in range(services):
        cluster = message.cluster_stats.add(
            cluster_name=f"outbound|80||svc-{service}.bench.svc.cluster.local"
        )
        cluster.load_report_interval.seconds, cluster.load_report_interval.nanos = 10, 1_234_567 + service
        if (service - number) % services < TRAFFIC:
            locality = cluster.upstream_locality_stats.add(
                total_issued_requests=100, total_successful_requests=100
            )
            locality.locality.sub_zone = "istio"
    return bytes(message.SerializeToString())


def access_logs(number: int) -> bytes:
    message: Any = message_class(ACCESS_LOGS)()
    for entry in range(TRAFFIC):
        common = message.tcp_logs.log_entry.add().common_properties
        common.downstream_remote_address.socket_address.address = f"127.1.0.{(number + entry) % 250 + 1}"
        common.downstream_remote_address.socket_address.port_value = 50_000 + entry
        common.downstream_local_address.socket_address.address = "127.1.0.1"
        common.downstream_local_address.socket_address.port_value = 8080
        common.start_time.seconds, common.duration.nanos = 1_800_000_000 + entry, 1_000_000
        common.access_log_type = 6
    return bytes(message.SerializeToString())


class Sidecar:
    """The report streams of one sidecar."""

    def __init__(self, number: int, port: int, services: int) -> None:
        own = (("grpc.use_local_subchannel_pool", 1),)
        channel = grpc.aio.insecure_channel(f"127.0.0.1:{port}", own)
        self._number = number
        self.load = channel.stream_stream(f"/{LOAD_SERVICE}/StreamLoadStats")()
        self.logs = channel.stream_stream(f"/{LOG_SERVICE}/StreamAccessLogs")() if number % 2 else None
        self.load_report, self.access_logs = load_report(number, services), access_logs(number)

    async def open(self) -> None:
        first: Any = message_class(LOAD_REPORT)()
        first.node.id = node_id(self._number)
        await self.load.write(first.SerializeToString())
        await self.load.read()
        if self.logs:
            opening: Any = message_class(ACCESS_LOGS)()
            opening.identifier.node.id = node_id(self._number)
            await self.logs.write(opening.SerializeToString())


async def send_nothing(_: list[Sidecar], __: float, seconds: float) -> int:
    """Wait."""
    await asyncio.sleep(seconds)
    return 0


async def send_loads(sidecars: list[Sidecar], interval: float, seconds: float) -> int:
    """Send load reports, evenly distributed over the interval. Return their number."""
    return await _paced([(sidecar.load, sidecar.load_report) for sidecar in sidecars], interval, seconds)


async def send_logs(sidecars: list[Sidecar], interval: float, seconds: float) -> int:
    """Send access logs of the sidecars that have any. Return their number."""
    reports = [(sidecar.logs, sidecar.access_logs) for sidecar in sidecars if sidecar.logs]
    return await _paced(reports, interval, seconds)


async def _paced(
    reports: list[tuple[grpc.aio.StreamStreamCall, bytes]], interval: float, seconds: float
) -> int:
    started_at, count = time.monotonic(), 0
    while (elapsed := time.monotonic() - started_at) < seconds:
        due = count * interval / len(reports)
        if due > elapsed:
            await asyncio.sleep(due - elapsed)
        call, report = reports[count % len(reports)]
        await call.write(report)
        count += 1
    return count


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


async def measure(pid: int, port: int, options: argparse.Namespace) -> dict[str, Any]:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        await asyncio.wait_for(channel.channel_ready(), 120)
    sidecars = [Sidecar(number, port, options.services) for number in range(options.sidecars)]
    async with asyncio.TaskGroup() as tasks:
        for sidecar in sidecars:
            tasks.create_task(sidecar.open())
    results: dict[str, Any] = {}
    for name, send in (("idle", send_nothing), ("load reports", send_loads), ("access logs", send_logs)):
        await send(sidecars, options.interval, SETTLE)
        before, started_at = cpu_seconds(pid), time.monotonic()
        sent = await send(sidecars, options.interval, options.seconds)
        seconds = time.monotonic() - started_at
        share = (cpu_seconds(pid) - before) / seconds
        results[name] = {"share of a core": share}
        if sent:
            share -= results["idle"]["share of a core"]
            results[name] = {
                "share of a core": share,
                "reports per second": sent / seconds,
                "microseconds per report": 1e6 * share * seconds / sent,
            }
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--sidecars", type=int, default=1000)
    parser.add_argument("--services", type=int, default=100)
    parser.add_argument("--interval", type=float, default=10, help="seconds between a sidecar's reports")
    parser.add_argument("--seconds", type=float, default=30, help="duration of each of three phases")
    options = parser.parse_args()
    raise_file_limit(options.sidecars + 200)
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        write_mesh(Path(name), options.sidecars, options.services)
        port, admin = free_port(), free_port()
        command = [sys.executable, "-m", "xds", "serve", "--manifests", name]
        command += ["--xds-address", f"127.0.0.1:{port}", "--admin-address", f"127.0.0.1:{admin}"]
        server = stack.enter_context(subprocess.Popen(command, stderr=subprocess.DEVNULL))
        stack.callback(server.terminate)
        results = asyncio.run(measure(server.pid, port, options))
    print(json.dumps({"machine": machine(), "size": vars(options), "results": results}, indent=1))


if __name__ == "__main__":
    main()
