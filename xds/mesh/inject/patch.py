"""Add a sidecar to a pod template. Pure; used by `xds inject` and the webhook."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any, TypeAlias

from xds.mesh.inject import choice, containers, probes, scrape, traffic
from xds.mesh.inject.settings import InjectionSettings
from xds.mesh.model.injection import INJECT_LABEL
from xds.mesh.model.objects import (
    ADMIN_PORT,
    HEALTH_PORT,
    INTERCEPTION_MODE,
    METRICS_PORT,
    PROBE_PORT,
    TLS_MODE_LABEL,
    Interception,
    Problem,
)
from xds.mesh.parse import core
from xds.mesh.parse.reading import Field, Locate, Log, Path, nearest, shown
from xds.mesh.sidecar.settings import APP_METRICS, APP_PROBES, LOG_LEVELS, PROXY_ID

Json: TypeAlias = dict[str, Any]

STATUS = "sidecar.istio.io/status"
"""Pod annotation with the added containers and volumes, as JSON."""
NATIVE = "sidecar.istio.io/nativeSidecar"
"""Pod annotation, `true` or `false`, that overrides the operator's setting."""

MAX_PROBLEMS = 16
"""Maximum number of problems per pod. Validation stops there, because a pod can have 100,000."""
# Kubernetes has no such limits. These bound the work that an unauthenticated client can cause.
MAX_CONTAINERS = 256
"""Maximum number of containers, and of init containers."""
MAX_PORTS = 256
"""Maximum number of ports per container."""
MAX_VOLUMES = 1024
"""Maximum number of volumes."""

