"""WorkloadEntries and ServiceEntries: what clients send, what policies apply, and who owns addresses."""

from __future__ import annotations

from typing import Any

import pytest

from tests.mesh.objects import facts, named, pod, service, slice_of
from tests.support.manifests import peer_authentication, policy, service_entry, workload_entry
from xds.mesh.model.applied import as_applied
from xds.mesh.model.mesh import Mesh
from xds.mesh.model.names import UnknownNameError, pod_named, service_key, service_named
from xds.mesh.model.objects import Change, MeshConfig, Mode, Ref, ServiceEntry
from xds.mesh.policy.explain import explain
from xds.mesh.policy.ineffective import without_effect
from xds.mesh.policy.mtls import effective_mode
from xds.mesh.policy.reach import outcome
from xds.mesh.rollout.desired import desired_ports, services_at

CLIENT = pod("apps", "client", "10.1.0.1")
VM = workload_entry("vm", "legacy", "10.8.0.1", labels={"app": "vm"}, serviceAccount="vm")
PORTS = {"tcp": 90}
REGISTRY_ONLY = MeshConfig(allow_any_outbound=False)


def entry(name: str = "db", location: str = "MESH_INTERNAL", namespace: str = "legacy", **spec: Any):
    host = spec.pop("host", f"{name}.example.com")
    spec = {"addresses": ["10.9.0.1"], **spec}
    return service_entry(name, namespace, host, PORTS, location=location, **spec)


def listed(address: str, **fields: Any) -> dict[str, Any]:
    return {"endpoints": [{"address": address, **fields}]}


def rule(mode: str, host: str = "db.example.com") -> dict[str, Any]:
    spec = {"host": host, "trafficPolicy": {"tls": {"mode": mode}}}
    return named("DestinationRule", "legacy", "rule", spec=spec) | {"apiVersion": "networking.istio.io/v1"}


def reached(*objects: dict[str, Any], config: MeshConfig | None = None) -> str:
    """Return the outcome for the client and the only endpoint of db.example.com."""
    mesh = Mesh(facts(CLIENT, *objects), config)
    called = service_named(mesh, "db.example.com")
    [endpoint] = mesh.endpoints(called, called.ports[0])
    found = outcome(mesh, pod_named(mesh, "client.apps"), called, called.ports[0], endpoint)
    return f"{found.result} {found.reason}"


def explained(*objects: dict[str, Any], config: MeshConfig | None = None) -> str:
    mesh = Mesh(facts(CLIENT, *objects), config)
    called = service_named(mesh, "db.example.com")
    [group] = explain(mesh, pod_named(mesh, "client.apps"), called, called.ports)
    return group.explanation.summary


@pytest.mark.parametrize(
    ("location", "endpoint", "expected"),
    [
        ("MESH_INTERNAL", {}, "plaintext endpoint-without-sidecar"),
        ("MESH_INTERNAL", {"serviceAccount": "db"}, "mtls auto-mtls"),
        ("MESH_INTERNAL", {"labels": {"security.istio.io/tlsMode": "istio"}}, "mtls auto-mtls"),
        ("MESH_EXTERNAL", {"serviceAccount": "db"}, "plaintext external"),
        ("MESH_EXTERNAL", {}, "plaintext external"),
    ],
)
def test_location_and_sidecar_decide(location, endpoint, expected):
    assert reached(entry(location=location, **listed("10.8.0.9", **endpoint))) == expected


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        ("DISABLE", "plaintext destination-rule"),
        ("ISTIO_MUTUAL", "fails endpoint-without-sidecar"),
        ("SIMPLE", "plaintext destination-rule"),
    ],
)
def test_rule_decides_for_an_external_service(mode, expected):
    external = entry(location="MESH_EXTERNAL", **listed("10.8.0.9"))

    assert reached(external, rule(mode)) == expected


def test_tls_to_an_external_service_is_explained():
    external = entry(location="MESH_EXTERNAL", **listed("10.8.0.9"))

    assert explained(external, rule("SIMPLE")) == "TLS, but not the mesh's: a DestinationRule sets SIMPLE"
    assert explained(external).startswith("plaintext: the ServiceEntry is MESH_EXTERNAL")


def test_tls_of_a_rule_fails_at_a_sidecar():
    external = entry(location="MESH_EXTERNAL", workloadSelector={"labels": {"app": "vm"}})

    assert reached(VM, external, rule("SIMPLE")) == "fails tls-left-to-application"


