"""Containers and volumes that injection adds to a pod."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, TypeAlias

from xds.mesh.identity import AUDIENCE, ROOT_CONFIG_MAP, SIGNER
from xds.mesh.inject.choice import INIT, PROXY
from xds.mesh.inject.settings import InjectionSettings
from xds.mesh.model.injection import POD_SECURITY_LABEL
from xds.mesh.model.objects import APP_ADDRESS, HEALTH_PORT, INTERCEPTION_MODE, METRICS_PORT, Interception
from xds.mesh.sidecar import settings as variables
from xds.mesh.sidecar.settings import PROXY_ID, READY_PATH

Json: TypeAlias = dict[str, Any]

_SDS_VOLUME = "xds-sds"
"""Volume with the socket of another SDS server."""
KEY_VOLUME, _KEY_PATH = "xds-key", "/var/run/xds"
"""Empty volume of the sidecar, and where it is mounted. `xds proxy` makes a directory of its own in it.

Only the container of the sidecar mounts it. It contains a socket; the key is in
memory only."""

_CERTIFICATE_VOLUME = "xds-certificate"
"""Volume with the key and certificate that the kubelet keeps. Only the container of the sidecar mounts it."""
_CERTIFICATE_PATH, _, _CERTIFICATE_FILE = variables.CREDENTIAL_BUNDLE.rpartition("/")
_POD_CERTIFICATE = {
    "signerName": SIGNER,
    "keyType": "ECDSAP256",
    "credentialBundlePath": _CERTIFICATE_FILE,
}

PROXY_GROUP = 13371
"""Group of an injected sidecar.

`xds init` does not redirect traffic with the sidecar's user and group. Images made for meshes often run as
1337, and injection does not know an image's user. The group must therefore be one that no image uses by
chance."""

TOKEN_LIFETIME = 43200
"""Lifetime of the token in seconds, as in Istio. The kubelet renews the token after 80% of it."""

_FILES = {
    "xds-token": variables.TOKEN_FILE,
    "xds-root": variables.ROOT_FILE,
    "xds-podinfo": variables.LABELS_FILE,
}
"""Volumes by name, each with the variable whose default is the path of the volume's file."""

_DOWNWARD = {
    variables.POD_NAME: "metadata.name",
    variables.POD_NAMESPACE: "metadata.namespace",
    variables.INSTANCE_IP: "status.podIP",
    variables.INSTANCE_IPS: "status.podIPs",
    variables.SERVICE_ACCOUNT: "spec.serviceAccountName",
}
_RESOURCES = {
    "requests": {"cpu": "100m", "memory": "128Mi"},
    "limits": {"cpu": "2", "memory": "1Gi"},
}
"""Istio's defaults, which annotations override."""
RESOURCE_ANNOTATIONS = {
    "sidecar.istio.io/proxyCPU": ("requests", "cpu"),
    "sidecar.istio.io/proxyMemory": ("requests", "memory"),
    "sidecar.istio.io/proxyCPULimit": ("limits", "cpu"),
    "sidecar.istio.io/proxyMemoryLimit": ("limits", "memory"),
}
_POD_SECURITY_LEVELS = ("baseline", "restricted")
"""Levels of the Pod Security Standards that forbid NET_ADMIN and hostPath volumes."""
LOG_LEVEL = "sidecar.istio.io/logLevel"
PROXY_IMAGE = "sidecar.istio.io/proxyImage"


def init_container(settings: InjectionSettings, arguments: list[str]) -> Json:
    """Return the init container that installs the iptables rules."""
    return _container(INIT, settings, settings.image, ["init", *arguments]) | {
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "privileged": False,
            "capabilities": {"add": ["NET_ADMIN", "NET_RAW"], "drop": ["ALL"]},
            "readOnlyRootFilesystem": False,  # iptables locks a file under /run
            "runAsNonRoot": False,
            "runAsUser": 0,
            "runAsGroup": 0,
        },
        "resources": {
            "requests": {"cpu": "10m", "memory": "64Mi"},
            "limits": {"cpu": "2", "memory": "1Gi"},
        },
    }


