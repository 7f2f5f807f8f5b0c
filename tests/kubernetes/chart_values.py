"""Values of the chart, and what they change."""

from __future__ import annotations

from typing import Any

from tests.kubernetes.installing import SYSTEM
from xds.mesh.kube.api import Json

JOB = "xds-install"
CIDRS = ["10.0.0.0/28", "fd00::/64"]
DEPLOYMENT = f"Deployment {SYSTEM}/xds"
POD = f"{DEPLOYMENT}.spec.template.spec"
AFFINITY = {"nodeAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": []}}
TOLERATIONS = [{"key": "control-plane", "operator": "Exists"}]
ANNOTATION = {"example.com/team": "mesh"}
TMP = {"name": "tmp", "emptyDir": {"sizeLimit": "64Mi"}}
VOLUME = {"name": "signer", "configMap": {"name": "signer", "defaultMode": 0o555}}

VALUES: list[tuple[Json, dict[str, Any]]] = [
    (
        {"replicas": 1},
        {f"{DEPLOYMENT}.spec.replicas": 1, f"PodDisruptionBudget {SYSTEM}/xds": None},
    ),
    (
        {"priorityClassName": "system-cluster-critical"},
        {f"{POD}.priorityClassName": "system-cluster-critical"},
    ),
    ({"priorityClassName": "123"}, {f"{POD}.priorityClassName": "123"}),
    ({"affinity": AFFINITY}, {f"{POD}.affinity": AFFINITY}),
    (
        {
            "nodeSelector": {"pool": "mesh"},
            "tolerations": TOLERATIONS,
            "imagePullSecrets": [{"name": "pull"}],
        },
        {
            f"{pod}.{name}": value
            for pod in (POD, f"Job {SYSTEM}/{JOB}.spec.template.spec")
            for name, value in {
                "nodeSelector": {"pool": "mesh"},
                "tolerations": TOLERATIONS,
                "imagePullSecrets": [{"name": "pull"}],
            }.items()
        },
    ),
    (
        {"podAnnotations": ANNOTATION},
        {f"{DEPLOYMENT}.spec.template.metadata.annotations.example.com/team": "mesh"},
    ),
    (
        {"podAnnotations": {"prometheus.io/scrape": "false", "sidecar.istio.io/inject": "true"}},
        {f"{DEPLOYMENT}.spec.template.metadata.annotations.prometheus.io/scrape": "false"},
    ),
    ({"podAnnotations": None}, {}),
    ({"extraVolumes": [VOLUME]}, {f"{POD}.volumes": [TMP, VOLUME]}),
    (
        {"serviceAccount": {"annotations": ANNOTATION}},
        {f"ServiceAccount {SYSTEM}/xds.metadata.annotations": ANNOTATION},
    ),
    (
        {"podSecurityContext": {"runAsUser": None, "runAsGroup": None}},
        {
            f"{pod}.securityContext.{name}": None
            for pod in (POD, f"Job {SYSTEM}/{JOB}.spec.template.spec")
            for name in ("runAsUser", "runAsGroup")
        },
    ),
    ({"meshConfig": None}, {f"ConfigMap {SYSTEM}/xds.data.mesh.enableAutoMtls": None}),
    ({"injection": {"enabled": False}}, {"MutatingWebhookConfiguration /xds-sidecar-injector": None}),
    ({"policyWebhook": {"enabled": False}}, {"ValidatingWebhookConfiguration /xds-policies": None}),
    (
        {"meshConfig": {"rootNamespace": "mesh"}},
        {
            f"ConfigMap {SYSTEM}/xds.data.mesh.rootNamespace": "mesh",
            f"Job {SYSTEM}/{JOB}.spec.template.spec.containers": ...,
            **{f"{kind} {SYSTEM}/{JOB}": None for kind in ("Role", "RoleBinding")},
            **{f"{kind} mesh/{JOB}": ... for kind in ("Role", "RoleBinding")},
        },
    ),
]
"""Values -> the fields that they change in the objects, apart from the containers."""
