"""Clients outside the mesh that objects prove: STRICT breaks them, and the remedies keep them working."""

from __future__ import annotations

import textwrap
from dataclasses import replace

import pytest

from tests.policy.world import peer, pod, policy
from tests.support.callers import APP, CALLERS, EXPECTED
from xds.mesh.model.mesh import Mesh
from xds.mesh.model.objects import Change, Fact, Mode, OutsideTraffic, Ref, ServedDiff
from xds.mesh.policy.direct import (
    Refusal,
    call_steps,
    calls_to_unknown_pods,
    direct_traffic,
    mode_at,
    outside_clients,
    refusals,
    refusals_without_service,
)
from xds.mesh.policy.mtls import Reason
from xds.mesh.policy.prediction import Prediction, predict_change, scope_of
from xds.mesh.policy.reach import Answer, Result
from xds.mesh.policy.remedy import change_remedy, refusal_remedy, remedy
from xds.mesh.policy.steps import finish
from xds.mesh.sources.files import Folder, Text
from xds.mesh.sources.proposal import read_objects


def world(*manifests: str) -> Mesh:
    texts = [Text(f"{number}.yaml", textwrap.dedent(text)) for number, text in enumerate(manifests)]
    change, problems, _ = read_objects(Folder((), None, texts=texts, reads_workloads=True))
    assert change is not None
    assert [
        problem for problem in problems if not problem.notice and "NOT enforced" not in problem.what
    ] == []
    return Mesh(change.applied)


def applied(before: Mesh, *facts: Fact) -> Mesh:
    return before.apply(Change(applied=facts))


def predicted(before: Mesh, after: Mesh, *facts: Fact) -> Prediction:
    """The prediction of a change, which must not depend on its scope."""
    found = predict_change(before, after, scope_of(Change(applied=facts), before, after))
    unscoped = predict_change(before, after)
    assert found.effects == unscoped.effects
    assert [*map(told, found.refusals)] == [*map(told, unscoped.refusals)]
    return found


def strict(before: Mesh) -> Prediction:
    enforcing = peer("shop", "STRICT")
    return predicted(before, applied(before, enforcing), enforcing)


def told(refusal: Refusal) -> tuple[str, int, str]:
    return str(refusal.traffic), refusal.port, str(refusal.source or "")


@pytest.mark.parametrize("name", CALLERS)
def test_objects_prove_callers(name: str) -> None:
    found = strict(world(APP, CALLERS[name]))
    assert [told(refusal) for refusal in found.refusals] == [EXPECTED[name]]
    is_others = "monitoring/" in EXPECTED[name][2]
    is_probable = EXPECTED[name][0] in ("gateway", "external-name", "prometheus-tls")
    assert found.breaks is not (is_probable or is_others)
    assert {str(refusal.decided_by) for refusal in found.refusals} == {"PeerAuthentication shop/default"}


def test_mesh_without_callers_breaks_nothing() -> None:
    assert strict(world(APP)) == Prediction(hops=(), refusals=())


@pytest.mark.parametrize(
    "manifest",
    [
        """
        apiVersion: gateway.networking.k8s.io/v1
        kind: HTTPRoute
        metadata: {name: inside, namespace: shop}
        spec:
          parentRefs: [{kind: Service, group: "", name: web}]
          rules: [{backendRefs: [{name: web, port: 80}]}]
        """,
        """
        apiVersion: monitoring.coreos.com/v1
        kind: ServiceMonitor
        metadata: {name: elsewhere, namespace: monitoring}
        spec: {selector: {}, endpoints: [{port: http}]}
        """,
        """
        apiVersion: monitoring.coreos.com/v1
        kind: PodMonitor
        metadata: {name: others, namespace: shop}
        spec:
          selector:
            matchExpressions:
            - {key: app, operator: Exists}
            - {key: app, operator: NotIn, values: [web]}
          podMetricsEndpoints: [{port: http}]
        """,
        """
        apiVersion: networking.k8s.io/v1
        kind: Ingress
        metadata: {name: other, namespace: shop}
        spec: {defaultBackend: {service: {name: missing, port: {number: 80}}}}
        """,
        """
        apiVersion: networking.istio.io/v1
        kind: VirtualService
        metadata: {name: web, namespace: shop}
        spec: {gateways: [mesh], hosts: [web], http: [{route: [{destination: {host: web}}]}]}
        """,
        """
        apiVersion: apiregistration.k8s.io/v1
        kind: APIService
        metadata: {name: v1.apps}
        spec: {group: apps, version: v1}
        """,
        """
        apiVersion: admissionregistration.k8s.io/v1
        kind: MutatingWebhookConfiguration
        metadata: {name: malformed}
        webhooks: [x, {clientConfig: [1]}, {clientConfig: {service: {name: [1], namespace: shop}}}]
        """,
    ],
)
def test_other_objects_prove_no_caller(manifest: str) -> None:
    assert strict(world(APP, manifest)).refusals == ()


