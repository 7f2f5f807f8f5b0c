"""Facts from an API server are those of the same objects in files, and what stands in the way is told once."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.golden.cases import CASES, manifests, options
from tests.sources.fake_apiserver import NOBODY, FakeApiServer
from tests.sources.fake_objects import ISTIO
from tests.sources.faults import status
from tests.sources.following import QUICK, Followed, refs
from xds.mesh.kube.api import KubeApi
from xds.mesh.model.objects import Change, Fact, Mode, PeerAuthentication, Ref
from xds.mesh.parse import KINDS
from xds.mesh.sources.documents import Document, read_documents
from xds.mesh.sources.files import Folder
from xds.mesh.sources.kubernetes import Kubernetes
from xds.mesh.sources.settings import SettingsLoader

PLURALS = {
    "Namespace": ("", "namespaces"),
    "Service": ("", "services"),
    "Pod": ("", "pods"),
    "ServiceAccount": ("", "serviceaccounts"),
    "ConfigMap": ("", "configmaps"),
    "EndpointSlice": ("discovery.k8s.io", "endpointslices"),
    **{kind: (group, plural) for group, _, plural, kind in ISTIO},
}


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[FakeApiServer]:
    async with FakeApiServer(tmp_path) as server:
        server.serve_istio()
        yield server


@pytest.fixture
async def api(server: FakeApiServer) -> AsyncIterator[KubeApi]:
    async with await server.connect() as api:
        yield api


async def put(server: FakeApiServer, obj: dict[str, Any]) -> None:
    group, plural = PLURALS[obj["kind"]]
    namespaced = next((kind.namespaced for kind in KINDS if kind.name == obj["kind"]), True)
    if namespaced:
        obj["metadata"].setdefault("namespace", "default")
    await server.put(plural, obj, group)


def policy(mode: str, name: str = "default") -> dict[str, Any]:
    spec = {"mtls": {"mode": mode}}
    return {"kind": "PeerAuthentication", "metadata": {"name": name, "namespace": "shop"}, "spec": spec}


def plain(fact: Fact) -> Fact:
    """A fact without what a server gives every object."""
    return replace(fact, meta=replace(fact.meta, uid="", created=None))


def mode(followed: Followed, ref: Ref) -> Mode | None:
    fact = followed.facts[ref]
    assert isinstance(fact, PeerAuthentication)
    return fact.mode


@pytest.mark.parametrize("case", CASES)
async def test_golden_meshes_are_the_same_from_files_and_from_an_api_server(
    case: Path, server: FakeApiServer, api: KubeApi, tmp_path: Path
) -> None:
    mesh, assignments = options(case)
    server.serve_istio("v1beta1" if "v1beta1" in manifests(case) else "v1")
    (tmp_path / "files").mkdir()
    (tmp_path / "files/in.yaml").write_text(manifests(case))
    folder = Folder(tmp_path / "files", SettingsLoader(mesh, assignments)).load().change
    for document in read_documents(manifests(case), "in.yaml"):
        assert isinstance(document, Document)
        assert isinstance(document.value, dict)
        if document.value["kind"] in PLURALS:
            await put(server, document.value)
    if mesh:
        data = {"mesh": mesh.read_text()}
        metadata = {"name": "xds", "namespace": "istio-system"}
        await put(server, {"kind": "ConfigMap", "metadata": metadata, "data": data})
    async with Followed(Kubernetes(api, assignments=assignments, options=QUICK)) as followed:
        await followed.until(lambda: followed.complete)
        assert followed.said() == []
        assert followed.config == folder.config
        wanted = {fact.ref: plain(fact) for fact in folder.applied if fact.ref.kind != "Endpoints"}
        assert {ref: plain(fact) for ref, fact in followed.facts.items()} == wanted
        assert len(wanted) > 1


async def test_what_a_server_adds_to_objects_is_no_news(server: FakeApiServer, api: KubeApi) -> None:
    annotations = {"kubectl.kubernetes.io/last-applied-configuration": "{}"}
    new = {"allocatedToTheFuture": True}
    for kind, body in {
        "Pod": {"spec": {"containers": [{"name": "a", "newField": 1}], **new}, "status": {"newStatus": 1}},
        "Service": {"spec": {"clusterIP": "10.0.0.1", "ports": [{"port": 80, "newField": 1}], **new}},
        "Namespace": {"spec": {"finalizers": ["kubernetes"], **new}},
        "ServiceAccount": new,
    }.items():
        meta = {"name": "it", "annotations": dict(annotations), "generation": 3, "ownerReferences": []}
        await put(server, {"kind": kind, "metadata": meta, **body})
    await put(server, {**policy("STRICT"), "status": {"observedGeneration": "1"}})
    async with Followed(Kubernetes(api, options=QUICK)) as followed:
        await followed.until(lambda: followed.complete)
        assert [
            line for line in followed.said(notices=True) if "does not exist; the defaults" not in line
        ] == []
        assert followed.facts[Ref("Pod", "default", "it")].meta.annotations == {}
        assert followed.facts[Ref("Pod", "default", "it")].meta.origin == ""


EFFECT = "; until it is repaired, STRICT applies to pods in namespace shop (if shop is the root namespace, to the whole mesh)"


async def test_a_bad_policy_is_told_by_name_and_gone_when_it_is_deleted(
    server: FakeApiServer, api: KubeApi
) -> None:
    ref = Ref("PeerAuthentication", "shop", "default")
    await put(server, policy("STRICT"))
    await put(server, policy("SOMETIMES", "other"))
    async with Followed(Kubernetes(api, options=QUICK)) as followed:
        await followed.until(lambda: followed.complete)
        assert refs(followed.facts) == {str(ref), "PeerAuthentication shop/other"}
        wrong = "spec.mtls.mode must be one of UNSET, DISABLE, PERMISSIVE, STRICT, not 'SOMETIMES'"
        assert followed.said() == [f"PeerAuthentication shop/other: {wrong}{EFFECT}"]
        good = followed.facts[ref]
        await put(server, policy("SOMETIMES"))
        await followed.until(lambda: f"{ref}: {wrong}" in followed.said())
        assert followed.facts[ref] == good
        listed = len(server.asked_for("list peerauthentications"))
        await server.compact()
        await followed.until(lambda: len(server.asked_for("list peerauthentications")) > listed)
        await put(server, policy("STRICT", "third"))
        await followed.until(lambda: Ref("PeerAuthentication", "shop", "third") in followed.facts)
        assert followed.facts[ref] == good, "listed anew it is as bad as before"
        for name in ("default", "other"):
            await server.remove("peerauthentications", "shop", name, "security.istio.io")
        await followed.until(lambda: not followed.said())
        assert ref not in followed.facts
        assert not [problem for problem in followed.source.problems if not problem.notice]


async def test_a_bad_successor_of_the_same_name_fails_closed(server: FakeApiServer, api: KubeApi) -> None:
    ref = Ref("PeerAuthentication", "shop", "default")
    await put(server, policy("PERMISSIVE"))
    async with Followed(Kubernetes(api, options=QUICK)) as followed:
        await followed.until(lambda: ref in followed.facts)
        await server.stop()
        await server.remove("peerauthentications", "shop", "default", "security.istio.io")
        await put(server, policy("SOMETIMES"))
        server.compacted = server.version
        await server.start()
        await followed.until(lambda: mode(followed, ref) is Mode.STRICT)
        # The outage may be reported a little longer.
        await followed.until(lambda: len(followed.said()) == 1)
        assert EFFECT in followed.said()[0]
        for wrong in ("NEVER", "SELDOM"):
            await put(server, policy(wrong))
            await followed.until(lambda wrong=wrong: wrong in str(followed.said()))
            assert mode(followed, ref) is Mode.STRICT
            assert EFFECT in str(followed.said()), "what fails closed is no version to go back to"
        await put(server, policy("PERMISSIVE"))
        await followed.until(lambda: mode(followed, ref) is Mode.PERMISSIVE)


async def test_kinds_that_may_not_be_read_are_waited_for(server: FakeApiServer) -> None:
    async with await server.connect(NOBODY) as api, Followed(Kubernetes(api, options=QUICK)) as followed:
        await followed.until(lambda: len(followed.said()) == 10)
        said = {problem.where: problem for problem in followed.problems}
        assert said["destinationrules.networking.istio.io"].hint == (
            "add to the rules of the ClusterRole: - "
            '{apiGroups: ["networking.istio.io"], resources: ["destinationrules"], verbs: ["get", "list", "watch"]}'
        )
        assert said["configmaps"].hint == (
            "add to the rules of a Role in namespace istio-system: - "
            '{apiGroups: [""], resources: ["configmaps"], resourceNames: ["xds"], verbs: ["get", "list", "watch"]}'
        )
        assert 'User "nobody" cannot list resource "pods"' in said["pods"].what
        told = sum(len(report.problems) for report in followed.reports)
        asked = len(server.asked_for("list pods"))
        await followed.until(lambda: len(server.asked_for("list pods")) > asked + 5)
        assert sum(len(report.problems) for report in followed.reports) == told
        assert not followed.complete
        lines = followed.source.pending_reason().splitlines()
        assert len(lines) == 10
        [pods] = [each for each in lines if each.startswith("waiting for pods: access is denied")]
        assert 'User "nobody" cannot list resource "pods"' in pods
        assert all('verbs: ["get", "list", "watch"]}' in each for each in lines)


async def test_what_may_no_longer_be_read_is_said_with_since_when_and_stays(
    server: FakeApiServer, api: KubeApi
) -> None:
    await put(server, policy("STRICT"))
    source = Kubernetes(api, options=QUICK)
    async with Followed(source) as followed:
        await followed.until(lambda: followed.complete)
        for what in ("list", "watch"):
            server.fail(f"{what} peerauthentications", *(status(403, "Forbidden") for _ in range(10_000)))
        await server.cut()
        [said] = await followed.until(
            lambda: [line for line in followed.said() if "access is denied" in line]
        )
        assert "so the last known state stays in use" in said
        stale = "peerauthentications.security.istio.io have been unreadable since 20"
        assert source.staleness().startswith(stale)
        assert source.pending_reason() == ""
        assert source.stale_seconds() > 0
        assert refs(followed.facts) == {"PeerAuthentication shop/default"}
        server.faults.clear()
        await followed.until(lambda: source.staleness() == "" and followed.said() == [])


async def test_kinds_that_a_cluster_lacks_are_waited_for(server: FakeApiServer, api: KubeApi) -> None:
    for group, _, plural, _ in ISTIO:
        del server._kinds[group, plural]
    async with Followed(Kubernetes(api, options=QUICK)) as followed:
        await followed.until(lambda: len(followed.said()) == 4)
        assert (
            "peerauthentications.security.istio.io: cannot be watched, so sidecars get no configuration until "
            "this is fixed: the cluster has no such kind (run xds install-crds)" in followed.said()
        )
        asked = len(server.asked_for("discovery security.istio.io"))
        await followed.until(lambda: len(server.asked_for("discovery security.istio.io")) > asked + 5)
        assert not followed.complete
        assert followed.source.pending_reason().count("; run xds install-crds") == 4
        server.serve_istio()
        await followed.until(lambda: followed.complete)
        assert followed.source.pending_reason() == ""
        assert followed.said() == []


async def test_a_version_that_cannot_be_read_is_waited_for(server: FakeApiServer, api: KubeApi) -> None:
    server.serve_istio("v2")
    async with Followed(Kubernetes(api, options=QUICK)) as followed:
        await followed.until(
            lambda: "serves v2, but xds supports only v1beta1 and v1" in followed.source.pending_reason()
        )
        assert not followed.complete
        server.serve_istio("v1")
        await followed.until(lambda: followed.complete)


async def test_objects_of_a_kind_that_disappears_stay_in_force(server: FakeApiServer, api: KubeApi) -> None:
    await put(server, policy("STRICT"))
    source = Kubernetes(api, options=QUICK)
    async with Followed(source) as followed:
        await followed.until(lambda: followed.complete)
        del server._kinds["security.istio.io", "peerauthentications"]
        await server.cut()
        [said] = await followed.until(followed.said)
        assert said.startswith(
            "peerauthentications.security.istio.io: cannot be watched, so the last known state stays in use: "
        )
        assert "peerauthentications.security.istio.io have been unreadable since" in source.staleness()
        assert refs(followed.facts) == {"PeerAuthentication shop/default"}
        server.serve_istio()
        await followed.until(lambda: not followed.facts)
        assert source.staleness() == ""


MALFORMED = {"YAML": "{trustDomain: [", "value": "enableAutoMtls: 'no'"}


def settings_map(mesh: str) -> dict[str, Any]:
    metadata = {"name": "xds", "namespace": "istio-system"}
    return {"kind": "ConfigMap", "metadata": metadata, "data": {"mesh": mesh}}


@pytest.mark.parametrize("what", MALFORMED)
async def test_malformed_settings_are_waited_for_at_start(
    server: FakeApiServer, api: KubeApi, what: str
) -> None:
    await put(server, policy("STRICT"))
    await put(server, settings_map(MALFORMED[what]))
    async with Followed(Kubernetes(api, options=QUICK)) as followed:
        [said] = await followed.until(followed.said)
        assert said.startswith("ConfigMap istio-system/xds: ")
        assert not followed.complete
        assert followed.source.pending_reason().startswith("waiting for ConfigMap istio-system/xds: ")
        await put(server, settings_map("trustDomain: example.org"))
        await followed.until(lambda: followed.complete)
        assert followed.said() == []
        assert refs(followed.facts) == {"PeerAuthentication shop/default"}
        assert followed.config
        assert followed.config.trust_domain == "example.org"
        await put(server, settings_map(MALFORMED[what]))
        await followed.until(followed.said)
        assert followed.config.trust_domain == "example.org"
        assert followed.source.pending_reason() == ""


async def test_a_server_that_is_away_from_the_start_is_told_once_and_nothing_is_complete(
    server: FakeApiServer, api: KubeApi
) -> None:
    await put(server, policy("STRICT"))
    await server.stop()
    source = Kubernetes(api, options=QUICK)
    async with Followed(source) as followed:
        [said] = await followed.until(followed.said)
        assert said.startswith(f"{server.url}: the API server cannot be reached: ")
        await followed.until(lambda: source.stale_seconds() > 1)
        assert len(followed.reports) == 1
        assert not followed.complete
        assert source.pending_reason().startswith("waiting for namespaces, ")
        assert f"the API server at {server.url} cannot be reached" in source.pending_reason()
        await server.start()
        await followed.until(lambda: followed.complete)
        assert refs(followed.facts) == {"PeerAuthentication shop/default"}
        await followed.until(lambda: not followed.said())


async def test_what_is_known_stays_while_the_server_is_away_and_it_is_said_since_when(
    server: FakeApiServer, api: KubeApi
) -> None:
    await put(server, policy("STRICT"))
    source = Kubernetes(api, options=QUICK)
    async with Followed(source) as followed:
        await followed.until(lambda: followed.complete)
        known = dict(followed.facts)
        await server.stop()
        await followed.until(lambda: source.stale_seconds() > 1)
        assert followed.facts == known
        await followed.until(lambda: len(followed.said()) == 1)
        assert source.pending_reason() == ""
        standing = source.staleness()
        assert standing.startswith(f"the API server at {server.url} has been unreachable since 20")
        assert "s); the last known state stays in use: Cannot connect" in standing
        await put(server, policy("DISABLE"))
        await server.start()
        await followed.until(lambda: followed.facts != known)
        await followed.until(lambda: source.staleness() == "" and source.stale_seconds() == 0)
        await followed.until(lambda: not followed.said())
        assert all(report.change == Change() or report.complete for report in followed.reports)


async def test_a_nonsensical_object_takes_nothing_with_it(server: FakeApiServer, api: KubeApi) -> None:
    await put(server, policy("STRICT"))
    for name, spec in {
        "a": [1],
        "b": "x",
        "c": {"mtls": {"mode": {"deep": [None]}}},
        "d": {"selector": 7},
    }.items():
        await put(server, {**policy("STRICT", name), "spec": spec})
    odd = {"kind": "Pod", "metadata": {"name": "odd", "namespace": "shop", "labels": [1], "annotations": "x"}}
    await put(server, odd)
    async with Followed(Kubernetes(api, options=QUICK)) as followed:
        await followed.until(lambda: followed.complete)
        closed = {f"PeerAuthentication shop/{name}" for name in "abcd"}
        assert refs(followed.facts) == {"PeerAuthentication shop/default"} | closed
        assert len({problem.where for problem in followed.problems if not problem.notice}) == 5


async def test_a_list_that_is_refused_by_and_by_is_told_as_the_server_that_cannot_be_reached(
    server: FakeApiServer, api: KubeApi
) -> None:
    server.fail("list pods", *(status(500, "InternalError", "etcdserver: no leader") for _ in range(10_000)))
    async with Followed(Kubernetes(api, options=QUICK)) as followed:
        [said] = await followed.until(followed.said)
        assert said == f"{server.url}: the API server cannot be reached: etcdserver: no leader"
        assert "pods" in followed.source.pending_reason()
        server.faults.clear()
        await followed.until(lambda: followed.complete)


def deny_all(name: str) -> dict[str, Any]:
    return {"kind": "AuthorizationPolicy", "metadata": {"name": name, "namespace": "shop"}, "spec": {}}


async def test_objects_that_are_not_enforced_are_warnings(server: FakeApiServer, api: KubeApi) -> None:
    source = Kubernetes(api, options=QUICK)
    async with Followed(source) as followed:
        await followed.until(lambda: followed.complete)
        assert followed.said() == []
        server.add("security.istio.io", "v1", "authorizationpolicies", "AuthorizationPolicy")
        await server.put("authorizationpolicies", deny_all("a"), "security.istio.io")
        await server.put("authorizationpolicies", deny_all("b"), "security.istio.io")
        await followed.until(lambda: len(followed.said()) == 2)
        said = "NOT enforced: requests that it would deny are allowed"
        assert followed.said() == [f"AuthorizationPolicy shop/{name}: {said}" for name in "ab"]
        assert source.unenforced == {"AuthorizationPolicy": 2}
        await server.remove("authorizationpolicies", "shop", "a", "security.istio.io")
        await followed.until(lambda: len(followed.said()) == 1)
        for verb in ("list", "watch"):
            server.fail(f"{verb} authorizationpolicies", *(status(403, "Forbidden") for _ in range(10_000)))
        await server.cut()
        unread = "objects of kind AuthorizationPolicy are not enforced, and cannot be reported"
        await followed.until(lambda: unread in str(followed.said(notices=True)))
        assert source.staleness() == source.pending_reason() == ""
    async with Followed(Kubernetes(api, options=QUICK)) as restarted:
        await restarted.until(lambda: restarted.complete and unread in str(restarted.said(notices=True)))
        server.faults.clear()
        await restarted.until(lambda: len(restarted.said()) == 1)


async def test_an_object_of_a_hundred_thousand_unknown_fields_adds_a_few_notices(
    server: FakeApiServer, api: KubeApi
) -> None:
    policy = {"connectionPool": {f"field{number}": 1 for number in range(100_000)}}
    spec = {"host": "web.shop.svc.cluster.local", "trafficPolicy": policy}
    meta = {"name": "web", "namespace": "shop"}
    await put(server, {"kind": "DestinationRule", "metadata": meta, "spec": spec})
    async with Followed(Kubernetes(api, options=QUICK)) as followed:
        await followed.until(lambda: followed.complete)
        assert Ref("DestinationRule", "shop", "web") in followed.facts
        notices = [p for p in followed.source.problems if p.where == "DestinationRule shop/web"]
        assert 1 < len(notices) < 10
        assert sum(len(str(notice)) for notice in notices) < 2000
