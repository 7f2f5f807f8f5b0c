"""Sidecars for pods: a pod's template in, the same with a sidecar out. Pure."""

from xds.inject.jsonpatch import difference
from xds.inject.kinds import Template, templates
from xds.inject.patch import MAX_PROBLEMS, STATUS, Injection, inject
from xds.inject.settings import DEFAULT_ADDRESS, DEFAULT_IMAGE, Settings

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
