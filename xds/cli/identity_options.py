"""Options of `xds serve` for the CA and for certificates."""

from __future__ import annotations

import shlex
import shutil
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Literal

import typer

from xds.cli.options import fail
from xds.mesh.controlplane.signing import ExternalIssuer
from xds.mesh.identity.keys import IdentityError


@dataclass(frozen=True, slots=True, kw_only=True)
class IdentityOptions:
    """Options for the CA and for certificates."""

    state_dir: Annotated[
        Path | None,
        typer.Option(
            "--state-dir",
            metavar="DIR",
            file_okay=False,
            help="Directory of the root certificate, its private key and the key that signs tokens; created "
            "if missing. Must be owned by the current user or root, and not be writable by others. Requires "
            "--manifests. Default: none; the root certificate is temporary.",
        ),
    ] = None
    sds: Annotated[
        str | None,
        typer.Option(
            "--sds",
            metavar="unix:///PATH",
            help="Socket, in the sidecar's container, of an SDS server that provides certificates and roots "
            "instead of the control plane, such as the SPIRE agent. Sets meshConfig.sdsUdsPath.",
        ),
    ] = None
    signer_command: Annotated[
        str | None,
        typer.Option(
            "--signer-command",
            metavar="COMMAND",
            help="Command that signs sidecars' certificates instead of the CA: it reads a certificate "
            "signing request (PEM) and writes the certificate with its intermediates (PEM). Only for keys "
            "that xds proxy makes. Run without a shell. Requires --signer-roots.",
        ),
    ] = None
    signer_roots: Annotated[
        Path | None,
        typer.Option(
            "--signer-roots",
            metavar="FILE",
            dir_okay=False,
            help="PEM file with the roots that sidecars trust if --signer-command is set. Read again when it "
            "changes.",
        ),
    ] = None
    compliance_policy: Annotated[
        Literal["fips-140-3"] | None,
        typer.Option(
            "--compliance-policy",
            help="Restrict sidecars' TLS versions, cipher suites and curves to those that FIPS 140-3 "
            "approves. Overrides meshMTLS and tlsDefaults. Only a FIPS build of Envoy has certified "
            "cryptography. Default: none.",
        ),
    ] = None

    def external_issuer(self) -> ExternalIssuer | None:
        """Return the issuer that runs --signer-command; None without one. Exit if an option is invalid."""
        if (self.signer_command is None) != (self.signer_roots is None):
            fail("--signer-command and --signer-roots require each other")
        if self.signer_command is None or self.signer_roots is None:
            return None
        if self.sds:
            fail("--signer-command cannot be combined with --sds: choose who issues certificates")
        try:
            command = shlex.split(self.signer_command)
        except ValueError as error:
            fail(f"--signer-command: {error}")
        if not command:
            fail("--signer-command is empty")
        if shutil.which(command[0]) is None:
            fail(f"--signer-command: {command[0]} is not an executable file in PATH")
        try:
            return ExternalIssuer(command, self.signer_roots, lambda: datetime.now(UTC))
        except OSError as error:
            fail(f"--signer-roots: {self.signer_roots}: {error.strerror}")
        except IdentityError as error:
            fail(f"--signer-roots: {self.signer_roots}: {error}")
