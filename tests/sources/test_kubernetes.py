"""An API server yields the same facts as the same objects in files, and each problem is reported once."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.request import getproxies

import pytest
from aiohttp import BasicAuth
from aiohttp.helpers import get_env_proxy_for_url
from yarl import URL

from tests.golden.cases import CASES, manifests, options
from tests.sources.fake_apiserver import NOBODY, FakeApiServer
from tests.sources.fake_objects import ISTIO
from tests.sources.faults import status
from tests.sources.following import QUICK, Followed, refs
from xds.mesh.kube.api import KubeApi, KubeError
from xds.mesh.model.objects import Change, Fact, MeshConfig, Mode, ModePolicy, Ref, ServiceEntry
from xds.mesh.parse import KINDS
from xds.mesh.sources.documents import Document, read_documents
from xds.mesh.sources.files import Folder
from xds.mesh.sources.kubernetes import Kubernetes
from xds.mesh.sources.report import ReadObject
from xds.mesh.sources.settings import SettingsLoader

PLURALS = {
    "Namespace": ("", "namespaces"),
    "Service": ("", "services"),
    "Pod": ("", "pods"),
    "ServiceAccount": ("", "serviceaccounts"),
    "ConfigMap": ("", "configmaps"),
    "EndpointSlice": ("discovery.k8s.io", "endpointslices"),
    **{kind: (group, plural) for group, _, plural, kind in ISTIO},
    "ServiceEntry": ("networking.istio.io", "serviceentries"),
    "WorkloadEntry": ("networking.istio.io", "workloadentries"),
    "Sidecar": ("networking.istio.io", "sidecars"),
    "AuthorizationPolicy": ("security.istio.io", "authorizationpolicies"),
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
    """Return a fact without the fields that a server adds to every object."""
    meta = replace(fact.meta, uid="", created=None)
    if isinstance(fact, ServiceEntry):
        services = tuple(replace(service, meta=meta) for service in fact.services)
        endpoints = tuple(replace(listed, meta=meta) for listed in fact.endpoints)
        return replace(fact, meta=meta, services=services, endpoints=endpoints)
    return replace(fact, meta=meta)


def mode(followed: Followed, ref: Ref) -> Mode | None:
    fact = followed.facts[ref]
    assert isinstance(fact, ModePolicy)
    return fact.mode


@pytest.mark.parametrize("case", CASES)
async def test_golden_meshes_are_equal_from_files_and_api_server(
    case: Path, server: FakeApiServer, api: KubeApi, tmp_path: Path
) -> None:
    mesh, assignments = options(case)
    version = "v1beta1" if "v1beta1" in manifests(case) else "v1"
    server.serve_istio(version)
    for kind in ("ServiceEntry", "WorkloadEntry", "AuthorizationPolicy", "Sidecar"):
        group, plural = PLURALS[kind]
        server.add(group, version, plural, kind)
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
        assert followed.messages() == []
        assert followed.config == folder.config
        expected = {fact.ref: plain(fact) for fact in folder.applied if fact.ref.kind != "Endpoints"}
        assert {ref: plain(fact) for ref, fact in followed.facts.items()} == expected
        assert len(expected) > 1


async def test_fields_added_by_the_server_are_ignored(server: FakeApiServer, api: KubeApi) -> None:
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
            line for line in followed.messages(notices=True) if "does not exist; the defaults" not in line
        ] == []
        assert followed.facts[Ref("Pod", "default", "it")].meta.annotations == {}
        meta = followed.facts[Ref("Pod", "default", "it")].meta
        assert meta.origin == ""
        assert re.fullmatch(r"resourceVersion \d+", meta.place)


EFFECT = (
    "; until it is repaired, STRICT applies to pods in namespace shop "
    "(if shop is the root namespace, to the whole mesh)"
)


async def test_bad_policy_is_reported_until_it_is_deleted(server: FakeApiServer, api: KubeApi) -> None:
    ref = Ref("PeerAuthentication", "shop", "default")
    await put(server, policy("STRICT"))
    await put(server, policy("SOMETIMES", "other"))
    async with Followed(Kubernetes(api, options=QUICK)) as followed:
        await followed.until(lambda: followed.complete)
        assert refs(followed.facts) == {str(ref), "PeerAuthentication shop/other"}
        error = "spec.mtls.mode must be one of UNSET, DISABLE, PERMISSIVE, STRICT, not 'SOMETIMES'"
        assert followed.messages() == [f"PeerAuthentication shop/other: {error}{EFFECT}"]
        good = followed.facts[ref]
        await put(server, policy("SOMETIMES"))
        await followed.until(lambda: f"{ref}: {error}" in followed.messages())
        assert followed.facts[ref] == good
        listed = len(server.requests_for("list peerauthentications"))
        await server.compact()
        await followed.until(lambda: len(server.requests_for("list peerauthentications")) > listed)
        await put(server, policy("STRICT", "third"))
        await followed.until(lambda: Ref("PeerAuthentication", "shop", "third") in followed.facts)
        assert followed.facts[ref] == good, "a new list has the same bad version"
        for name in ("default", "other"):
            await server.remove("peerauthentications", "shop", name, "security.istio.io")
        await followed.until(lambda: not followed.messages())
        assert ref not in followed.facts
        assert not [problem for problem in followed.source.problems if not problem.notice]


async def test_object_is_read_with_its_version(server: FakeApiServer, api: KubeApi) -> None:
    ref = Ref("PeerAuthentication", "shop", "default")

    def read(followed: Followed, version: str) -> ReadObject | None:
        found = followed.source.read_object(ref)
        return found if found and found.version == version else None

    await put(server, policy("STRICT"))
    async with Followed(Kubernetes(api, options=QUICK)) as followed:
        await followed.until(lambda: followed.complete)
        assert followed.source.is_current(0)
        assert followed.source.read_object(Ref("PeerAuthentication", "shop", "other")) is None
        assert followed.source.read_object(Ref("Node", "", "x")) is None
        await put(server, policy("STRICT"))
        same = str(server.version)
        await followed.until(lambda: read(followed, same))
        await put(server, policy("SOMETIMES"))
        bad = str(server.version)
        await followed.until(lambda: read(followed, bad))
        found = followed.source.read_object(ref)
        assert found
        assert found.rejection
        assert (found.fact, found.rejection.served_version) == (followed.facts[ref], same)
        assert found.rejection.subject == str(ref)


async def test_recreated_bad_policy_fails_closed(server: FakeApiServer, api: KubeApi) -> None:
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
        await followed.until(lambda: len(followed.messages()) == 1)
        assert EFFECT in followed.messages()[0]
        for wrong in ("NEVER", "SELDOM"):
            await put(server, policy(wrong))
            await followed.until(lambda wrong=wrong: wrong in str(followed.messages()))
            assert mode(followed, ref) is Mode.STRICT
            assert EFFECT in str(followed.messages()), (
                "the fail-closed substitute is no valid version to fall back to"
            )
        await put(server, policy("PERMISSIVE"))
        await followed.until(lambda: mode(followed, ref) is Mode.PERMISSIVE)


async def test_start_waits_for_forbidden_kinds(server: FakeApiServer) -> None:
    async with await server.connect(NOBODY) as api, Followed(Kubernetes(api, options=QUICK)) as followed:
        await followed.until(lambda: len(followed.messages()) == 10)
        problems = {problem.where: problem for problem in followed.problems}
        assert problems["destinationrules.networking.istio.io"].hint == (
            "add to the rules of the ClusterRole: - "
            '{apiGroups: ["networking.istio.io"], resources: ["destinationrules"], verbs: ["get", "list", '
            '"watch"]}'
        )
        assert problems["configmaps"].hint == (
            "add to the rules of a Role in namespace istio-system: - "
            '{apiGroups: [""], resources: ["configmaps"], resourceNames: ["xds"], verbs: ["get", "list", '
            '"watch"]}'
        )
        assert 'User "nobody" cannot list resource "pods"' in problems["pods"].what
        reported = sum(len(report.problems) for report in followed.reports)
        requests = len(server.requests_for("list pods"))
        await followed.until(lambda: len(server.requests_for("list pods")) > requests + 5)
        assert sum(len(report.problems) for report in followed.reports) == reported
        assert not followed.complete
        lines = followed.source.pending_reason().splitlines()
        assert len(lines) == 10
        [pods] = [line for line in lines if line.startswith("waiting for pods: access is denied")]
        assert 'User "nobody" cannot list resource "pods"' in pods
        assert all('verbs: ["get", "list", "watch"]}' in line for line in lines)


async def test_kind_that_becomes_forbidden_keeps_its_objects(server: FakeApiServer, api: KubeApi) -> None:
    await put(server, policy("STRICT"))
    source = Kubernetes(api, options=QUICK)
    async with Followed(source) as followed:
        await followed.until(lambda: followed.complete)
        for verb in ("list", "watch"):
            server.fail(f"{verb} peerauthentications", *(status(403, "Forbidden") for _ in range(10_000)))
        await server.cut()
        [message] = await followed.until(
            lambda: [line for line in followed.messages() if "access is denied" in line]
        )
        assert "so the last known state stays in use" in message
        stale = "peerauthentications.security.istio.io have been unreadable since 20"
        await followed.until(lambda: source.staleness().startswith(stale))
        assert source.pending_reason() == ""
        assert source.stale_seconds() > 0
        assert refs(followed.facts) == {"PeerAuthentication shop/default"}
        server.faults.clear()
        await followed.until(lambda: source.staleness() == "" and followed.messages() == [])


async def test_start_waits_for_missing_kinds(server: FakeApiServer, api: KubeApi) -> None:
    for group, _, plural, _ in ISTIO:
        del server._kinds[group, plural]
    async with Followed(Kubernetes(api, options=QUICK)) as followed:
        await followed.until(lambda: len(followed.messages()) == 4)
        assert (
            "peerauthentications.security.istio.io: cannot be watched, so sidecars get no configuration "
            "until this is fixed: the cluster has no such kind (run xds install-crds)" in followed.messages()
        )
        requests = len(server.requests_for("discovery security.istio.io"))
        await followed.until(lambda: len(server.requests_for("discovery security.istio.io")) > requests + 5)
        assert not followed.complete
        assert followed.source.pending_reason().count("; run xds install-crds") == 4
        server.serve_istio()
        await followed.until(lambda: followed.complete)
        assert followed.source.pending_reason() == ""
        assert followed.messages() == []


async def test_start_waits_for_a_supported_version(server: FakeApiServer, api: KubeApi) -> None:
    server.serve_istio("v2")
    async with Followed(Kubernetes(api, options=QUICK)) as followed:
        await followed.until(
            lambda: "serves v2, but xds supports only v1beta1 and v1" in followed.source.pending_reason()
        )
        assert not followed.complete
        server.serve_istio("v1")
        await followed.until(lambda: followed.complete)


async def test_kind_that_disappears_keeps_its_objects(server: FakeApiServer, api: KubeApi) -> None:
    await put(server, policy("STRICT"))
    source = Kubernetes(api, options=QUICK)
    async with Followed(source) as followed:
        await followed.until(lambda: followed.complete)
        del server._kinds["security.istio.io", "peerauthentications"]
        await server.cut()
        kept = "cannot be watched, so the last known state stays in use: "
        expected = f"peerauthentications.security.istio.io: {kept}"
        await followed.until(lambda: any(each.startswith(expected) for each in followed.messages()))
        # Other kinds are unreadable as well, until their watches are back.
        stale = "peerauthentications.security.istio.io have been unreadable since"
        await followed.until(lambda: source.staleness().startswith(stale))
        assert refs(followed.facts) == {"PeerAuthentication shop/default"}
        server.serve_istio()
        await followed.until(lambda: not followed.facts and source.staleness() == "")


MALFORMED = {"YAML": "{trustDomain: [", "value": "enableAutoMtls: 'no'"}


def settings_map(mesh: str) -> dict[str, Any]:
    metadata = {"name": "xds", "namespace": "istio-system"}
    return {"kind": "ConfigMap", "metadata": metadata, "data": {"mesh": mesh}}


@pytest.mark.parametrize("what", MALFORMED)
async def test_start_waits_for_valid_settings(server: FakeApiServer, api: KubeApi, what: str) -> None:
    await put(server, policy("STRICT"))
    await put(server, settings_map(MALFORMED[what]))
    async with Followed(Kubernetes(api, options=QUICK)) as followed:
        [message] = await followed.until(followed.messages)
        assert message.startswith("ConfigMap istio-system/xds: ")
        assert not followed.complete
        assert followed.source.pending_reason().startswith("waiting for ConfigMap istio-system/xds: ")
        await put(server, settings_map("trustDomain: example.org"))
        await followed.until(lambda: followed.complete)
        assert followed.messages() == []
        assert refs(followed.facts) == {"PeerAuthentication shop/default"}
        assert followed.config
        assert followed.config.trust_domain == "example.org"
        await put(server, settings_map(MALFORMED[what]))
        await followed.until(followed.messages)
        assert followed.config.trust_domain == "example.org"
        assert followed.source.pending_reason() == ""


async def test_start_waits_for_an_unreachable_server(server: FakeApiServer, api: KubeApi) -> None:
    await put(server, policy("STRICT"))
    await server.stop()
    source = Kubernetes(api, options=QUICK)
    async with Followed(source) as followed:
        [message] = await followed.until(followed.messages)
        assert message.startswith(f"{server.url}: the API server cannot be reached: ")
        await followed.until(lambda: source.stale_seconds() > 1)
        assert len(followed.reports) == 1
        assert not followed.complete
        assert source.pending_reason().startswith("waiting for namespaces, ")
        assert f"the API server at {server.url} cannot be reached" in source.pending_reason()
        await server.start()
        await followed.until(lambda: followed.complete)
        assert refs(followed.facts) == {"PeerAuthentication shop/default"}
        await followed.until(lambda: not followed.messages())


async def test_outage_keeps_the_facts_and_reports_their_age(server: FakeApiServer, api: KubeApi) -> None:
    await put(server, policy("STRICT"))
    source = Kubernetes(api, options=QUICK)
    async with Followed(source) as followed:
        await followed.until(lambda: followed.complete)
        known = dict(followed.facts)
        await server.stop()
        await followed.until(lambda: source.stale_seconds() > 1)
        assert followed.facts == known
        await followed.until(lambda: len(followed.messages()) == 1)
        assert source.pending_reason() == ""
        staleness = source.staleness()
        assert staleness.startswith(f"the API server at {server.url} has been unreachable since 20")
        assert "s); the last known state stays in use: Cannot connect" in staleness
        await put(server, policy("DISABLE"))
        await server.start()
        await followed.until(lambda: followed.facts != known)
        await followed.until(lambda: source.staleness() == "" and source.stale_seconds() == 0)
        await followed.until(lambda: not followed.messages())
        assert all(report.change == Change() or report.complete for report in followed.reports)


async def test_malformed_object_affects_no_other(server: FakeApiServer, api: KubeApi) -> None:
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


async def test_repeated_server_errors_are_reported_as_an_outage(server: FakeApiServer, api: KubeApi) -> None:
    server.fail("list pods", *(status(500, "InternalError", "etcdserver: no leader") for _ in range(10_000)))
    async with Followed(Kubernetes(api, options=QUICK)) as followed:
        [message] = await followed.until(followed.messages)
        assert message == f"{server.url}: the API server cannot be reached: etcdserver: no leader"
        assert "pods" in followed.source.pending_reason()
        server.faults.clear()
        await followed.until(lambda: followed.complete)


def deny_all(name: str) -> dict[str, Any]:
    return {"kind": "RequestAuthentication", "metadata": {"name": name, "namespace": "shop"}, "spec": {}}


async def test_unenforced_objects_are_warnings(server: FakeApiServer, api: KubeApi) -> None:
    source = Kubernetes(api, options=QUICK)
    async with Followed(source) as followed:
        await followed.until(lambda: followed.complete)
        assert followed.messages() == []
        server.add("security.istio.io", "v1", "requestauthentications", "RequestAuthentication")
        await server.put("requestauthentications", deny_all("a"), "security.istio.io")
        await server.put("requestauthentications", deny_all("b"), "security.istio.io")
        await followed.until(lambda: len(followed.messages()) == 2)
        message = "NOT enforced: requests that it would deny are allowed"
        assert followed.messages() == [f"RequestAuthentication shop/{name}: {message}" for name in "ab"]
        assert source.unenforced == {"RequestAuthentication": 2}
        await server.remove("requestauthentications", "shop", "a", "security.istio.io")
        await followed.until(lambda: len(followed.messages()) == 1)
        for verb in ("list", "watch"):
            server.fail(f"{verb} requestauthentications", *(status(403, "Forbidden") for _ in range(10_000)))
        await server.cut()
        unlisted = "RequestAuthentication are not known, so they are not enforced, and cannot be reported"
        await followed.until(lambda: unlisted in str(followed.messages(notices=True)))
        await followed.until(lambda: source.staleness() == "")
        assert source.pending_reason() == ""
    async with Followed(Kubernetes(api, options=QUICK)) as restarted:
        await restarted.until(
            lambda: restarted.complete and unlisted in str(restarted.messages(notices=True))
        )
        server.faults.clear()
        await restarted.until(lambda: len(restarted.messages()) == 1)


def routed(name: str) -> dict[str, Any]:
    """An Ingress that leads to a Service."""
    spec = {"defaultBackend": {"service": {"name": "web", "port": {"number": 80}}}}
    return {"kind": "Ingress", "metadata": {"name": name, "namespace": "shop"}, "spec": spec}


async def test_callers_are_watched_but_not_required(server: FakeApiServer, api: KubeApi) -> None:
    group, ref = "networking.k8s.io", Ref("Ingress", "shop", "web")
    source = Kubernetes(api, options=QUICK)
    async with Followed(source) as followed:
        await followed.until(lambda: followed.complete)
        server.add(group, "v1", "ingresses", "Ingress")
        await server.put("ingresses", routed("web"), group)
        await followed.until(lambda: str(ref) in refs(followed.facts))
        await server.remove("ingresses", "shop", "web", group)
        await followed.until(lambda: str(ref) not in refs(followed.facts))
        await server.put("ingresses", routed("web"), group)
        await followed.until(lambda: str(ref) in refs(followed.facts))
    for verb in ("list", "watch"):
        server.fail(f"{verb} ingresses", *(status(403, "Forbidden") for _ in range(10_000)))
    denied = "objects of kind Ingress are not known, so plans do not consider the clients that they prove"
    async with Followed(Kubernetes(api, options=QUICK)) as restarted:
        await restarted.until(lambda: restarted.complete)
        await restarted.until(lambda: denied in str(restarted.messages(notices=True)))
        assert restarted.messages() == []
    server.faults.clear()
    server.fail("list ingresses", *(status(500, "InternalError") for _ in range(10_000)))
    async with Followed(Kubernetes(api, options=QUICK)) as restarted:
        await restarted.until(lambda: restarted.complete)
        await restarted.until(lambda: denied in str(restarted.messages(notices=True)))


async def test_optional_kind_of_unsupported_versions_is_reported(server: FakeApiServer, api: KubeApi) -> None:
    monitoring, security = "monitoring.coreos.com", "security.istio.io"
    server.add(monitoring, "v2", "servicemonitors", "ServiceMonitor")
    server.add(security, "v9", "requestauthentications", "RequestAuthentication")
    hint = "(upgrade xds, or serve a supported version too)"
    policies = (
        "requestauthentications.security.istio.io: the cluster serves v9, but xds supports only v1beta1 "
        "and v1: objects of kind RequestAuthentication are not known, so they are not enforced, and cannot "
        f"be reported {hint}"
    )
    monitors = (
        "servicemonitors.monitoring.coreos.com: the cluster serves v2, but xds supports only v1: "
        "objects of kind ServiceMonitor are not known, so plans do not consider the clients that they prove "
        f"{hint}"
    )
    async with Followed(Kubernetes(api, options=QUICK)) as followed:
        await followed.until(lambda: followed.complete and set(followed.messages()) == {policies, monitors})
        server.add(monitoring, "v1", "servicemonitors", "ServiceMonitor")
        await followed.until(lambda: followed.messages() == [policies])
    report = await Kubernetes(api).load()
    assert [str(problem) for problem in report.problems if not problem.notice] == [policies]


async def test_unreadable_route_affects_no_other(server: FakeApiServer, api: KubeApi) -> None:
    group = "networking.istio.io"
    server.add(group, "v1", "virtualservices", "VirtualService")
    for name, host in (("deep", [[[["a"]]]]), ("good", "web")):
        spec = {"gateways": ["public"], "http": [{"route": [{"destination": {"host": host}}]}]}
        meta = {"name": name, "namespace": "shop"}
        await server.put("virtualservices", {"kind": "VirtualService", "metadata": meta, "spec": spec}, group)
    async with Followed(Kubernetes(api, options=QUICK)) as followed:
        await followed.until(lambda: "VirtualService shop/good" in refs(followed.facts))
        assert "VirtualService shop/deep" not in refs(followed.facts)


async def test_notices_about_unknown_fields_are_limited(server: FakeApiServer, api: KubeApi) -> None:
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


async def test_load_lists_once_and_does_not_watch(server: FakeApiServer, api: KubeApi) -> None:
    await put(server, policy("STRICT"))
    report = await Kubernetes(api).load()
    assert report.complete
    assert {str(fact.ref) for fact in report.change.applied} == {"PeerAuthentication shop/default"}
    assert report.change.config == MeshConfig()
    assert server.requests_for("list pods")
    assert not server.requests_for("watch")


@pytest.mark.parametrize("proxy", ["", "http://127.0.0.1:1"])
async def test_environment_is_searched_for_a_proxy_only_if_it_has_one(
    server: FakeApiServer, monkeypatch: pytest.MonkeyPatch, proxy: str
) -> None:
    searches: list[URL] = []

    def search(url: URL) -> tuple[URL, BasicAuth | None]:
        searches.append(url)
        return get_env_proxy_for_url(url)

    monkeypatch.setattr("aiohttp.client.get_env_proxy_for_url", search)
    for name in getproxies():
        monkeypatch.delenv(f"{name}_proxy", raising=False)
        monkeypatch.delenv(f"{name}_proxy".upper(), raising=False)
    if proxy:
        monkeypatch.setenv("http_proxy", proxy)
    async with await server.connect() as api:
        if proxy:
            with pytest.raises(KubeError, match=r"127\.0\.0\.1:1 "):
                await Kubernetes(api).load()
        else:
            assert (await Kubernetes(api).load()).complete
    assert bool(searches) is bool(proxy)


async def test_load_reads_a_cluster_without_istio_kinds(server: FakeApiServer, api: KubeApi) -> None:
    for group, _, plural, _ in ISTIO:
        del server._kinds[group, plural]
    await server.put("namespaces", {"metadata": {"name": "shop"}})
    report = await Kubernetes(api).load()
    assert report.complete
    assert [str(fact.ref) for fact in report.change.applied] == ["Namespace shop"]


async def test_load_refuses_kinds_of_unsupported_versions(server: FakeApiServer, api: KubeApi) -> None:
    server.serve_istio("v2")
    report = await Kubernetes(api).load()
    assert not report.complete
    assert any(
        "serves v2, but xds supports only v1beta1 and v1" in problem.what for problem in report.problems
    )


async def test_load_names_missing_permissions(server: FakeApiServer) -> None:
    async with await server.connect(NOBODY) as api:
        report = await Kubernetes(api).load()
    assert not report.complete
    [pods] = [problem for problem in report.problems if problem.where == "pods"]
    assert 'User "nobody" cannot list resource "pods"' in pods.what
    rule = '- {apiGroups: [""], resources: ["pods"], verbs: ["list"]}'
    assert pods.hint == f"add to the rules of a ClusterRole: {rule}"
    [config_maps] = [problem for problem in report.problems if problem.where == "configmaps"]
    assert "a Role in namespace istio-system" in config_maps.hint


async def test_load_raises_an_error_if_the_server_is_unreachable(server: FakeApiServer, api: KubeApi) -> None:
    await server.stop()
    message = rf"^the API server at {server.url} cannot be reached: (?!the API)"
    with pytest.raises(KubeError, match=message) as caught:
        await Kubernetes(api).load()
    assert caught.value.status == 0
