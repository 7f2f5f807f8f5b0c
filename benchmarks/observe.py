"""Measure what observed traffic costs Envoy: throughput and latency with it, as ratios to those without it.

    PYTHONPATH=. python benchmarks/observe.py [--quick] [-o table|json]

Two meshes run side by side, one with `--observe=false`. In each, wrk sends requests through the sidecar of a
client and the sidecar of a server to one backend, an Envoy with a fixed response. Each round measures every
scenario with both meshes, in alternating order. It needs wrk (`apt install wrk`) and takes about
ROUNDS * (SECONDS + 0.3) * 8 + 20 seconds.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import json
import re
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from control import cpu_seconds
from report import machine
from rich.console import Console
from rich.table import Table

from tests.support import manifests
from tests.support.envoy import EnvoyProcess
from tests.support.local import PROXY_PORT, LocalMesh
from tests.support.loopback import Loopback

PORT = 8080
"""Port of the server, and of the backend."""
ADMIN_PORT = 15000
WARM_UP = 1
"""Seconds of load before the first round, for each scenario and mesh."""
RATIOS = ("throughput", "p50", "p99", "cpu")
_UNITS = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0}
_METRIC = re.compile(
    r'^xds_observed_(reports|dropped)_total\{\w+="(?:envoy\.service\.)?([^"]+)"\} (\S+)$', re.MULTILINE
)


class Scenario(NamedTuple):
    """How requests go from the client's sidecar to the server's."""

    name: str
    """Name of the scenario's Service."""
    tls: str
    """TLS mode of its DestinationRule."""
    is_kept: bool
    """Whether connections between the sidecars are kept; if not, each request has its own."""

    def objects(self) -> list[manifests.Manifest]:
        rule = manifests.destination_rule(self.name, "bench", self.host + ".svc.cluster.local", self.tls)
        if not self.is_kept:
            rule["spec"]["trafficPolicy"]["connectionPool"] = {"http": {"maxRequestsPerConnection": 1}}
        return [rule]

    @property
    def host(self) -> str:
        return f"{self.name}.bench"


SCENARIOS = (
    Scenario("mtls-kept", "ISTIO_MUTUAL", True),
    Scenario("mtls-new", "ISTIO_MUTUAL", False),
    Scenario("plaintext-kept", "DISABLE", True),
    Scenario("plaintext-new", "DISABLE", False),
)


@dataclass(frozen=True, slots=True)
class Sample:
    """Result of one run of wrk."""

    throughput: float
    """Requests per second."""
    p50: float
    """Median latency, in seconds."""
    p99: float
    """99th percentile of the latency, in seconds."""
    cpu: float
    """CPU seconds of both sidecars for one request. Other load of the machine affects it least."""


@dataclass(slots=True)
class Comparison:
    """The samples of one scenario, one of each per round."""

    on: list[Sample] = field(default_factory=list)
    """With observed traffic."""
    off: list[Sample] = field(default_factory=list)
    """Without it."""

    def ratios(self, what: str) -> list[float]:
        """Return on / off of each round, sorted."""
        pairs = zip(self.on, self.off, strict=True)
        return sorted(getattr(on, what) / getattr(off, what) for on, off in pairs)


class Bench:
    """One mesh with a client, a server and their sidecars."""

    def __init__(self, loopback: Loopback, folder: Path, *, observe: bool) -> None:
        settings = () if observe else ("values.xds.observe=false",)
        self.mesh = LocalMesh(loopback, folder, settings=settings)
        self.client, self.server = self.mesh.pod("client", "bench"), self.mesh.pod("server", "bench")
        for scenario in SCENARIOS:
            ports = {"http": (80, PORT)}
            self.mesh.service(scenario.name, "bench", ports, selector={"app": "server"})
            self.mesh.apply(*scenario.objects())

    async def load(self, scenario: Scenario, seconds: int, connections: int) -> Sample:
        """Send requests as fast as they are answered."""
        size = [f"--connections={connections}", f"--duration={seconds}s"]
        header = f"--header=Host: {scenario.host}"
        url = f"http://{self.client.address}:{PROXY_PORT}/"
        before = self._cpu()
        process = await asyncio.create_subprocess_exec(
            "wrk", "--latency", "--threads=1", *size, header, url, stdout=asyncio.subprocess.PIPE
        )
        output, _ = await asyncio.wait_for(process.communicate(), seconds + 30)
        return parse_wrk(output.decode(), self._cpu() - before)

    def _cpu(self) -> float:
        return sum(cpu_seconds(sidecar.pid) for sidecar in self.mesh.sidecars.values())

    async def observed(self) -> dict[str, float]:
        """Return the numbers of reports, and of log entries that Envoy wrote and dropped."""
        metrics = _METRIC.findall(await self.mesh.plane.metrics())
        found = {f"{kind} {name}": float(count) for kind, name, count in metrics}
        logs = await self.mesh.sidecar(self.server).admin.stats(r"^access_logs\.grpc_access_log\.")
        return {name: count for name, count in (found | logs).items() if count}


