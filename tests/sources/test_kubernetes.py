"""Facts from an API server are those of the same objects in files, and what stands in the way is told once."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.golden.cases import CASES, options
from tests.sources.fake_apiserver import NOBODY, FakeApiServer
from tests.sources.fake_objects import ISTIO
from tests.sources.faults import status
from tests.sources.following import QUICK, Followed, refs
from xds.kube.api import KubeApi
from xds.model import Change, Fact, Ref
from xds.parse import KINDS
from xds.sources.documents import Document, read
from xds.sources.files import Folder
from xds.sources.kubernetes import Kubernetes
from xds.sources.settings import Settings

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


@pytest.mark.parametrize("case", CASES)
async def test_golden_meshes_are_the_same_from_files_and_from_an_api_server(
    case: Path, server: FakeApiServer, api: KubeApi, tmp_path: Path
) -> None:
    mesh, assignments = options(case)
    server.serve_istio("v1beta1" if "v1beta1" in (case / "in.yaml").read_text() else "v1")
    (tmp_path / "files").mkdir()
    (tmp_path / "files/in.yaml").write_text((case / "in.yaml").read_text())
    folder = Folder(tmp_path / "files", Settings(mesh, assignments)).load().change
    for document in read((case / "in.yaml").read_text(), "in.yaml"):
        assert isinstance(document, Document)
        assert isinstance(document.value, dict)
        if document.value["kind"] in PLURALS:
            await put(server, document.value)
    if mesh:
        data = {"mesh": mesh.read_text()}
        metadata = {"name": "xds", "namespace": "istio-system"}
        await put(server, {"kind": "ConfigMap", "metadata": metadata, "data": data})
    async with Followed(Kubernetes(api, assignments=assignments, pace=QUICK)) as followed:
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
    async with Followed(Kubernetes(api, pace=QUICK)) as followed:
        await followed.until(lambda: followed.complete)
        assert [
            line for line in followed.said(notices=True) if "is not there: the defaults" not in line
        ] == []
        assert followed.facts[Ref("Pod", "default", "it")].meta.annotations == {}
        assert followed.facts[Ref("Pod", "default", "it")].meta.origin == ""


async def test_a_bad_policy_is_told_by_name_and_gone_when_it_is_deleted(
    server: FakeApiServer, api: KubeApi
) -> None:
    ref = Ref("PeerAuthentication", "shop", "default")
    await put(server, policy("STRICT"))
    await put(server, policy("SOMETIMES", "other"))
    async with Followed(Kubernetes(api, pace=QUICK)) as followed:
        await followed.until(lambda: followed.complete)
        assert refs(followed.facts) == {str(ref)}
        wrong = "spec.mtls.mode must be one of UNSET, DISABLE, PERMISSIVE, STRICT, not 'SOMETIMES'"
        assert followed.said() == [f"PeerAuthentication shop/other: {wrong}"]
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


async def test_a_bad_successor_of_the_same_name_does_not_inherit(server: FakeApiServer, api: KubeApi) -> None:
    ref = Ref("PeerAuthentication", "shop", "default")
    await put(server, policy("STRICT"))
    async with Followed(Kubernetes(api, pace=QUICK)) as followed:
        await followed.until(lambda: ref in followed.facts)
        await server.stop()
        await server.remove("peerauthentications", "shop", "default", "security.istio.io")
        await put(server, policy("SOMETIMES"))
        server.compacted = server.version
        await server.start()
        await followed.until(lambda: ref not in followed.facts)
        assert len(followed.said()) == 1


async def test_what_may_not_be_read_counts_as_empty_and_the_missing_rules_are_told_once(
    server: FakeApiServer,
) -> None:
    async with await server.connect(NOBODY) as api, Followed(Kubernetes(api, pace=QUICK)) as followed:
        await followed.until(lambda: followed.complete)
        assert followed.facts == {}
        said = {problem.where: problem for problem in followed.problems}
        assert len(followed.said()) == 10
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
        await followed.until(lambda: len(server.asked_for("list pods")) > 5)
        assert sum(len(report.problems) for report in followed.reports) == told


async def test_what_may_no_longer_be_read_is_said_with_since_when_and_stays(
    server: FakeApiServer, api: KubeApi
) -> None:
    await put(server, policy("STRICT"))
    source = Kubernetes(api, pace=QUICK)
    async with Followed(source) as followed:
        await followed.until(lambda: followed.complete)
        for what in ("list", "watch"):
            server.fail(f"{what} peerauthentications", *(status(403, "Forbidden") for _ in range(10_000)))
        await server.cut()
        [said] = await followed.until(lambda: [line for line in followed.said() if "may not be read" in line])
        assert "so what is known of them stays in force" in said
        assert source.standing().startswith("peerauthentications.security.istio.io may not be read since 20")
        assert source.behind() > 0
        assert refs(followed.facts) == {"PeerAuthentication shop/default"}
        server.faults.clear()
        await followed.until(lambda: source.standing() == "" and followed.said() == [])


async def test_kinds_that_a_cluster_lacks_are_told_and_taken_up_when_they_come(
    server: FakeApiServer, api: KubeApi
) -> None:
    for group, _, plural, _ in ISTIO:
        del server._kinds[group, plural]
    async with Followed(Kubernetes(api, pace=QUICK)) as followed:
        await followed.until(lambda: followed.complete)
        assert followed.said() == []
        lacking = [line for line in followed.said(notices=True) if "no such kind" in line]
        assert len(lacking) == 4
        assert (
            "peerauthentications.security.istio.io: cannot be watched: the cluster has no such kind "
            "(xds install-crds adds it)" in lacking
        )
        server.serve_istio()
        await followed.until(lambda: "no such kind" not in str(followed.said(notices=True)))
        await put(server, policy("STRICT"))
        await followed.until(lambda: followed.facts)
        del server._kinds["security.istio.io", "peerauthentications"]
        await server.cut()
        await followed.until(lambda: not followed.facts)
        [said] = await followed.until(followed.said)
        assert said.startswith("peerauthentications.security.istio.io: cannot be watched: the cluster has no")


async def test_a_server_that_is_away_from_the_start_is_told_once_and_nothing_is_complete(
    server: FakeApiServer, api: KubeApi
) -> None:
    await put(server, policy("STRICT"))
    await server.stop()
    source = Kubernetes(api, pace=QUICK)
    async with Followed(source) as followed:
        [said] = await followed.until(followed.said)
        assert said.startswith(f"{server.url}: the API server cannot be reached: ")
        await followed.until(lambda: source.behind() > 1)
        assert len(followed.reports) == 1
        assert not followed.complete
        assert source.lacking().startswith("waiting for namespaces, ")
        assert f"the API server at {server.url} cannot be reached" in source.lacking()
        await server.start()
        await followed.until(lambda: followed.complete)
        assert refs(followed.facts) == {"PeerAuthentication shop/default"}
        await followed.until(lambda: not followed.said())


async def test_what_is_known_stays_while_the_server_is_away_and_it_is_said_since_when(
    server: FakeApiServer, api: KubeApi
) -> None:
    await put(server, policy("STRICT"))
    source = Kubernetes(api, pace=QUICK)
    async with Followed(source) as followed:
        await followed.until(lambda: followed.complete)
        known = dict(followed.facts)
        await server.stop()
        await followed.until(lambda: source.behind() > 1)
        assert followed.facts == known
        assert len(followed.said()) == 1
        assert source.lacking() == ""
        standing = source.standing()
        assert standing.startswith(f"the API server at {server.url} cannot be reached since 20")
        assert "s), and what was known then stays in force: Cannot connect" in standing
        await put(server, policy("DISABLE"))
        await server.start()
        await followed.until(lambda: followed.facts != known)
        await followed.until(lambda: source.standing() == "" and source.behind() == 0)
        assert followed.said() == []
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
    async with Followed(Kubernetes(api, pace=QUICK)) as followed:
        await followed.until(lambda: followed.complete)
        assert refs(followed.facts) == {"PeerAuthentication shop/default"}
        assert len({problem.where for problem in followed.problems if not problem.notice}) == 5


async def test_a_list_that_is_refused_by_and_by_is_told_as_the_server_that_cannot_be_reached(
    server: FakeApiServer, api: KubeApi
) -> None:
    server.fail("list pods", *(status(500, "InternalError", "etcdserver: no leader") for _ in range(10_000)))
    async with Followed(Kubernetes(api, pace=QUICK)) as followed:
        [said] = await followed.until(followed.said)
        assert said == f"{server.url}: the API server cannot be reached: etcdserver: no leader"
        assert "pods" in followed.source.lacking()
        server.faults.clear()
        await followed.until(lambda: followed.complete)


async def test_an_object_of_a_hundred_thousand_unknown_fields_adds_a_few_notices(
    server: FakeApiServer, api: KubeApi
) -> None:
    policy = {"connectionPool": {f"field{number}": 1 for number in range(100_000)}}
    spec = {"host": "web.shop.svc.cluster.local", "trafficPolicy": policy}
    meta = {"name": "web", "namespace": "shop"}
    await put(server, {"kind": "DestinationRule", "metadata": meta, "spec": spec})
    async with Followed(Kubernetes(api, pace=QUICK)) as followed:
        await followed.until(lambda: followed.complete)
        assert Ref("DestinationRule", "shop", "web") in followed.facts
        notices = [p for p in followed.source.problems if p.where == "DestinationRule shop/web"]
        assert 1 < len(notices) < 10
        assert sum(len(str(notice)) for notice in notices) < 2000
