"""etcd, the API server and the controller manager, as processes that end with the tests."""

from __future__ import annotations

import json
import shutil
import signal
import ssl
import tempfile
import urllib.request
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Self
from urllib.parse import parse_qsl, urlsplit

from tests.kubernetes.environment import binaries
from tests.kubernetes.environment.certificates import Certificates
from tests.kubernetes.environment.network import GATEWAY, IPV4, Network
from tests.support.clients import Client
from tests.support.loopback import Loopback, free_port
from tests.support.places import HERE
from tests.support.tcp import Relay, RelayThread
from xds.demo.processes import Processes, Running

ISSUER = "https://kubernetes.default.svc.cluster.local"
"""Issuer of service account tokens, and their default audience."""

_FIRST_SERVICE = "10.96.0.1"
PORT = 6443
_START = 90.0
_NAMES = (
    "kubernetes",
    "kubernetes.default",
    "kubernetes.default.svc",
    "kubernetes.default.svc.cluster.local",
)
_AUDIT = "audit.log"
# Without a kubelet, nodes send no heartbeats, so disable the controllers that would evict their pods.
_WITHOUT_NODES = "*,-node-lifecycle-controller,-taint-eviction-controller,-pod-garbage-collector-controller"


class Asked(NamedTuple):
    """A list or watch request to the API server."""

    verb: str
    """`list` or `watch`."""
    path: str
    query: dict[str, str]


