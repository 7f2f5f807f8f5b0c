"""Pods in network namespaces, routed through a node that balances virtual addresses as kube-proxy does.

Every pod has a namespace, an address of its own and a link to the node, which is a namespace too. It is
isolated from the machine it runs on. Leaving the `with` block removes all of it.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Self

from tests.support import rules
from tests.support.clients import Client
from tests.support.node import Node, etc
from tests.support.places import Namespace
from xds.mesh.model.families import family_of
from xds.mesh.sidecar.rules import RedirectConfig, redirect_rules
from xds.mesh.sidecar.settings import PROXY_ID


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterPod:
    """A pod: a place with an address. Its clients are applications, intercepted if there is a sidecar."""

    name: str
    namespace: str
    address: str
    """The first of its addresses."""
    addresses: tuple[str, ...]
    """At most one for each IP version."""
    place: Namespace
    client: Client


@dataclass(slots=True, kw_only=True)
class ClusterService:
    """A service as DNS and kube-proxy see it: names, an address unless headless, and endpoints."""

    name: str
    namespace: str
    addresses: tuple[str, ...]
    """One for each IP version. Empty: headless, its names lead to its pods."""
    ports: dict[int, int]
    """Service port -> target port."""
    pods: list[ClusterPod] = field(default_factory=list)

    @property
    def address(self) -> str:
        """The first address; empty if it is headless."""
        return "".join(self.addresses[:1])

    def names(self, seen_from: str) -> list[str]:
        """Return every name that leads here from a pod of that namespace."""
        short = [self.name] if seen_from == self.namespace else []
        base = f"{self.name}.{self.namespace}"
        return [*short, base, f"{base}.svc", f"{base}.svc.cluster.local"]


class Cluster:
    """Pods, services, and the node between them."""

    def __init__(self) -> None:
        self._node = Node()
        self.pods: list[ClusterPod] = []
        self.services: list[ClusterService] = []

    @property
    def run_id(self) -> str:
        return self._node.run_id

    @property
    def node(self) -> Namespace:
        return self._node.place

    def __enter__(self) -> Self:
        self._node.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self._node.__exit__()

    def pod(
        self,
        name: str,
        namespace: str,
        *,
        sidecar: bool,
        address: str = "",
        families: Sequence[int] = (4,),
    ) -> ClusterPod:
        """Add a pod; with `sidecar`, its traffic is redirected to one from now on."""
        place, addresses = self._node.add(address, families)
        if sidecar:
            place.run("iptables-restore", "--noflush", stdin=redirect_rules(RedirectConfig()))
        if sidecar and 6 in families:
            # It adds an address, too.
            place.run(sys.executable, "-m", "xds", "init", "-g", str(PROXY_ID))

        def resolve(host: str, port: int) -> list[tuple[str, int]]:
            found = self.resolve(host, seen_from=namespace)
            versions = list(map(family_of, addresses))
            usable = [address for address in found if family_of(address) in versions]
            return [(at, port) for at in sorted(usable, key=lambda at: versions.index(family_of(at)))]

        pod = ClusterPod(
            name=name,
            namespace=namespace,
            address=addresses[0],
            addresses=addresses,
            place=place,
            client=Client(place, resolve),
        )
        self.pods.append(pod)
        self.publish()
        return pod

    def service(
        self,
        name: str,
        namespace: str,
        ports: dict[int, int],
        pods: Iterable[ClusterPod] = (),
        *,
        headless: bool = False,
        families: Sequence[int] = (4,),
    ) -> ClusterService:
        """Add a service. After changing its `pods` or `ports`, call `publish`."""
        number = len(self.services) + 1
        own = {4: f"10.96.0.{number}", 6: f"fd96::{number:x}"}
        addresses = () if headless else tuple(own[family] for family in families)
        service = ClusterService(
            name=name,
            namespace=namespace,
            addresses=addresses,
            ports=ports,
            pods=list(pods),
        )
        self.services.append(service)
        self.publish()
        return service

    def publish(self) -> None:
        """Make names and virtual addresses lead to what the services say now."""
        for family, tool in ((4, "iptables-restore"), (6, "ip6tables-restore")):
            pods = [at for pod in self.pods for at in pod.addresses if family_of(at) == family]
            virtual = {
                (address, port): [
                    (at, target) for pod in service.pods for at in pod.addresses if family_of(at) == family
                ]
                for service in self.services
                for address in service.addresses
                if family_of(address) == family
                for port, target in service.ports.items()
            }
            if pods:
                self.node.run(tool, stdin=rules.node(pods, virtual))
        for pod in self.pods:
            lines = [f"{address}\t{name}" for name, address in self._records(pod.namespace)]
            etc(pod.place, "hosts").write_text("\n".join(["127.0.0.1\tlocalhost", *lines, ""]))

    def resolve(self, name: str, *, seen_from: str) -> Sequence[str]:
        """Look a name up as a pod of that namespace would."""
        return [address for known, address in self._records(seen_from) if known == name.rstrip(".")]

    def _records(self, seen_from: str) -> Iterable[tuple[str, str]]:
        for service in self.services:
            for name in service.names(seen_from):
                for address in service.addresses:
                    yield name, address
                for pod in service.pods if not service.addresses else ():
                    for address in pod.addresses:
                        yield name, address
                        yield f"{pod.name}.{name}", address
