"""`xds serve` with measurements: `python benchmarks/serve.py serve --manifests DIR ...`."""

from __future__ import annotations

import time

from control import respond

from xds import cli
from xds.cli import startup

startup.start()  # As in the program: messages have no validators if this comes before all other imports.

from probe import Probe  # noqa: E402

import xds.mesh.controlplane.controller  # noqa: E402
import xds.server  # noqa: E402
from xds.mesh.model.objects import Change  # noqa: E402

probe = Probe()


class MeasuredController(xds.mesh.controlplane.controller.Controller):
    """Reports the time of each change, and measures the event loop."""

    def change(self, change: Change) -> None:
        probe.changed = time.monotonic()
        if not self.ready.is_set():
            respond({"read": probe.changed})
        super().change(change)

    async def run(self) -> None:
        probe.attach(lambda: not self.batcher and self.publisher.next is None)
        await super().run()


class MeasuredServer(xds.server.XdsServer):
    """Reports the ports and the start time."""

    async def start(self) -> None:
        await super().start()
        respond({"ports": (self.port, *self.secure_ports), "ready": time.monotonic(), **probe.sample()})


if __name__ == "__main__":
    xds.mesh.controlplane.controller.Controller = MeasuredController  # type: ignore[misc]
    xds.server.XdsServer = MeasuredServer  # type: ignore[misc]
    cli.main()
