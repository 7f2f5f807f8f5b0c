"""Measure the page in Chromium with a large mesh: python benchmarks/page.py.

Times are wall-clock times, which other load of the machine increases. CPU times are those of the browser's
main thread and of the control plane.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from control import Process, raise_file_limit
from manifests import Manifests
from sources import MESH_TYPES

from xds.demo.stage import free_ports

_CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
_VIEWS = ("map", "migration", "rollouts", "proxies", "problems")
_TIMEOUT = 120.0
_TICKS = os.sysconf("SC_CLK_TCK")

_RECORD = """
window.record = { event: 0, updated: 0, results: "" };
window.EventSource = class extends EventSource {
  constructor(url) {
    super(url);
    this.addEventListener("changed", ({ data }) => {
      if (JSON.parse(data).views.includes("map")) window.record.event = performance.now();
    });
  }
};
new MutationObserver(() => {
  const isShown = document.querySelector("main:not([aria-busy]) .output");
  if (isShown && !window.record.shown) window.record.shown = performance.now();
  const results = [...document.querySelectorAll("[data-result]")].map((edge) => edge.dataset.result).join();
  if (results && results !== window.record.results) {
    window.record.results = results;
    window.record.updated = performance.now();
    window.record.update = window.record.updated - window.record.event;
    window.record.updatedAt = Date.now();
  }
}).observe(document, { childList: true, subtree: true, attributes: true, attributeFilter: ["aria-busy"] });
"""


class Load(NamedTuple):
    """The first load of a view."""

    paint: float
    """Time of the first paint, in seconds since the navigation."""
    shown: float
    """Time at which the view shows data, in seconds since the navigation."""
    browser: float
    """CPU seconds of the browser's main thread."""
    server: float
    """CPU seconds of the control plane."""


class Flip(NamedTuple):
    """A change of the mesh-wide mode that the map shows."""

    seen: float
    """Seconds from the write of the file until the map shows the change."""
    update: float
    """Seconds from the event until the map shows the change."""
    browser: float
    """CPU seconds of the browser's main thread."""


