"""Policies that allow what was recorded: what they contain, and that they allow no more and no less."""

from __future__ import annotations

import json

import pytest
import yaml
from google.protobuf.json_format import MessageToJson
from hypothesis import given
from hypothesis import strategies as st

from tests.cli.commands import xds
from tests.observe.records import response
from tests.policy.meshes import pods
from tests.policy.world import HTTP, TCP, mesh, pod, service
from tests.support.authorization import authorization_policy, operation, source
from tests.support.manifests import peer_authentication
from xds.mesh.model.mesh import Mesh
from xds.mesh.model.namespace import covers
from xds.mesh.model.objects import AuthorizationPolicy, Pod
from xds.mesh.model.workload import workload_key
from xds.mesh.observe.edges import Client, Target, TrafficMode
from xds.mesh.observe.least_privilege import AllowRule, WorkloadPolicy, gaps, least_privilege
from xds.mesh.observe.least_privilege_yaml import document
from xds.mesh.observe.record import Flow, merge_records
from xds.mesh.parse import parse
from xds.mesh.policy.access import permission, port_rules
from xds.mesh.policy.authorization import Access

WEB = Target("shop", "web", 80)
FRONT, BATCH, CRON = Client("shop", "front"), Client("jobs", "batch"), Client("legacy", "cron")
WORLD = (pod("web-1", "shop", app="web"), service("web", "shop", HTTP, TCP, app="web"))
DAY = 86400


def flow(client: Client, target: Target = WEB, mode: str = "MTLS", *, by_server: bool | None = None) -> Flow:
    reported = mode != "MTLS" if by_server is None else by_server
    return Flow(target, client, TrafficMode[mode], 10, 20, reported)


def facts(*policies) -> list[AuthorizationPolicy]:
    return [parsed.fact for policy in policies for parsed in parse(policy, lambda _: "test")]


SHOP = ("cluster.local/ns/shop/sa/front",)
CASES = {
    "by identity": (
        [flow(FRONT), flow(BATCH)],
        [AllowRule((8080,), ("cluster.local/ns/jobs/sa/batch", *SHOP))],
    ),
    "ports with equal clients": (
        [flow(FRONT), flow(FRONT, WEB._replace(port=90))],
        [AllowRule((8080, 9090), SHOP)],
    ),
    "ports with other clients": (
        [flow(FRONT), flow(BATCH, WEB._replace(port=90))],
        [AllowRule((8080,), SHOP), AllowRule((9090,), ("cluster.local/ns/jobs/sa/batch",))],
    ),
    "plaintext opens the port": (
        [flow(FRONT), flow(CRON, mode="PLAINTEXT"), flow(Client("", "10.0.0.9"), mode="PLAINTEXT")],
        [AllowRule((8080,), (), ("10.0.0.9", "legacy/cron"))],
    ),
    "plaintext that only the client saw": (
        [flow(FRONT), flow(BATCH, mode="PLAINTEXT", by_server=False)],
        [AllowRule((8080,), SHOP)],
    ),
    "refused": ([flow(FRONT), flow(CRON, mode="REFUSED")], [AllowRule((8080,), SHOP)]),
    "a port without a service": (
        [flow(FRONT, Target("shop", "pod/web-0", 7000))],
        [AllowRule((7000,), SHOP)],
    ),
}


@pytest.mark.parametrize(("flows", "rules"), CASES.values(), ids=CASES)
def test_rules(flows: list[Flow], rules: list[AllowRule]) -> None:
    found = least_privilege(mesh(*WORLD), flows)
    assert found.policies == (
        WorkloadPolicy(namespace="shop", name="web", selector={"app": "web"}, rules=tuple(rules)),
    )
    assert not found.omitted


def test_what_is_denied_today_is_not_allowed() -> None:
    denies = authorization_policy("shop", source(namespaces=["jobs"]), action="DENY")
    [policy] = least_privilege(mesh(*WORLD, *facts(denies)), [flow(FRONT), flow(BATCH)]).policies
    assert policy.rules == (AllowRule((8080,), SHOP),)


def test_traffic_to_what_no_longer_exists_is_a_gap() -> None:
    targets = [WEB, WEB._replace(port=81), Target("shop", "old", 80)]
    targets += [Target("shop", f"pod/{name}", 7000) for name in ("web-1", "job-x2x7k")]
    record = merge_records([response(0, 10, *(flow(FRONT, target) for target in targets))])
    assert gaps(mesh(*WORLD), record) == [
        "traffic was sent to ports that no longer exist: old.shop:80, pod/job-x2x7k.shop:7000, web.shop:81"
    ]


def test_plaintext_from_before_a_port_became_strict_is_not_allowed() -> None:
    strict = facts(peer_authentication("shop", "STRICT"))
    flows = [flow(FRONT), flow(CRON, mode="PLAINTEXT")]
    [policy] = least_privilege(mesh(*WORLD, *strict), flows).policies
    assert policy.rules == (AllowRule((8080,), SHOP),)