class ControlPlane:
    """A Kubernetes control plane with its own addresses, files and data, so that several can run at once.

    Made and entered in the main thread: the processes end with the thread that started them.
    """

    def __init__(self, address: str | None = None, *, network: Network | None = None) -> None:
        """Put the API server on `address`, which this machine must have; by default on loopback.

        An address that is not on loopback is published as the Service `kubernetes` of namespace `default`.
        With `network`, the API server and its controllers run there, so that they and the pods of nodes reach
        each other, and a relay on loopback leads to it.
        """
        self._network = network
        self._place = network.place if network else HERE
        self._loopback = Loopback()
        self.address = address or self._loopback.address()
        self.port = free_port(address) if address else PORT
        self._bind = GATEWAY if network else self.address
        versions = network.versions if network else (IPV4,)
        self._services = ",".join(version.services for version in versions)
        self.server = f"https://{self.address}:{self.port}"
        self._etcd = f"http://{self._loopback.address()}"
        self._programs = binaries.find()
        assert self._programs, binaries.why_none()
        self.has_controllers = "kube-controller-manager" in self._programs

    def __enter__(self) -> Self:
        self.folder = Path(tempfile.mkdtemp(prefix="xds-kubernetes-"))
        self.certificates = Certificates(self.folder / "pki")
        self._serving = self.certificates.server(
            [*_NAMES, "localhost"], ["127.0.0.1", GATEWAY, self.address, _FIRST_SERVICE]
        )
        self._issuing = self.certificates.key_pair("service-accounts")
        self.admin = self.certificates.client("admin", "system:masters")
        self._processes = Processes(self.folder)
        self._running: list[Running] = []
        self._controllers = Processes(self.folder)
        self._managers: dict[str, Running] = {}
        self._relay = ExitStack()
        try:
            if self._network:
                inside = partial(Client(self._place).connect, GATEWAY, self.port)
                relay = Relay(HERE.listener(self.address, self.port), inside)
                self._relay.enter_context(RelayThread(relay))
            self._start_etcd()
            self.start_api_server()
            self.until_ready()
            self.start_controllers()
            self.until_controllers()
        except BaseException as error:
            error.add_note(self.logs())
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for running in self._running:
            running.process.kill()  # on SIGTERM, each would wait for the others
        for running in self._managers.values():
            running.process.kill()
        self._controllers.__exit__()
        self._processes.__exit__()
        self._relay.close()
        self._loopback.__exit__()
        shutil.rmtree(self.folder)

    @property
    def kubectl(self) -> str:
        """Path of kubectl."""
        return str(self._programs["kubectl"])

    def start_api_server(self) -> None:
        """Start the API server with its previous address and data; see `until_ready`."""
        certificate, key = self._serving
        public, private = self._issuing
        self._api_server = self._start(
            "kube-apiserver",
            f"--etcd-servers={self._etcd}:2379",
            f"--bind-address={self._bind}",
            f"--secure-port={self.port}",
            f"--endpoint-reconciler-type={'none' if self._bind.startswith('127.') else 'lease'}",
            f"--service-cluster-ip-range={self._services}",
            f"--cert-dir={self.folder}",
            f"--tls-cert-file={certificate}",
            f"--tls-private-key-file={key}",
            f"--client-ca-file={self.certificates.root}",
            f"--service-account-issuer={ISSUER}",
            f"--service-account-key-file={public}",
            f"--service-account-signing-key-file={private}",
            f"--kubelet-certificate-authority={self.certificates.root}",
            f"--kubelet-client-certificate={self.admin[0]}",
            f"--kubelet-client-key={self.admin[1]}",
            "--kubelet-preferred-address-types=InternalIP",
            "--authorization-mode=Node,RBAC",
            "--allow-privileged=true",
            # Call a webhook's Service at one of its endpoints: nothing here routes clusterIPs.
            "--enable-aggregator-routing=true",
            f"--audit-policy-file={self._audit_policy()}",
            f"--audit-log-path={self.folder / _AUDIT}",
            "--audit-log-mode=blocking",
            "--profiling=false",
        )

    def stop_api_server(self) -> None:
        """Kill the API server without a graceful shutdown."""
        self._signal(signal.SIGKILL)
        self._api_server.process.wait()
        self._processes.stop(self._api_server)
        self._running.remove(self._api_server)

    def freeze_api_server(self) -> None:
        """Suspend the API server (SIGSTOP). Its connections stay open."""
        self._signal(signal.SIGSTOP)

    def thaw_api_server(self) -> None:
        """Continue the API server (SIGCONT)."""
        self._signal(signal.SIGCONT)

    def until_ready(self) -> None:
        """Wait until the API server is ready. Raises DemoError with its log if it exits or is late."""
        self._processes.wait_for("the API server", lambda: self._why_not("/readyz"), timeout=_START)

    def start_controllers(self) -> None:
        """Start what does not run of the controller manager and, with nodes, the scheduler.

        They exit after 10 s without an API server.
        """
        if not self.has_controllers:
            return
        kubeconfig = self.inner_kubeconfig(self.folder / "controllers.json", "admin", "system:masters")
        self._start_manager(
            "kube-controller-manager",
            f"--kubeconfig={kubeconfig}",
            f"--root-ca-file={self.certificates.root}",
            f"--service-account-private-key-file={self._issuing[1]}",
            f"--controllers={'*' if self._network else _WITHOUT_NODES}",
            "--kube-api-qps=500",
            "--kube-api-burst=1000",
        )
        if self._network:
            kubeconfig = self.inner_kubeconfig(self.folder / "scheduler.json", "system:kube-scheduler")
            self._start_manager("kube-scheduler", f"--kubeconfig={kubeconfig}")

    def _start_manager(self, name: str, *options: str) -> None:
        before = self._managers.get(name)
        if before and before.process.poll() is None:
            return
        if before:
            self._controllers.stop(before)
        command = (str(self._programs[name]), "--leader-elect=false", "--secure-port=0", *options)
        self._managers[name] = self._controllers.start(name, *self._place.command(*command))

    def until_controllers(self) -> None:
        """Wait until the controllers have started, if there are any. Raises DemoError."""
        if self.has_controllers:
            account = "/api/v1/namespaces/default/serviceaccounts/default"
            self._controllers.wait_for("the controllers", lambda: self._why_not(account), timeout=_START)

    def compact(self) -> int:
        """Compact etcd to its newest revision, and return that revision."""
        newest = int(self._ask_etcd("range", key="AA==", limit=1)["header"]["revision"])
        self._ask_etcd("compaction", revision=newest, physical=True)
        return newest

    def asked(self, user: str) -> list[Asked]:
        """Return a user's list and watch requests so far, in the order of the responses."""
        events = map(json.loads, (self.folder / _AUDIT).read_text().splitlines())
        return [
            Asked(
                event["verb"],
                urlsplit(event["requestURI"]).path,
                dict(parse_qsl(urlsplit(event["requestURI"]).query)),
            )
            for event in events
            if event["user"]["username"] == user
        ]

    def logs(self) -> str:
        """Return the end of each process's log."""
        return "\n".join(
            f"--- {path.relative_to(self.folder)}\n{_end(path)}"
            for path in sorted([*self.folder.glob("*.log"), *self.folder.glob("node*/*.log")])
            if path.name != _AUDIT
        )

    def _start_etcd(self) -> None:
        client, peer = f"{self._etcd}:2379", f"{self._etcd}:2380"
        self._start(
            "etcd",
            f"--data-dir={self.folder / 'etcd'}",
            f"--listen-client-urls={client}",
            f"--advertise-client-urls={client}",
            f"--listen-peer-urls={peer}",
            f"--initial-advertise-peer-urls={peer}",
            f"--initial-cluster=default={peer}",
            "--unsafe-no-fsync",  # the data need not survive a crash of the machine
            "--log-level=warn",
        )

    def inner_kubeconfig(self, path: Path, user: str, *groups: str) -> Path:
        """Write a kubeconfig of a user for a process in the control plane's network."""
        certificate, key = self.certificates.client(user, *groups)
        credentials = {"client-certificate": str(certificate), "client-key": str(key)}
        server = f"https://{self._bind}:{self.port}"
        path.write_text(json.dumps(self.kubeconfig({user: credentials}, user, server=server)))
        return path

    def kubeconfig(
        self, users: dict[str, dict[str, str]], current: str, namespace: str = "default", server: str = ""
    ) -> Any:
        """Return a kubeconfig document with a context of the same name for each user."""
        cluster = {"server": server or self.server, "certificate-authority": str(self.certificates.root)}
        return {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "test", "cluster": cluster}],
            "users": [{"name": name, "user": user} for name, user in users.items()],
            "contexts": [
                {"name": name, "context": {"cluster": "test", "user": name, "namespace": namespace}}
                for name in users
            ],
            "current-context": current,
        }

    def _audit_policy(self) -> Path:
        rules = [{"level": "Metadata", "verbs": ["list", "watch"]}, {"level": "None"}]
        # A watch is recorded at its start, a list after its response.
        return self._written(
            "audit", "audit.k8s.io/v1", "Policy", rules=rules, omitStages=["RequestReceived"]
        )

    def _written(self, name: str, api_version: str, kind: str, **content: Any) -> Path:
        path = self.folder / f"{name}.json"
        path.write_text(json.dumps({"apiVersion": api_version, "kind": kind, **content}))
        return path

    def _start(self, name: str, *options: str) -> Running:
        running = self._processes.start(name, *self._place.command(str(self._programs[name]), *options))
        self._running.append(running)
        return running

    def _signal(self, number: signal.Signals) -> None:
        self._api_server.process.send_signal(number)

    def why_not_ready(self, nodes: Sequence[str]) -> str:
        """Return which nodes are not ready; empty if all are."""
        try:
            listed = json.loads(self.read("/api/v1/nodes"))["items"]
        except OSError as error:
            return str(error)
        ready = {
            item["metadata"]["name"]
            for item in listed
            for condition in item["status"].get("conditions", ())
            if condition["type"] == "Ready" and condition["status"] == "True"
        }
        return ", ".join(name for name in nodes if name not in ready)

    def read(self, path: str) -> bytes:
        """Ask the API server as an administrator. Raises OSError."""
        context = ssl.create_default_context(cafile=self.certificates.root)
        context.load_cert_chain(*self.admin)
        with urllib.request.urlopen(self.server + path, timeout=5, context=context) as response:
            content: bytes = response.read()
        return content

    def _why_not(self, path: str) -> str:
        """Return why the API server does not answer; empty if it does."""
        try:
            self.read(path)
        except OSError as error:
            return f"{path}: {error}"
        return ""

    def _ask_etcd(self, what: str, **body: Any) -> Any:
        request = urllib.request.Request(
            f"{self._etcd}:2379/v3/kv/{what}", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=30) as response:
            return json.load(response)


def _end(log: Path, lines: int = 30) -> str:
    return "".join(log.read_text(errors="replace").splitlines(keepends=True)[-lines:])