def parse_wrk(output: str, cpu: float) -> Sample:
    """Parse wrk's output. Exit if a request failed. `cpu`: CPU seconds of the sidecars meanwhile."""
    if "Non-2xx" in output or "Socket errors" in output:
        raise SystemExit(f"requests failed:\n{output}")
    percentiles = {
        percent: float(value) * _UNITS[unit]
        for percent, value, unit in re.findall(r"^ +(\d+)% +([\d.]+)(us|ms|s|m)$", output, re.MULTILINE)
    }
    rate = re.search(r"^Requests/sec: +([\d.]+)$", output, re.MULTILINE)
    count = re.search(r"^ +(\d+) requests in ", output, re.MULTILINE)
    assert rate, output
    assert count, output
    return Sample(float(rate[1]), percentiles["50"], percentiles["99"], cpu / int(count[1]))


def backend(addresses: Iterable[str], admin: str) -> dict[str, Any]:
    """Return the bootstrap of an Envoy that answers every request at once."""

    def at(host: str, port: int) -> dict[str, Any]:
        return {"socket_address": {"address": host, "port_value": port}}

    route = {"match": {"prefix": "/"}, "direct_response": {"status": 200, "body": {"inline_string": "ok"}}}
    base = "type.googleapis.com/envoy.extensions.filters"
    router = {"name": "router", "typed_config": {"@type": f"{base}.http.router.v3.Router"}}
    manager = {
        "@type": f"{base}.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "backend",
        "http_filters": [router],
        "route_config": {"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": [route]}]},
    }
    chain = {"filters": [{"name": "http", "typed_config": manager}]}
    listeners = [{"address": at(host, PORT), "filter_chains": [chain]} for host in addresses]
    return {"admin": {"address": at(admin, ADMIN_PORT)}, "static_resources": {"listeners": listeners}}


@asynccontextmanager
async def running() -> AsyncIterator[tuple[Bench, Bench]]:
    """Run the meshes with and without observed traffic."""
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        loopback = stack.enter_context(Loopback())
        benches = []
        for name, observe in (("on", True), ("off", False)):
            (folder / name).mkdir()
            benches.append(Bench(loopback, folder / name, observe=observe))
        addresses = [bench.server.app_address for bench in benches]
        await stack.enter_async_context(
            EnvoyProcess("backend", backend(addresses, loopback.address()), folder)
        )
        for bench in benches:
            await stack.enter_async_context(bench.mesh)
            await bench.mesh.start(bench.client, bench.server)
        on, off = benches
        yield on, off


async def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Run all rounds. Return the samples and the ratios of each scenario."""
    comparisons = {scenario.name: Comparison() for scenario in SCENARIOS}
    async with running() as (on, off):
        for scenario in SCENARIOS:
            for bench in (on, off):
                await bench.load(scenario, WARM_UP, options.connections)
        for number in range(options.rounds):
            for scenario in SCENARIOS:
                result = comparisons[scenario.name]
                order = [(on, result.on), (off, result.off)]
                for bench, samples in order if number % 2 else reversed(order):
                    samples.append(await bench.load(scenario, options.seconds, options.connections))
        observed = {"on": await on.observed(), "off": await off.observed()}
    results = {
        name: {
            **asdict(result),
            "ratios": {what: result.ratios(what) for what in RATIOS},
        }
        for name, result in comparisons.items()
    }
    return {"machine": machine(), "size": vars(options), "results": results, "observed": observed}


def as_table(report: dict[str, Any]) -> str:
    """Return a table of medians, with the minimum and the maximum of the ratios."""
    table = Table(title="with observed traffic / without it")
    for column in ("", "requests/s, off", "p99, ms, off", "CPU, us, off", *RATIOS):
        table.add_column(column, justify="right" if column else "left")
    for name, result in report["results"].items():
        ratios = (
            f"{median(values):.3f} [{values[0]:.3f}-{values[-1]:.3f}]" for values in result["ratios"].values()
        )
        rate = median(sample["throughput"] for sample in result["off"])
        p99 = 1000 * median(sample["p99"] for sample in result["off"])
        cpu = 1e6 * median(sample["cpu"] for sample in result["off"])
        table.add_row(name, f"{rate:,.0f}", f"{p99:.2f}", f"{cpu:.0f}", *ratios)
    out = io.StringIO()
    console = Console(file=out, width=160)
    console.print(table)
    console.print("medians [min-max] of the rounds; cpu: of both sidecars, for one request", markup=False)
    console.print(f"{report['machine']}; on: {report['observed']['on']}", highlight=False, markup=False)
    return out.getvalue().rstrip()


def main() -> None:
    """Run the benchmark and print the results."""
    parser = argparse.ArgumentParser(description=__doc__.partition(":")[0] + ".")
    parser.add_argument("--quick", action="store_true", help="run one round of one second")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=4, help="duration of one run of wrk")
    parser.add_argument("--connections", type=int, default=16)
    parser.add_argument("-o", "--output", choices=("table", "json"), default="table")
    options = parser.parse_args()
    if not shutil.which("wrk"):
        raise SystemExit("wrk is not installed: install the package wrk of your distribution")
    if options.quick:
        options.rounds = options.seconds = 1
    report = asyncio.run(measure(options))
    print(json.dumps(report, indent=1) if options.output == "json" else as_table(report))


if __name__ == "__main__":
    main()