OMITTED = {
    "unused": (WORLD, [], "no traffic to it was observed"),
    "denied": (
        (*WORLD, *facts(authorization_policy("shop", {}, action="DENY"))),
        [flow(FRONT)],
        "no traffic to it was observed",
    ),
    "restricted": (
        (*WORLD, *facts(authorization_policy("shop", operation(methods=["GET"]), name="get"))),
        [flow(FRONT)],
        "already restricted by AuthorizationPolicy shop/get",
    ),
}


@pytest.mark.parametrize(("world", "flows", "reason"), OMITTED.values(), ids=OMITTED)
def test_workloads_without_a_policy(world, flows, reason) -> None:
    found = least_privilege(mesh(*world), flows)
    assert (found.policies, found.omitted) == ((), (("web.shop", reason),))


def test_selectors_are_short_and_select_nobody_else() -> None:
    world = mesh(
        pod("web-1", "shop", app="web", version="v1", **{"pod-template-hash": "5d4f8"}),
        pod("web-2", "shop", app="web", version="v2"),
        pod("old-1", "shop", **{"app.kubernetes.io/name": "old", "app": "web2"}),
        pod("twin-1", "shop", **{"service.istio.io/canonical-name": "twin", "app": "both"}),
        pod("other-1", "shop", **{"service.istio.io/canonical-name": "other", "app": "both"}),
        *(
            service(name, "shop", HTTP, app=app)
            for name, app in (("web", "web"), ("old", "web2"), ("both", "both"))
        ),
    )
    flows = [flow(FRONT, Target("shop", name, 80)) for name in ("web", "old", "both")]
    found = {policy.name: policy.selector for policy in least_privilege(world, flows).policies}
    assert found == {
        "web": {"app": "web"},
        "old": {"app": "web2"},
        "twin": {"service.istio.io/canonical-name": "twin"},
        "other": {"service.istio.io/canonical-name": "other"},
    }


def test_names_replace_no_other_policy() -> None:
    denies = authorization_policy("shop", source(namespaces=["jobs"]), action="DENY", name="web")
    world = mesh(
        *facts(denies),
        *(pod(f"{name}-1", "shop", app=name) for name in ("web", "Web")),
        *(service(name.lower() + "-" + name, "shop", HTTP, app=name) for name in ("web", "Web")),
    )
    flows = [flow(FRONT, Target("shop", name, 80)) for name in ("web-web", "web-Web")]
    found = {policy.name: policy.selector for policy in least_privilege(world, flows).policies}
    assert found == {"web-2": {"app": "Web"}, "web-3": {"app": "web"}}


def test_calls_of_a_pod_are_its_own_while_it_exists() -> None:
    world = mesh(pod("vm-1", "shop", app="one"), pod("vm-2", "shop", app="two"))
    found = least_privilege(world, [flow(FRONT, Target("shop", "pod/vm-1", 9090))])
    assert [policy.name for policy in found.policies] == ["one"]
    found = least_privilege(world, [flow(FRONT, Target("shop", "pod/vm-0", 9090))])
    assert [policy.name for policy in found.policies] == ["one", "two"]


def test_labels_that_others_have_select_nothing() -> None:
    world = mesh(
        pod("web-1", "shop", app="web"),
        pod("x", "shop", **{"app": "web", "app.kubernetes.io/name": "special"}),
        service("web", "shop", HTTP, app="web"),
    )
    found = least_privilege(world, [flow(FRONT)])
    assert [policy.name for policy in found.policies] == ["special"]
    assert found.omitted == (("web.shop", "other pods have all of its labels"),)


NAMESPACES, NAMES = ("a", "b"), ("x1", "x2")
DENIES = authorization_policy("a", source(serviceAccounts=["b/two"]), action="DENY")
ALLOWS = authorization_policy("b", operation(ports=["8080"]), name="allow", selector={"version": "v1"})


@st.composite
def worlds(draw: st.DrawFn) -> Mesh:
    """Services, some of which share pods, with and without policies."""
    drawn = draw(st.lists(pods(), min_size=2, max_size=6, unique_by=lambda each: each.ref))
    exposed = [
        service(name, namespace, HTTP, TCP, **selector)
        for namespace in NAMESPACES
        for name in NAMES
        for selector in [draw(st.sampled_from([{"app": name}, {"version": "v1"}]))]
    ]
    policies = [each for each in (DENIES, ALLOWS) if draw(st.booleans())]
    return mesh(*drawn, *exposed, *facts(*policies))


CLIENTS = st.builds(Client, st.sampled_from(NAMESPACES), st.sampled_from(["one", "two"]))
TARGETS = st.builds(Target, st.sampled_from(NAMESPACES), st.sampled_from(NAMES), st.sampled_from([80, 90]))
MODES = st.sampled_from([TrafficMode.MTLS, *TrafficMode])
FLOWS = st.lists(st.builds(Flow, TARGETS, CLIENTS, MODES, st.just(1), st.just(2), st.booleans()), max_size=8)


