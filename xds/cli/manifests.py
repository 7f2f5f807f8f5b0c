"""Read manifests or a cluster once, for subcommands that print a result and exit."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import typer

from xds.cli.options import (
    AS_WRITTEN,
    STDIN,
    ClusterReference,
    Reading,
    SourceOptions,
    fail,
    print_not_considered,
    print_problems,
)
from xds.mesh.inject.choice import SYSTEM_NAMESPACES
from xds.mesh.model.mesh import Mesh
from xds.mesh.model.objects import MeshConfig, Problem, Ref
from xds.mesh.sources.files import MAX_FILE_SIZE, Folder, Text
from xds.mesh.sources.kustomize import KustomizeError, build, is_kustomization
from xds.mesh.sources.proposal import invalid_objects, read_objects
from xds.mesh.sources.scan import manifest_files
from xds.mesh.sources.settings import SettingsLoader

_COULD_BE_WRONG = "so the result could be wrong: a policy may be missing"
UNREADABLE = f"cannot read all documents of the manifests, {_COULD_BE_WRONG}"
"""Error if a document cannot be read. Without it, a prediction, translation or token could be wrong."""


def load_settings(config: Path | None, assignments: list[str] | None) -> tuple[SettingsLoader, MeshConfig]:
    """Return a loader of the mesh's settings, and the settings. Exit with status 2 if they are invalid."""
    settings = SettingsLoader(config, assignments or ())
    mesh_config, problems = settings.load()
    if mesh_config is None:
        print_problems(problems)
        raise typer.Exit(2)
    return settings, mesh_config


def open_manifests(
    names: Sequence[str],
    settings: SettingsLoader | None = None,
    reading: Reading = AS_WRITTEN,
    *,
    reads_workloads: bool = True,
) -> Folder:
    """Return a source for files, folders, kustomizations and `-` (stdin). Exit with status 2 on an error."""
    roots, texts = _split(names)
    return Folder(
        roots,
        settings,
        texts=texts,
        reads_workloads=reads_workloads,
        default_namespace=reading.default_namespace,
        ignored_kinds=reading.ignored_kinds,
    )


def read_texts(names: Sequence[str]) -> Iterator[Text]:
    """Yield the content of files, folders, kustomizations and `-` (stdin). Exit with status 2 on an error."""
    roots, texts = _split(names)
    yield from texts
    try:
        for path in manifest_files(roots):
            if path.stat().st_size > MAX_FILE_SIZE:
                fail(f"{path}: is larger than {MAX_FILE_SIZE >> 20} MiB")
            yield Text(str(path), path.read_text("utf-8-sig"))
    except OSError as error:
        fail(f"{error.filename}: {error.strerror}")
    except UnicodeDecodeError:
        fail(f"{path}: is not UTF-8 text")


def _split(names: Sequence[str]) -> tuple[list[Path], list[Text]]:
    """Return the files and folders, and the texts of kustomizations and stdin."""
    roots: list[Path] = []
    texts: list[Text] = []
    for name in dict.fromkeys(names):
        path = Path(name)
        if name == STDIN:
            texts.append(Text("stdin", _read_stdin()))
        elif not path.exists():
            fail(f"{name}: no such file or folder")
        elif is_kustomization(path):
            try:
                texts.append(build(path))
            except KustomizeError as error:
                fail(str(error))
        else:
            roots.append(path)
    return roots, texts


def _read_stdin() -> str:
    data = sys.stdin.buffer.read(MAX_FILE_SIZE + 1)
    if len(data) > MAX_FILE_SIZE:
        fail(f"stdin: larger than {MAX_FILE_SIZE >> 20} MiB; pass files instead")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        fail("stdin: is not UTF-8 text")


class ReadMesh(NamedTuple):
    """A mesh as it was read once."""

    mesh: Mesh | None
    """The mesh; None if a document is unreadable."""
    problems: tuple[Problem, ...]
    """Problems of its objects."""
    not_considered: tuple[str, ...] = ()
    """What the mesh does not contain, and could change an answer: noun phrases."""
    folder: Folder | None = None
    """The manifests; None for a cluster."""

    def print(self) -> None:
        """Print the problems, and what the mesh does not contain."""
        print_problems(self.problems)
        print_not_considered(self.not_considered)