class Server:
    """A running `xds serve`."""

    def __init__(self, folder: Path, log: Path) -> None:
        self.xds, self.admin = free_ports(2)
        command = [
            *(sys.executable, "-m", "xds", "serve", "--manifests", str(folder)),
            *("--xds-address", f"127.0.0.1:{self.xds}", "--admin-address", f"127.0.0.1:{self.admin}"),
        ]
        with log.open("wb") as stderr:
            self.process = subprocess.Popen(command, stderr=stderr, stdout=subprocess.DEVNULL)
        wait(self._is_ready, "the control plane")

    @property
    def url(self) -> str:
        """Address of the page."""
        return f"http://127.0.0.1:{self.admin}/"

    @property
    def cpu(self) -> float:
        """CPU seconds that the process has used."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / _TICKS

    def _is_ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}ready", timeout=10):
                return True
        except (OSError, urllib.error.HTTPError):
            return False


def main() -> None:
    """Run the measurements and print a line for each."""
    parser = argparse.ArgumentParser(description=__doc__.split(":")[0] + ".")
    parser.add_argument("--services", type=int, default=200)
    parser.add_argument("--endpoints", type=int, default=5, help="endpoints of each service")
    parser.add_argument("--namespaces", type=int, default=10)
    parser.add_argument("--streams", type=int, default=200, help="number of connected sidecars")
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    raise_file_limit(2 * options.streams + 200)
    with tempfile.TemporaryDirectory() as name, running(Path(name), options) as (server, mesh):
        from playwright.sync_api import sync_playwright  # noqa: PLC0415 - slow

        with sync_playwright() as driver:
            sandbox = ["--no-sandbox"] if os.geteuid() == 0 else []
            browser = driver.chromium.launch(executable_path=_CHROMIUM, args=sandbox)
            print(f"{'':22} {'paint, s':>9} {'shown, s':>9} {'browser CPU, s':>15} {'server CPU, s':>14}")
            for view in _VIEWS:
                print_loads(f"{view}, first", [load(browser, server, view)])
                print_loads(view, [load(browser, server, view) for _ in range(options.rounds)])
            flips = list(measure_flips(browser, server, mesh, options.rounds))
            print(f"{'':22} {'seen, s':>9} {'update, s':>9} {'browser CPU, s':>15}")
            print(f"{'policy flip':22} " + _medians(flips, (9, 9, 15)))
            browser.close()


@contextmanager
def running(folder: Path, options: argparse.Namespace) -> Iterator[tuple[Server, Manifests]]:
    """Run a control plane with connected sidecars."""
    mesh = Manifests(
        root=folder / "mesh",
        services=options.services,
        endpoints=options.endpoints,
        namespaces=options.namespaces,
    )
    mesh.write()
    mesh.write_policy("PERMISSIVE")
    with Process("fleet.py", log=folder / "fleet.log") as fleet:
        fleet.receive()
        server = Server(mesh.root, folder / "serve.log")
        try:
            nodes = [str(mesh.node(*pod)) for pod in mesh.pods(options.streams)]
            connection = {"ports": [server.xds], "types": MESH_TYPES, "tokens": [], "roots": ""}
            fleet.call("connect", nodes=nodes, at_once=len(nodes), resumes=False, **connection)
            wait(lambda: fleet.call("state")["complete"] == len(nodes), "the sidecars")
            yield server, mesh
        finally:
            server.process.terminate()
            server.process.wait()


def load(browser: Any, server: Server, view: str) -> Load:
    """Open a view in a new browser context."""
    with _context(browser) as context:
        page = context.new_page()
        page.add_init_script(_RECORD)
        cpu, metrics = server.cpu, _metrics(page)
        page.goto(f"{server.url}#/{view}")
        page.wait_for_function("window.record.shown", timeout=_TIMEOUT * 1000)
        shown, paint = page.evaluate(
            "[window.record.shown, performance.getEntriesByName('first-contentful-paint')[0].startTime]"
        )
        return Load(paint / 1000, shown / 1000, metrics(), server.cpu - cpu)


def measure_flips(browser: Any, server: Server, mesh: Manifests, rounds: int) -> Iterator[Flip]:
    """Change the mode of the mesh, and yield when an open map shows it."""
    with _context(browser) as context:
        page = context.new_page()
        page.add_init_script(_RECORD)
        page.goto(f"{server.url}#/map")
        page.wait_for_selector(".edge.mtls", state="attached")
        for number in range(rounds):
            mode, result = (("PERMISSIVE", "mtls"), ("DISABLE", "plaintext"))[number % 2 == 0]
            page.wait_for_timeout(3000)  # The last change must be over.
            metrics, written_at = _metrics(page), time.time()
            mesh.write_policy(mode)
            page.wait_for_function(
                "(result) => window.record.results.split(',').every((each) => each === result)",
                arg=result,
                timeout=_TIMEOUT * 1000,
            )
            record = page.evaluate("window.record")
            yield Flip(record["updatedAt"] / 1000 - written_at, record["update"] / 1000, metrics())


def _context(browser: Any) -> Any:
    # Playwright's waiting evaluates code, which the page's Content-Security-Policy forbids.
    return browser.new_context(viewport={"width": 1440, "height": 900}, bypass_csp=True)


def print_loads(name: str, loads: list[Load]) -> None:
    """Print the medians of some loads."""
    print(f"{name:22} " + _medians(loads, (9, 9, 15, 14)), flush=True)


def _medians(rows: list[Any], widths: tuple[int, ...]) -> str:
    return " ".join(
        f"{median(values):{width}.3f}" for width, values in zip(widths, zip(*rows, strict=True), strict=True)
    )


def _metrics(page: Any) -> Callable[[], float]:
    """Return a function that returns the CPU seconds of the page's main thread since now."""
    session = page.context.new_cdp_session(page)
    session.send("Performance.enable", {"timeDomain": "threadTicks"})

    def read() -> float:
        metrics = {each["name"]: each["value"] for each in session.send("Performance.getMetrics")["metrics"]}
        return float(metrics["TaskDuration"])

    before = read()
    return lambda: read() - before


def wait(condition: Callable[[], bool], what: str) -> None:
    """Wait until a condition is met."""
    end = time.monotonic() + _TIMEOUT
    while not condition():
        if time.monotonic() > end:
            raise SystemExit(f"{what} did not become ready within {_TIMEOUT:.0f} s")
        time.sleep(0.1)


if __name__ == "__main__":
    main()