@given(worlds(), FLOWS)
def test_policies_allow_what_was_recorded_and_nothing_else(world: Mesh, flows: list[Flow]) -> None:
    generated = least_privilege(world, flows)
    text = "\n".join(document(merge_records([response(0, DAY)]), (), generated))
    policies = facts(*filter(None, yaml.safe_load_all(text)))
    after = Mesh([*world.facts(), *policies], world.config)
    for server in after.pods():
        [*names] = [
            name
            for policy, each in zip(policies, generated.policies, strict=True)
            for name in [(each.namespace, each.name)]
            if each.namespace == server.namespace and covers(policy.selector, server.meta.labels)
        ]
        if not server.has_sidecar:
            continue
        assert names in ([], [workload_key(server)])
        for port in (8080, 9090):
            # The pods of a workload are restricted alike.
            targets = {
                (exposure.service.namespace, exposure.service.name, exposure.port.port)
                for each in world.pods()
                if workload_key(each) == workload_key(server) and each.has_sidecar
                for exposure in world.exposures(each)
                if exposure.target == port
            }
            mine = [flow for flow in flows if flow.target in targets]
            is_open = any(
                flow.by_server and flow.mode in {TrafficMode.PLAINTEXT, TrafficMode.TLS} for flow in mine
            )
            mtls = {flow.client for flow in mine if flow.mode is TrafficMode.MTLS}
            for client in (*mtls, Client("a", "one"), Client("b", "two"), Client("a", "stranger")):
                before, now = (access(each, server, port, client) for each in (world, after))
                expected = client in mtls or is_open or not names
                assert now is (before if expected else Access.DENIED)


def access(world: Mesh, server: Pod, port: int, client: Client) -> Access:
    """Whether policies allow a client with mutual TLS."""
    rules = port_rules(world, server, port)
    identity = f"spiffe://cluster.local/ns/{client.namespace}/sa/{client.name}"
    return permission(world.config, rules, identity).access if rules else Access.ALLOWED


MANIFESTS = """
apiVersion: v1
kind: Pod
metadata: {name: web-1, namespace: shop, labels: {app: Web_1, security.istio.io/tlsMode: istio}}
spec: {serviceAccountName: web, containers: [{name: web}]}
status: {podIP: 10.0.0.1, phase: Running}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec: {selector: {app: Web_1}, ports: [{name: http, port: 80, targetPort: 8080}]}
"""


def test_command(tmp_path) -> None:
    (tmp_path / "mesh.yaml").write_text(MANIFESTS)
    file = tmp_path / "traffic.json"
    file.write_text(MessageToJson(response(DAY, 2 * DAY, flow(FRONT))))
    words = ("generate", "--manifests", tmp_path / "mesh.yaml", "--record", file)
    done = xds(*words, "--dry-run")
    assert (done.exit_code, done.stderr) == (0, "")
    assert xds(*words, "--dry-run").stdout == done.stdout
    assert done.stdout.startswith(
        "# Allows the traffic that was observed from 1970-01-02 00:00 UTC to 1970-01-03 00:00 UTC.\n"
    )
    assert yaml.safe_load(done.stdout) == {
        "apiVersion": "security.istio.io/v1",
        "kind": "AuthorizationPolicy",
        "metadata": {
            "name": "web-1",
            "namespace": "shop",
            "annotations": {"istio.io/dry-run": "true"},
        },
        "spec": {
            "selector": {"matchLabels": {"app": "Web_1"}},
            "action": "ALLOW",
            "rules": [
                {
                    "from": [{"source": {"principals": ["cluster.local/ns/shop/sa/front"]}}],
                    "to": [{"operation": {"ports": ["8080"]}}],
                }
            ],
        },
    }
    file.write_text(MessageToJson(response(DAY, 2 * DAY)))
    nothing = xds(*words)
    assert (nothing.exit_code, nothing.stdout) == (1, "")
    assert (
        nothing.stderr == "no policy for Web_1.shop: no traffic to it was observed\nxds: no policy to print\n"
    )
    unknown = xds(*words, "-n", "shopp")
    assert (unknown.exit_code, unknown.stdout) == (2, "")
    assert "namespace shopp not found (-n); did you mean shop?" in unknown.stderr


def test_command_names_gaps_and_files_that_are_no_record(tmp_path) -> None:
    (tmp_path / "mesh.yaml").write_text(MANIFESTS)
    file = tmp_path / "traffic.json"
    words = ("generate", "--manifests", tmp_path / "mesh.yaml", "--record", file)
    assert xds(*words).stderr == f"xds: {file}: No such file or directory\n"
    file.write_text(json.dumps([]))
    assert f"xds: {file}: is not the output of xds observe -o json" in xds(*words).stderr
    incomplete = response(DAY, 2 * DAY, flow(FRONT))
    incomplete.incomplete.add(namespace="shop", pod="web-1", reason="not\nconnected").last.FromSeconds(
        2 * DAY
    )
    file.write_text(MessageToJson(incomplete))
    done = xds(*words)
    assert done.exit_code == 0
    assert "the record is incomplete: not\\nconnected: web-1.shop\n" in done.stderr
    assert "# Incomplete: not\\nconnected: web-1.shop\n" in done.stdout
