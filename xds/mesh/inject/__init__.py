"""Admission: add a sidecar to a pod template, and review policies. Pure, except for the webhooks."""

from xds.mesh.inject.containers import pod_security_refusal
from xds.mesh.inject.jsonpatch import create_patch
from xds.mesh.inject.kinds import KNATIVE_SERVICE, Template, find_namespaces, find_templates
from xds.mesh.inject.patch import MAX_PROBLEMS, STATUS, Injection, inject
from xds.mesh.inject.settings import DEFAULT_ADDRESS, DEFAULT_IMAGE, InjectionSettings

__all__ = [
    "DEFAULT_ADDRESS",
    "DEFAULT_IMAGE",
    "KNATIVE_SERVICE",
    "MAX_PROBLEMS",
    "STATUS",
    "Injection",
    "InjectionSettings",
    "Template",
    "create_patch",
    "find_namespaces",
    "find_templates",
    "inject",
    "pod_security_refusal",
]
