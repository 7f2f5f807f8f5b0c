"""WorkloadEntries and ServiceEntries: what they say, and what is wrong with them."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from xds.mesh.model.locality import LOCALITY_LABEL
from xds.mesh.model.objects import (
    TLS_MODE_LABEL,
    ContainerPort,
    Interception,
    Pod,
    Protocol,
    Ref,
    ServiceEntry,
)
from xds.mesh.parse import Parsed, dotted, parse

STATIC = "hosts: [db.example.com], resolution: STATIC, ports: [{number: 90, name: tcp, protocol: TCP}]"


def parsed(kind: str, spec: str, **meta: Any) -> Parsed:
    document = {
        "apiVersion": "networking.istio.io/v1",
        "kind": kind,
        "metadata": {"name": "db", "namespace": "legacy", **meta},
        "spec": yaml.safe_load(f"{{{spec}}}"),
    }
    [found] = parse(document, lambda path: f"in.yaml:{dotted(path)}")
    return found


def machine(spec: str, **meta: Any) -> Pod:
    found = parsed("WorkloadEntry", spec, **meta)
    assert found.problems == ()
    assert isinstance(found.fact, Pod)
    return found.fact


def entry(spec: str) -> ServiceEntry:
    found = parsed("ServiceEntry", spec)
    assert found.problems == ()
    assert isinstance(found.fact, ServiceEntry)
    return found.fact


def texts(found: Parsed) -> str:
    return "; ".join(map(str, found.problems))


class TestWorkloadEntry:
    def test_all_fields(self) -> None:
        read = machine(
            "address: 10.0.0.1, ports: {http: 8080}, labels: {app: db, tier: a}, serviceAccount: db,"
            " locality: eu/eu-1/rack-1",
            labels={"tier": "b"},
        )

        assert read == Pod(
            meta=read.meta,
            address="10.0.0.1",
            service_account="db",
            ports=(ContainerPort(port=8080, name="http"),),
            is_entry=True,
        )
        assert read.ref == Ref("Pod", "legacy", "we/db")
        assert read.meta.labels == {
            "app": "db",
            "tier": "b",
            LOCALITY_LABEL: "eu/eu-1/rack-1",
            TLS_MODE_LABEL: "istio",
        }

    @pytest.mark.parametrize(
        ("spec", "has_sidecar"),
        [
            ("address: 10.0.0.1", False),
            ("address: 10.0.0.1, serviceAccount: db", True),
            ("address: 10.0.0.1, labels: {security.istio.io/tlsMode: istio}", True),
            (
                "address: 10.0.0.1, serviceAccount: db, labels: {security.istio.io/tlsMode: disabled}",
                False,
            ),
        ],
    )
    def test_account_or_label_says_whether_there_is_a_sidecar(self, spec: str, has_sidecar: bool) -> None:
        assert machine(spec).has_sidecar is has_sidecar

    def test_annotations_are_those_of_a_pod(self) -> None:
        annotations = {
            "sidecar.istio.io/interceptionMode": "NONE",
            "sidecar.xds/app-address": "127.0.0.2",
        }
        read = machine("address: 10.0.0.1", annotations=annotations)

        assert (read.interception, read.app_address) == (Interception.NONE, "127.0.0.2")

    def test_deleted_one_is_not_ready(self) -> None:
        assert machine("address: 10.0.0.1").ready
        assert not machine("address: 10.0.0.1", deletionTimestamp="2026-01-01T00:00:00Z").ready

    @pytest.mark.parametrize(
        ("spec", "said"),
        [
            ("labels: {}", "spec.address is required"),
            ("address: vm.example.com", "spec.address 'vm.example.com' is not an IP address (host names"),
            ("address: 'unix:///run/db'", "host names and Unix sockets are not supported"),
            ("address: 10.0.0.1, ports: {Http: 80}", "'Http' is not a DNS label"),
            ("address: 10.0.0.1, ports: {http: 0}", "must be a number from 1 to 65535"),
            ("address: 10.0.0.1, ports: {http: null}", "spec.ports.http is required"),
        ],
    )
    def test_mistakes_are_refused(self, spec: str, said: str) -> None:
        found = parsed("WorkloadEntry", spec)

        assert found.refused
        assert said in texts(found)

    def test_ignored_fields_are_noticed(self) -> None:
        found = parsed("WorkloadEntry", "address: 10.0.0.1, network: vpc, weight: 2")

        assert found.fact
        assert [problem.notice for problem in found.problems] == [True, True]


class TestServiceEntry:
    def test_listed_endpoints(self) -> None:
        read = entry(
            "hosts: [a.example.com, '*.b.example.com'], addresses: [10.9.0.1], location: MESH_INTERNAL,"
            " resolution: STATIC, exportTo: ['.', apps], subjectAltNames: ['spiffe://x/y'],"
            " ports: [{number: 80, name: web, protocol: HTTP, targetPort: 8080},"
            " {number: 90, name: tcp, protocol: TCP}],"
            " endpoints: [{address: 10.0.0.1, ports: {tcp: 91}, serviceAccount: db}, {address: 10.0.0.2}]"
        )

        a, b = read.services
        assert (a.name, a.host, a.cluster_host) == ("a.example.com", "a.example.com", "a.example.com@legacy")
        assert (a.ref, b.ref) == (read.ref, read.ref)
        assert b.host == "*.b.example.com"
        assert (a.addresses, a.headless) == (("10.9.0.1",), False)
        assert a.export_to == ("legacy", "apps")
        assert a.service_accounts == ("spiffe://x/y",)
        assert [(p.port, p.target, p.protocol, p.external) for p in a.ports] == [
            (80, 8080, Protocol.HTTP, False),
            (90, 90, Protocol.TCP, False),
        ]
        first, second = (group for group in read.endpoints[0].groups)
        assert [(port.name, port.port) for port in first.ports] == [("web", 8080), ("tcp", 91)]
        assert [(port.name, port.port) for port in second.ports] == [("web", 8080), ("tcp", 90)]
        (with_sidecar,), (without,) = first.addresses, second.addresses
        assert with_sidecar.workload
        assert without.workload
        assert with_sidecar.workload.identity("td") == "spiffe://td/ns/legacy/sa/db"
        assert (with_sidecar.workload.has_sidecar, without.workload.has_sidecar) == (True, False)
        assert [each.service for each in read.endpoints] == ["a.example.com", "*.b.example.com"]

    def test_selected_workloads(self) -> None:
        read = entry(f"{STATIC}, workloadSelector: {{labels: {{app: db}}}}")

        assert read.services[0].selector == {"app": "db"}
        assert read.endpoints == ()
        assert read.services[0].headless

    def test_external_is_the_default(self) -> None:
        assert entry(f"{STATIC}, endpoints: [{{address: 10.0.0.1}}]").services[0].ports[0].external

    def test_resolution_none_makes_the_addresses_endpoints(self) -> None:
        read = entry(
            "hosts: [a.example.com], addresses: [10.0.0.1, 10.0.0.2], ports: [{number: 80, name: web}]"
        )

        assert (read.services[0].headless, read.services[0].addresses) == (True, ())
        [group] = read.endpoints[0].groups
        assert [found.address for found in group.addresses] == ["10.0.0.1", "10.0.0.2"]

    def test_range_of_one_address_is_an_address(self) -> None:
        read = entry(f"{STATIC}, addresses: [203.0.113.7/32, 'FD00::1/128']")
        assert read.services[0].addresses == ("203.0.113.7", "fd00::1")

    def test_export_to_can_be_left_to_the_default(self) -> None:
        for exported, expected in (("", ()), (", exportTo: ['*']", ("*",))):
            assert entry(f"{STATIC}{exported}").services[0].export_to == expected

    @pytest.mark.parametrize(
        ("host", "address"),
        [
            ("*.com", "10.9.0.1"),
            ("a.example.com", "127.0.0.1/32"),
            *(
                ("a.example.com", address)
                for address in ("169.254.169.254", "fe80::1", "127.0.0.1", "::", "224.0.0.1")
            ),
        ],
    )
    @pytest.mark.parametrize("exported", ["", ", exportTo: ['*']", ", exportTo: ['.', shop]"])
    def test_wide_claims_are_not_exported(self, host: str, address: str, exported: str) -> None:
        spec = f"hosts: ['{host}'], addresses: ['{address}'], ports: [{{number: 80, name: web}}]"
        found = parsed("ServiceEntry", f"{spec}{exported}")
        assert isinstance(found.fact, ServiceEntry)
        assert found.fact.services[0].export_to == ("legacy",)
        [problem] = found.problems
        assert "cannot be exported, so only clients in this namespace use the object" in problem.what
        assert not parsed("ServiceEntry", f"{spec}, exportTo: ['.', legacy]").problems

    def test_special_address_of_an_endpoint_is_not_exported(self) -> None:
        found = parsed("ServiceEntry", f"{STATIC}, endpoints: [{{address: 169.254.169.254}}]")
        assert isinstance(found.fact, ServiceEntry)
        assert found.fact.services[0].export_to == ("legacy",)

    @pytest.mark.parametrize(
        ("spec", "said"),
        [
            ("resolution: STATIC, ports: [{number: 1, name: a}]", "spec.hosts is required"),
            ("hosts: [], ports: [{number: 1, name: a}], addresses: [10.0.0.1]", "spec.hosts is required"),
            ("hosts: [db], ports: []", "is not a full DNS name (write a name with a dot, or *.DOMAIN)"),
            ("hosts: ['*'], ports: []", "'*' is not a full DNS name"),
            ("hosts: [web.shop.svc.cluster.local], ports: []", "the name of a Service in the cluster"),
            ("hosts: [web.shop.svc], ports: []", "the name of a Service in the cluster"),
            ("hosts: [169.254.169.254], ports: []", "'169.254.169.254' is an IP address"),
            ("hosts: ['*.169.254'], ports: []", "'*.169.254' is an IP address"),
            ("hosts: ['*.cluster.local'], ports: []", "the name of a Service in the cluster"),
            ("hosts: ['*.local'], ports: []", "the name of a Service in the cluster"),
            ("hosts: [a.com, a.com], ports: []", "spec.hosts lists a host twice"),
            (f"{STATIC}, addresses: [10.0.0.0/8]", "is a range of addresses, which is not supported"),
            (f"{STATIC}, addresses: ['fd00::1/32']", "is a range of addresses, which is not supported"),
            (f"{STATIC}, addresses: [db]", "'db' is not an IP address"),
            (f"{STATIC}, location: INSIDE", "spec.location must be one of MESH_EXTERNAL, MESH_INTERNAL"),
            (f"{STATIC}, resolution: LATER", "spec.resolution must be one of NONE, STATIC, DNS"),
            (f"{STATIC}, exportTo: [A]", "'A' is not a DNS label"),
            (f"{STATIC}, subjectAltNames: ['']", "spec.subjectAltNames[0] is required"),
            (f"{STATIC}, workloadSelector: {{}}", "spec.workloadSelector selects no workload"),
            (f"{STATIC}, workloadSelector: {{labels: {{app: }}}}", "labels.app must be a string, not null"),
            (f"{STATIC}, workloadSelector: {{matchLabels: {{a: b}}}}", "matchLabels is not a known field"),
            (
                f"{STATIC}, workloadSelector: {{labels: {{a: b}}}}, endpoints: [{{address: 10.0.0.1}}]",
                "spec.endpoints cannot be combined with workloadSelector",
            ),
            (
                f"{STATIC}, resolution: NONE, endpoints: [{{address: 10.0.0.1}}]",
                "spec.endpoints requires resolution STATIC",
            ),
            (
                "hosts: [a.com], workloadSelector: {labels: {a: b}}, ports: [{number: 1, name: a}]",
                "spec.workloadSelector requires resolution STATIC",
            ),
            (f"{STATIC}, endpoints: [{{address: db.example.com}}]", "is not an IP address (host names and"),
            ("hosts: [a.com], resolution: STATIC", "spec.ports is required"),
            ("hosts: [a.com], ports: [{number: 1}]", "spec.ports[0].name is required"),
            ("hosts: [a.com], ports: [{name: a}]", "spec.ports[0].number is required"),
            (
                "hosts: [a.com], ports: [{number: 1, name: a}, {number: 1, name: a}]",
                "spec.ports[1].number 1 is listed twice; ",
            ),
            ("hosts: [a.com], ports: [{number: 1, name: a, protocol: QUIC}]", "not 'QUIC'"),
        ],
    )
    def test_mistakes_are_refused(self, spec: str, said: str) -> None:
        found = parsed("ServiceEntry", spec)

        assert found.refused
        assert said in f"{texts(found)}; "

    @pytest.mark.parametrize(
        ("spec", "said"),
        [
            (f"{STATIC}, resolution: DNS", "DNS is not supported, so the object has no effect (use STATIC"),
            ("hosts: [a.com], ports: [{number: 443, name: tls}]", "spec.addresses is empty"),
        ],
    )
    def test_what_has_no_effect_is_a_problem(self, spec: str, said: str) -> None:
        found = parsed("ServiceEntry", spec)

        assert (found.fact, found.refused) == (None, False)
        [problem] = found.problems
        assert not problem.notice
        assert said in str(problem)

    @pytest.mark.parametrize(
        ("spec", "said"),
        [
            (
                f"{STATIC}, endpoints: [{{address: 10.0.0.1, ports: {{http: 80}}}}]",
                "is not the name of a port",
            ),
            (f"{STATIC}, endpoints: [{{address: 10.0.0.1, weight: 3}}]", "weight is ignored"),
            (f"{STATIC}, host: a.com", "did you mean hosts?"),
        ],
    )
    def test_what_is_ignored_is_noticed(self, spec: str, said: str) -> None:
        found = parsed("ServiceEntry", spec)

        assert found.fact
        [problem] = found.problems
        assert problem.notice
        assert said in str(problem)

    def test_udp_ports_are_ignored(self) -> None:
        found = parsed(
            "ServiceEntry",
            "hosts: [a.com], addresses: [10.0.0.1],"
            " ports: [{number: 53, name: dns, protocol: UDP}, {number: 54, name: tcp, protocol: TCP}]",
        )

        assert isinstance(found.fact, ServiceEntry)
        assert [port.port for port in found.fact.services[0].ports] == [54]
        assert "UDP is ignored" in texts(found)