def read_source(source: SourceOptions) -> tuple[Mesh, ReadMesh]:
    """Return the mesh that the options of a command select, as `read_mesh`."""
    return read_mesh(
        source.manifests,
        source.mesh_config,
        source.assignments,
        cluster=source.cluster,
        reading=source.reading(),
    )


def read_mesh(
    manifests: Sequence[str] | None,
    config: Path | None = None,
    assignments: list[str] | None = None,
    *,
    cluster: ClusterReference | None = None,
    reading: Reading = AS_WRITTEN,
    reads_workloads: bool = True,
) -> tuple[Mesh, ReadMesh]:
    """Return the mesh in manifests or in a cluster, and the result of reading it.

    Exits with status 2 if a document or a kind is unreadable, and 3 if the API server cannot be reached.

    Args:
        manifests: files, folders, kustomizations, or `-` for stdin.
        config: file with the settings of the mesh.
        assignments: settings that override those of the file or cluster.
        cluster: the cluster to read, if there are no manifests.
        reading: how to read manifests.
        reads_workloads: whether a workload in manifests, such as a Deployment, becomes a pod
            (`Pod.is_template`).
    """
    settings, _ = load_settings(config, assignments)
    if bool(manifests) == bool(cluster):
        fail("use either --manifests PATH or --kubernetes" + (", not both" if cluster else ""))
    if cluster:
        if config:
            fail("--mesh-config requires --manifests; use --mesh-config-map with --kubernetes")
        import asyncio  # noqa: PLC0415 - slow to import, and manifests do not need it

        read = asyncio.run(_read_cluster(cluster, assignments or ()))
    else:
        folder = open_manifests(manifests or (), settings, reading, reads_workloads=reads_workloads)
        read = load_folder(folder)
        if read.mesh and reads_workloads:
            read = read._replace(problems=(*read.problems, *unknown_namespaces(read.mesh)))
    if read.mesh is None:
        print_problems(read.problems)
        fail(f"cannot read all objects of the cluster, {_COULD_BE_WRONG}" if cluster else UNREADABLE)
    return read.mesh, read


async def _read_cluster(cluster: ClusterReference, assignments: Sequence[str]) -> ReadMesh:
    """Return the mesh in a cluster. There is none if a kind cannot be listed."""
    from xds.cli.cluster import connect  # noqa: PLC0415 - the Kubernetes client takes long to import
    from xds.mesh.sources.kubernetes import CONFIG_MAP, Kubernetes  # noqa: PLC0415

    async with connect(cluster.kubeconfig, cluster.context) as api:
        source = Kubernetes(
            api,
            assignments=assignments,
            namespace=cluster.namespace or "",
            config_map=cluster.mesh_config_map or CONFIG_MAP,
        )
        report = await source.load()
    if report.complete and cluster.mesh_config_map and not source.has_config_map:
        fail(f"--mesh-config-map: {source.config_map} does not exist")
    mesh = Mesh(report.change.applied, report.change.config) if report.complete else None
    # The control plane may use an earlier version of an invalid object, which is not known here.
    return ReadMesh(mesh, report.problems, (*invalid_objects(source.rejected),))


def load_folder(folder: Folder) -> ReadMesh:
    """Return the mesh in the manifests. Exits with status 2 if a folder cannot be read."""
    try:
        found, problems, not_considered = read_objects(folder)
    except OSError as error:
        fail(f"{error.filename}: {error.strerror}")
    mesh = Mesh(found.applied, found.config) if found else None
    return ReadMesh(mesh, (*problems, *folder.unused_names), not_considered, folder)


def unknown_namespaces(mesh: Mesh) -> Iterator[Problem]:
    """Yield a notice for each missing Namespace whose label could give workloads a sidecar."""
    for name in mesh.namespaces():
        if mesh.get(Ref("Namespace", "", name)) or name in (mesh.config.root_namespace, *SYSTEM_NAMESPACES):
            continue
        pods = mesh.in_namespace(name).pods.values()
        if pod := next((pod for pod in pods if pod.is_template and not pod.has_sidecar), None):
            yield Problem(
                where=pod.meta.origin,
                what=f"Namespace {name} is not in the manifests, so its workloads have no sidecar",
                hint="add the Namespace with its label istio-injection",
                notice=True,
            )
