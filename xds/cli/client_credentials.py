"""The files of a gRPC client that connects over TLS."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path

import grpc

from xds.cli.options import fail


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientCredentials:
    """The files that a client needs to connect over TLS."""

    roots: Path | None = None
    """Root certificates to verify the control plane against; None for a plaintext connection."""
    token: Path | None = None
    """Token of a service account."""
    certificate: Path | None = None
    """Client certificate."""
    key: Path | None = None
    """Private key of the client certificate."""

    def to_options(self) -> str:
        """Return the options of a command that uses the same files, each after a space."""
        files = {
            "--ca-file": self.roots,
            "--token-file": self.token,
            "--cert-file": self.certificate,
            "--key-file": self.key,
        }
        return "".join(f" {option} {shlex.quote(str(file))}" for option, file in files.items() if file)

    def load(self) -> grpc.ChannelCredentials | None:
        """Read the files; return None for plaintext. Exit if a file is missing or invalid."""
        if (self.certificate is None) != (self.key is None):
            fail("--cert-file and --key-file must be used together")
        if self.roots is None:
            if self.token or self.certificate:
                fail("credentials are only sent over TLS: add --ca-file to verify the control plane")
            return None
        try:
            roots = self.roots.read_bytes()
            if b"-----BEGIN CERTIFICATE-----" not in roots:
                fail(f"--ca-file {self.roots} contains no certificate in PEM format")
            credentials = grpc.ssl_channel_credentials(
                roots,
                self.key.read_bytes() if self.key else None,
                self.certificate.read_bytes() if self.certificate else None,
            )
            if self.token:
                token = grpc.access_token_call_credentials(self.token.read_text().strip())
                credentials = grpc.composite_channel_credentials(credentials, token)
        except OSError as error:
            fail(f"{error.filename}: {error.strerror}")
        except ValueError:
            fail(f"--token-file {self.token}: is not UTF-8 text")
        return credentials
