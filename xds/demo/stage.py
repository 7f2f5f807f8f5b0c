"""The running system of the demo: a folder of manifests, the control plane that reads it, and pods."""

from __future__ import annotations

import http.client
import json
import shutil
import socket
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from itertools import cycle
from pathlib import Path

from xds.codec import to_json_dict
from xds.demo import proxies
from xds.demo.play import Answers, Pair, Step, StepResult
from xds.demo.pods import (
    addresses,
    application,
    check_addresses_free,
    find_not_listening,
    is_httpbin,
    name_of,
    select_clients,
)
from xds.demo.processes import POLL_INTERVAL, STOP_TIMEOUT, Processes, Running, UnavailableError
from xds.mesh.envoy.bootstrap import bootstrap
from xds.mesh.model.mesh import Mesh
from xds.mesh.model.objects import MeshConfig, Pod
from xds.mesh.sources.files import Folder
from xds.validation import find_envoy

REQUEST_INTERVAL = 0.5
"""Seconds between two requests of the demo that is kept running."""
EXAMPLES = Path(__file__).with_name("manifests").resolve()
"""The folder examples/envoy/auto-mtls, which the package contains."""


class Stage:
    """The running system. `perform` applies a step, and `send_requests` sends the step's requests."""

    def __init__(self, folder: Path, processes: Processes, *, sotw: bool) -> None:
        self.manifests = folder / "manifests"
        self.auto = True
        self._folder = folder
        self._processes = processes
        self._sotw = sotw
        self.xds, self.admin = (f"127.0.0.1:{port}" for port in free_ports(2))
        """The xDS and admin addresses of the control plane."""
        self._control_plane: Running | None = None
        self.manifests.mkdir()
        for example in sorted((EXAMPLES / "workloads").iterdir()):
            self._write(example.name, example)

    # --- processes ------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start the control plane and every pod."""
        mesh = self.mesh()
        self._wait_for_addresses({where: name_of(pod) for pod in mesh.pods() for where in addresses(pod)})
        applications = {name_of(pod): application(pod) for pod in mesh.pods() if is_httpbin(pod)}
        for name, (host, port) in applications.items():
            self._processes.start(name, sys.executable, "-P", "-m", "xds.demo.httpbin", host, str(port))
        self.install(auto=True)
        for pod in mesh.pods():
            if pod.has_sidecar:
                self._start_sidecar(pod)
        self._processes.wait_for("httpbin", lambda: find_not_listening(applications))

    def install(self, *, auto: bool) -> None:
        """Start the control plane. If it runs already, restart it with the new setting."""
        if self._control_plane:
            self._processes.stop(self._control_plane)
        self.auto = auto
        self._control_plane = self._processes.start(
            "control plane",
            *(sys.executable, "-P", "-m", "xds", "serve"),
            *("--manifests", str(self.manifests)),
            *("--set", f"values.global.mtls.auto={str(auto).lower()}"),
            *("--set", "values.global.mtls.enabled=false"),
            *("--xds-address", self.xds),
            *("--admin-address", self.admin),
            *("--state-dir", str(self._folder / "state")),
        )
        self._processes.wait_for("the control plane", self._not_ready_reason)

    def _wait_for_addresses(self, names: Mapping[tuple[str, int], str]) -> None:
        """Wait until all addresses are free: the processes of another demo may still be stopping."""
        deadline = time.monotonic() + STOP_TIMEOUT
        while True:
            try:
                return check_addresses_free(names)
            except UnavailableError:
                if time.monotonic() > deadline:
                    raise
            self._processes.check()
            time.sleep(POLL_INTERVAL)

    def _not_ready_reason(self) -> str:
        connection = http.client.HTTPConnection(self.admin, timeout=5.0)
        try:
            connection.request("GET", "/ready")
            status = connection.getresponse().status
        except (OSError, http.client.HTTPException) as error:
            return str(error)
        finally:
            connection.close()
        return "" if status == http.client.OK else f"/ready returns {status}"

    def _start_sidecar(self, pod: Pod) -> None:
        name = name_of(pod)
        host, _, port = self.xds.rpartition(":")
        config = self._folder / f"{name}.json"
        config.write_text(
            json.dumps(to_json_dict(bootstrap(pod, host, int(port), sotw=self._sotw)), indent=2)
        )
        self._processes.start(
            f"sidecar of {name}",
            *(find_envoy(), "--config-path", str(config)),
            *("--disable-hot-restart", "--concurrency", "1"),
            *("--drain-strategy", "immediate", "--drain-time-s", "5"),
        )

    # --- steps ----------------------------------------------------------------------------------------------

    def perform(self, step: Step) -> None:
        """Apply the changes of a step, and wait until they are active in all sidecars."""
        for name in step.delete:
            (self.manifests / name).unlink(missing_ok=True)
        for name, example in step.apply.items():
            self._write(name, EXAMPLES / "steps" / example)
        if step.auto != self.auto:
            self.install(auto=step.auto)
        mesh = self.mesh()
        expected = proxies.expected_configs(mesh)
        self._processes.wait_for("the sidecars", lambda: proxies.find_stale(expected))
        if step.drained:
            self._processes.wait_for("old connections to close", lambda: proxies.find_draining(mesh))

    def send_requests(self, step: Step) -> StepResult:
        """Send the requests of a step, and return the answers."""
        clients_by_name = select_clients(self.mesh(), iter(step.expected))
        answers_by_pair: dict[Pair, Answers] = {}
        for pair, expected in step.expected.items():
            answers = answers_by_pair[pair] = Counter()
            while not expected.is_settled(pair, answers):
                self._processes.check()
                answers[clients_by_name[pair.client].request(pair.server)] += 1
        return StepResult(step, answers_by_pair)

    def keep_requesting(self, step: Step) -> Iterator[str]:
        """Send the requests of a step again and again, one each REQUEST_INTERVAL, for whoever looks at them.

        Yields that no signal has ended it, until the next request is due.
        """
        clients_by_name = select_clients(self.mesh(), iter(step.expected))
        for pair in cycle(step.expected):
            clients_by_name[pair.client].request(pair.server)
            due = time.monotonic() + REQUEST_INTERVAL
            while time.monotonic() < due:
                yield "no signal"

    def mesh(self) -> Mesh:
        """Read the manifests and return the mesh."""
        report = Folder(self.manifests).load()
        return Mesh(report.change.applied, MeshConfig(enable_auto_mtls=self.auto))

    def _write(self, name: str, example: Path) -> None:
        # Write atomically: the control plane must not read a partial file.
        temporary = self._folder / name
        shutil.copyfile(example, temporary)
        temporary.replace(self.manifests / name)


def free_ports(count: int) -> list[int]:
    """Return free ports on 127.0.0.1."""
    probes = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    try:
        return [probe.getsockname()[1] for probe in probes]
    finally:
        for probe in probes:
            probe.close()
