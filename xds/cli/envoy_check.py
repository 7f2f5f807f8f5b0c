"""What a local Envoy says about the resources of sidecars."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from ipaddress import ip_address

from xds.cli.options import fail
from xds.codec import encode
from xds.mesh.envoy.bootstrap import bootstrap
from xds.mesh.envoy.translate import translate
from xds.mesh.model.mesh import Mesh
from xds.mesh.model.objects import Change, Meta, Pod, Problem, Ref
from xds.snapshot import Resource
from xds.validation import EnvoyNotFoundError, EnvoyUnavailableError, EnvoyValidator

ADDRESS = "127.0.0.1"
"""Address of the first pod of a workload; the others have the following ones."""


def refused_by_envoy(mesh: Mesh) -> list[Problem]:
    """Return a problem for each object of which a local Envoy refuses resources.

    Exits with status 2 if no pod has a sidecar, or if Envoy gives no result.
    """
    mesh = _with_addresses(mesh)
    snapshots = [translate(mesh, pod) for pod in mesh.pods() if pod.has_sidecar]
    resources = [each for snapshot in snapshots for of in snapshot.types.values() for each in of.values()]
    if not resources:
        fail("--envoy: no pod in the manifests has a sidecar, so there is nothing for Envoy to load")
    # Listeners refer to the static clusters of a sidecar's bootstrap.
    pod = Pod(meta=Meta(ref=Ref("Pod", "xds", "validation")), address=ADDRESS)
    validator = EnvoyValidator(bootstrap=encode(bootstrap(pod, ADDRESS, 15010)))
    try:
        refused = asyncio.run(validator.check(resources))
    except (EnvoyNotFoundError, EnvoyUnavailableError) as error:
        fail(f"--envoy: {error}")
    found: dict[tuple[str, str], list[Resource]] = {}
    for resource, reason in refused.items():
        source = resource.sources[0] if resource.sources else resource.description
        found.setdefault((source, reason), []).append(resource)
    return [_problem(source, reason, refused) for (source, reason), refused in found.items()]


def _with_addresses(mesh: Mesh) -> Mesh:
    """Return the mesh with addresses for the pods of workloads, which have none in manifests."""
    templates = (pod for pod in mesh.pods() if pod.is_template)
    pods = (replace(pod, address=str(ip_address(ADDRESS) + n)) for n, pod in enumerate(templates))
    return mesh.apply(Change(applied=tuple(pods)))


def _problem(source: str, reason: str, resources: list[Resource]) -> Problem:
    """Return the problem of an object.

    Args:
        source: the object and where it was read: `KIND NAMESPACE/NAME (FILE:LINE)`.
        reason: Envoy's message.
        resources: the refused resources.
    """
    subject, _, origin = source.removesuffix(")").partition(" (")
    more = f" and {len(resources) - 1} more" if len(resources) > 1 else ""
    what = f"{subject}: Envoy refuses {resources[0].description}{more}: {reason}"
    return Problem(where=origin or subject, what=what, subject=subject)