def proxy_container(
    settings: InjectionSettings,
    annotations: Mapping[str, str],
    moved: Mapping[variables.Variable, Json],
    *,
    native: bool,
    mode: Interception,
    grace: int | None,
) -> Json:
    """Return the sidecar container.

    Args:
        settings: settings of the operator.
        annotations: annotations of the pod.
        moved: probes and metrics that injection moved to the sidecar, by the variable that contains them.
        native: whether the sidecar is a restartable init container.
        mode: interception mode.
        grace: terminationGracePeriodSeconds of the pod; None if unset.
    """
    ready = {"httpGet": {"path": READY_PATH, "port": HEALTH_PORT}, "timeoutSeconds": 3}
    environment = _environment(settings, annotations, moved, mode, grace)
    container = _container(PROXY, settings, annotations.get(PROXY_IMAGE) or settings.image, ["proxy"])
    if native:
        container["restartPolicy"] = "Always"
    return container | {
        "env": [
            *(
                {"name": variable.name, "valueFrom": {"fieldRef": {"fieldPath": path}}}
                for variable, path in _DOWNWARD.items()
            ),
            *({"name": variable.name, "value": value} for variable, value in environment.items()),
        ],
        "ports": [
            {"containerPort": METRICS_PORT, "name": "http-envoy-prom", "protocol": "TCP"},
            {"containerPort": HEALTH_PORT, "name": "http-envoy-live", "protocol": "TCP"},
        ],
        "lifecycle": {"preStop": {"exec": {"command": ["xds", "proxy", "--drain"]}}},
        # Kubernetes starts the containers after a native sidecar only once this probe succeeds.
        "startupProbe": ready | {"periodSeconds": 1, "failureThreshold": 600},
        "readinessProbe": ready | {"periodSeconds": 15, "failureThreshold": 4},
        "resources": _resources(annotations),
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "privileged": False,
            "capabilities": {"drop": ["ALL"]},
            "readOnlyRootFilesystem": True,
            "runAsNonRoot": True,
            "runAsUser": PROXY_ID,
            "runAsGroup": PROXY_GROUP,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "volumeMounts": [
            *(
                {"name": name, "mountPath": str(variable.default).rpartition("/")[0], "readOnly": True}
                for name, variable in _FILES.items()
            ),
            *(
                [{"name": _SDS_VOLUME, "mountPath": _sds_directory(settings), "readOnly": True}]
                if settings.sds
                else []
            ),
            *([{"name": KEY_VOLUME, "mountPath": _KEY_PATH}] if _has_own_key(settings) else []),
            *(
                [{"name": _CERTIFICATE_VOLUME, "mountPath": _CERTIFICATE_PATH, "readOnly": True}]
                if _has_pod_certificate(settings)
                else []
            ),
        ],
    }


def volumes(settings: InjectionSettings) -> list[Json]:
    """Return the volumes of the sidecar.

    The token needs no fsGroup. Without one, all users in the pod can read the token. If the pod has an
    fsGroup, that group can read it. Adding an fsGroup would change the owner of the application's volumes.

    The volume of the key is in memory: the cluster autoscaler does not remove nodes with pods that have
    volumes on disk.
    """
    token = {"path": "xds-token", "audience": AUDIENCE, "expirationSeconds": TOKEN_LIFETIME}
    return [
        {"name": "xds-token", "projected": {"sources": [{"serviceAccountToken": token}]}},
        {"name": "xds-root", "configMap": {"name": ROOT_CONFIG_MAP}},
        {
            "name": "xds-podinfo",
            "downwardAPI": {
                "items": [
                    {"path": path, "fieldRef": {"fieldPath": f"metadata.{path}"}}
                    for path in ("labels", "annotations")
                ]
            },
        },
        *(
            [{"name": _SDS_VOLUME, "hostPath": {"path": _sds_directory(settings), "type": "Directory"}}]
            if settings.sds
            else []
        ),
        *([{"name": KEY_VOLUME, "emptyDir": {"medium": "Memory"}}] if _has_own_key(settings) else []),
        *(
            [{"name": _CERTIFICATE_VOLUME, "projected": {"sources": [{"podCertificate": _POD_CERTIFICATE}]}}]
            if _has_pod_certificate(settings)
            else []
        ),
    ]


