"""What `xds serve` needs to add sidecars to pods: options, and what runs for it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated

import typer

from xds.cli.options import Address
from xds.inject import DEFAULT_IMAGE, Settings

if TYPE_CHECKING:
    from xds.cli.running import Part
    from xds.identity.ca import Authority
    from xds.kube.api import KubeApi
    from xds.model import MeshConfig

SERVICE = "xds"
"""The control plane's Service: the API server and sidecars know it by this name."""

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


class Injecting:
    """The webhook, and its configuration in the cluster."""

    def __init__(
        self,
        api: KubeApi,
        namespace: str,
        at: Address,
        settings: Settings,
        *,
        mesh: Callable[[], MeshConfig],
        authority: Callable[[], Authority],
        roots: Callable[[], bytes],
        leads: Callable[[], bool],
    ) -> None:
        """Make both.

        Args:
            api: the API server.
            namespace: the control plane's.
            at: where to listen.
            settings: how sidecars are to be.
            mesh: returns the mesh's settings.
            authority: returns the CA that issues now.
            roots: returns all roots that are trusted now, in PEM form.
            leads: says whether this replica may write.
        """
        from datetime import UTC, datetime  # noqa: PLC0415

        from xds.kube.webhook import CaBundle  # noqa: PLC0415
        from xds.webhook import WebhookServer  # noqa: PLC0415

        names = [f"{SERVICE}.{namespace}.svc", f"{SERVICE}.{namespace}.svc.cluster.local"]
        self._bundle = CaBundle(api, roots, leads=leads)
        self._server = WebhookServer(
            lambda: settings.under(mesh()),
            lambda: authority().issue_server(names, datetime.now(UTC)),
            *at,
        )

    @property
    def parts(self) -> list[Part]:
        """What is to run."""
        return [self._listen, self._bundle.run]

    def changed(self) -> None:
        """Take note that the CA or the roots changed."""
        self._server.rotated()
        self._bundle.changed()

    async def _listen(self) -> None:
        from xds.cli.running import CannotListenError  # noqa: PLC0415

        try:
            await self._server.run()
        except OSError as error:
            raise CannotListenError(str(error)) from error


def sidecars(image: str, address: str | None, namespace: str) -> Settings:
    """Return how sidecars are to be, as the options have it."""
    return Settings(image=image, xds_address=address or f"{SERVICE}.{namespace}.svc:15012")


__all__ = ["DEFAULT_IMAGE", "Injecting", "SidecarAddress", "SidecarImage", "WebhookAddress", "sidecars"]
