"""Options of `xds serve` for the admission webhooks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import typer

from xds.cli.options import fail, parse_address, parse_pull_policy
from xds.mesh.controlplane.parts import WebhookSettings
from xds.mesh.inject import DEFAULT_IMAGE


@dataclass(frozen=True, slots=True, kw_only=True)
class WebhookOptions:
    """Options for the webhooks that inject sidecars and review policies."""

    webhook_address: Annotated[
        str | None,
        typer.Option(
            "--webhook-address",
            metavar="HOST:PORT",
            help="Address of the webhooks that inject sidecars and review policies, served over TLS. "
            "Requires --kubernetes. Default: disabled.",
        ),
    ] = None
    sidecar_image: Annotated[
        str,
        typer.Option(
            "--sidecar-image",
            metavar="IMAGE",
            help="Image of injected sidecars, with xds as its entry point.",
        ),
    ] = DEFAULT_IMAGE
    sidecar_image_pull_policy: Annotated[
        str,
        typer.Option(
            "--sidecar-image-pull-policy",
            metavar="POLICY",
            help="Image pull policy of injected sidecars: Always, IfNotPresent or Never.",
        ),
    ] = "IfNotPresent"
    sidecar_xds_address: Annotated[
        str | None,
        typer.Option(
            "--sidecar-xds-address",
            metavar="HOST:PORT",
            help="xDS address that injected sidecars connect to. Default: port 15012 of the Service xds in "
            "the control plane's namespace.",
        ),
    ] = None

    enforce_plan: Annotated[
        bool,
        typer.Option(
            "--enforce-plan",
            help="Refuse policies and DestinationRules that break connections, or whose effects could not be "
            "checked, instead of printing warnings. Requires --webhook-address. The annotation "
            'sidecar.xds/enforce-plan: "false" exempts an object.',
        ),
    ] = False

    def parse(self, *, kubernetes: bool) -> WebhookSettings | None:
        """Return the settings; None if the webhooks are disabled. Exit with status 2 if they are invalid."""
        address = parse_address("--webhook-address", self.webhook_address) if self.webhook_address else None
        if self.sidecar_xds_address:
            parse_address("--sidecar-xds-address", self.sidecar_xds_address)
        parse_pull_policy("--sidecar-image-pull-policy", self.sidecar_image_pull_policy)
        if address and not kubernetes:
            fail("--webhook-address requires --kubernetes: the API server calls the webhook")
        if self.enforce_plan and not address:
            fail("--enforce-plan requires --webhook-address: the webhook refuses the objects")
        return address and WebhookSettings(
            address,
            self.sidecar_image,
            self.sidecar_image_pull_policy,
            self.sidecar_xds_address,
            self.enforce_plan,
        )