def has_pod_certificate(pod: Mapping[str, Any]) -> bool:
    """Return whether a pod has the volume with the key and certificate that the kubelet keeps."""
    return any(volume["name"] == _CERTIFICATE_VOLUME for volume in pod["spec"].get("volumes") or ())


def pod_security_refusal(pod: Mapping[str, Any], namespace_labels: Mapping[str, str]) -> tuple[str, str]:
    """Return why the API server refuses an injected pod, and the remedy; empty texts if it does not.

    Considers only what injection added, and the level of the Pod Security Standards in the namespace's label.

    Args:
        pod: the pod with its sidecar.
        namespace_labels: labels of its namespace.
    """
    level = namespace_labels.get(POD_SECURITY_LABEL, "")
    if level not in _POD_SECURITY_LEVELS:
        return "", ""
    spec = pod["spec"]
    reason = ""
    remedy = f"label the Namespace {POD_SECURITY_LABEL}=privileged"
    if any(volume["name"] == _SDS_VOLUME and "hostPath" in volume for volume in spec["volumes"]):
        reason = f"volume {_SDS_VOLUME} is a hostPath"
    elif any(container["name"] == INIT for container in spec.get("initContainers") or ()):
        reason = f"container {INIT} needs NET_ADMIN and NET_RAW"
        remedy = f"set the annotation {INTERCEPTION_MODE}: NONE, or {remedy}"
    if not reason:
        return "", ""
    return f"the API server refuses its pods, because {POD_SECURITY_LABEL} is {level} and {reason}", remedy


def _container(name: str, settings: InjectionSettings, image: str, arguments: list[str]) -> Json:
    return {"name": name, "image": image, "imagePullPolicy": settings.pull_policy, "args": arguments}


def _has_own_key(settings: InjectionSettings) -> bool:
    return settings.own_keys and not settings.sds


def _has_pod_certificate(settings: InjectionSettings) -> bool:
    return settings.pod_certificates and _has_own_key(settings)


def _sds_directory(settings: InjectionSettings) -> str:
    """Return the directory of the SDS socket. The agent recreates the socket, so mount its directory."""
    return settings.sds.removeprefix("unix://").rpartition("/")[0]


def _environment(
    settings: InjectionSettings,
    annotations: Mapping[str, str],
    moved: Mapping[variables.Variable, Json],
    mode: Interception,
    grace: int | None,
) -> dict[variables.Variable, str]:
    """Return the control plane's address, and the variables that differ from the defaults of `xds proxy`."""
    values = {variables.ADDRESS: settings.xds_address}
    if settings.sds:
        values[variables.SDS] = settings.sds
    if _has_own_key(settings):
        values[variables.KEY_DIR] = f"{_KEY_PATH}/key"
    if mode is not Interception.REDIRECT:
        values[variables.INTERCEPTION] = mode.value
    if address := annotations.get(APP_ADDRESS):
        values[variables.APP_ADDRESS] = address
    if level := annotations.get(LOG_LEVEL):
        values[variables.LOG_LEVEL] = level
    if grace is not None:
        values[variables.DRAIN_SECONDS] = str(min(max(0, grace - 5), 86400))
    values |= {name: json.dumps(value, separators=(",", ":")) for name, value in moved.items() if value}
    # Escape $(NAME), which Kubernetes would expand in headers and paths of probes.
    return {variable: value.replace("$(", "$$(") for variable, value in values.items()}


def _resources(annotations: Mapping[str, str]) -> Json:
    resources: dict[str, dict[str, str]] = {}
    for name, (kind, resource) in RESOURCE_ANNOTATIONS.items():
        if value := annotations.get(name):
            resources.setdefault(kind, {})[resource] = value
    return resources or _RESOURCES
