"""The source reads the same facts from a real API server as from the fake one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.kubernetes.places import Place
from tests.sources.following import QUICK, Followed, refs
from xds.mesh.model.objects import Pod, Ref
from xds.mesh.sources.files import Folder
from xds.mesh.sources.kubernetes import Kubernetes


@pytest.fixture(autouse=True)
async def kinds(place: Place) -> None:
    await place.serve_kinds()


POD = {
    "metadata": {"name": "web", "labels": {"app": "web", "security.istio.io/tlsMode": "istio"}},
    "spec": {
        "containers": [{"name": "app", "image": "app", "ports": [{"name": "http", "containerPort": 80}]}]
    },
}
RUNNING = {
    "phase": "Running",
    "podIP": "10.244.7.7",
    "podIPs": [{"ip": "10.244.7.7"}],
    "conditions": [{"type": "Ready", "status": "True"}],
}


async def test_facts_equal_those_from_files(place: Place, tmp_path: Path) -> None:
    plurals = {"pods": "", "services": "", "serviceaccounts": "", "endpointslices": "discovery.k8s.io"}
    account = {"metadata": {"name": "web"}}
    ports = [
        {"name": "http", "port": 8000, "targetPort": "http"},
        {"name": "dns", "port": 53, "protocol": "UDP"},
    ]
    service = {"metadata": {"name": "web"}, "spec": {"selector": {"app": "web"}, "ports": ports}}
    last = {"kubectl.kubernetes.io/last-applied-configuration": json.dumps(service)}
    slices = {
        "metadata": {"name": "web-made", "labels": {"kubernetes.io/service-name": "web"}},
        "addressType": "IPv4",
        "ports": [{"name": "http", "port": 80, "protocol": "TCP"}],
        "endpoints": [
            {
                "addresses": ["10.244.7.7"],
                "conditions": {"ready": True},
                "targetRef": {"kind": "Pod", "name": "web", "namespace": place.namespace},
            }
        ],
    }
    source = Kubernetes(place.api, options=QUICK)
    async with Followed(source) as followed:
        await followed.until(lambda: followed.complete)
        service["metadata"]["annotations"] = last  # type: ignore[index]
        await place.other.create(place.path("serviceaccounts"), account)
        await place.other.create(place.path("services"), service)
        await place.other.create(
            place.path("pods"), {**POD, "spec": {**POD["spec"], "serviceAccountName": "web"}}
        )
        await place.other.patch(f"{place.path('pods', 'web')}/status", {"status": RUNNING})
        await place.other.create(
            f"/apis/discovery.k8s.io/v1/namespaces/{place.namespace}/endpointslices", slices
        )
        wanted = {f"{kind} {place.namespace}/web" for kind in ("Service", "Pod", "ServiceAccount")}
        wanted.add(f"EndpointSlice {place.namespace}/web-made")

        def pod() -> Any:
            fact = followed.facts.get(Ref("Pod", place.namespace, "web"))
            return isinstance(fact, Pod) and fact.ready and fact.address

        await followed.until(lambda: refs(followed.facts) >= wanted and pod())
        messages = [line for line in followed.messages(notices=True) if place.namespace in line]
        assert messages == []
        actual = {ref: fact for ref, fact in followed.of(place.namespace).items() if str(ref) in wanted}
    for plural, group in plurals.items():
        root = f"/apis/{group}/v1" if group else "/api/v1"
        listed = await place.other.get(f"{root}/namespaces/{place.namespace}/{plural}")
        for item in listed["items"]:
            item["metadata"].get("annotations", {}).pop(
                "kubectl.kubernetes.io/last-applied-configuration", None
            )
        (tmp_path / "files").mkdir(exist_ok=True)
        (tmp_path / f"files/{plural}.json").write_text(json.dumps(listed))
    read = {fact.ref: fact for fact in Folder(tmp_path / "files").load().change.applied}
    assert actual == {ref: fact for ref, fact in read.items() if str(ref) in wanted}


async def test_bad_update_is_reported_and_not_used(place: Place) -> None:
    ref = Ref("Pod", place.namespace, "web")
    async with Followed(Kubernetes(place.api, options=QUICK)) as followed:
        await followed.until(lambda: followed.complete)
        await place.other.create(place.path("pods"), POD)
        good = await followed.until(lambda: followed.facts.get(ref))
        mode = {
            "metadata": {
                "annotations": {"sidecar.istio.io/interceptionMode": "HOPE"},
                "labels": {"app": "new"},
            }
        }
        await place.other.patch(place.path("pods", "web"), mode)
        [message] = await followed.until(
            lambda: [line for line in followed.messages() if place.namespace in line]
        )
        assert message.startswith(
            f'{ref}: metadata.annotations["sidecar.istio.io/interceptionMode"] must be one of'
        )
        assert followed.facts[ref] == good
        await place.other.patch(place.path("pods", "web"), {"metadata": {"annotations": None}})
        await followed.until(lambda: not [line for line in followed.messages() if place.namespace in line])
        assert followed.facts[ref].meta.labels["app"] == "new"
        await place.other.patch(place.path("pods", "web"), mode)
        await followed.until(lambda: [line for line in followed.messages() if place.namespace in line])
        await place.other.delete(place.path("pods", "web"), gracePeriodSeconds=0)
        await followed.until(lambda: ref not in followed.facts)
        assert not [line for line in followed.messages() if place.namespace in line]


async def test_options_override_the_settings_in_the_config_map(place: Place) -> None:
    source = Kubernetes(
        place.api,
        assignments=["values.global.mtls.auto=false"],
        namespace=place.namespace,
        config_map="istio",
        options=QUICK,
    )
    where = f"ConfigMap {place.namespace}/istio"
    async with Followed(source) as followed:
        await followed.until(lambda: followed.complete)
        assert followed.config
        assert followed.config.root_namespace == place.namespace
        assert not followed.config.enable_auto_mtls
        assert f"{where}: does not exist; the defaults apply" in followed.messages(notices=True)
        await place.put(
            "istio", mesh="trustDomain: first\nenableAutoMtls: true\ndefaultConfig: {tracing: {}}\n"
        )
        await followed.until(lambda: followed.config and followed.config.trust_domain == "first")
        assert not followed.config.enable_auto_mtls
        notices = [line for line in followed.messages(notices=True) if line.startswith(where)]
        assert notices == [
            (
                f'{where}: mesh config: defaultConfig has no effect here, on line 3 of the key "mesh" '
                "(use annotations of pods, or flags of xds serve)"
            ),
            (
                f"{where}: trustDomain changes from cluster.local to first, which sidecars do not accept "
                "yet: requests fail until every sidecar has the new settings. To avoid this, first add first "
                "to trustDomainAliases"
            ),
        ]
        await place.patch("istio", mesh="trustDomain: [second]\n")
        [message] = await followed.until(
            lambda: [line for line in followed.messages() if line.startswith(where)]
        )
        assert message == (
            f'{where}: mesh config: trustDomain must be a string, not a list, on line 1 of the key "mesh"'
        )
        await place.patch("istio", mesh="trustDomain: third\n")
        await followed.until(lambda: followed.config and followed.config.trust_domain == "third")
        await place.delete("istio")
        await followed.until(lambda: followed.config and followed.config.trust_domain == "cluster.local")


async def test_first_report_is_complete(place: Place) -> None:
    await place.other.create(place.path("pods"), POD)
    source = Kubernetes(place.api, options=QUICK)
    assert source.pending_reason().startswith("waiting for namespaces, serviceaccounts, services, pods")
    async with Followed(source) as followed:
        await followed.until(lambda: followed.complete)
        first = next(report for report in followed.reports if report.complete)
        assert f"Pod {place.namespace}/web" in refs(fact.ref for fact in first.change.applied)
        assert first.change.config
        assert source.pending_reason() == source.staleness() == ""
        assert source.stale_seconds() == 0
