"""Probes that pass under STRICT: kubelet has no certificate, so the sidecar asks the application on its behalf.

The paths are Istio's. What a probe was goes to the sidecar as JSON (`XDS_APP_PROBE_SUFFIXES`), path by path.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

from xds.mesh.model.objects import PROBE_PORT
from xds.mesh.parse.reading import Field, shown

Json: TypeAlias = dict[str, Any]

REWRITE = "sidecar.istio.io/rewriteAppHTTPProbers"
"""Pod annotation: `false` leaves probes as they are."""

_PROBE_SUFFIXES = {"livenessProbe": "livez", "readinessProbe": "readyz", "startupProbe": "startupz"}
_HOOK_SUFFIXES = {"postStart": "poststartz", "preStop": "prestopz"}
_TIMING_FIELDS = ("timeoutSeconds", "periodSeconds")
_HANDLERS = ("httpGet", "tcpSocket", "grpc")


def rewrite(container: Field, result: Json) -> dict[str, Json]:
    """Point a container's probes and HTTP hooks at the sidecar, in `result`; return what they were, by path.

    Left as they are: commands, which run in the container; what asks another host than the pod; and a port by a name that
    the container does not have, which kubelet could not resolve either.
    """
    name = str(container["name"].value)
    originals = {}
    for field, suffix in _PROBE_SUFFIXES.items():
        path = f"/app-health/{name}/{suffix}"
        if original := _original_probe(container, container[field]):
            result[field] = _redirect(result[field], path)
            originals[path] = original
    hooks = container["lifecycle"]
    for field, suffix in _HOOK_SUFFIXES.items():
        path = f"/app-lifecycle/{name}/{suffix}"
        # A hook knows no other handler that would reach the application through its network.
        if hooks[field]["httpGet"] and (original := _original_probe(container, hooks[field])):
            result["lifecycle"] = result["lifecycle"] | {field: _redirect(result["lifecycle"][field], path)}
            originals[path] = original
    return originals


def _original_probe(container: Field, probe: Field) -> Json | None:
    probe.mapping()
    handlers = [name for name in _HANDLERS if isinstance(probe[name].value, Mapping)]
    if len(handlers) != 1:
        return None
    handler = probe[handlers[0]]
    if handler["host"].value or handler["port"].value == PROBE_PORT:
        return None
    port = _port_number(container, handler["port"])
    if port is None:
        return None
    original: Json = {handlers[0]: {**handler.value, "port": port}}
    return original | {name: probe[name].value for name in _TIMING_FIELDS if probe[name]}


def _port_number(container: Field, port: Field) -> int | None:
    if isinstance(port.value, str):
        for index, candidate in enumerate(container["ports"].value or ()):
            if isinstance(candidate, Mapping) and candidate.get("name") == port.value:
                path = (*container.path, "ports", index, "containerPort")
                return Field(candidate.get("containerPort"), path, port.log).integer(1, 65535)
        port.notice(f"names no port of the container: {shown(port.value)}; the probe is left as it is")
        return None
    return port.integer(1, 65535)


def _redirect(probe: Json, path: str) -> Json:
    """Return a probe that asks the sidecar, with the same times; headers stay, as they may say what host is meant."""
    http_get: Json = {"path": path, "port": PROBE_PORT}
    old = probe.get("httpGet")
    if old and "httpHeaders" in old:
        http_get["httpHeaders"] = old["httpHeaders"]
    return {
        ("httpGet" if key in _HANDLERS else key): (http_get if key in _HANDLERS else value)
        for key, value in probe.items()
    }