ALIAS = """
    apiVersion: v1
    kind: Service
    metadata: {name: alias, namespace: out}
    spec: {type: ExternalName, externalName: web.shop.svc.cluster.local, ports: [{name: http, port: 80}]}
"""


@pytest.mark.parametrize("port", ["number: 80", "name: plain"])
def test_callers_of_an_alias_call_the_service(port: str) -> None:
    ingress = f"""
        apiVersion: networking.k8s.io/v1
        kind: Ingress
        metadata: {{name: web, namespace: out}}
        spec: {{defaultBackend: {{service: {{name: alias, port: {{{port}}}}}}}}}
    """
    before = world(APP, ALIAS, ingress)
    assert ("gateway", 8080, "Ingress out/web") in [*map(told, strict(before).refusals)]
    assert not [*calls_to_unknown_pods(before, None)]
    removed = before.apply(Change(removed=(Ref("Service", "out", "alias"),)))
    assert strict(removed).refusals == ()
    assert [str(service) for _, service in calls_to_unknown_pods(removed, None)] == ["Service out/alias"]


def test_new_alias_may_break_pods_of_another_namespace() -> None:
    before = applied(world(APP), peer("shop", "STRICT"))
    alias = world(ALIAS).get(Ref("Service", "out", "alias"))
    assert alias is not None
    found = predicted(before, applied(before, alias), alias)
    assert [told(refusal) for refusal in found.refusals] == [
        ("external-name", 8080, "Service out/alias"),
        ("external-name", 8443, "Service out/alias"),
    ]


@pytest.mark.parametrize("host", ["example.com", "web.shop", "web.shop.svc.example", "1"])
def test_external_name_may_be_outside(host: str) -> None:
    alias = ALIAS.replace("web.shop.svc.cluster.local", host)
    assert strict(world(APP, alias)).refusals == ()


def test_requirement_with_an_unknown_operator_selects() -> None:
    monitor = """
        apiVersion: monitoring.coreos.com/v1
        kind: PodMonitor
        metadata: {name: web, namespace: shop}
        spec:
          selector:
            matchExpressions: [{key: app, operator: Gt, values: ["1"]}, {key: gone, operator: DoesNotExist}]
          podMetricsEndpoints: [{}]
    """
    found = strict(world(APP, monitor))
    assert [told(refusal)[:2] for refusal in found.refusals] == [
        ("prometheus-scrape", 8080),
        ("prometheus-scrape", 8443),
    ]


def test_port_that_no_service_has_may_break() -> None:
    peers = """
        apiVersion: apps/v1
        kind: StatefulSet
        metadata: {name: db, namespace: shop}
        spec:
          serviceName: db
          selector: {matchLabels: {app: db}}
          template:
            metadata: {labels: {app: db}}
            spec: {containers: [{name: db, image: db, ports: [{containerPort: 9042}, {containerPort: 7000}]}]}
        ---
        apiVersion: v1
        kind: Service
        metadata: {name: db, namespace: shop}
        spec: {clusterIP: None, selector: {app: db}, ports: [{name: cql, port: 9042}]}
    """
    before = world(APP, peers)
    found = strict(before)
    assert [told(refusal) for refusal in found.refusals] == [("pod-address", 7000, "")]
    assert not found.breaks
    remedy = refusal_remedy(found.refusals[0])
    assert remedy.startswith("add the port to a headless Service")
    declared = world(APP, peers.replace("port: 9042}]}", "port: 9042}, {name: gossip, port: 7000}]}"))
    assert strict(declared).refusals == ()


