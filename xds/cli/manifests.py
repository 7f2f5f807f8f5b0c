"""Read a folder of manifests once, for subcommands that print a result and exit."""

from __future__ import annotations

from pathlib import Path

import typer

from xds.cli.options import fail, fail_unknown, print_problems
from xds.mesh.model.mesh import Mesh
from xds.mesh.model.objects import MeshConfig, Pod, Problem, Service
from xds.mesh.sources.files import Folder
from xds.mesh.sources.settings import SettingsLoader

UNREADABLE = "cannot read all documents of the manifests: any of them may be a policy"
"""Error if a document cannot be read. Without it, a prediction, translation or token could be wrong."""


def load_settings(config: Path | None, assignments: list[str] | None) -> tuple[SettingsLoader, MeshConfig]:
    """Return a loader of the mesh's settings, and the settings. Exit with status 2 if they are invalid."""
    settings = SettingsLoader(config, assignments or ())
    mesh_config, problems = settings.load()
    if mesh_config is None:
        print_problems(problems)
        raise typer.Exit(2)
    return settings, mesh_config


def read_mesh(
    manifests: Path, config: Path | None = None, assignments: list[str] | None = None
) -> tuple[Mesh, tuple[Problem, ...]]:
    """Return the mesh in the manifests, and its problems. Exit with status 2 if a document is unreadable."""
    settings, _ = load_settings(config, assignments)
    try:
        report = Folder(manifests, settings).load()
    except OSError as error:
        fail(f"{manifests}: {error.strerror}")
    if not report.complete:
        print_problems(report.problems)
        fail(UNREADABLE)
    return Mesh(report.change.applied, report.change.config), report.problems


def load_mesh(manifests: Path, config: Path | None = None, assignments: list[str] | None = None) -> Mesh:
    """Return the mesh in the manifests, and print its problems. Exits like `read_mesh`."""
    mesh, problems = read_mesh(manifests, config, assignments)
    print_problems(problems)
    return mesh


def find_pod(mesh: Mesh, name: str) -> Pod:
    """Return the pod named POD.NAMESPACE. If there is none, print similar names and exit."""
    pod_name, _, namespace = name.rpartition(".")
    pod = mesh.pod(namespace, pod_name)
    if pod is None:
        fail_unknown("pod", name, [f"{pod.name}.{pod.namespace}" for pod in mesh.pods()], "POD.NAMESPACE")
    return pod


def find_service(mesh: Mesh, name: str) -> Service:
    """Return the Service named SERVICE.NAMESPACE. If there is none, print similar names and exit."""
    host = name.removesuffix(".svc.cluster.local").removesuffix(".svc")
    service_name, _, namespace = host.rpartition(".")
    service = mesh.service(namespace, service_name)
    if service is None:
        known = [f"{service.name}.{service.namespace}" for service in mesh.services()]
        fail_unknown("service", name, known, "SERVICE.NAMESPACE")
    return service
