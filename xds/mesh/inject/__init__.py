"""Sidecars for pods: a pod's template in, the same with a sidecar out. Pure."""

from xds.mesh.inject.jsonpatch import difference
from xds.mesh.inject.kinds import Template, templates
from xds.mesh.inject.patch import MAX_PROBLEMS, STATUS, Injection, inject
from xds.mesh.inject.settings import DEFAULT_ADDRESS, DEFAULT_IMAGE, Settings

__all__ = [
    "DEFAULT_ADDRESS",
    "DEFAULT_IMAGE",
    "MAX_PROBLEMS",
    "STATUS",
    "Injection",
    "Settings",
    "Template",
    "difference",
    "inject",
    "templates",
]
