"""Pods whose sidecar starts as in its container: by `xds proxy`, with the environment of injection."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from tests.support.cluster import ClusterPod
from tests.support.envoy import EnvoyProcess
from tests.support.mesh import Mesh
from xds.mesh.model.families import LOCALHOST, family_of
from xds.mesh.model.names import host_port
from xds.mesh.sidecar.settings import PROXY_ID


def as_user(uid: int, gid: int) -> tuple[str, ...]:
    """Return a command prefix that sets the user and the group."""
    return (
        "setpriv",
        f"--reuid={uid}",
        f"--regid={gid}",
        "--clear-groups",
        # Unlike in a container, this user may not be allowed to read the folder of Python and Envoy.
        "--inh-caps=+dac_override",
        "--ambient-caps=+dac_override",
    )


AS_SIDECAR = as_user(PROXY_ID, PROXY_ID)


def environment(pod: ClusterPod, **more: str) -> dict[str, str]:
    """Return the environment of a sidecar whose control plane is on the pod's loopback."""
    return {
        "POD_NAME": pod.name,
        "POD_NAMESPACE": pod.namespace,
        "INSTANCE_IP": pod.address,
        "INSTANCE_IPS": ",".join(pod.addresses),
        "XDS_ADDRESS": host_port(LOCALHOST[family_of(pod.address)], 15010),
        "XDS_ROOT_FILE": "",
        "XDS_CONCURRENCY": "1",
        "XDS_LOG_LEVEL": "info",
        **more,
    }


def command(environment: Mapping[str, str], *arguments: str) -> list[str]:
    """Return the command line of `xds proxy` in a sidecar's container."""
    variables = (f"{name}={value}" for name, value in environment.items())
    return ["env", *variables, *AS_SIDECAR, sys.executable, "-m", "xds", "proxy", *arguments]


class ProxyProcess(EnvoyProcess):
    """An Envoy started by `xds proxy`."""

    def __init__(self, *what: Any, environment: Mapping[str, str], **how: Any) -> None:
        super().__init__(*what, **how)
        self.environment = environment
        self._over = False

    async def __aexit__(self, *error: object) -> None:
        if not self._over:
            await super().__aexit__(*error)

    async def terminate(self) -> int:
        """Send SIGTERM as the kubelet does, and return the exit status."""
        self._over = True
        os.kill(self.pid, signal.SIGTERM)
        return await asyncio.wait_for(self.ended(), 60)

    def _command(self, binary: str) -> list[str]:
        return command(self.environment)


class ProxyMesh(Mesh):
    """A mesh whose sidecars are started by `xds proxy`."""

    def __init__(self, *what: Any, **settings: Any) -> None:
        super().__init__(*what, **settings)
        self.probes: dict[str, dict[str, Any]] = {}
        """The content of `XDS_APP_PROBES`, by pod address."""
        self.metrics: dict[str, dict[str, Any]] = {}
        """The content of `XDS_APP_METRICS`, by pod address."""
        self.configs: dict[str, Path] = {}
        """The value of `XDS_ENVOY_CONFIG`, by pod address."""

    def gateway(
        self,
        name: str,
        namespace: str,
        config: Path,
        labels: Mapping[str, str],
        annotations: Mapping[str, str],
    ) -> ClusterPod:
        """Add a pod whose only container is the sidecar, without interception."""
        pod = self.cluster.pod(name, namespace, sidecar=False)
        self._labels[pod.address], self.configs[pod.address] = labels, config
        self._intercepted.append((pod, False))
        self.write_pod(pod, account=name, annotations=annotations)
        self._select()
        return pod

    def _process(self, pod: ClusterPod, begin: Mapping[str, Any]) -> EnvoyProcess:
        moved = {"XDS_APP_PROBES": json.dumps(self.probes.get(pod.address, {}))}
        if metrics := self.metrics.get(pod.address):
            moved["XDS_APP_METRICS"] = json.dumps(metrics)
        if config := self.configs.get(pod.address):
            moved["XDS_ENVOY_CONFIG"] = str(config)
        variables = environment(pod, **moved)
        name = f"{pod.name}.{pod.namespace}"
        return ProxyProcess(name, begin, self._directory, place=pod.place, environment=variables)


class Process:
    """`xds proxy` with this environment, in an `async with` block."""

    def __init__(self, environment: Mapping[str, str], log: Path) -> None:
        self._argv = ["env", *(f"{name}={value}" for name, value in environment.items())]
        self._log = log
        self._is_over = False

    async def __aenter__(self) -> Self:
        with self._log.open("wb") as log:
            self._process = await asyncio.create_subprocess_exec(
                *self._argv, sys.executable, "-m", "xds", "proxy", stdout=log, stderr=log, cwd="/"
            )
        return self

    @property
    def pid(self) -> int:
        return self._process.pid

    async def ended(self) -> int:
        """Wait until it ends; return its status."""
        self._is_over = True
        return await asyncio.wait_for(self._process.wait(), 60)

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._process.returncode is None:
            self._process.terminate()
        status = await asyncio.wait_for(self._process.wait(), 60)
        assert kind or self._is_over or status == 0, self._log.read_text()
