"""A mesh after many changes equals a new mesh of the same objects, with names and addresses that collide."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from random import Random

import pytest

from tests.policy.world import HTTP, meta, peer, policy, rule, slices
from xds.mesh.envoy.translate import translate
from xds.mesh.model.authorization import Action, Attribute, Condition, Pattern, Rule
from xds.mesh.model.mesh import Mesh
from xds.mesh.model.objects import (
    TLS_MODE_LABEL,
    AuthorizationPolicy,
    Change,
    ContainerPort,
    EndpointAddress,
    EndpointGroup,
    EndpointPort,
    Endpoints,
    Fact,
    Interception,
    MeshConfig,
    Pod,
    Protocol,
    Ref,
    Service,
    ServiceEntry,
    ServicePort,
    UnknownService,
)
from xds.mesh.policy.mtls import effective_mode, sends_mtls_each

NAMESPACES = ("a", "b")
ADDRESSES = ("10.0.0.1", "10.0.0.2", "10.0.0.3", "fd00::1")
VIRTUAL = ("10.9.0.1", "10.9.0.2", "10.0.0.1")
SEEDS, STEPS = 40, 20


class World:
    """Makes random objects."""

    def __init__(self, seed: int) -> None:
        self.random = Random(seed)

    def fact(self) -> Fact:
        entries = (self.entry, self.service_entry, self.slice)
        policies = (self.mode, self.mesh_policy, self.rule, self.targeted, self.rejected, self.authorization)
        make = self.random.choice((self.pod, *entries, self.service, *policies))
        return make(self.random.choice(NAMESPACES))

    def some(self, values: tuple[str, ...], most: int = 2) -> tuple[str, ...]:
        return tuple(self.random.sample(values, self.random.randint(0, most)))

    def selector(self) -> dict[str, str]:
        return self.random.choice(({}, {"app": "x"}, {"app": "y"}))

    def age(self) -> float:
        return self.random.choice((1.0, 2.0, 3.0))

    def pod(self, namespace: str, name: str = "p", **more: bool) -> Pod:
        choice = self.random.choice
        addresses = self.some(ADDRESSES)
        labels = {"app": choice("xy")} | ({TLS_MODE_LABEL: "istio"} if choice((True, False)) else {})
        return Pod(
            meta=meta("Pod", namespace, f"{name}{choice('12')}", age=self.age(), **labels),
            address=addresses[0] if addresses else "",
            more_addresses=addresses[1:],
            service_account=choice("st"),
            ready=choice((True, True, False)),
            ports=(ContainerPort(port=9090, name="http"),) if choice((True, False)) else (),
            interception=choice(tuple(Interception)),
            **more,
        )

    def entry(self, namespace: str) -> Pod:
        return self.pod(namespace, "we/v", is_entry=True)

    def service(self, namespace: str) -> Service:
        return Service(
            meta=meta("Service", namespace, self.random.choice("st"), age=self.age()),
            addresses=(addresses := self.some(VIRTUAL)),
            headless=not addresses,
            ports=(HTTP,),
            selector=self.selector(),
        )

    def service_entry(self, namespace: str) -> ServiceEntry:
        whole = meta("ServiceEntry", namespace, self.random.choice("ef"), age=self.age())
        hosts = sorted(self.some(("h.example.com", "i.example.com"))) or ["h.example.com"]
        selector = self.selector()
        addresses = self.some(VIRTUAL, 1)
        port = ServicePort(port=80, target=8080, name="http", protocol=Protocol.HTTP)
        listed = tuple(EndpointAddress(address=address) for address in self.some(ADDRESSES))
        groups = (EndpointGroup(addresses=listed, ports=(EndpointPort(port=8080, name="http"),)),)
        return ServiceEntry(
            meta=whole,
            services=tuple(
                Service(
                    meta=whole,
                    entry_host=host,
                    addresses=addresses,
                    headless=not addresses,
                    ports=(port,),
                    selector=selector,
                )
                for host in hosts
            ),
            endpoints=()
            if selector
            else tuple(Endpoints(meta=whole, service=host, groups=groups) for host in hosts),
        )

    def slice(self, namespace: str) -> Endpoints:
        kind, service = self.random.choice(("EndpointSlice", "Endpoints")), self.random.choice("st")
        pod = self.random.choice((None, Ref("Pod", namespace, "p1")))
        listed = tuple(EndpointAddress(address=address, pod=pod) for address in self.some(ADDRESSES))
        return Endpoints(
            meta=meta(kind, namespace, service),
            service=service,
            groups=(EndpointGroup(addresses=listed, ports=(EndpointPort(port=8080, name="http"),)),),
        )

    def mode(self, namespace: str) -> Fact:
        scope = self.random.choice((namespace, MeshConfig().root_namespace))
        return peer(scope, self.random.choice(("STRICT", "PERMISSIVE", "DISABLE")))

    def mesh_policy(self, _namespace: str) -> Fact:
        return policy("", self.random.choice(("STRICT", "DISABLE")))

    def rule(self, namespace: str) -> Fact:
        host = self.random.choice(("*.local", "s.a.svc.cluster.local", "h.example.com"))
        return rule(namespace, host, self.random.choice(("ISTIO_MUTUAL", "DISABLE")))

    def targeted(self, namespace: str) -> Fact:
        return policy(namespace, self.random.choice(("STRICT", "PERMISSIVE")), self.random.choice("st"))

    def authorization(self, namespace: str) -> Fact:
        scope = self.random.choice((namespace, namespace, MeshConfig().root_namespace))
        key, value = self.random.choice(
            ((Attribute.PATH, "/x*"), (Attribute.DESTINATION_PORT, "8080"), (Attribute.NAMESPACE, "a"))
        )
        condition = Condition(key, (Pattern.parse(value),))
        return AuthorizationPolicy(
            meta=meta("AuthorizationPolicy", scope, self.random.choice("st"), age=self.age()),
            action=self.random.choice(tuple(Action)),
            selector=self.selector(),
            rules=self.random.choice(((), (Rule(),), (Rule(conditions=(condition,)),))),
            dry_run=self.random.choice((False, False, True)),
        )

    def rejected(self, namespace: str) -> Fact:
        kind, service = (
            self.random.choice(("EndpointSlice", "Endpoints", "Service")),
            self.random.choice("st"),
        )
        return UnknownService(meta=meta(kind, namespace, service), service=service)


def outcome(mesh: Mesh) -> Iterator[tuple[object, ...]]:
    """Yield what follows from the objects."""
    for service in mesh.services():
        for port in service.ports:
            found = mesh.endpoints(service, port)
            yield service.ref, service.name, found, mesh.identities(service)
    for pod in mesh.pods():
        yield pod.ref, mesh.exposures(pod)
        yield pod.ref, [effective_mode(mesh, pod, port) for port in (0, 80, 8080)]
        for type_url, resources in translate(mesh, pod).types.items() if pod.has_sidecar else ():
            yield pod.ref, type_url, {each.name: each.version for each in resources.values()}
    for address in {*ADDRESSES, *VIRTUAL}:
        yield address, mesh.owners(address)


@pytest.mark.parametrize("seed", range(SEEDS))
def test_changes_leave_nothing_behind(seed: int) -> None:
    world, mesh = World(seed), Mesh()
    facts: dict[Ref, Fact] = {}
    for step in range(STEPS):
        applied = {fact.ref: fact for fact in (world.fact(), world.fact())}
        removed = world.random.sample(sorted(facts, key=str), min(len(facts), 1)) if step % 3 == 2 else []
        for ref in removed:
            facts.pop(ref)
            applied.pop(ref, None)
        facts |= applied
        mesh = mesh.apply(Change(applied=tuple(applied.values()), removed=tuple(removed)))
        for known, new in zip(outcome(mesh), outcome(Mesh(facts.values())), strict=True):
            assert known == new, f"step {step}"


ENTRY = Pod(meta=meta("Pod", "a", "we/vm", app="x"), address="10.0.0.1", is_entry=True)
BEHIND = Pod(
    meta=meta("Pod", "a", "p1", app="x", **{TLS_MODE_LABEL: "istio"}),
    address="10.0.0.1",
    ready=False,
    service_account="web",
)
WEB = Service(meta=meta("Service", "a", "web"), addresses=("10.9.0.1",), ports=(HTTP,), selector={"app": "x"})
LISTED = slices(WEB, EndpointAddress(address="10.0.0.1", pod=BEHIND.ref, ready=False))


def test_an_entry_does_not_replace_the_pod_that_has_its_address() -> None:
    """Anyone who may create a WorkloadEntry could otherwise have clients send plaintext to a pod."""
    mesh = Mesh((BEHIND, WEB, LISTED, ENTRY, peer("a", "STRICT")))
    [endpoint] = mesh.endpoints(WEB, HTTP)
    assert endpoint.pod == BEHIND
    assert sends_mtls_each(mesh, None, HTTP, (endpoint,)) == (True,)
    assert not Mesh((BEHIND, WEB, ENTRY)).endpoints(WEB, HTTP), "the pod is not ready"
    [alone] = Mesh((WEB, ENTRY)).endpoints(WEB, HTTP)
    assert alone.pod == ENTRY


def test_changes_of_endpoints_and_pods_keep_the_other_indexes() -> None:
    """A cluster of 10,000 pods would otherwise index its pods and EndpointSlices again for each change."""
    mesh = Mesh((BEHIND, WEB, LISTED))
    facts, listings = mesh.in_namespace("a"), mesh._listings
    indexes = {name: getattr(facts, name) for name in ("services", "pods", "_by_label", "endpoints")}

    for change, changed in (
        (Change(applied=(replace(LISTED, groups=()),)), {"endpoints"}),
        (Change(applied=(replace(BEHIND, ready=True),)), {"pods", "_by_label"}),
        (Change(applied=(BEHIND, LISTED)), {"pods", "_by_label", "endpoints"}),
        (Change(applied=(UnknownService(meta=LISTED.meta, service="web"),)), set(indexes)),
        (Change(removed=(WEB.ref,)), set(indexes)),
    ):
        after = mesh.apply(change)
        new = after.in_namespace("a")
        assert {name for name, index in indexes.items() if getattr(new, name) is not index} == changed
        assert (after._listings is listings) == (after.get(LISTED.ref) is LISTED)
