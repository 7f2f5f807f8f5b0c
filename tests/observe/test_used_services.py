"""Sidecars for what was recorded: which services they show, and that recorded traffic does not change."""

from __future__ import annotations

import pytest
import yaml
from google.protobuf.json_format import MessageToJson
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.cli.commands import xds
from tests.observe.records import response
from tests.policy.meshes import meshes
from tests.policy.world import mesh, meta, pod, service
from xds.mesh.model.mesh import Mesh
from xds.mesh.model.objects import Sidecar
from xds.mesh.observe.edges import Client, Target, TrafficMode
from xds.mesh.observe.record import Flow, merge_records
from xds.mesh.observe.replay import replay
from xds.mesh.observe.used_services import sidecar_document, used_services
from xds.mesh.observe.workloads import workload
from xds.mesh.parse import parse
from xds.mesh.policy.visibility import allows_any_outbound

WEB, STOCK = Target("shop", "web", 80), Target("stock", "items", 90)
FRONT, JOB = Client("front", "front"), Client("jobs", "job")
WORLD = (
    *(pod(name, name) for name in ("front", "shop", "stock")),
    pod("bare", "bare", sidecar=False),
    service("web", "shop"),
    service("items", "stock"),
)
DAY = 86400


def flow(client: Client, target: Target, mode: TrafficMode = TrafficMode.MTLS) -> Flow:
    return Flow(target, client, mode, 10, 20)


NOTHING = "no traffic from it to services was observed"
CASES = {
    "by namespace of the client": (
        [
            flow(FRONT, STOCK),
            flow(FRONT, WEB),
            flow(Client("front", "other"), WEB),
            flow(Client("shop", "a"), STOCK),
        ],
        {
            "front": ("shop/web.shop.svc.cluster.local", "stock/items.stock.svc.cluster.local"),
            "shop": ("stock/items.stock.svc.cluster.local",),
        },
    ),
    "in any mode": (
        [flow(FRONT, WEB, TrafficMode.PLAINTEXT), flow(FRONT, STOCK, TrafficMode.REFUSED)],
        {"front": ("shop/web.shop.svc.cluster.local", "stock/items.stock.svc.cluster.local")},
    ),
    "clients without a sidecar": (
        [flow(Client("bare", "bare"), WEB), flow(Client("", "192.0.2.1"), WEB)],
        {},
    ),
    "ports of pods, and services that are gone": (
        [flow(FRONT, Target("shop", "pod/shop", 7000)), flow(FRONT, Target("shop", "old", 80))],
        {},
    ),
}


@pytest.mark.parametrize(("flows", "hosts"), CASES.values(), ids=CASES)
def test_hosts(flows: list[Flow], hosts: dict[str, tuple[str, ...]]) -> None:
    found = used_services(mesh(*WORLD), flows)
    assert found.hosts == hosts
    assert dict(found.omitted) == {name: NOTHING for name in ("front", "shop", "stock") if name not in hosts}


def test_namespaces_are_selected_and_keep_their_sidecar() -> None:
    world = mesh(*WORLD, Sidecar(meta=meta("Sidecar", "front", "own")))
    flows = [flow(FRONT, WEB), flow(Client("shop", "a"), STOCK)]
    found = used_services(world, flows, ["front", "stock"])
    assert found.hosts == {}
    assert dict(found.omitted) == {
        "front": "it has Sidecar front/own",
        "stock": NOTHING,
    }


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(meshes(), st.data())
def test_recorded_traffic_does_not_change(before: Mesh, data: st.DataObject) -> None:
    targets = [
        Target(each.namespace, each.name, port.port) for each in before.services() for port in each.ports
    ]
    clients = sorted({workload(each) for each in before.pods()})
    pairs = st.tuples(st.sampled_from(clients), st.sampled_from(targets), st.sampled_from(TrafficMode))
    flows = [flow(*each) for each in data.draw(st.lists(pairs, min_size=1, max_size=5))]
    found = used_services(before, flows)
    text = "\n".join(sidecar_document(merge_records([response(0, DAY)]), (), found))
    parsed = [each for one in yaml.safe_load_all(text) if one for each in parse(one, str)]
    assert {each.fact.namespace for each in parsed if not each.problems} == {*found.hosts}
    after = Mesh([*before.facts(), *(each.fact for each in parsed)], before.config)
    for client in before.pods():
        allowed = {
            allows_any_outbound(each, client.namespace, client.meta.labels) for each in (before, after)
        }
        assert len(allowed) == 1
    assert not replay(before, after, sorted({*flows})).changes


MANIFESTS = """
apiVersion: v1
kind: Pod
metadata: {name: front-1, namespace: front, labels: {app: front, security.istio.io/tlsMode: istio}}
spec: {serviceAccountName: front, containers: [{name: web}]}
status: {podIP: 10.0.0.1, phase: Running}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec: {selector: {app: web}, ports: [{name: http, port: 80, targetPort: 8080}]}
"""


def test_command(tmp_path) -> None:
    (tmp_path / "mesh.yaml").write_text(MANIFESTS)
    file = tmp_path / "traffic.json"
    words = ("generate", "--manifests", tmp_path / "mesh.yaml", "--record", file, "--kind", "Sidecar")
    incomplete = response(DAY, 2 * DAY, flow(FRONT, WEB), flow(JOB, WEB))
    incomplete.incomplete.add(namespace="shop", pod="web-1", reason="not\nconnected").last.FromSeconds(
        2 * DAY
    )
    file.write_text(MessageToJson(incomplete))
    done = xds(*words)
    assert (done.exit_code, done.stderr) == (
        0,
        "the record is incomplete: not\\nconnected: web-1.shop\n",
    )
    assert "# Incomplete: not\\nconnected: web-1.shop\n" in done.stdout
    assert yaml.safe_load(done.stdout) == {
        "apiVersion": "networking.istio.io/v1",
        "kind": "Sidecar",
        "metadata": {"name": "default", "namespace": "front"},
        "spec": {"egress": [{"hosts": ["shop/web.shop.svc.cluster.local"]}]},
    }
    file.write_text(MessageToJson(response(DAY, 2 * DAY)))
    nothing = xds(*words)
    assert (nothing.exit_code, nothing.stdout) == (1, "")
    assert nothing.stderr == (f"no Sidecar for namespace front: {NOTHING}\nxds: no Sidecar to print\n")
    for option in ("--dry-run", "--check"):
        assert f"{option} has no effect with --kind Sidecar" in xds(*words, option).stderr
