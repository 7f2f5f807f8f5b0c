"""`xds serve --manifests` as a process, for tests."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
from envoy_data_plane.envoy.config.core.v3 import Node
from envoy_data_plane.envoy.service.discovery.v3 import DiscoveryRequest, DiscoveryResponse

from tests.support.loopback import free_port
from tests.support.waiting import pause

POD = """
apiVersion: v1
kind: Pod
metadata: {{name: {}, namespace: shop, labels: {{security.istio.io/tlsMode: istio}}}}
status: {{podIP: 127.9.0.1}}
"""
_ADS = "/envoy.service.discovery.v3.AggregatedDiscoveryService/StreamAggregatedResources"
TIMEOUT = 60.0


class ServeProcess:
    """A running `xds serve`."""

    def __init__(
        self, folder: Path, *arguments: object, host: str = "127.0.0.1", admin_host: str = "127.0.0.1"
    ) -> None:
        self.xds, self.admin = free_port(), free_port()
        self.log = folder.parent / f"log-{self.xds}"
        self._command = [
            *(sys.executable, "-m", "xds", "serve", "--manifests", folder),
            *("--xds-address", f"{host}:{self.xds}", "--admin-address", f"{admin_host}:{self.admin}"),
            *map(str, arguments),
        ]
        self.start()

    def start(self) -> None:
        """Start the process, also after it has ended."""
        with self.log.open("a") as log:
            self.process = subprocess.Popen(self._command, stderr=log, stdout=subprocess.DEVNULL)

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()

    def get(self, path: str) -> tuple[int, str]:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.admin}{path}", timeout=TIMEOUT) as response:
                return response.status, response.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()
        except OSError as error:
            return 0, str(error)

    def wait_for(self, condition: Callable[[], bool]) -> None:
        """Poll until the condition is true. AssertionError: the process exited or the time is over."""
        start = began = time.monotonic()
        while not condition():
            assert time.monotonic() < start + TIMEOUT, self.log.read_text()
            assert self.process.poll() is None, self.log.read_text()
            time.sleep(pause(start, began))
            began = time.monotonic()

    def logged(self, text: str) -> bool:
        return text in self.log.read_text()

    def fetch(self, pod: str, type_url: str, *names: str) -> DiscoveryResponse:
        """Return the first response to a sidecar that requests one type over state-of-the-world ADS."""
        node = Node(id=f"sidecar~127.9.0.1~{pod}~shop.svc.cluster.local")
        request = DiscoveryRequest(node=node, type_url=type_url, resource_names=list(names))

        async def exchange() -> bytes:
            async with grpc.aio.insecure_channel(f"127.0.0.1:{self.xds}") as channel:
                call = channel.stream_stream(_ADS)(timeout=TIMEOUT)
                await call.write(bytes(request))
                return await call.read()

        return DiscoveryResponse.parse(asyncio.run(exchange()))


@contextmanager
def serving(
    folder: Path, *arguments: object, host: str = "127.0.0.1", admin_host: str = "127.0.0.1"
) -> Iterator[ServeProcess]:
    process = ServeProcess(folder, *arguments, host=host, admin_host=admin_host)
    try:
        process.wait_for(lambda: process.get("/ready")[0] == 200)
        yield process
    finally:
        process.stop()
