"""Options that select the mesh that a command reads: manifests, a cluster, or a running control plane."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, TypeAlias

import typer

from xds.cli.client_options import ConnectionOptions, CredentialOptions, XdsAddress
from xds.cli.options import SourceOptions, fail, print_problems

if TYPE_CHECKING:
    from xds.cli.admin_client import AdminClient
    from xds.cli.offline import OfflinePolicies

    Policies: TypeAlias = AdminClient | OfflinePolicies


@dataclass(frozen=True, slots=True, kw_only=True)
class MeshOptions(SourceOptions):
    """The options of a command that reads a mesh."""

    xds_namespace: Annotated[
        str | None,
        typer.Option(
            "--xds-namespace",
            metavar="NAME",
            help="Namespace of the control plane in the cluster. Default: istio-system; with --kubernetes in "
            "a pod, the pod's namespace.",
        ),
    ] = None
    xds_address: XdsAddress = None
    files: CredentialOptions

    @property
    def is_live(self) -> bool:
        """Whether to query a running control plane."""
        return not (self.manifests or self.kubernetes)

    @property
    def source(self) -> str:
        """What is read, for messages."""
        return ", ".join(self.manifests or []) or (
            "the cluster" if self.kubernetes else "the control plane's mesh"
        )

    def open(
        self, filenames: Sequence[str] = (), *, prints_problems: bool = True
    ) -> AbstractContextManager[Policies]:
        """Read the mesh, or connect to the control plane. Exit with status 2 or 3 on an error.

        Args:
            filenames: files of the command's option -f.
            prints_problems: whether to print the problems of manifests or of the objects of a cluster.
        """
        reading = self.reading(filenames)
        if self.is_live:
            return self._connect()
        cluster = self.cluster
        if self.xds_address:
            fail("--xds-address cannot be combined with --manifests or --kubernetes: query one of them")
        if not self.files.is_empty:
            fail("--ca-file, --token-file, --cert-file and --key-file require a running control plane")
        from xds.cli.manifests import read_mesh  # noqa: PLC0415 - slow to import
        from xds.cli.offline import OfflinePolicies  # noqa: PLC0415

        mesh, read = read_mesh(
            self.manifests, self.mesh_config, self.assignments, cluster=cluster, reading=reading
        )
        if prints_problems:
            print_problems(read.problems)
        return nullcontext(OfflinePolicies(mesh, read))

    def _connect(self) -> AbstractContextManager[Policies]:
        if self.mesh_config or self.assignments:
            fail(
                "--mesh-config requires --manifests, and --set requires --manifests or --kubernetes: a "
                "running control plane uses its own settings"
            )
        if self.mesh_config_map:
            fail("--mesh-config-map requires --kubernetes")
        return ConnectionOptions(
            xds_address=self.xds_address,
            kubeconfig=self.kubeconfig,
            context=self.context,
            xds_namespace=self.xds_namespace,
            files=self.files,
        ).open()
