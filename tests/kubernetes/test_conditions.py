"""Problems are published once on their object, as a condition or an Event, while they last."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from http import HTTPStatus
from typing import Any

import pytest
from structlog.testing import capture_logs

from tests.kubernetes.environment.cluster import Cluster
from tests.kubernetes.environment.control_plane import ControlPlane
from tests.policy.world import mesh, peer, pod, rule, service
from tests.support.manifests import Manifest
from tests.support.tasks import background
from tests.support.waiting import eventually
from xds.mesh.kube import conditions as module
from xds.mesh.kube import crds
from xds.mesh.kube.api import KubeApi, KubeError
from xds.mesh.kube.conditions import ConditionPublisher, FalseCondition, desired_conditions
from xds.mesh.model.mesh import Mesh
from xds.mesh.model.objects import Problem, Ref, ServicePort
from xds.mesh.policy.ineffective import without_effect

PEER = "/apis/security.istio.io/v1/namespaces/{}/peerauthentications"
REFUSED = "spec.mtls.mode must be one of STRICT, not LOOSE"
PLURALS = [
    *("policies", "meshpolicies", "peerauthentications", "authorizationpolicies", "destinationrules"),
    *("serviceentries", "workloadentries", "sidecars"),
]
RULES = [
    {
        "apiGroups": ["authentication.istio.io", "security.istio.io", "networking.istio.io"],
        "resources": PLURALS,
        "verbs": ["list"],
    },
    {
        "apiGroups": ["authentication.istio.io", "security.istio.io", "networking.istio.io"],
        "resources": [f"{plural}/status" for plural in PLURALS],
        "verbs": ["patch"],
    },
    {"apiGroups": [""], "resources": ["events"], "verbs": ["create"]},
    {
        "apiGroups": [""],
        "resources": ["pods", "services", "serviceaccounts", "namespaces"],
        "verbs": ["list"],
    },
    {"apiGroups": ["discovery.k8s.io"], "resources": ["endpointslices"], "verbs": ["list"]},
]
"""The rights that the module documents."""


@pytest.fixture(scope="module")
def control_plane(bare: ControlPlane) -> ControlPlane:
    """A control plane for this file alone, because these tests write in every namespace."""
    return bare


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "POLL_INTERVAL", 0.01)
    monkeypatch.setattr(module, "WRITE_INTERVAL", 0.0)
    monkeypatch.setattr(module, "RETRY_DELAY", 0.1)


class World:
    """Facts and problems, as set by the test."""

    def __init__(self, api: KubeApi, namespace: str) -> None:
        self.api, self.namespace = api, namespace
        self.problems: list[Problem] = []
        self.without_effect: dict[Ref, tuple[Problem, ...]] = {}
        self.mesh = Mesh()
        self.leads = True
        self.conditions = self.another(api)

    def another(self, api: KubeApi) -> ConditionPublisher:
        return ConditionPublisher(
            api,
            lambda: self.problems,
            lambda: self.mesh,
            lambda: self.without_effect,
            leads=lambda: self.leads,
        )

    async def reconcile(self, conditions: ConditionPublisher | None = None) -> bool:
        wanted = desired_conditions(self.mesh, self.problems, self.without_effect)
        return await (conditions or self.conditions).reconcile(wanted)

    def refuse(self, kind: str, name: str, what: str = REFUSED) -> None:
        where = str(Ref(kind, "" if kind in ("MeshPolicy", "Namespace") else self.namespace, name))
        self.problems = [Problem(where=where, what=what)]

    async def apply(self, name: str, mode: str = "STRICT") -> dict[str, Any]:
        body = {
            "apiVersion": "security.istio.io/v1",
            "kind": "PeerAuthentication",
            "metadata": {"name": name},
            "spec": {"mtls": {"mode": mode}},
        }
        try:
            return await self.api.create(PEER.format(self.namespace), body)
        except KubeError as error:
            if error.reason != "AlreadyExists":
                raise
            return await self.api.patch(f"{PEER.format(self.namespace)}/{name}", {"spec": body["spec"]})

    async def get(self, name: str) -> dict[str, Any]:
        return await self.api.get(f"{PEER.format(self.namespace)}/{name}")

    async def conditions_of(self, name: str) -> dict[str, dict[str, Any]]:
        status = (await self.get(name)).get("status", {})
        return {condition["type"]: condition for condition in status.get("conditions", ())}

    async def events(self, kind: str, namespace: str = "") -> list[dict[str, Any]]:
        events = await self.api.get(f"/api/v1/namespaces/{namespace or self.namespace}/events")
        return [item for item in events["items"] if item["involvedObject"]["kind"] == kind]


@pytest.fixture
async def world(cluster: Cluster) -> AsyncIterator[World]:
    await crds.install(cluster.api)
    async with cluster.namespace() as namespace:
        yield World(cluster.api, namespace)


def test_conditions_of_objects_and_problems() -> None:
    facts = [
        pod("web", "ns"),
        *(peer("ns", "STRICT", name=name, age=age) for name, age in (("old", 9), ("young", 1))),
    ]
    problems = [
        Problem(where="PeerAuthentication ns/young", what="is odd", hint="make it even"),
        Problem(where="PeerAuthentication ns/young", what="is long\nand broken"),
        Problem(where="MeshPolicy other", what="is wrong"),
        Problem(where="Service ns/web", what="was passed over", notice=True),
        Problem(where="https://10.0.0.1:443", what="cannot be reached"),
    ]
    desired = desired_conditions(mesh(*facts), problems)
    assert desired[Ref("PeerAuthentication", "ns", "young")] == {
        "Accepted": FalseCondition("Refused", r"is odd (make it even); is long\nand broken"),
        "Enforced": FalseCondition("Overridden", "overridden by PeerAuthentication ns/old"),
    }
    assert desired[Ref("MeshPolicy", "", "other")] == {"Accepted": FalseCondition("Refused", "is wrong")}
    # The API server does not have the default MeshPolicy.
    assert set(desired) == {Ref("PeerAuthentication", "ns", "young"), Ref("MeshPolicy", "", "other")}


def test_services_without_effect_have_a_condition() -> None:
    admin = ServicePort(port=80, target=15000)
    same = [service("web", "aaa", admin, age=age) for age in (9, 1)]
    taker = replace(same[1], meta=replace(same[1].meta, ref=Ref("Service", "aaa", "web-too")))
    world = mesh(pod("web", "aaa"), same[0], taker)
    desired = desired_conditions(world, (), without_effect(world).problems)
    closed = "port 80 forwards to port 15000, which is reserved for the sidecar"
    conditions = {ref.name: text["Enforced"] for ref, text in desired.items() if ref.kind == "Service"}
    assert conditions["web"].message.startswith(closed)
    assert conditions["web"].reason == conditions["web-too"].reason == "NoEffect"
    owner = f"clusterIP {taker.addresses[0]} belongs to Service aaa/web: "
    assert conditions["web-too"].message.startswith(owner)
    assert closed in conditions["web-too"].message


def test_object_without_effect_is_not_enforced() -> None:
    facts = [
        pod("web", "ns"),
        service("web", "ns"),
        service("empty", "ns"),
        peer("ns", "STRICT", name="lock", app="wbe"),
        rule("ns", "web.ns.svc.cluster.local", "DISABLE", name="old", age=9),
        rule("ns", "web.ns.svc.cluster.local", "DISABLE", name="young", age=1, selector={"app": "x"}),
        rule("ns", "web.ns.svc.cluster.local", "DISABLE", name="younger", selector={"app": "x"}),
    ]
    world = mesh(*facts)
    desired = desired_conditions(world, (), without_effect(world).problems)
    lock = "selector app=wbe matches no pod in namespace ns, so it has no effect (did you mean app=web?)"
    clients = "workloadSelector app=x matches no pod in namespace ns, so it has no effect"
    assert {ref.name: conditions for ref, conditions in desired.items() if ref.kind != "MeshPolicy"} == {
        "lock": {"Enforced": FalseCondition("NoEffect", lock)},
        "young": {"Enforced": FalseCondition("NoEffect", clients)},
        "younger": {
            "Enforced": FalseCondition("Overridden", f"overridden by DestinationRule ns/young; {clients}")
        },
    }, "a Service without endpoints has no condition"


async def test_no_effect_condition_is_cleared(world: World) -> None:
    await world.apply("default")
    ref = Ref("PeerAuthentication", world.namespace, "default")
    world.without_effect = {ref: (Problem(where=str(ref), what="matches nothing"),)}
    async with background(world.conditions.run()):
        await eventually(lambda: world.conditions_of("default"), timeout=30)
        (condition,) = (await world.conditions_of("default")).values()
        assert (condition["type"], condition["status"]) == ("Enforced", "False")
        assert (condition["reason"], condition["message"]) == ("NoEffect", "matches nothing")
        world.without_effect = {}

        async def cleared() -> bool:
            return not await world.conditions_of("default")

        await eventually(cleared, timeout=30)


async def test_condition_follows_the_problem(world: World) -> None:
    made = await world.apply("default")
    await world.apply("fine")
    world.refuse("PeerAuthentication", "default")
    assert await world.reconcile()
    conditions = await world.conditions_of("default")
    assert conditions == {
        "Accepted": {
            "type": "Accepted",
            "status": "False",
            "reason": "Refused",
            "message": REFUSED,
            "observedGeneration": made["metadata"]["generation"],
            "lastTransitionTime": conditions["Accepted"]["lastTransitionTime"],
        }
    }
    fields = (await world.get("default"))["metadata"]["managedFields"]
    assert ("xds-status", "status") in {(field["manager"], field.get("subresource")) for field in fields}
    assert "status" not in await world.get("fine")

    # Another problem keeps the status and its time, and updates the generation.
    await world.api.patch(
        f"{PEER.format(world.namespace)}/default/status",
        {"status": {"conditions": [conditions["Accepted"] | {"lastTransitionTime": "2001-01-01T00:00:00Z"}]}},
    )
    await world.apply("default", "DISABLE")
    world.refuse("PeerAuthentication", "default", "is wrong otherwise")
    assert await world.reconcile()
    again = (await world.conditions_of("default"))["Accepted"]
    assert again["message"] == "is wrong otherwise"
    assert again["lastTransitionTime"] == "2001-01-01T00:00:00Z"
    assert again["observedGeneration"] == made["metadata"]["generation"] + 1

    world.problems = []
    assert await world.reconcile()
    assert await world.conditions_of("default") == {}


async def test_existing_and_foreign_conditions_are_kept(world: World) -> None:
    await world.apply("default")
    theirs = {"type": "Reconciled", "status": "True", "reason": "Fine"}
    path = f"{PEER.format(world.namespace)}/default"
    await world.api.patch(f"{path}/status", {"status": {"conditions": [theirs], "observedGeneration": 7}})
    world.refuse("PeerAuthentication", "default")
    assert await world.reconcile()
    before = await world.get("default")
    assert [condition["type"] for condition in before["status"]["conditions"]] == ["Reconciled", "Accepted"]
    # Neither this replica nor another has anything to write.
    assert await world.reconcile()
    assert await world.reconcile(world.another(world.api))
    assert await world.get("default") == before
    world.problems = []
    assert await world.reconcile(world.another(world.api))
    assert (await world.get("default"))["status"] == {"conditions": [theirs], "observedGeneration": 7}


async def test_follower_writes_no_conditions(world: World) -> None:
    await world.apply("default")
    world.refuse("PeerAuthentication", "default")
    world.leads = False
    await world.reconcile()
    assert await world.conditions_of("default") == {}


async def test_kind_without_a_status_gets_one_event(world: World) -> None:
    plain = {"metadata": {"name": "web"}, "spec": {"containers": [{"name": "web", "image": "web"}]}}
    await world.api.create(
        f"/api/v1/namespaces/{world.namespace}/serviceaccounts", {"metadata": {"name": "web"}}
    )
    plain["spec"]["serviceAccountName"] = "web"
    made = await world.api.create(f"/api/v1/namespaces/{world.namespace}/pods", plain)
    world.refuse("Pod", "web")
    for conditions in (world.conditions, world.conditions, world.another(world.api)):
        assert await world.reconcile(conditions)
    (event,) = await world.events("Pod")
    assert event["involvedObject"]["uid"] == made["metadata"]["uid"]
    assert (event["type"], event["reason"], event["message"]) == ("Warning", "Refused", REFUSED)
    # Another problem causes another Event.
    world.refuse("Pod", "web", "claims the address of another")
    assert await world.reconcile()
    assert len(await world.events("Pod")) == 2
    # A deleted object gets no Event.
    world.refuse("Pod", "gone")
    assert await world.reconcile()
    assert len(await world.events("Pod")) == 2


async def test_bad_settings_get_an_event_on_their_config_map(world: World) -> None:
    maps = f"/api/v1/namespaces/{world.namespace}/configmaps"
    await world.api.create(maps, {"metadata": {"name": "xds"}, "data": {"mesh": "enableAutoMtls: maybe"}})
    world.refuse("ConfigMap", "xds", 'must be true or false, on line 1 of the key "mesh"')
    assert await world.reconcile()
    (event,) = await world.events("ConfigMap")
    assert event["message"] == 'must be true or false, on line 1 of the key "mesh"'


def without_status(version: Manifest) -> None:
    version.pop("subresources")


def other_status(version: Manifest) -> None:
    conditions = {"type": "string"}
    properties = version["schema"]["openAPIV3Schema"]["properties"]
    properties["status"] = {"type": "object", "properties": {"conditions": conditions}}


async def unless(status: HTTPStatus, call: Awaitable[object]) -> bool:
    """Whether a call does not fail with this status."""
    try:
        await call
    except KubeError as error:
        if error.status != status:
            raise
        return False
    return True


@pytest.mark.parametrize("change", [without_status, other_status])
async def test_crd_without_conditions_gets_events(
    own_cluster: Cluster, change: Callable[[Manifest], None]
) -> None:
    await crds.install(own_cluster.api)
    world = World(own_cluster.api, "default")
    path = f"{crds.PATH}/meshpolicies.authentication.istio.io"

    async def changed() -> bool:
        # Controllers may update it at the same time.
        definition = await world.api.get(path)
        for version in definition["spec"]["versions"]:
            change(version)
        return await unless(HTTPStatus.CONFLICT, world.api.replace(path, definition))

    await eventually(changed, timeout=30)
    mesh_policy = {
        "apiVersion": "authentication.istio.io/v1alpha1",
        "kind": "MeshPolicy",
        "metadata": {"name": "default"},
        "spec": {"peers": [{"mtls": {"mode": "PERMISSIVE"}}]},
    }

    async def created() -> bool:
        # The API server replaces the handler of a changed kind, and refuses requests for a moment.
        policies = "/apis/authentication.istio.io/v1alpha1/meshpolicies"
        return await unless(HTTPStatus.SERVICE_UNAVAILABLE, world.api.create(policies, mesh_policy))

    await eventually(created, timeout=30)
    world.refuse("MeshPolicy", "default")

    async def is_reported() -> bool:
        # Discovery is updated a moment later.
        assert await world.reconcile(world.another(world.api))
        return bool(await world.events("MeshPolicy", "default"))

    await eventually(is_reported, timeout=30)
    (event,) = await world.events("MeshPolicy", "default")
    assert event["message"] == REFUSED


async def test_missing_kinds_are_ignored(own_cluster: Cluster) -> None:
    world = World(own_cluster.api, "default")
    world.refuse("PeerAuthentication", "default")
    with capture_logs() as logs:
        assert await world.reconcile()
    assert logs == []


async def test_documented_rights_suffice_and_missing_are_logged_once(world: World, cluster: Cluster) -> None:
    await world.apply("default")
    async with await cluster.connect("teller") as api:
        conditions = world.another(api)
        world.refuse("PeerAuthentication", "default")
        with capture_logs() as logs:
            assert not await world.reconcile(conditions)
            assert not await world.reconcile(conditions)
        assert len(logs) == 1
        assert "cannot list resource" in logs[0]["problem"]

        await cluster.allow("teller", RULES)
        async with background(conditions.run()):
            await eventually(lambda: world.conditions_of("default"), timeout=30)
            world.refuse("Namespace", world.namespace)
            await eventually(lambda: world.events("Namespace", "default"), timeout=30)
            assert await world.conditions_of("default") == {}


async def test_publisher_follows_changes_and_survives_an_error(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    await world.apply("default")

    def broken(*_: object) -> dict[Ref, Any]:
        raise RuntimeError("a bug")

    with monkeypatch.context() as patched, capture_logs() as logs:
        patched.setattr(module, "desired_conditions", broken)
        async with background(world.conditions.run()):
            await eventually(lambda: logs, timeout=30)
            patched.undo()
            monkeypatch.setattr(module, "POLL_INTERVAL", 0.01)
            world.refuse("PeerAuthentication", "default")
            await eventually(lambda: world.conditions_of("default"), timeout=30)
            before = await world.get("default")
            world.mesh = mesh(pod("web", "ns"))  # a change that matters to nobody here
            world.problems = [*world.problems, Problem(where=f"Namespace {world.namespace}", what="is odd")]
            await eventually(lambda: world.events("Namespace", "default"), timeout=30)
            assert await world.get("default") == before
            world.problems = []

            async def cleared() -> bool:
                return not await world.conditions_of("default")

            await eventually(cleared, timeout=30)
    assert "RuntimeError: a bug" in logs[0]["problem"]
