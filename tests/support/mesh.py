"""A mesh as on Kubernetes: pods in network namespaces, their manifests, and sidecars of `xds serve`."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from pathlib import Path
from typing import Any, Self

import yaml

from tests.support import manifests
from tests.support.apps import EchoApp
from tests.support.clients import Client
from tests.support.cluster import Cluster, ClusterPod, ClusterService
from tests.support.controlplane import ControlPlane, xds
from tests.support.envoy import OPTIONS, EnvoyProcess, has_active
from tests.support.exchange import Exchange, exchange
from tests.support.manifests import Manifest, Manifests
from tests.support.tcp import LineApp, Relay
from tests.support.wire import Wire
from xds.codec import to_json_dict
from xds.mesh.envoy.bootstrap import bootstrap
from xds.mesh.envoy.translate import translate
from xds.mesh.inject.settings import InjectionSettings
from xds.mesh.inject.traffic import init_arguments
from xds.mesh.model.families import LOCALHOST, family_of
from xds.mesh.model.mesh import Mesh as Facts
from xds.mesh.model.namespace import covers
from xds.mesh.model.objects import Pod
from xds.mesh.parse.reading import Field, Log
from xds.mesh.parse.redirection import TRAFFIC_PREFIX
from xds.mesh.sidecar.settings import PROXY_ID
from xds.mesh.sources.files import Folder
from xds.mesh.sources.settings import SettingsLoader

_DOOR = 15010
"""Port in every pod that leads to the control plane."""


class Mesh:
    """A cluster whose manifests `xds serve` follows, inside an `async with` block."""

    def __init__(
        self,
        cluster: Cluster,
        directory: Path,
        *,
        assignments: Sequence[str] = (),
        sidecar_options: Sequence[str] = OPTIONS,
        **settings: Any,
    ) -> None:
        self.cluster = cluster
        self.manifests = Manifests(directory / "manifests")
        self.sidecars: dict[str, EnvoyProcess] = {}
        """Those that run, by address of their pod."""
        self.wire = Wire(cluster.node)
        self._directory = directory
        self._settings = directory / "mesh.yaml"
        self._assignments = assignments
        self._sidecar_options = sidecar_options
        self._intercepted: list[tuple[ClusterPod, bool]] = []
        """Pods with a sidecar, and whether it asks for the state of the world."""
        self._labels: dict[str, Mapping[str, str]] = {}
        """Of the pods that are there, by address."""
        self._selectors: list[tuple[ClusterService, Mapping[str, str]]] = []
        self.set(**settings)
        options = [f"--mesh-config={self._settings}", *(f"--set={assignment}" for assignment in assignments)]
        self.plane = ControlPlane(self.manifests.directory, directory, *options)

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as exits:
            exits.enter_context(self.wire)
            await exits.enter_async_context(self.plane)
            self._exits = exits.pop_all()
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._exits.__aexit__(*error)

    def __getitem__(self, name: str) -> ClusterPod:
        """Return the pod POD.NAMESPACE; of those that had the name, the last."""
        *_, found = (pod for pod in self.cluster.pods if f"{pod.name}.{pod.namespace}" == name)
        return found

    # --- what there is --------------------------------------------------------------------------------------

    def pod(
        self,
        name: str,
        namespace: str,
        *,
        sidecar: bool = True,
        labels: Mapping[str, str] | None = None,
        account: str = "default",
        subdomain: str = "",
        sotw: bool = False,
        traffic: Mapping[str, str] | None = None,
        families: Sequence[int] = (4,),
    ) -> ClusterPod:
        """Add a pod. Its sidecar starts with `start`; `sotw`: it asks for the state of the world.

        `traffic`: annotations that exclude traffic from the sidecar, without their prefix.
        """
        pod = self.cluster.pod(name, namespace, sidecar=sidecar, families=families)
        annotations = {TRAFFIC_PREFIX + key: text for key, text in (traffic or {}).items()}
        if annotations:
            redirect(pod, annotations)
        self._labels[pod.address] = labels or {"app": name}
        if sidecar:
            self._intercepted.append((pod, sotw))
        self.write_pod(pod, sidecar=sidecar, account=account, subdomain=subdomain, annotations=annotations)
        self._select()
        return pod

    def adopt(self, pod: Pod, *, sotw: bool = False) -> ClusterPod:
        """Make a place for a pod that has a manifest, with its address. Its sidecar starts with `start`."""
        made = self.cluster.pod(pod.name, pod.namespace, sidecar=pod.has_sidecar, address=pod.address)
        if pod.has_sidecar:
            self._intercepted.append((made, sotw))
        return made

    def write_pod(self, pod: ClusterPod, **what: Any) -> None:
        """Write a pod's manifest; it may say something else than when the pod was made."""
        labels = self._labels[pod.address]
        what = {"labels": labels, "more_addresses": pod.addresses[1:], **what}
        self.apply(manifests.pod(pod.name, pod.namespace, pod.address, **what))

    def remove(self, pod: ClusterPod) -> None:
        """Delete a pod's manifest; what runs in it goes on."""
        del self._labels[pod.address]
        self.manifests.remove(f"pod-{pod.namespace}-{pod.name}")
        self._select()

    def service(
        self,
        name: str,
        namespace: str,
        ports: Mapping[str, tuple[int, int]],
        *,
        headless: bool = False,
        selector: Mapping[str, str] | None = None,
        app_protocols: Mapping[str, str] | None = None,
        families: Sequence[int] = (4,),
    ) -> ClusterService:
        """Add a service over the pods that its selector (app: NAME) covers, now and later."""
        selector = selector or {"app": name}
        service = self.cluster.service(
            name, namespace, dict(ports.values()), headless=headless, families=families
        )
        written = manifests.service(
            name,
            namespace,
            ports,
            address=service.address or "None",
            more_addresses=service.addresses[1:],
            families=families,
            selector=selector,
        )
        for port in written["spec"]["ports"]:
            if protocol := (app_protocols or {}).get(port["name"]):
                port["appProtocol"] = protocol
        self.apply(written)
        self._selectors.append((service, selector))
        self._select()
        return service

    def address(self, name: str, namespace: str) -> str:
        """Return a service's address."""
        (found,) = (s.address for s in self.cluster.services if (s.name, s.namespace) == (name, namespace))
        return found

    def apply(self, *objects: Manifest) -> None:
        """Create or replace objects, as `kubectl apply` does."""
        for found in objects:
            self.manifests.write(_file(found), found)

    def delete(self, *objects: Manifest) -> None:
        """Delete objects."""
        for found in objects:
            self.manifests.remove(_file(found))

    def set(self, **settings: Any) -> None:
        """Replace the mesh's settings, in Istio's names."""
        new = self._settings.with_suffix(".new")
        new.write_text(yaml.safe_dump(settings) if settings else "")
        new.replace(self._settings)

    async def serve(
        self,
        pod: ClusterPod,
        *,
        http: tuple[int, ...] = (),
        lines: tuple[int, ...] = (),
        greets: tuple[int, ...] = (),
    ) -> None:
        """Run applications in a pod: echoes over HTTP, over lines, and over lines with a greeting."""
        name = f"{pod.name}.{pod.namespace}"
        at = {"place": pod.place, "address": "::" if ":" in pod.addresses[-1] else "0.0.0.0"}
        apps = [
            *(EchoApp(name, port, **at) for port in http),
            *(LineApp(name, port, **at) for port in lines),
            *(LineApp(name, port, **at, greets=True) for port in greets),
        ]
        for app in apps:
            await self._exits.enter_async_context(app)

    async def enter(self, app: AbstractAsyncContextManager[object]) -> None:
        """Run another application until the end."""
        await self._exits.enter_async_context(app)

    # --- what is in force -----------------------------------------------------------------------------------

    def sidecar(self, pod: ClusterPod) -> EnvoyProcess:
        """Return a pod's sidecar."""
        return self.sidecars[pod.address]

    async def start(self) -> None:
        """Start the sidecars that do not run yet, and wait until all have what the manifests come to."""
        new = [(pod, sotw) for pod, sotw in self._intercepted if pod.address not in self.sidecars]
        facts = self.facts()
        envoys = await asyncio.gather(*(self._envoy(pod, facts, sotw=sotw) for pod, sotw in new))
        self.sidecars |= {pod.address: envoy for (pod, _), envoy in zip(new, envoys, strict=True)}
        await self.settled()

    async def exchange(self, what: str, client: ClusterPod | str, host: str, port: int) -> Exchange:
        """Ask from a pod, and see how it goes over the wire."""
        pod = self[client] if isinstance(client, str) else client
        names = [service for service in self.cluster.services if host in service.names(pod.namespace)]
        if not any(pod in service.pods for service in names):
            return await exchange(self.wire.saw, what, pod, host, port)
        # Who asks for itself may do so inside its own pod, where no link between pods is.
        with Wire(pod.place, within=pod.address) as within:
            return await exchange(lambda text: self.wire.saw(text) or within.saw(text), what, pod, host, port)

    async def reach(self) -> list[dict[str, Any]]:
        """Return what `xds reach` predicts for each pair of client and endpoint."""
        options = (f"--manifests={self.manifests.directory}", f"--mesh-config={self._settings}")
        return json.loads(await xds("reach", *options, "--expand", "--output=json", may_be_no=True))  # type: ignore[no-any-return]

    async def settled(self) -> None:
        """Wait until every sidecar has in force what the manifests come to now."""
        facts = self.facts()
        for address, envoy in self.sidecars.items():
            pod = facts.pod_at(address)
            assert pod is not None, f"{envoy.name} has no manifest"
            await has_active(envoy, translate(facts, pod))

    def facts(self) -> Facts:
        """Read the manifests as they are now."""
        read = Folder(self.manifests.directory, SettingsLoader(self._settings, self._assignments)).load()
        problems = [str(problem) for problem in read.problems if not problem.notice]
        problems = [problem for problem in problems if "cannot be enforced" not in problem]
        assert not problems, problems
        return Facts(read.change.applied, read.change.config)

    async def _envoy(self, pod: ClusterPod, facts: Facts, *, sotw: bool) -> EnvoyProcess:
        localhost = LOCALHOST[family_of(pod.address)]
        door = Relay(
            pod.place.listener(localhost, _DOOR), lambda: Client().connect("127.0.0.1", self.plane.port)
        )
        await self._exits.enter_async_context(door)
        known = facts.pod(pod.namespace, pod.name)
        assert known
        # What `xds bootstrap` prints, without a process for each.
        begin = to_json_dict(bootstrap(known, localhost, _DOOR, sotw=sotw))
        return await self._exits.enter_async_context(self._process(pod, begin))

    def _process(self, pod: ClusterPod, begin: Mapping[str, Any]) -> EnvoyProcess:
        name = f"{pod.name}.{pod.namespace}"
        return EnvoyProcess(
            name,
            begin,
            self._directory,
            place=pod.place,
            options=self._sidecar_options,
            as_sidecar=True,
        )

    def _select(self) -> None:
        """Have the services lead to the pods that their selectors cover."""
        for service, selector in self._selectors:
            service.pods = [
                pod
                for pod in self.cluster.pods
                if pod.namespace == service.namespace and covers(selector, self._labels.get(pod.address, {}))
            ]
        self.cluster.publish()


def redirect(pod: ClusterPod, annotations: Mapping[str, str]) -> None:
    """Run `xds init` in a pod as injection writes it for these annotations."""
    arguments = init_arguments(Field(annotations, (), Log(str)), InjectionSettings())
    pod.place.run(sys.executable, "-m", "xds", "init", *arguments, "-g", str(PROXY_ID))


def _file(found: Manifest) -> str:
    meta = found["metadata"]
    return "-".join([found["kind"], meta["namespace"], meta["name"]]).lower()