def test_traffic_that_moves_to_a_strict_port_breaks() -> None:
    partly = """
        apiVersion: security.istio.io/v1
        kind: PeerAuthentication
        metadata: {name: web, namespace: shop}
        spec:
          selector: {matchLabels: {app: web}}
          mtls: {mode: STRICT}
          portLevelMtls: {8080: {mode: PERMISSIVE}}
    """
    facts = (
        APP.replace("targetPort: https", "targetPort: http"),
        CALLERS["ValidatingWebhookConfiguration"],
        partly,
    )
    before, after = world(*facts), world(APP, *facts[1:])
    found = predict_change(before, after)
    assert [told(refusal) for refusal in found.refusals] == [
        ("api-server", 8443, "ValidatingWebhookConfiguration web")
    ]
    assert found.breaks
    assert predict_change(after, after).refusals == ()


def test_new_caller_of_a_strict_port_is_refused() -> None:
    before = applied(world(APP), peer("shop", "STRICT"))
    monitor = tuple(world(CALLERS["ServiceMonitor"]).facts(with_defaults=False))
    found = predicted(before, applied(before, *monitor), *monitor)
    assert [told(refusal) for refusal in found.refusals] == [EXPECTED["ServiceMonitor"]]


def test_probes_and_scrapes_that_the_sidecar_no_longer_answers_break() -> None:
    probed = APP.replace(
        "image: web\n", "image: web\n            readinessProbe: {httpGet: {port: http, path: /}}\n"
    )
    enforcing = """
        apiVersion: security.istio.io/v1
        kind: PeerAuthentication
        metadata: {name: default, namespace: shop}
        spec: {mtls: {mode: STRICT}}
    """
    kept = probed.replace(
        "metadata: {labels: {app: web}}",
        "metadata: {labels: {app: web}, annotations: {sidecar.istio.io/rewriteAppHTTPProbers: 'false'}}",
    )
    found = predict_change(world(probed, enforcing), world(kept, enforcing))
    assert [told(refusal) for refusal in found.refusals] == [("kubelet-probe", 8080, "")]
    assert found.breaks


@pytest.mark.parametrize(
    ("kind", "app", "ports"),
    [
        ("StatefulSet", "other", ""),
        ("StatefulSet", "web", "ports: [{name: https, port: 8443}]"),
        ("Deployment", "web", "ports: [{name: https, port: 8443}]"),
        ("Deployment", "web", ""),
    ],
)
def test_peers_use_only_headless_services(kind: str, app: str, ports: str) -> None:
    """Sidecars send plaintext to a pod's address at a port that only a Service with a clusterIP has."""
    peers = f"""
        apiVersion: v1
        kind: Service
        metadata: {{name: peers, namespace: shop}}
        spec: {{clusterIP: None, selector: {{app: {app}}}, {ports}}}
    """
    found = strict(world(APP.replace("kind: Deployment", f"kind: {kind}"), peers))
    expected = [("pod-address", port, "") for port in (8080, 8443) if f"port: {port}" not in ports]
    assert [told(refusal) for refusal in found.refusals] == expected
    assert not found.breaks


def test_pod_of_a_statefulset_has_peers() -> None:
    stateful = """
        apiVersion: v1
        kind: Pod
        metadata:
          name: web-0
          namespace: shop
          labels: {app: web, security.istio.io/tlsMode: istio, statefulset.kubernetes.io/pod-name: web-0}
        spec: {containers: [{name: web, image: web, ports: [{containerPort: 8080, name: http}]}]}
        status: {podIP: 10.0.0.1}
    """
    service = APP.split("---")[-1]
    assert [told(refusal) for refusal in strict(world(stateful, service)).refusals] == [
        ("pod-address", 8080, "")
    ]


def test_host_port_has_outside_clients() -> None:
    published = APP.replace("containerPort: 8443,", "containerPort: 8443, hostPort: 443,")
    found = strict(world(published))
    assert [told(refusal) for refusal in found.refusals] == [("outside-client", 8443, "")]
    assert found.breaks


