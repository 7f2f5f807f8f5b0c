"""State of a local mesh's sidecars, and what the control plane would send them, to verify changes."""

from __future__ import annotations

import json
import re
import time

import grpc.aio
import yaml
from envoy_data_plane.envoy.config.core.v3 import Node
from envoy_data_plane.envoy.service.discovery.v3 import DeltaDiscoveryRequest, DeltaDiscoveryResponse

from tests.support import manifests
from tests.support.envoy import EnvoyProcess
from tests.support.local import LocalMesh, LocalPod
from tests.support.manifests import Manifest
from tests.support.waiting import eventually
from xds.snapshot import CLUSTER, ENDPOINT, LISTENER, ROUTE, SECRET

DEADLINE = 60.0
"""Seconds for what takes less than one on an idle machine."""


class Sidecars:
    """One that speaks state-of-the-world xDS and one that speaks delta, or those of given pods."""

    def __init__(self, mesh: LocalMesh, *pods: LocalPod) -> None:
        self.mesh = mesh
        self.folder = mesh.manifests.directory
        self.pods = pods or [mesh.pod(f"client-{variant}", "ns") for variant in ("sotw", "delta")]

    async def start(self, **how: object) -> None:
        for sotw, pod in zip((True, False), self.pods, strict=True):
            self.mesh.sotw = sotw
            await self.mesh.start(pod, **how)

    @property
    def envoys(self) -> list[EnvoyProcess]:
        return [self.mesh.sidecar(pod) for pod in self.pods]

    async def addresses(self, service: str) -> list[set[str] | None]:
        """Return for each sidecar where it finds a service; None where it knows of none."""
        return [await addresses(envoy, service) for envoy in self.envoys]

    async def find(self, service: str, *expected: str | None, within: float = DEADLINE) -> float:
        """Wait until all sidecars have exactly this endpoint of a service (or none); return the time."""
        wanted = None if expected == (None,) else set(expected)
        began = time.monotonic()

        async def all_do() -> bool:
            found = await self.addresses(service)
            assert found == [wanted] * len(self.pods), found
            return True

        await eventually(all_do, timeout=within, what=f"{service} is at {expected}")
        return time.monotonic() - began

    def write(self, name: str, text: str) -> None:
        """Create or replace a file at once: the control plane must not read the beginning of it."""
        new = self.folder / f".{name}.new"
        new.write_text(text)
        new.replace(self.folder / name)

    async def follow(self, service: str) -> None:
        """Verify that unrelated changes arrive, which also proves that earlier responses were answered."""
        for number in range(1, 6):
            self.write(f"{service}.yaml", text_of(service_at(service, f"10.0.1.{number}")))
            await self.find(service, f"10.0.1.{number}")

    async def rejections(self) -> int:
        return sum([sum((await envoy.rejections()).values()) for envoy in self.envoys])

    def log(self) -> list[str]:
        return self.mesh.plane.log.read_text().splitlines()

    async def logged(self, *parts: str, timeout: float = DEADLINE) -> str:
        """Wait for a line of the log that has all of these, and return it."""

        def line() -> str:
            return next((line for line in self.log() if all(part in line for part in parts)), "")

        return await eventually(line, timeout=timeout, what=f"{parts} in the log")


async def addresses(envoy: EnvoyProcess, service: str) -> set[str] | None:
    clusters = (await envoy.admin.json("/clusters?format=json"))["cluster_statuses"]
    for cluster in clusters:
        if cluster["name"] == f"outbound|80||{service}.ns.svc.cluster.local":
            hosts = cluster.get("host_statuses", ())
            return {host["address"]["socket_address"]["address"] for host in hosts}
    return None


def service_at(name: str, address: str) -> list[Manifest]:
    """A service without a selector, at an address."""
    service = manifests.service(name, "ns", {"http": (80, 8080)}, address="10.96.0.7")
    del service["spec"]["selector"]
    subsets = [{"addresses": [{"ip": address}], "ports": [{"name": "http", "port": 8080}]}]
    meta = {"name": name, "namespace": "ns"}
    return [service, {"apiVersion": "v1", "kind": "Endpoints", "metadata": meta, "subsets": subsets}]


def text_of(objects: list[Manifest]) -> str:
    return yaml.safe_dump_all(objects, sort_keys=False)


async def everything(
    port: int, pod: LocalPod, *, host: str = "127.0.0.1"
) -> dict[tuple[str, str], tuple[str, bytes]]:
    """Return what a sidecar would be given: the version and bytes of every resource, by type and name."""
    node = f"sidecar~{pod.address}~{pod.full_name}~{pod.namespace}.svc.cluster.local"
    found: dict[tuple[str, str], tuple[str, bytes]] = {}
    async with grpc.aio.insecure_channel(f"{host}:{port}") as channel:
        wanted = {CLUSTER: [], LISTENER: [], ROUTE: ["http_proxy"], SECRET: ["default", "ROOTCA"]}
        for type_url in (*wanted, ENDPOINT):
            services = [name for kind, name in found if kind == CLUSTER and name.startswith("outbound|")]
            names = wanted.get(type_url, services)
            call = channel.stream_stream(
                "/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources",
                request_serializer=bytes,
                response_deserializer=DeltaDiscoveryResponse.parse,
            )(timeout=60)
            await call.write(
                DeltaDiscoveryRequest(node=Node(id=node), type_url=type_url, resource_names_subscribe=names)
            )
            response = await call.read()
            for resource in response.resources:
                found[type_url, resource.name] = (resource.version, resource.resource.value)
            call.cancel()
    return found


async def updates(envoy: EnvoyProcess) -> dict[str, int]:
    """Return how often a sidecar took something of each subscription."""
    return await envoy.admin.stats(r"\.update_success$")


async def version_infos(envoy: EnvoyProcess) -> set[str]:
    """Return the versions of a sidecar's active resources, except secrets, which always differ."""
    dumps = [dump for dump in await envoy.admin.config() if not dump["@type"].endswith("SecretsConfigDump")]
    return set(re.findall(r'"version_info": "([^"]+)"', json.dumps(dumps)))
