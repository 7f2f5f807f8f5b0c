"""What `xds serve` needs to add sidecars to pods: options, and what runs for it."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated

import typer

from xds.cli import options
from xds.mesh.inject import InjectionSettings

if TYPE_CHECKING:
    from prometheus_client.registry import Collector

    from xds.cli.runtime import Part
    from xds.mesh.controlplane.controller import Hub
    from xds.mesh.kube.api import KubeApi

XDS_PORT = 15012

WebhookAddress = Annotated[
    str | None,
    typer.Option(
        "--webhook-address",
        metavar="HOST:PORT",
        help="With --kubernetes: where the API server asks, over TLS, what to add to a pod that is created. Off unless said.",
        show_default=False,
    ),
]
SidecarImage = Annotated[
    str,
    typer.Option(
        "--sidecar-image", metavar="IMAGE", help="Of the sidecars that are added so; its entry point is xds."
    ),
]
SidecarAddress = Annotated[
    str | None,
    typer.Option(
        "--sidecar-xds-address",
        metavar="HOST:PORT",
        help="Where these sidecars find the control plane. Without it: port 15012 of Service xds in its namespace.",
        show_default=False,
    ),
]


_LOOK = 5.0
"""Seconds between looks at who issues: peers trust the CA of before for hours after it was replaced."""


class Injecting:
    """What the options said."""

    def __init__(self, *, kubernetes: bool, at: str | None, image: str, xds_address: str | None) -> None:
        self._at = options.address("--webhook-address", at) if at else None
        self._image = image
        self._xds_address = xds_address
        self._answers = Counter[str]()
        if xds_address:
            options.address("--sidecar-xds-address", xds_address)
        if at and not kubernetes:
            options.fail("--webhook-address is for --kubernetes: it is an API server that asks there")

    @property
    def metrics(self) -> list[Collector]:
        """Return what is counted."""
        from xds.mesh.controlplane.metrics.admission import Admissions  # noqa: PLC0415

        return [Admissions(self._answers)] if self._at else []

    def parts(self, hub: Hub, api: KubeApi, namespace: str, leads: Callable[[], bool]) -> list[Part]:
        """Return what is to run: nothing unless an address was said.

        Args:
            hub: has the mesh's settings, and the CA.
            api: the API server.
            namespace: the control plane's.
            leads: says whether this replica may write.
        """
        if not self._at:
            return []
        from datetime import UTC, datetime  # noqa: PLC0415

        from xds.mesh.identity.server_tls import service_names  # noqa: PLC0415
        from xds.mesh.inject.webhook import WebhookServer  # noqa: PLC0415
        from xds.mesh.kube.webhook import CaBundle  # noqa: PLC0415

        names = service_names(namespace)[:2]
        address = self._xds_address or f"{names[0]}:{XDS_PORT}"
        settings = InjectionSettings(image=self._image, xds_address=address)
        server = WebhookServer(
            lambda: settings.with_mesh_config(hub.mesh.config),
            lambda: hub.trust[0].issue_server(names, datetime.now(UTC)),
            *self._at,
            answers=self._answers,
        )
        bundle = CaBundle(api, lambda: hub.trust[1], leads=leads)

        async def listen() -> None:
            from xds.cli.runtime import CannotListenError  # noqa: PLC0415

            # Before the facts are there, the mesh's settings are not either.
            await hub.ready.wait()
            try:
                await server.run()
            except OSError as error:
                raise CannotListenError(str(error)) from error

        async def follow() -> None:
            trust = hub.trust
            while True:
                await asyncio.sleep(_LOOK)
                if hub.trust != trust:
                    trust = hub.trust
                    server.trigger_renewal()
                    bundle.changed()

        return [listen, bundle.run, follow]