def test_http_hooks_are_probes() -> None:
    hooked = APP.replace(
        "image: web\n", "image: web\n            lifecycle: {preStop: {httpGet: {port: http}}}\n"
    )
    kept = hooked.replace(
        "metadata: {labels: {app: web}}",
        "metadata: {labels: {app: web}, annotations: {sidecar.istio.io/rewriteAppHTTPProbers: 'false'}}",
    )
    assert strict(world(hooked)).refusals == ()
    assert [told(refusal) for refusal in strict(world(kept)).refusals] == [("kubelet-probe", 8080, "")]


@pytest.mark.parametrize("name", CALLERS)
def test_exempted_port_keeps_the_others_strict(name: str) -> None:
    """The remedy that every refusal has."""
    before = world(APP, CALLERS[name])
    (refusal,) = strict(before).refusals
    text = refusal_remedy(refusal)
    assert (
        f"exempt port {refusal.port} (PeerAuthentication with a selector, mtls STRICT and "
        f"portLevelMtls {refusal.port} PERMISSIVE)"
    ) in text
    exempt = peer("shop", "STRICT", name="web", ports={refusal.port: "PERMISSIVE"}, app="web")
    for enforcing in (peer("shop", "STRICT"), policy("shop", "STRICT"), policy("", "STRICT")):
        after = applied(before, enforcing, exempt)
        assert predicted(before, after, enforcing, exempt).refusals == ()
        modes = {port: mode_at(after, pod, port) for pod in after.pods() for port in (8080, 8443)}
        assert {port: mode[0] for port, mode in modes.items() if mode} == {
            8080: Mode.STRICT,
            8443: Mode.STRICT,
            refusal.port: Mode.PERMISSIVE,
        }


ANNOTATED = APP.replace(
    "metadata: {labels: {app: web}}",
    """metadata:
          labels: {app: web}
          annotations: {prometheus.io/scrape: "true", prometheus.io/port: "8080"}""",
)


@pytest.mark.parametrize(
    ("name", "second", "repair"),
    [
        (
            "ServiceMonitor targetPort",
            "let ServiceMonitor monitoring/web scrape port 15020",
            {"8080": "15020"},
        ),
        (
            "scraped Service",
            "remove the annotations of Service shop/scraped",
            {"prometheus.io/scrape": "example.com/scrape"},
        ),
    ],
)
def test_merged_metrics_are_scraped_under_strict(name: str, second: str, repair: dict[str, str]) -> None:
    (refusal,) = strict(world(APP, CALLERS[name])).refusals
    first = "annotate the pods for Prometheus, so that injection merges the metrics"
    assert refusal_remedy(refusal).startswith(f"{first}, and {second}, or exempt port 8080 (")
    manifest = CALLERS[name]
    for old, new in repair.items():
        manifest = manifest.replace(old, new)
    assert strict(world(ANNOTATED, manifest)).refusals == ()


def test_remedy_of_a_scrape_with_a_certificate_names_what_is_unknown() -> None:
    (refusal,) = strict(world(APP, CALLERS["ServiceMonitor with a client certificate"])).refusals
    first = "check that the certificate of Prometheus is one of the mesh, or exempt port 8443"
    assert refusal_remedy(refusal).startswith(first)


def test_gateway_with_a_sidecar_can_be_published() -> None:
    (refusal,) = strict(world(APP, CALLERS["LoadBalancer"])).refusals
    assert refusal_remedy(refusal).startswith("publish a gateway with a sidecar instead, or exempt")
    gateway = """
        apiVersion: apps/v1
        kind: Deployment
        metadata: {name: gateway, namespace: edge}
        spec:
          selector: {matchLabels: {app: gateway}}
          template:
            metadata: {labels: {app: gateway, sidecar.istio.io/inject: "true"}}
            spec: {containers: [{name: gateway, image: gateway, ports: [{containerPort: 8000}]}]}
        ---
        apiVersion: v1
        kind: Service
        metadata: {name: public, namespace: edge}
        spec: {type: LoadBalancer, selector: {app: gateway}, ports: [{port: 80, targetPort: 8000}]}
    """
    assert strict(world(APP, gateway)) == Prediction(hops=(), refusals=())


