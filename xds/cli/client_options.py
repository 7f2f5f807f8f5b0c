"""Options of commands that query a running control plane, and how they find it.

They are separate from the clients, because gRPC and the client of the API server are slow to import.
"""

from __future__ import annotations

import os
import shlex
import socket
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from xds.cli.options import (
    Address,
    ClusterReference,
    Context,
    ControlPlaneNamespace,
    Kubeconfig,
    fail,
    fail_unreachable,
    file_option,
    parse_address,
)
from xds.mesh.kube.kubeconfig import has_cluster

if TYPE_CHECKING:
    from xds.cli.admin_client import AdminClient
    from xds.cli.client_credentials import ClientCredentials
    from xds.cli.port_forward import PortForward

XDS_ADDRESS = Address("127.0.0.1", 15010)
"""xDS address of a control plane on this machine, and in its pod."""
REQUIRE_ADDRESS = (
    "--ca-file, --token-file, --cert-file and --key-file cannot be used with a port-forward: set "
    "--xds-address"
)
CONNECT_TIMEOUT = 1.0
"""Seconds to wait for a connection to this machine."""

XdsAddress = Annotated[
    str | None,
    typer.Option(
        "--xds-address",
        metavar="HOST:PORT",
        help=f"xDS address of the control plane. Default: $XDS_ADDRESS, else {XDS_ADDRESS}, else a "
        "port-forward to its pod in the cluster of the kubeconfig.",
    ),
]


CaFile = Annotated[
    Path | None,
    file_option(
        "--ca-file",
        "Root certificates (PEM) to verify the control plane against. Default: plaintext, no TLS.",
    ),
]
TokenFile = Annotated[
    Path | None,
    file_option("--token-file", "Token of an admin service account (audience xds-ca). Requires --ca-file."),
]
CertFile = Annotated[
    Path | None,
    file_option(
        "--cert-file",
        "Client certificate (PEM) of an admin service account. Requires --ca-file and --key-file.",
    ),
]
KeyFile = Annotated[Path | None, file_option("--key-file", "Private key (PEM) of --cert-file.")]


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
        from xds.cli.client_credentials import ClientCredentials  # noqa: PLC0415 - gRPC is slow to import

        return ClientCredentials(
            roots=self.ca_file, token=self.token_file, certificate=self.cert_file, key=self.key_file
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectionOptions:
    """Options for the connection to a control plane."""

    xds_address: XdsAddress = None
    kubeconfig: Kubeconfig = None
    context: Context = None
    xds_namespace: ControlPlaneNamespace = None
    files: CredentialOptions

    def open(
        self,
        on_error: Callable[[str], NoReturn] | None = None,
        *,
        reads_cluster: bool = False,
        in_cluster: bool = False,
    ) -> AdminClient:
        """Return a client of the control plane.

        Args:
            on_error: called with the message if the control plane cannot be reached or a call fails. By
                default, the client prints it and exits.
            reads_cluster: whether the command also reads the cluster of --kubeconfig and --context.
            in_cluster: whether the control plane must be one of that cluster, or that of --xds-address.
                Neither a control plane on this machine nor XDS_ADDRESS is used.
        """
        from xds.cli.admin_client import AdminClient  # noqa: PLC0415 - gRPC is slow to import

        cluster = ClusterReference(self.kubeconfig, self.context, self.xds_namespace)
        if self.xds_address and any(cluster) and not reads_cluster:
            fail(
                "--xds-address cannot be combined with --kubeconfig, --context or --xds-namespace, which "
                "find the control plane in a cluster"
            )
        credentials = self.files.to_credentials()
        uses_environment = not in_cluster and not any(cluster)
        if address := self.xds_address or (uses_environment and os.environ.get("XDS_ADDRESS")):
            option = "--xds-address" if self.xds_address else "XDS_ADDRESS"
            return AdminClient(parse_address(option, address), credentials, on_error=on_error)
        if self.files.is_empty:
            if forward := forward_to(XDS_ADDRESS.port, cluster, on_error, is_required=in_cluster):
                return AdminClient(forward, on_error=on_error)
        elif in_cluster or any(cluster):
            fail(REQUIRE_ADDRESS)
        return AdminClient(XDS_ADDRESS, credentials, on_error=on_error)

    def to_options(self) -> str:
        """Return the options of a command that queries the same control plane, each after a space."""
        values = {
            "--xds-address": self.xds_address,
            "--kubeconfig": self.kubeconfig,
            "--context": self.context,
            "--xds-namespace": self.xds_namespace,
        }
        options = "".join(f" {option} {shlex.quote(str(value))}" for option, value in values.items() if value)
        return options + self.files.to_credentials().to_options()


def forward_to(
    port: int,
    cluster: ClusterReference,
    on_error: Callable[[str], NoReturn] | None = None,
    *,
    local: Address | None = None,
    is_required: bool = False,
) -> PortForward | None:
    """Forward a port of the control plane's pod in a cluster.

    Args:
        port: port of the control plane on loopback.
        cluster: options that the user set. If there are none, a control plane on this machine is preferred.
        on_error: called with the message if the control plane cannot be reached. By default, the message is
            printed, and so is the pod that is used.
        local: local address of a port-forward that stays open.
        is_required: whether a control plane on this machine is not used.

    Returns:
        The port-forward; None if a control plane runs on this machine, or there is no kubeconfig.
    """
    is_explicit = is_required or any(cluster)
    if not is_explicit and (not has_cluster() or _is_open(Address(XDS_ADDRESS.host, port))):
        return None
    from xds.cli.port_forward import PortForward  # noqa: PLC0415 - imports the slow Kubernetes client
    from xds.mesh.kube.api import KubeConfigError  # noqa: PLC0415
    from xds.mesh.kube.port_forward import PortForwardError  # noqa: PLC0415

    try:
        forward = PortForward(cluster, port, local=local)
    except (KubeConfigError, PortForwardError) as error:
        if is_explicit and isinstance(error, KubeConfigError):
            fail(str(error))
        tried = "" if is_explicit else f"nothing listens on {XDS_ADDRESS.host}:{port}, and "
        option = "--admin-address" if local else "--xds-address"
        (on_error or fail_unreachable)(
            f"no control plane found: {tried}{error} (start `xds serve`, or set {option}, --context or "
            "--xds-namespace)"
        )
    if not on_error and (is_explicit or sys.stderr.isatty()):
        of = f" of context {forward.context}" if forward.context else ""
        typer.echo(f"xds: using {forward}{of}", err=True)
    return forward


def _is_open(address: Address) -> bool:
    try:
        with socket.create_connection(address, CONNECT_TIMEOUT):
            return True
    except OSError:
        return False
