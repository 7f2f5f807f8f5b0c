"""Bad objects in an API server without schemas: each has its documented effect and no other.

The kinds have no schema, as a foreign installation may have left them. The tests look at what sidecars are
sent: the real source reads the real API server, and every resource of every sidecar is compared byte by byte.
The rules are in docs/reference/problems.md.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from http import HTTPStatus
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
import yaml

from tests.kubernetes.bad_objects import EVIL, HARMLESS, POLICY, REFUSED, SHOP, SYSTEM, Case, Good
from tests.kubernetes.environment.cluster import Cluster
from tests.kubernetes.environment.control_plane import ControlPlane
from tests.kubernetes.schemaless import PATIENCE, View, Watching, create, pod, send, service, set_up, slice_of
from tests.kubernetes.serving import Serving
from tests.support.waiting import eventually
from xds.mesh.kube.api import KubeError
from xds.mesh.model.mesh import Endpoint
from xds.mesh.model.objects import Problem, Ref
from xds.mesh.policy.mtls import Send, decide
from xds.snapshot import ROUTE

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def followed(bare: ControlPlane) -> AsyncIterator[Watching]:
    """A mesh in a cluster without schemas: a STRICT service, its client and a malicious neighbor."""
    async with Cluster(bare) as cluster:
        await set_up(cluster)
        watching = Watching(cluster)
        await watching.until(lambda: watching.mesh.pod(SHOP, "older"), "everything is known")
        assert not watching.problems()
        yield watching
        await watching.close()
        # TLS connections that were closed during a response take a moment to end.
        await asyncio.sleep(0.25)


def body_of(case: Case) -> dict[str, Any]:
    value = case.body() if callable(case.body) else yaml.safe_load(case.body)
    rest = value if isinstance(value, dict) and "addressType" in value else {"spec": value}
    return {**rest, "metadata": yaml.safe_load(case.metadata)}


@pytest.mark.parametrize("case", REFUSED, ids=lambda case: case.title)
async def test_bad_object_is_refused_and_fails_closed(followed: Watching, case: Case) -> None:
    before = followed.view()
    closed = await _view_with(followed, case.fails_closed_as)
    path = await create(followed.cluster, case.kind, case.namespace, case.name, body_of(case))
    try:
        await followed.until(followed.problems, "a problem is reported")
        assert any(_describes(case, problem) for problem in followed.problems()), followed.problems()
        assert followed.view() == closed
    finally:
        await followed.cluster.api.delete(path)
        await followed.until(lambda: not followed.problems(), "the problem is solved")
    assert followed.view() == before


async def _view_with(followed: Watching, good: Good) -> View:
    """Return what sidecars are sent while this valid object exists."""
    kind, namespace, name, spec = good

    def known() -> bool:
        result = followed.mesh.get(Ref(kind.partition(" ")[2], namespace, name))
        return bool(result and result.meta.uid)  # default objects have no uid

    path = await create(followed.cluster, kind, namespace, name, {"spec": yaml.safe_load(spec)})
    await followed.until(known, "it is known")
    result = followed.view()
    await followed.cluster.api.delete(path)
    await followed.until(lambda: not known(), "it is gone")
    return result


@pytest.mark.parametrize("case", [case for case in REFUSED if case.good], ids=lambda case: case.title)
async def test_bad_update_keeps_the_last_valid_version(followed: Watching, case: Case) -> None:
    plain = followed.view()
    good = {"spec": yaml.safe_load(case.good)}
    path = await create(followed.cluster, case.kind, case.namespace, case.name, good)
    try:
        await followed.until(lambda: followed.view() != plain, "the valid version is in use")
        enforced = followed.view()
        there = await followed.cluster.api.get(path)
        await send(followed.cluster, "PUT", path, {**there, "spec": body_of(case)["spec"]})
        await followed.until(followed.problems, "a problem is reported")
        assert any(_describes(case, problem) for problem in followed.problems()), followed.problems()
        assert followed.view() == enforced
    finally:
        await followed.cluster.api.delete(path)
        await followed.until(lambda: followed.view() == plain, "nothing is left of it")
    assert not followed.problems()


def _describes(case: Case, problem: Problem) -> bool:
    """Whether a problem names the object and the error, in one short line and without secrets."""
    message = str(problem)
    name = f"{case.kind.partition(' ')[2]} {case.namespace}/{case.name}".replace(" /", " ")
    return (
        message.startswith(name)
        and case.message in message
        and message.isprintable()
        and len(message) < 1000
        and "MC4CAQ" not in message
    )


@pytest.mark.parametrize("case", HARMLESS, ids=lambda case: case.title)
async def test_harmless_object_changes_nothing(followed: Watching, case: Case) -> None:
    before = followed.view()
    facts = list(followed.mesh.facts())
    path = await create(followed.cluster, case.kind, case.namespace, case.name, body_of(case))
    try:
        await followed.until(lambda: len(list(followed.mesh.facts())) == len(facts) + 1, "it is known")
        assert not followed.problems()
        assert followed.view() == before
    finally:
        try:
            await followed.cluster.api.delete(path, gracePeriodSeconds=0)
        except KubeError as error:
            # Kubernetes's garbage collector deletes an object whose owner does not exist, such as itself.
            if error.status != HTTPStatus.NOT_FOUND:
                raise
        await followed.until(lambda: len(list(followed.mesh.facts())) == len(facts), "it is gone")


async def test_foreign_service_cannot_change_the_mode_of_a_pod(followed: Watching) -> None:
    """The neighbor's older service selects our pod's port and has a policy that asks for plaintext."""
    before = followed.view()
    policy = {"spec": {"targets": [{"name": "elder"}]}}
    listing = {
        "metadata": {"labels": {"kubernetes.io/service-name": "elder"}},
        "addressType": "IPv4",
        "ports": [{"name": "http", "port": 8080}],
        "endpoints": [
            {"addresses": ["10.1.0.1"], "targetRef": {"kind": "Pod", "namespace": SHOP, "name": "web"}}
        ],
    }
    facts = len(list(followed.mesh.facts()))
    paths = [
        await create(followed.cluster, POLICY, EVIL, "elder", policy),
        await create(followed.cluster, "discovery.k8s.io/v1 EndpointSlice", EVIL, "elder", listing),
    ]
    try:
        await followed.until(lambda: len(list(followed.mesh.facts())) == facts + 2, "both are known")
        assert followed.view() == before
    finally:
        for path in paths:
            await followed.cluster.api.delete(path)
        await followed.until(lambda: len(list(followed.mesh.facts())) == facts, "both are gone")


@pytest.mark.parametrize("where", ["listed-with-its-pod", "listed-by-address-alone"])
async def test_pod_claiming_a_foreign_address_changes_nothing(followed: Watching, where: str) -> None:
    """It sorts first by name and claims to have no sidecar: clients that believe it send plaintext."""
    target = {"targetRef": {"kind": "Pod", "namespace": SHOP, "name": "web"}} if "pod" in where else {}
    path = f"/apis/discovery.k8s.io/v1/namespaces/{SHOP}/endpointslices/web-1"
    endpoint = {"addresses": ["10.1.0.1"], "conditions": {"ready": True}, **target}
    there = await followed.cluster.api.get(path)
    await followed.cluster.api.replace(path, {**there, "endpoints": [endpoint]})
    await followed.until(lambda: _target(followed) is bool(target), "the slice is updated")
    before = followed.view()
    pod_path = await pod(followed.cluster, EVIL, "claims", "10.1.0.1", tls_mode="disabled")
    try:

        def known() -> bool:
            claimant = followed.mesh.pod(EVIL, "claims")
            return bool(claimant and claimant.address)

        await followed.until(known, "it is known")
        assert followed.view() == before
    finally:
        await followed.cluster.api.delete(pod_path, gracePeriodSeconds=0)
        await followed.until(lambda: not followed.mesh.pod(EVIL, "claims"), "it is gone")


def _target(followed: Watching) -> bool:
    """Whether the shop's EndpointSlice has a targetRef for the address."""
    [listed] = followed.mesh.in_namespace(SHOP).endpoints["web"]
    return listed.groups[0].addresses[0].pod is not None