def test_certain_traffic_hides_that_which_is_only_probable() -> None:
    before = world(APP, CALLERS["Ingress"], CALLERS["LoadBalancer"])
    (pod,) = before.pods()
    traffic = direct_traffic(before, pod, finish(call_steps(before)))
    assert [each.traffic for each in traffic if each.port == 8080] == [OutsideTraffic.OUTSIDE_CLIENT]


def test_pod_on_the_host_network_is_not_told_to_add_a_sidecar() -> None:
    node = """
        apiVersion: apps/v1
        kind: DaemonSet
        metadata: {name: node, namespace: shop}
        spec:
          selector: {matchLabels: {app: node}}
          template:
            metadata: {labels: {app: node}}
            spec: {hostNetwork: true, containers: [{name: node, image: node}]}
    """
    found = strict(world(APP, node))
    (remedy,) = {change_remedy(change) for change in found.hops}
    assert remedy == (
        "take ds/node (shop/default) off the host network and add a sidecar, "
        "or use PERMISSIVE in PeerAuthentication shop/default"
    )


def test_monitor_of_another_namespace_only_may_break() -> None:
    """Anyone could refuse others STRICT with it."""
    found = strict(world(APP, CALLERS["ServiceMonitor"]))
    assert (found.breaks, [refusal.breaks for refusal in found.refusals]) == (False, [False])


@pytest.mark.parametrize("port", [99999999999, -1, 0, "true", '"65536"', "[1]"])
def test_invalid_port_is_any_port(port: object) -> None:
    monitor = f"""
        apiVersion: monitoring.coreos.com/v1
        kind: PodMonitor
        metadata: {{name: web, namespace: shop}}
        spec: {{podMetricsEndpoints: [{{portNumber: {port}}}]}}
    """
    found = strict(world(APP, monitor))
    assert [refusal.port for refusal in found.refusals] == [8080, 8443]


def test_index_of_callers_is_kept_for_policies_and_rollouts() -> None:
    before = world(APP, CALLERS["APIService"])
    calls = finish(call_steps(before))
    assert finish(call_steps(applied(before, peer("shop", "STRICT")))) is calls
    assert finish(call_steps(before.with_served(ServedDiff(generation=1)))) is calls
    (pod,) = before.pods()
    assert finish(call_steps(before.apply(Change(applied=(pod,))))) is not calls


def test_removed_caller_is_forgotten() -> None:
    before = world(APP, CALLERS["APIService"])
    after = before.apply(Change(removed=(Ref("APIService", "", "v1beta1.metrics.k8s.io"),)))
    assert strict(before).breaks
    assert strict(after).refusals == ()
    assert after.touched == frozenset()


def test_monitors_select_by_all_their_labels() -> None:
    monitor = """
        apiVersion: monitoring.coreos.com/v1
        kind: ServiceMonitor
        metadata: {name: NAME, namespace: shop}
        spec: {selector: {matchLabels: LABELS}, endpoints: [{port: http}]}
    """
    none = "matchLabels: {app: web}, matchExpressions: [{key: app, operator: DoesNotExist}]"
    pods = CALLERS["PodMonitor"].replace("matchLabels: {app: web}", none)
    selecting = monitor.replace("NAME", "one").replace("LABELS", "{app: web}")
    other = monitor.replace("NAME", "other").replace("matchLabels: LABELS", none)
    found = strict(world(APP, selecting, other, pods))
    assert [told(refusal) for refusal in found.refusals] == [
        ("prometheus-scrape", 8080, "ServiceMonitor shop/one")
    ]


def test_published_service_may_have_servers_outside_the_mesh() -> None:
    outside = """
        apiVersion: v1
        kind: Service
        metadata: {name: legacy, namespace: shop}
        spec: {type: LoadBalancer, ports: [{port: 80}]}
        ---
        apiVersion: discovery.k8s.io/v1
        kind: EndpointSlice
        metadata: {name: legacy-1, namespace: shop, labels: {kubernetes.io/service-name: legacy}}
        addressType: IPv4
        ports: [{port: 80}]
        endpoints: [{addresses: [192.0.2.1]}]
    """
    assert strict(world(APP, outside)).refusals == ()


