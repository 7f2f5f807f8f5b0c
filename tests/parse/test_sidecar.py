"""Sidecars: what is read, and what is reported."""

from __future__ import annotations

import pytest
import yaml

from xds.mesh.model.objects import Sidecar
from xds.mesh.parse import Parsed, parse

HOST = "web.shop.svc.cluster.local"


def parsed(spec: str) -> Parsed:
    [found] = parse(
        {
            "apiVersion": "networking.istio.io/v1",
            "kind": "Sidecar",
            "metadata": {"name": "default", "namespace": "shop", "creationTimestamp": "2020-01-01T00:00:00Z"},
            "spec": yaml.safe_load(spec),
        },
        lambda path: ".".join(map(str, path)),
    )
    return found


@pytest.mark.parametrize(
    ("spec", "hosts", "selector"),
    [
        ("{}", (("*", "*"),), {}),
        ("{egress: []}", (("*", "*"),), {}),
        ("{egress: [{hosts: [./*, ~/*]}]}", ((".", "*"), ("~", "*")), {}),
        (
            f"{{egress: [{{hosts: [a/{HOST}]}}, {{hosts: ['*/*.b', a/{HOST}]}}]}}",
            (("a", HOST), ("*", "*.b")),
            {},
        ),
        ("{egress: [{hosts: [./*], captureMode: DEFAULT}]}", ((".", "*"),), {}),
        ("{workloadSelector: {labels: {app: web}}}", (("*", "*"),), {"app": "web"}),
    ],
)
def test_sidecar_is_read(spec, hosts, selector):
    found = parsed(spec)

    assert not found.problems
    assert isinstance(found.fact, Sidecar)
    assert (found.fact.hosts, found.fact.selector) == (hosts, selector)


@pytest.mark.parametrize(
    ("spec", "problem"),
    [
        ("{ingress: [{port: {number: 80}}]}", "spec.ingress is not supported, so it has no effect"),
        ("{inboundConnectionPool: {tcp: {}}}", "spec.inboundConnectionPool is not supported"),
        ("{egress: [{hosts: [./*], port: {number: 80}}]}", "spec.egress[0].port is ignored"),
        ("{egress: [{hosts: [./*], bind: 127.0.0.1}]}", "spec.egress[0].bind is ignored"),
        ("{egress: [{hosts: [./*], captureMode: NONE}]}", "spec.egress[0].captureMode is ignored"),
    ],
)
def test_unsupported_part_is_reported(spec, problem):
    found = parsed(spec)

    assert not found.refused
    assert [problem in str(each) for each in found.problems] == [True]


@pytest.mark.parametrize(
    ("spec", "problem"),
    [
        ("{egress: [{}]}", "spec.egress[0].hosts is required (write ~/* for no service)"),
        ("{egress: [{hosts: []}]}", "spec.egress[0].hosts is required"),
        ("{egress: [{hosts: [web]}]}", "spec.egress[0].hosts[0] 'web' is not NAMESPACE/HOST"),
        ("{egress: [{hosts: [./web]}]}", "'web' is not a full name"),
        ("{egress: [{hosts: [./]}]}", "'' is not a host name"),
        ("{egress: [{hosts: [./a*.com]}]}", "'a*.com' is not a host name"),
        ("{egress: [{hosts: [Shop/*]}]}", "'Shop' is not a DNS label"),
        ("{egres: []}", "egres"),
        ("{workloadSelector: {}}", "spec.workloadSelector"),
    ],
)
def test_clients_of_a_rejected_sidecar_see_all_services(spec, problem):
    found = parsed(spec)

    assert found.refused
    assert problem in str(found.problems[0])
    assert found.replacement
    fact = found.replacement.fact
    assert isinstance(fact, Sidecar)
    assert (fact.hosts, fact.selector) == ((("*", "*"),), {})
    assert fact.scope_unknown is ("egress" not in spec)


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("{}", None),
        ("{outboundTrafficPolicy: null}", None),
        ("{outboundTrafficPolicy: {}}", False),
        ("{outboundTrafficPolicy: {mode: REGISTRY_ONLY}}", False),
        ("{outboundTrafficPolicy: {mode: ALLOW_ANY}}", True),
    ],
)
@pytest.mark.parametrize("rejected", [False, True])
def test_outbound_traffic_policy_is_read(spec, expected, rejected):
    found = parsed(spec.replace("{", "{egress: [{}], ", 1) if rejected else spec)
    fact = found.replacement.fact if found.replacement else found.fact

    assert found.refused is rejected
    assert isinstance(fact, Sidecar)
    assert fact.allow_any_outbound is expected


@pytest.mark.parametrize(
    ("policy", "problem"),
    [
        ("{mode: DENY}", "mode must be one of ALLOW_ANY, REGISTRY_ONLY, not 'DENY'"),
        ("{mode: ALLOW_ANY, egressProxy: {host: proxy.shop}}", "egressProxy is not a known field"),
        ("ALLOW_ANY", "must be a mapping, not 'ALLOW_ANY'"),
        ("{mode: ALLOW_ANY}, workloadSelector: {}", "workloadSelector selects no workload"),
        ("{mode: ALLOW_ANY}, workloadSelectr: {}", "workloadSelectr is not a known field"),
        ("null, outboundTraficPolicy: {mode: REGISTRY_ONLY}", "outboundTraficPolicy is not a known field"),
        (
            "null, workloadSelector: {labels: {app: web}}, outboundTraficPolicy: {}",
            "outboundTraficPolicy is not a known field",
        ),
    ],
)
def test_uncertain_outbound_traffic_policy_is_registry_only(policy, problem):
    found = parsed(f"{{outboundTrafficPolicy: {policy}}}")

    assert problem in str(found.problems[0])
    assert found.replacement
    assert isinstance(found.replacement.fact, Sidecar)
    assert found.replacement.fact.allow_any_outbound is False
    assert found.replacement.effect == (
        "clients that it applies to see all services that are exported to them, and cannot connect to other "
        "addresses"
    )


def test_rejected_sidecar_keeps_a_selector_that_can_be_read():
    found = parsed("{workloadSelector: {labels: {app: web}}, egress: [{hosts: [web]}]}")

    assert found.replacement
    assert isinstance(found.replacement.fact, Sidecar)
    assert found.replacement.fact.selector == {"app": "web"}
    assert "see all services that are exported to them" in found.replacement.effect
