"""Settings of a sidecar from its container's environment, and the resulting bootstrap."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace

from envoy_data_plane.envoy.config.bootstrap.v3 import Bootstrap

from xds.mesh.envoy import bootstrap as envoy
from xds.mesh.envoy.probes import AnyProbe, probe_resources
from xds.mesh.envoy.scrape import PATH, AppMetrics
from xds.mesh.model.objects import METRICS_PORT, PROBE_PORT, Interception, Meta, Pod, Problem, Ref
from xds.mesh.sidecar import probes
from xds.mesh.sidecar import settings as names
from xds.mesh.sidecar.settings import Variable

MAX_SOCKET_PATH = 107
"""Maximum length of a Unix socket's path on Linux, in bytes."""

_LABEL = re.compile(r'([^=]+)="(.*)"')


@dataclass(frozen=True, slots=True, kw_only=True)
class Sidecar:
    """Settings of a sidecar."""

    pod: Pod
    """Pod of the sidecar."""
    host: str
    """Host of the control plane."""
    port: int
    """Port of the control plane."""
    credential: envoy.TokenFile | None
    """Token and roots for the control plane; None for plaintext."""
    sds_socket: str
    """Unix socket of the SDS server; empty if the control plane serves certificates."""
    certificate_socket: str
    """Unix socket of the sidecar's own certificate; empty if the control plane makes its key."""
    has_pod_certificate: bool = False
    """Whether the kubelet keeps the sidecar's key and certificate. The sidecar then makes no key."""
    probes: tuple[AnyProbe, ...]
    """Rewritten probes of the application."""
    metrics: AppMetrics | None
    """Metrics of the application, to merge with Envoy's; None if Prometheus does not scrape the pod."""
    envoy_config: str
    """Path of a file that Envoy merges with the bootstrap; empty for none."""
    concurrency: int
    """Number of Envoy's worker threads; 0 for one per CPU."""
    log_level: str
    """Log level of Envoy."""
    wait_seconds: int
    """Maximum time to wait for files and sockets at startup."""
    drain_seconds: int
    """Maximum time to drain."""

    def bootstrap(self) -> Bootstrap:
        """Return the bootstrap of the sidecar's Envoy."""
        intercepted = self.pod.interception is Interception.REDIRECT
        hosts = envoy.sidecar_hosts(self.pod)
        metrics = envoy.admin_page_listener("metrics", hosts, METRICS_PORT, PATH, PATH)
        probe_listeners = probe_resources(
            self.probes,
            hosts,
            PROBE_PORT,
            self.pod.app_address,
            intercepted=intercepted,
            metrics=self.metrics,
        )
        listeners = [metrics, *probe_listeners]
        return envoy.bootstrap(
            self.pod,
            self.host,
            self.port,
            credential=self.credential,
            certificate_socket=self.certificate_socket,
            has_pod_certificate=self.has_pod_certificate,
            added=listeners,
        )