async def test_false_sidecar_label_affects_only_its_own_pod(
    followed: Watching,
) -> None:
    """The control plane has to trust the pod's label: clients send mutual TLS, which fails."""
    before = followed.view()
    paths = [await service(followed.cluster, SHOP, "liar")]
    paths.append(await pod(followed.cluster, SHOP, "liar", "10.1.0.9"))
    paths.append(await slice_of(followed.cluster, SHOP, "liar", "10.1.0.9", target="liar"))

    def endpoints() -> tuple[Endpoint, ...]:
        liar = followed.mesh.service(SHOP, "liar")
        return followed.mesh.endpoints(liar, liar.ports[0]) if liar else ()

    try:
        await followed.until(
            lambda: any(endpoint.pod and endpoint.pod.address for endpoint in endpoints()), "it is known"
        )
        client, liar = followed.mesh.pod(SHOP, "client"), followed.mesh.service(SHOP, "liar")
        assert client
        assert liar
        decision = decide(followed.mesh, client, liar, liar.ports[0], endpoints()[0])
        assert decision.send is Send.MTLS
        moved = {key for key, version in followed.view().items() if before.get(key) != version}
        # Only its own resources change, and the route table that lists all services.
        others = {
            key for key in moved if key[0] != f"{SHOP}/liar" and "liar." not in key[2] and key[1] != ROUTE
        }
        assert not others
    finally:
        for path in paths:
            await followed.cluster.api.delete(path, gracePeriodSeconds=0)
        await followed.until(lambda: followed.view() == before, "nothing is left of it")