def test_policy_with_a_selector_applies_to_the_labels_of_a_workload_entry():
    strict = peer_authentication("legacy", "STRICT", name="vm", selector={"app": "vm"})
    mesh = Mesh(facts(VM, strict, entry(workloadSelector={"labels": {"app": "vm"}})))
    machine = pod_named(mesh, "vm.legacy")

    assert effective_mode(mesh, machine, 90).mode is Mode.STRICT
    assert reached(VM, strict, entry(workloadSelector={"labels": {"app": "vm"}})) == "mtls auto-mtls"
    external = entry(location="MESH_EXTERNAL", workloadSelector={"labels": {"app": "vm"}})
    assert reached(VM, strict, external) == "fails server-requires-mtls"


class TestExport:
    PRIVATE = entry(exportTo=["."], **listed("10.8.0.9", serviceAccount="db"))

    def test_client_elsewhere_passes_through(self):
        assert reached(self.PRIVATE) == "plaintext not-exported"
        assert "passes the connection through" in explained(self.PRIVATE)

    def test_client_elsewhere_is_blocked_without_passthrough(self):
        assert reached(self.PRIVATE, config=REGISTRY_ONLY) == "fails not-exported"
        assert "closes the connection" in explained(self.PRIVATE, config=REGISTRY_ONLY)

    def test_named_namespace_can_use_it(self):
        shared = entry(exportTo=[".", "apps"], **listed("10.8.0.9", serviceAccount="db"))

        assert reached(shared) == "mtls auto-mtls"

    def test_listener_of_an_entry_is_not_used_elsewhere(self):
        # Both are headless: the endpoint's listener is that of the older entry, where it is visible.
        private = entry("api", exportTo=["."], addresses=[], **listed("10.8.0.9"))
        private["metadata"]["creationTimestamp"] = "2020-01-01T00:00:00Z"
        public = entry(addresses=[], **listed("10.8.0.9", serviceAccount="db"))

        assert reached(private, public) == "mtls auto-mtls"