class _EnvironmentReader:
    """Reads variables and collects their problems."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._environment = environment
        self.problems: list[Problem] = []

    def refuse(self, variable: Variable, message: str, hint: str = "") -> None:
        self.problems.append(Problem(where=variable.name, what=message, hint=hint))

    def text(self, variable: Variable) -> str:
        value = self._environment.get(variable.name, variable.default)
        if not value and variable.default is None:
            self.refuse(variable, "is empty" if value == "" else "is not set", variable.description)
        return value or ""

    def number(self, variable: Variable, maximum: int) -> int:
        text = self.text(variable)
        if not text.isdecimal() or int(text) > maximum:
            self.refuse(variable, f"must be a number from 0 to {maximum}, not {text!r}")
            return 0
        return int(text)

    def socket(self, variable: Variable) -> str:
        text = self.text(variable)
        if text and not text.startswith("unix:///"):
            self.refuse(variable, f"must be unix:///PATH, not {text!r}")
        return text.removeprefix("unix://")

    def certificate_socket(self, credential: envoy.TokenFile | None, sds_socket: str) -> str:
        directory = self.text(names.KEY_DIR)
        if not directory or sds_socket:
            return ""
        path = f"{directory.rstrip('/')}/sds.sock"
        if not directory.startswith("/"):
            self.refuse(names.KEY_DIR, f"must be an absolute path, not {directory!r}")
        elif len(path.encode()) > MAX_SOCKET_PATH:
            self.refuse(
                names.KEY_DIR, f"must have at most {MAX_SOCKET_PATH - 9} bytes, as the path of a socket"
            )
        elif credential is None:
            self.refuse(
                names.KEY_DIR, f"requires {names.ROOT_FILE.name}: certificates are issued over TLS only"
            )
        return path

    def choice(self, variable: Variable, choices: tuple[str, ...]) -> str:
        text = self.text(variable)
        if text not in choices:
            self.refuse(variable, f"must be one of {', '.join(choices)}, not {text!r}")
        return text

    def credential(self) -> envoy.TokenFile | None:
        token, roots = self.text(names.TOKEN_FILE), self.text(names.ROOT_FILE)
        try:
            return envoy.TokenFile(token=token, roots=roots) if roots else None
        except ValueError as error:
            self.refuse(names.TOKEN_FILE, str(error))
            return None

    def ip_address(self, variable: Variable, text: str) -> str:
        try:
            return str(ipaddress.ip_address(text)) if text else ""
        except ValueError:
            self.refuse(variable, f"is not an IP address: {text!r}")
            return ""

    def address(self, variable: Variable) -> tuple[str, int]:
        host, _, port = self.text(variable).rpartition(":")
        if not host or not port.isdecimal() or not 0 < int(port) < 65536:
            self.refuse(
                variable, f"must be HOST:PORT, not {self.text(variable)!r}", f"write {variable.default}"
            )
            return "", 0
        return host.strip("[]"), int(port)


def read(environment: Mapping[str, str], labels: str = "") -> tuple[Sidecar, list[Problem]]:
    """Return the settings in an environment, and the problems. Start the sidecar only without problems.

    Args:
        environment: the container's environment variables (`settings.variables`).
        labels: content of the labels file; empty if it is missing.
    """
    reader = _EnvironmentReader(environment)
    ref = Ref("Pod", reader.text(names.POD_NAMESPACE), reader.text(names.POD_NAME))
    mode = reader.choice(names.INTERCEPTION, tuple(Interception))
    address = reader.ip_address(names.INSTANCE_IP, reader.text(names.INSTANCE_IP))
    all_addresses = [
        reader.ip_address(names.INSTANCE_IPS, text.strip())
        for text in reader.text(names.INSTANCE_IPS).split(",")
        if text.strip()
    ]
    host, port = reader.address(names.ADDRESS)
    app_probes, problems = probes.read(reader.text(names.APP_PROBES))
    metrics, metrics_problems = probes.read_metrics(reader.text(names.APP_METRICS))
    pod = Pod(
        meta=Meta(ref=ref, labels=read_labels(labels)),
        address=address,
        more_addresses=tuple(other for other in all_addresses if other != address),
        service_account=reader.text(names.SERVICE_ACCOUNT),
        interception=Interception.NONE if mode == Interception.NONE else Interception.REDIRECT,
    )
    # In mode NONE, the sidecar listens at the pod's address, and the application elsewhere.
    app_address = reader.text(names.APP_ADDRESS) or (
        pod.app_address if mode == Interception.NONE else address
    )
    credential, sds_socket = reader.credential(), reader.socket(names.SDS)
    sidecar = Sidecar(
        pod=replace(pod, app_address=app_address),
        host=host,
        port=port,
        credential=credential,
        sds_socket=sds_socket,
        certificate_socket=reader.certificate_socket(credential, sds_socket),
        probes=app_probes,
        metrics=metrics,
        envoy_config=reader.text(names.ENVOY_CONFIG),
        concurrency=reader.number(names.CONCURRENCY, 1024),
        log_level=reader.choice(names.LOG_LEVEL, names.LOG_LEVELS),
        wait_seconds=reader.number(names.WAIT_SECONDS, 86400),
        drain_seconds=reader.number(names.DRAIN_SECONDS, 86400),
    )
    return sidecar, [*reader.problems, *problems, *metrics_problems]


def read_labels(text: str) -> dict[str, str]:
    """Parse the labels file of a downward API volume: one `NAME="VALUE"` per line."""
    return {match[1]: match[2] for line in text.splitlines() if (match := _LABEL.fullmatch(line.strip()))}