@pytest.mark.parametrize(
    ("annotations", "message"),
    [
        ({"sidecar.istio.io/interceptionMode": "SOMETIMES"}, "must be one of REDIRECT, NONE"),
        (
            {"sidecar.istio.io/interceptionMode": "NONE", "sidecar.xds/app-address": "10.1.0.9"},
            "requests to itself",
        ),
        ({"sidecar.xds/app-address": "localhost\u0000"}, "is not an IP address"),
    ],
)
async def test_pod_with_bad_annotations_is_refused(
    followed: Watching, annotations: dict[str, str], message: str
) -> None:
    before = followed.view()
    path = await pod(followed.cluster, SHOP, "odd", "10.1.0.9", annotations=annotations)
    try:
        await followed.until(
            lambda: any(message in str(problem) for problem in followed.problems()), "the problem is reported"
        )
        assert all(str(problem).startswith("Pod shop/odd") for problem in followed.problems())
        assert {key: version for key, version in followed.view().items() if key[0] != f"{SHOP}/odd"} == before
    finally:
        await followed.cluster.api.delete(path, gracePeriodSeconds=0)
        await followed.until(lambda: not followed.problems(), "the problem is solved")


@pytest.mark.parametrize(
    ("mesh", "message"),
    [
        ("{trustDomain: [", "cannot be read as YAML"),
        ("- a", "must be a mapping, not a list"),
        ("protocolDetectionTimeout: 0s", "must be at least 1ms"),
        ("trustDomain: spiffe://evil", "is not a trust domain"),
        ("enableAutoMtls: 'no'", "must be true or false"),
        (
            "a: &a [x]\n" + "".join(f"b{i}: &b{i} [*a, *a]\n" for i in range(9)) + "trustDomain: *a",
            "trustDomain",
        ),
    ],
)
async def test_bad_settings_keep_the_previous_ones(followed: Watching, mesh: str, message: str) -> None:
    path = f"/api/v1/namespaces/{SYSTEM}/configmaps"
    await followed.cluster.api.create(
        path, {"metadata": {"name": "xds"}, "data": {"mesh": "trustDomain: td.example\n"}}
    )
    try:
        await followed.until(lambda: followed.mesh.config.trust_domain == "td.example", "they are in force")
        before = followed.view()
        await followed.cluster.api.patch(f"{path}/xds", {"data": {"mesh": mesh}})
        await followed.until(
            lambda: any(message in str(problem) for problem in followed.problems()), "the problem is reported"
        )
        assert all(str(problem).startswith("ConfigMap istio-system/xds") for problem in followed.problems())
        assert followed.view() == before
        assert followed.mesh.config.trust_domain == "td.example"
    finally:
        await followed.cluster.api.delete(f"{path}/xds")
        await followed.until(lambda: followed.mesh.config.trust_domain == "cluster.local", "they are gone")
    assert not followed.problems()


async def test_control_plane_keeps_serving_despite_bad_objects(followed: Watching, tmp_path: Path) -> None:
    """The real process, with bad objects before its start, as after a restart, and later ones."""
    cases = [replace(case, name=f"bad-{number}") for number, case in enumerate(REFUSED) if case.name == "web"]
    half = len(cases) // 2
    paths = [await create(followed.cluster, *_where(case), body_of(case)) for case in cases[:half]]
    try:
        async with Serving(await followed.cluster.kubeconfig(), tmp_path, f"--namespace={SYSTEM}") as serving:
            await serving.until_ready()
            async with serving.sidecar("client", SHOP, "10.1.0.2") as sidecar:
                await sidecar.until("outbound|80||web.shop.svc.cluster.local", {"10.1.0.1"})
                paths += [
                    await create(followed.cluster, *_where(case), body_of(case)) for case in cases[half:]
                ]
                expected = {f"{case.kind.partition(' ')[2]} {case.namespace}/{case.name}" for case in cases}

                def all_reported() -> bool:
                    log = serving.log.read_text()
                    return all(name.replace(" /", " ") in log for name in expected)

                await eventually(all_reported, timeout=PATIENCE, what="each is named in the log")
                await pod(followed.cluster, SHOP, "later", "10.1.0.7")
                paths.append(f"/api/v1/namespaces/{SHOP}/pods/later")
                await _list_too(followed.cluster, "10.1.0.7")
                await sidecar.until("outbound|80||web.shop.svc.cluster.local", {"10.1.0.1", "10.1.0.7"})
                assert (await serving.ready())[0] == 200
            log = serving.log.read_text()
            assert "Traceback" not in log
            assert "MC4CAQ" not in log
            assert "\x1b[31m" not in log
    finally:
        await _list_too(followed.cluster)
        for path in paths:
            await followed.cluster.api.delete(path, gracePeriodSeconds=0)
        await followed.until(lambda: not followed.problems(), "all is solved")
        await followed.until(lambda: not followed.mesh.pod(SHOP, "later"), "nothing is left")


def _where(case: Case) -> tuple[str, str, str]:
    return case.kind, case.namespace, case.name


async def _list_too(cluster: Cluster, *addresses: str) -> None:
    """Have the shop's EndpointSlice list these addresses besides its pod's."""
    path = f"/apis/discovery.k8s.io/v1/namespaces/{SHOP}/endpointslices/web-1"
    there = await cluster.api.get(path)
    more = [{"addresses": [address], "conditions": {"ready": True}} for address in addresses]
    await cluster.api.replace(path, {**there, "endpoints": [there["endpoints"][0], *more]})
