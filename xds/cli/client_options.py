"""Options of commands that query a running control plane.

They are separate from the client, because gRPC is slow to import.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

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
