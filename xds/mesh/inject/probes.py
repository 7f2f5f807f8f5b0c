"""Rewrite probes to succeed under STRICT.

The kubelet has no client certificate, so the sidecar probes the application on the kubelet's behalf. The
paths are Istio's, but a hook's path ends with a key that callers cannot guess, because hooks change the
application's state. The variable `XDS_APP_PROBES` contains the original probes by path, as JSON.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

from xds.mesh.model.objects import PROBE_PORT
from xds.mesh.parse.reading import Field, shown

Json: TypeAlias = dict[str, Any]

REWRITE = "sidecar.istio.io/rewriteAppHTTPProbers"
"""Pod annotation; `false` disables probe rewriting."""

_PROBE_SUFFIXES = {"livenessProbe": "livez", "readinessProbe": "readyz", "startupProbe": "startupz"}
_HOOK_SUFFIXES = {"postStart": "poststartz", "preStop": "prestopz"}
_TIMING_FIELDS = ("timeoutSeconds", "periodSeconds")
_HANDLERS = ("httpGet", "tcpSocket", "grpc")


def rewrite(container: Field, result: Json, hook_key: str) -> dict[str, Json]:
    """Point the probes and HTTP hooks in `result` to the sidecar, and return the originals by path.

    Commands, probes of another host, and probes with an unknown port name stay unchanged.
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
        path = f"/app-lifecycle/{name}/{suffix}/{hook_key}"
        # Only HTTP hooks use the network.
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
        port.notice(f"names no port of the container: {shown(port.value)}; the probe stays unchanged")
        return None
    return port.integer(1, 65535)


def _redirect(probe: Json, path: str) -> Json:
    """Return a probe of the sidecar with the same timing and headers."""
    http_get: Json = {"path": path, "port": PROBE_PORT}
    old = probe.get("httpGet")
    if old and "httpHeaders" in old:
        http_get["httpHeaders"] = old["httpHeaders"]
    return {
        ("httpGet" if key in _HANDLERS else key): (http_get if key in _HANDLERS else value)
        for key, value in probe.items()
    }