_ISTIO_PREFIX = "sidecar.istio.io/"
_REPORTED = (
    *(_ISTIO_PREFIX, "proxy.istio.io/", "status.sidecar.istio.io/", "readiness.status.sidecar.istio.io/"),
    "istio.io/reroute-virtual-interfaces",
)
"""Prefixes of annotations that are reported if they have no effect."""
_KNOWN = frozenset(
    {
        *(INJECT_LABEL, STATUS, NATIVE, probes.REWRITE, INTERCEPTION_MODE),
        *(containers.PROXY_IMAGE, containers.LOG_LEVEL),
        *containers.RESOURCE_ANNOTATIONS,
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Injection:
    """Result of an injection."""

    pod: Mapping[str, Any]
    """The pod with a sidecar, or unchanged."""
    skip: choice.Skip | None = None
    """Why the pod was skipped; None if it got a sidecar or was refused."""
    ignores_request: bool = False
    """Whether the pod was skipped although it requests a sidecar."""
    problems: tuple[Problem, ...] = ()
    """Errors and notices."""

    @property
    def refused(self) -> bool:
        """Whether the pod needs a sidecar, but errors prevent injection."""
        return any(not problem.notice for problem in self.problems)


def inject(
    pod: Mapping[str, Any],
    settings: InjectionSettings,
    *,
    namespace: str = "",
    locate: Locate,
    path: Path = (),
    subject: str = "",
    secret: str = "",
) -> Injection:
    """Add a sidecar to a pod or pod template.

    Args:
        pod: mapping with `metadata` and `spec`, which is not modified.
        settings: settings of the operator.
        namespace: namespace of the pod; empty if unknown.
        locate: returns the location of a path in the document, for problems.
        path: path of the pod in the document.
        subject: name of the pod in problems.
        secret: text that other pods cannot guess, for the paths of HTTP hooks. If empty, the paths depend on
            the pod, so that injecting a template again gives the same result.
    """
    log = Log(locate, subject)
    field = Field(pod, path, log)
    if not _is_well_formed(field):
        return Injection(pod=pod, problems=tuple(log.problems))
    if skip := choice.skip(field, namespace):
        ignores_request = not skip.is_expected and choice.requests_sidecar(field)
        return Injection(pod=pod, skip=skip, ignores_request=ignores_request)
    result = _with_sidecar(field, settings, secret or repr(pod))
    if log.refused:
        return Injection(pod=pod, problems=tuple(log.problems))
    return Injection(pod=result, problems=tuple(log.problems))


def _is_well_formed(pod: Field) -> bool:
    """Check the types of all fields that injection reads, and report problems."""
    meta, spec = pod["metadata"].mapping(), pod["spec"].required().mapping()
    for name in ("labels", "annotations"):
        entries = meta[name].mapping().value or {}
        invalid = (key for key, value in entries.items() if not isinstance(value, str | None))
        for key in islice(invalid, MAX_PROBLEMS):
            Field(entries[key], (*meta[name].path, str(key)), pod.log).text()
    if not spec:
        return False
    for name in ("securityContext", "os", "nodeSelector"):
        spec[name].mapping()
    spec["containers"].required()
    for name in ("containers", "initContainers"):
        for container in _items(spec[name], MAX_CONTAINERS):
            if container.mapping():
                container["name"].required().text()
                for part in ("lifecycle", "securityContext"):
                    container[part].mapping()
                for port in _items(container["ports"], MAX_PORTS):
                    port.mapping()
    for volume in _items(spec["volumes"], MAX_VOLUMES):
        volume.mapping()["name"].text()
    return not pod.log.refused


def _items(field: Field, limit: int) -> Iterator[Field]:
    """Yield the items of a list with at most `limit` items, until MAX_PROBLEMS is reached."""
    if isinstance(field.value, list) and len(field.value) > limit:
        field.refuse(f"has {len(field.value)} items; at most {limit} are supported")
        return
    for item in field.items():
        yield item
        if len(item.log.problems) >= MAX_PROBLEMS:
            return


def _with_sidecar(pod: Field, settings: InjectionSettings, secret: str) -> Json:
    annotations = pod["metadata"]["annotations"]
    _check_annotations(annotations)
    mode = core.interception_mode(annotations[INTERCEPTION_MODE])
    native = _flag(annotations[NATIVE], default=settings.native)
    rewrites_probes = _flag(annotations[probes.REWRITE], default=True)
    for item in () if native else pod["spec"]["initContainers"].items():
        if item["restartPolicy"].value != "Always":
            what = "runs before the sidecar, so its requests are plaintext, which STRICT servers refuse"
            item.notice(what, "use a native sidecar")

    # Copy only the parts that change; the rest is shared with the original pod.
    result: Json = dict(pod.value)
    spec: Json = dict(result["spec"])
    result["spec"] = spec
    for name in ("containers", "initContainers"):
        if spec.get(name):
            spec[name] = [dict(container) for container in spec[name]]
    hook_key = hashlib.sha256(secret.encode(errors="replace")).hexdigest()[:32]
    originals: dict[str, Json] = {}
    for container in _app_containers(pod) if rewrites_probes else ():
        originals |= probes.rewrite(container, _resolve(result, container.path[len(pod.path) :]), hook_key)
    app_metrics = scrape.app_metrics(annotations, _app_containers(pod))

    proxy = containers.proxy_container(
        settings,
        annotations.value or {},
        {APP_PROBES: originals, APP_METRICS: app_metrics},
        native=native,
        mode=mode,
        grace=pod["spec"]["terminationGracePeriodSeconds"].integer(0, 2**31),
    )
    init = [containers.init_container(settings, traffic.init_arguments(annotations, settings))]
    init = init if mode is Interception.REDIRECT else []
    added: dict[str, list[Json]] = {
        "initContainers": init,
        "containers": [],
        "volumes": containers.volumes(settings),
    }
    added["initContainers" if native else "containers"].append(proxy)
    _refuse_conflicts(pod, settings, mode, added)

    meta: Json = dict(result.get("metadata") or {})
    result["metadata"] = meta
    meta["labels"] = {TLS_MODE_LABEL: "istio"} | (meta.get("labels") or {})
    status = {kind: [part["name"] for part in parts] for kind, parts in added.items()}
    scraped = scrape.MERGED if app_metrics else {}
    meta["annotations"] = (meta.get("annotations") or {}) | scraped | {STATUS: json.dumps(status)}
    if added["initContainers"]:
        existing = spec.get("initContainers") or []
        # A native sidecar starts before the application's init containers, which can then use the mesh. An
        # ordinary sidecar starts after them, so redirection must start last.
        spec["initContainers"] = (
            added["initContainers"] + existing if native else existing + added["initContainers"]
        )
    spec["containers"] = [*spec["containers"], *added["containers"]]
    spec["volumes"] = (spec.get("volumes") or []) + added["volumes"]
    return result


def _app_containers(pod: Field) -> Iterator[Field]:
    """Yield the containers that run alongside the sidecar: all but ordinary init containers."""
    yield from pod["spec"]["containers"].items()
    for container in pod["spec"]["initContainers"].items():
        if container["restartPolicy"].value == "Always":
            yield container


def _resolve(value: Any, path: Path) -> Any:
    for step in path:
        value = value[step]
    return value


def _flag(field: Field, *, default: bool) -> bool:
    text = field.text().lower()
    if text not in ("", "true", "false"):
        field.refuse(f'must be "true" or "false", not {shown(field.value)}')
    return default if not text else text == "true"


def _check_annotations(annotations: Field) -> None:
    """Refuse invalid annotations, and report unknown ones."""
    level = annotations[containers.LOG_LEVEL]
    if level and level.text() not in LOG_LEVELS:
        level.refuse(
            f"must be one of {', '.join(LOG_LEVELS)}, not {shown(level.value)}",
            nearest(level.text(), LOG_LEVELS),
        )
    if (templates := annotations[choice.TEMPLATES]) and templates.text() != "sidecar":
        templates.refuse(
            f"requests {shown(templates.value)}; only sidecar is supported", choice.GATEWAY_REMEDY
        )
    unknown = (
        name
        for name in annotations.value or ()
        if isinstance(name, str) and name.startswith(_REPORTED) and name not in _KNOWN
    )
    for name in islice(unknown, MAX_PROBLEMS):
        annotations[name].notice("has no effect here")


def _refuse_conflicts(
    pod: Field, settings: InjectionSettings, mode: Interception, added: Mapping[str, list[Json]]
) -> None:
    """Refuse pods that conflict with the sidecar, or could bypass it."""
    spec = pod["spec"]
    for kind in ("initContainers", "containers", "volumes"):
        reserved_names = {part["name"] for part in added[kind]}
        for part in spec[kind].items():
            if part["name"].value in reserved_names:
                part["name"].refuse(
                    f"is {shown(part['name'].value)}, which is reserved for the sidecar",
                    "choose another name",
                )
    reserved = {
        ADMIN_PORT: "the sidecar's admin interface",
        HEALTH_PORT: "the sidecar's health",
        PROBE_PORT: "the sidecar's probes",
        METRICS_PORT: "the sidecar's metrics",
    }
    if mode is Interception.REDIRECT:
        reserved |= {
            settings.outbound_port: "outbound interception",
            settings.inbound_port: "inbound interception",
        }
    for container in _app_containers(pod):
        for port in container["ports"].items():
            number = port["containerPort"].integer(1, 65535)
            if number in reserved and port["protocol"].value in (None, "TCP"):
                port["containerPort"].refuse(
                    f"is {number}, which is reserved for {reserved[number]}", "use another port"
                )
    # Check init containers as well: a native sidecar intercepts the ones that start after it.
    for owner in (spec, *spec["containers"].items(), *spec["initContainers"].items()):
        for name, number in (("runAsUser", PROXY_ID), ("runAsGroup", containers.PROXY_GROUP)):
            field = owner["securityContext"][name]
            if field.value == number and mode is Interception.REDIRECT:
                field.refuse(
                    f"is {number}, which is reserved for the sidecar: the application could bypass it",
                    "use another ID",
                )