def test_remedy_for_plaintext_of_the_host_network() -> None:
    answer = Answer(Result.PLAINTEXT, Reason.CLIENT_WITHOUT_SIDECAR, ())
    node = replace(pod("node", "shop", sidecar=False), host_network=True)
    text = "take shop/node off the host network and add a sidecar, or accept plaintext"
    assert remedy(answer, "shop/node", node) == text


def test_calls_to_unknown_pods_are_named() -> None:
    selects_none = CALLERS["APIService"].replace("name: web,", "name: gone,")
    empty = """
        apiVersion: v1
        kind: Service
        metadata: {name: gone, namespace: shop}
        spec: {ports: [{port: 443}]}
    """
    for known in (world(APP, selects_none), world(APP, selects_none, empty)):
        found = [(str(caller.ref), str(service)) for caller, service in calls_to_unknown_pods(known, None)]
        assert found == [("APIService v1beta1.metrics.k8s.io", "Service shop/gone")]
        assert [*calls_to_unknown_pods(known, {"shop"})]
        assert not [*calls_to_unknown_pods(known, {"other"})]
    assert not [*calls_to_unknown_pods(world(APP, CALLERS["APIService"], CALLERS["PodMonitor"]), None)]


@pytest.mark.parametrize("name", ["ServiceMonitor", "ServiceMonitor targetPort", "PodMonitor"])
@pytest.mark.parametrize(("old", "new"), [("port: http", "port: other"), ("web]", "gone]"), ("app:", "x:")])
def test_monitors_that_select_nothing_are_named(name: str, old: str, new: str) -> None:
    assert not [*calls_to_unknown_pods(world(APP, CALLERS[name]), None)]
    manifest = CALLERS[name].replace(old, new)
    known = world(APP, manifest)
    expected = [] if manifest == CALLERS[name] else [(EXPECTED[name][2], None)]
    assert [(str(caller.ref), service) for caller, service in calls_to_unknown_pods(known, None)] == expected
    assert len([*calls_to_unknown_pods(known, {"shop"})]) == len(expected)
    assert bool([*calls_to_unknown_pods(known, {"other"})]) is False


SERVED = [
    name for name in CALLERS if not name.startswith("PodMonitor") and name != "port of a scraped Service"
]


@pytest.mark.parametrize("name", SERVED)
def test_callers_of_services_are_clients(name: str) -> None:
    mesh = world(APP, CALLERS[name], CALLERS["PodMonitor"])
    traffic, _, source = EXPECTED[name]
    found = {
        (str(client.traffic), str(client.source), client.is_certain)
        for clients in outside_clients(mesh).values()
        for client in clients
    }
    is_certain = OutsideTraffic(traffic).is_certain and "monitoring/" not in source
    assert found == {(traffic, source, is_certain)}
    assert outside_clients(mesh) is outside_clients(mesh)


@pytest.mark.parametrize("name", CALLERS)
def test_each_refused_caller_is_listed_once(name: str) -> None:
    """Callers of Services, and those of pods, are together what is predicted to break."""
    mesh = applied(world(APP, CALLERS[name]), peer("shop", "STRICT"))
    breaking = [told(refusal) for refusal in refusals(mesh, mesh.pods())]
    of_services = {
        (str(client.traffic), str(client.source))
        for clients in outside_clients(mesh).values()
        for client in clients
        if client.is_certain
    }
    of_pods = [told(refusal) for refusal in refusals_without_service(mesh, mesh.pods())]
    assert [*of_services, *((traffic, source) for traffic, _, source in of_pods)] == [
        (traffic, source) for traffic, _, source in breaking
    ]
    assert refusals_without_service(mesh, mesh.pods(), set()) == []
    ports = {(pod.ref, port) for pod in mesh.pods() for _, port, _ in of_pods}
    assert [told(refusal) for refusal in refusals_without_service(mesh, mesh.pods(), ports)] == of_pods
