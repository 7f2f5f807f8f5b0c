"""Answers about a mesh in manifests or in a cluster, without a control plane."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from xds.cli.manifests import ReadMesh, open_manifests
from xds.cli.options import AS_WRITTEN, Reading, fail, print_not_considered
from xds.mesh.controlplane import predictions
from xds.mesh.controlplane.explanation import explanation_message, http_request
from xds.mesh.model.mesh import Mesh
from xds.mesh.model.names import UnknownNameError, pod_matching, ports_named
from xds.mesh.model.objects import Problem
from xds.mesh.observe.record import Record
from xds.mesh.policy import explain as policy
from xds.mesh.policy.ineffective import without_effect
from xds.mesh.sources.settings import SettingsLoader
from xds.mesh.v1 import policies_pb2 as pb


class OfflinePolicies:
    """Answers about a mesh, the same as a control plane gives for these objects, except workloads' templates.

    On an error, every method prints a message and exits with status 2, or raises UnknownNameError.

    Args:
        mesh: the mesh.
        read: how it was read.
    """

    def __init__(self, mesh: Mesh, read: ReadMesh) -> None:
        self._mesh, self._read = mesh, read

    def problems(self) -> Sequence[Problem]:
        """Return the problems of objects, and the objects without effect."""
        is_running = self._read.folder is None
        # A Service without endpoints is normal in a running mesh, but likely a mistake in manifests. That an
        # AuthorizationPolicy allows nothing may be intended.
        ineffective = (
            replace(problem, notice=problem.notice and (is_running or ref.kind == "AuthorizationPolicy"))
            for ref, found in without_effect(self._mesh).problems.items()
            for problem in found
        )
        return [*self._read.problems, *ineffective]

    def explain(self, request: pb.ExplainRequest) -> pb.Explanation:
        """Return the explanation of a client's connections to a service."""
        mesh = self._mesh
        print_not_considered(self._read.not_considered)
        pod = pod_matching(mesh, request.client)
        called, ports = ports_named(mesh, request.service)
        explained = policy.explain(mesh, pod, called, ports, http_request(request))
        return explanation_message(mesh, pod, called, explained)

    def reach(self, request: pb.ReachRequest) -> Iterator[pb.ReachResponse]:
        """Yield the results of connections."""
        if request.watch:
            fail("--watch requires a running control plane: leave out --manifests and --kubernetes")
        yield from predictions.reach(self._mesh, request, not_considered=self._read.not_considered)

    def plan(
        self,
        filenames: Sequence[str],
        deletions: Sequence[str],
        observed: float | None = None,
        reading: Reading = AS_WRITTEN,
        replay: Record | float | None = None,
    ) -> pb.PlanResponse:
        """Return the effects of applying manifests and deleting objects, and on recorded traffic."""
        if observed:
            fail("--observed requires a running control plane: leave out --manifests and --kubernetes")
        settings = SettingsLoader(base=self._mesh.config)
        folder = open_manifests(filenames, settings, reading) if filenames else None
        found = pb.PlanResponse()
        try:
            for response in predictions.plan(
                self._mesh,
                folder,
                deletions,
                record=replay if isinstance(replay, Record) else None,
                base=self._read.folder,
                not_considered=self._read.not_considered,
            ):
                found.MergeFrom(response)
        except UnknownNameError as error:
            fail(f"--delete: {error}")
        except OSError as error:
            fail(f"{error.filename}: {error.strerror}")
        return found

    def describe_pod(self, name: str) -> pb.PodDescription:
        """Return a pod as a server."""
        print_not_considered(self._read.not_considered)
        return predictions.pod_description(self._mesh, pod_matching(self._mesh, name))
