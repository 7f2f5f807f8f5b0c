"""Options of commands that query a running control plane.

They are separate from the client, because gRPC is slow to import.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from xds.cli.options import Address, parse_address

if TYPE_CHECKING:
    from xds.cli.admin_client import ClientCredentials

DEFAULT_XDS_ADDRESS = "127.0.0.1:15010"

XdsAddress = Annotated[
    str,
    typer.Option(
        "--xds-address",
        metavar="HOST:PORT",
        envvar="XDS_ADDRESS",
        help="xDS address of the control plane.",
    ),
]


def _file(option: str, help_text: str) -> Any:
    return typer.Option(
        option, metavar="FILE", exists=True, dir_okay=False, help=help_text, show_default=False
    )


CaFile = Annotated[
    Path | None,
    _file(
        "--ca-file",
        "Root certificates (PEM) to verify the control plane against. Default: plaintext, no TLS.",
    ),
]
TokenFile = Annotated[
    Path | None,
    _file("--token-file", "Token of an admin service account (audience xds-ca). Requires --ca-file."),
]
CertFile = Annotated[
    Path | None,
    _file(
        "--cert-file",
        "Client certificate (PEM) of an admin service account. Requires --ca-file and --key-file.",
    ),
]
KeyFile = Annotated[Path | None, _file("--key-file", "Private key (PEM) of --cert-file.")]


@dataclass(frozen=True, slots=True, kw_only=True)
class CredentialOptions:
    """Options with the files for a connection over TLS."""

    ca_file: CaFile = None
    token_file: TokenFile = None
    cert_file: CertFile = None
    key_file: KeyFile = None

    @property
    def is_empty(self) -> bool:
        """Whether no file is given."""
        return not (self.ca_file or self.token_file or self.cert_file or self.key_file)

    def to_credentials(self) -> ClientCredentials:
        """Return the files for a client."""
        from xds.cli.admin_client import ClientCredentials  # noqa: PLC0415 - gRPC is slow to import

        return ClientCredentials(
            roots=self.ca_file, token=self.token_file, certificate=self.cert_file, key=self.key_file
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectionOptions:
    """Options for the connection to a control plane."""

    xds_address: XdsAddress = DEFAULT_XDS_ADDRESS
    files: CredentialOptions

    @property
    def address(self) -> Address:
        """Address of the control plane. Raises typer.BadParameter if it is invalid."""
        return parse_address("--xds-address", self.xds_address)

    @property
    def credentials(self) -> ClientCredentials:
        """Files for a connection over TLS."""
        return self.files.to_credentials()