class TestEndpointsOfAService:
    def test_workload_entries_join_the_pods_that_kubernetes_lists(self):
        vm = workload_entry("vm", "ns", "10.8.0.1", labels={"app": "web"}, ports={"named": 81})
        web = service("ns", "web", "10.2.0.1", selector={"app": "web"})
        web["spec"]["ports"][0]["name"] = "named"
        listing = slice_of("ns", "web", "10.1.0.2")
        listing["ports"] = [{"name": "named", "port": 8080}]
        mesh = Mesh(facts(vm, web, listing))
        [found] = mesh.services()

        endpoints = mesh.endpoints(found, found.ports[0])

        assert [(each.address, each.port) for each in endpoints] == [("10.1.0.2", 8080), ("10.8.0.1", 81)]

    def test_unready_or_unselected_workload_entries_do_not(self):
        vm = workload_entry("vm", "ns", "10.8.0.1", labels={"app": "other"})
        gone = workload_entry("gone", "ns", "10.8.0.2", labels={"app": "web"})
        gone["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
        mesh = Mesh(facts(vm, gone, service("ns", "web", "10.2.0.1", selector={"app": "web"})))
        [found] = mesh.services()

        assert mesh.endpoints(found, found.ports[0]) == ()


def test_v1alpha1_policy_for_a_service_applies_although_an_older_entry_selects_the_pod():
    selecting = entry(workloadSelector={"labels": {"app": "vm"}})
    selecting["metadata"]["creationTimestamp"] = "2001-01-01T00:00:00Z"
    web = named(
        "Service", "legacy", "web",
        spec={"clusterIP": "10.2.0.1", "selector": {"app": "vm"}, "ports": [{"port": 80, "targetPort": 90}]},
    )  # fmt: skip
    mesh = Mesh(facts(VM, web, selecting, policy("web", "legacy", "STRICT", "web")))

    assert effective_mode(mesh, pod_named(mesh, "vm.legacy"), 90).mode is Mode.STRICT
    without = mesh.apply(Change(removed=(Ref("Service", "legacy", "web"),)))
    assert effective_mode(without, pod_named(without, "vm.legacy"), 90).mode is Mode.PERMISSIVE


class TestOwners:
    """Anybody who may write an entry can claim any address."""

    def owner(self, *objects: dict[str, Any], address: str = "10.1.0.1") -> str:
        return " ".join(str(owner.ref) for owner in Mesh(facts(*objects)).owners(address))

    def test_pod_and_service_take_precedence(self):
        claims = (
            workload_entry("claim", "aaa", "10.1.0.1"),
            entry("claim", namespace="aaa", addresses=["10.1.0.1"], **listed("10.8.0.9")),
        )

        assert self.owner(CLIENT, *claims) == "Pod apps/client"
        assert self.owner(service("ns", "web", "10.1.0.1"), *claims) == "Service ns/web"

    def test_oldest_entry_owns_an_address(self):
        young = workload_entry("claim", "aaa", "10.1.0.1")
        old = entry("claim", namespace="bbb", addresses=["10.1.0.1"], **listed("10.8.0.9"))
        old["metadata"]["creationTimestamp"] = "2020-01-01T00:00:00Z"

        assert self.owner(young) == "Pod aaa/we/claim"
        assert self.owner(young, old) == "ServiceEntry bbb/claim"

    def test_pod_comes_before_a_workload_entry_at_its_address(self):
        mesh = Mesh(facts(CLIENT, workload_entry("claim", "aaa", "10.1.0.1")))

        assert str(mesh.pod_at("10.1.0.1").ref) == "Pod apps/client"


class TestHosts:
    def test_oldest_entry_of_a_namespace_defines_a_host(self):
        old = entry("old", host="db.example.com", **listed("10.8.0.1"))
        old["metadata"]["creationTimestamp"] = "2020-01-01T00:00:00Z"
        young = entry("young", host="db.example.com", **listed("10.8.0.2"))
        mesh = Mesh(facts(old, young))

        def address(found: Mesh) -> str:
            called = service_named(found, "db.example.com")
            return found.endpoints(called, called.ports[0])[0].address

        assert address(mesh) == "10.8.0.1"
        assert address(mesh.apply(Change(removed=(Ref("ServiceEntry", "legacy", "old"),)))) == "10.8.0.2"

    def test_host_in_two_namespaces_needs_the_namespace(self):
        mesh = Mesh(facts(entry(**listed("10.8.0.1")), entry(namespace="apps", **listed("10.8.0.2"))))

        assert service_named(mesh, "db.example.com.apps").namespace == "apps"
        with pytest.raises(UnknownNameError, match="did you mean"):
            service_named(mesh, "db.example.com")

    @pytest.mark.parametrize(
        ("cluster_host", "expected"),
        [
            ("db.example.com@legacy", ("legacy", "db.example.com")),
            ("web.shop.svc.cluster.local", ("shop", "web")),
            ("db.example.com", ("", "")),
        ],
    )
    def test_service_is_known_by_the_host_of_its_cluster(self, cluster_host, expected):
        assert service_key(cluster_host) == expected

    def test_applied_entry_keeps_its_age(self):
        old = entry(**listed("10.8.0.1"))
        old["metadata"]["creationTimestamp"] = "2020-01-01T00:00:00Z"
        mesh = Mesh(facts(old))
        [fact] = facts(entry(**listed("10.8.0.2")))

        applied = as_applied(mesh, fact)

        assert isinstance(applied, ServiceEntry)
        assert applied.meta.created
        assert applied.services[0].meta == applied.meta


class TestEffect:
    def problems(self, *objects: dict[str, Any]) -> list[str]:
        found = without_effect(Mesh(facts(*objects))).problems
        return [problem.what for problems in found.values() for problem in problems]

    def test_rule_for_the_host_of_an_entry_has_an_effect(self):
        assert self.problems(entry(**listed("10.8.0.1")), rule("SIMPLE")) == []
        assert "matches no Service" in str(self.problems(VM, rule("SIMPLE")))

    def test_host_of_an_older_entry_is_reported(self):
        old, young = (
            entry(name, host="db.example.com", addresses=[], **listed("10.8.0.1")) for name in ("a", "b")
        )

        old_name, young_name = "ServiceEntry legacy/a", "ServiceEntry legacy/b"

        assert self.problems(old, young) == [
            f"{young_name}: host db.example.com is also defined by the older {old_name}, so it has no effect"
        ]

    def test_address_of_another_object_is_reported(self):
        claim = entry(addresses=["10.1.0.1"], **listed("10.8.0.1"))

        name = "ServiceEntry legacy/db"

        assert self.problems(claim, CLIENT) == [
            f"{name}: 10.1.0.1 belongs to Pod apps/client: traffic to it is not sent to this ServiceEntry"
        ]


class TestRollout:
    def test_workload_entry_takes_part(self):
        mesh = Mesh(facts(VM, entry(workloadSelector={"labels": {"app": "vm"}})))
        [called] = mesh.services()

        [(key, desired)] = desired_ports(mesh, called)

        assert (str(key[0]), key[1], desired.mode) == ("Pod legacy/we/vm", 90, Mode.PERMISSIVE)
        assert services_at(mesh, key) == {("db.example.com@legacy", 90)}

    def test_listed_endpoint_has_no_proxy_to_wait_for(self):
        mesh = Mesh(facts(entry(**listed("10.8.0.9", serviceAccount="db"))))
        [called] = mesh.services()

        assert list(desired_ports(mesh, called)) == []
