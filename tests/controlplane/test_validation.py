"""Snapshots with refused resources. tests/real/test_validation.py has the real Envoy."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager, suppress
from math import inf

import pytest

from tests.library.clients import Words, cluster
from xds.mesh.controlplane import validation
from xds.mesh.controlplane.validation import SnapshotValidator
from xds.snapshot import CLUSTER, SECRET, Resource, ResourceSet, Snapshot
from xds.validation import Refusals

WEB, API, OTHER = ("shop", "web"), ("shop", "api"), ("shop", "other")


class Delivered:
    """A validator of snapshots, and what it has delivered."""

    def __init__(self) -> None:
        self.words = Words()
        self.pods, self.delta = {WEB, API, OTHER}, {WEB, API, OTHER}
        self.snapshots: dict[tuple[str, str], Snapshot] = {}
        self.history: list[tuple[dict[str, Resource], bytes]] = []
        """The clusters and the secret of each snapshot, in order."""
        self.news = asyncio.Event()
        self.scheduled = asyncio.Queue[tuple[str, str]]()
        self.validator = SnapshotValidator(
            self.words,
            self._deliver,
            self.pods.__contains__,
            self.delta.__contains__,
            self.scheduled.put_nowait,
        )

    def _deliver(self, key, snapshot: Snapshot, changed_at, with_key) -> None:
        self.snapshots[key] = snapshot
        if "default" in snapshot.of(SECRET):
            self.history.append((versions(snapshot), snapshot.of(SECRET)["default"].body))
        self.news.set()

    def start(self, *resources: Resource, key=WEB, secret: str = "", changed_at: float | None = None) -> None:
        """Submit a snapshot."""
        secrets = ResourceSet([Resource.of(SECRET, "default", secret.encode())])
        snapshot = Snapshot({CLUSTER: ResourceSet(resources), SECRET: secrets})
        self.validator.submit(key, snapshot, changed_at, with_key=True)

    async def validating(self, count: int) -> None:
        """Wait until a number of batches is validated or being validated."""
        async with asyncio.timeout(30):
            while len(self.words.calls) < count:
                await asyncio.sleep(0)

    async def delivered(self, count: int) -> list[tuple[dict[str, Resource], bytes]]:
        """Wait for a number of snapshots, and return their clusters and secrets."""
        async with asyncio.timeout(30):
            while len(self.history) < count:
                await asyncio.sleep(0)
        return self.history

    async def submit(
        self, *resources: Resource, generation: int = 0, key=WEB, base=(), secret=""
    ) -> Snapshot:
        """Submit a snapshot, and return what was delivered after its validation."""
        shared = ResourceSet(base)
        secrets = ResourceSet([Resource.of(SECRET, "default", secret.encode())])
        clusters = ResourceSet(resources, base=shared) if base else ResourceSet(resources)
        self.validator.submit(
            key, Snapshot({CLUSTER: clusters, SECRET: secrets}, generation=generation), None, with_key=True
        )
        self.news.clear()
        async with asyncio.timeout(30):
            await self.news.wait()
        return self.snapshots[key]


@pytest.fixture
def delivered() -> Delivered:
    return Delivered()


@asynccontextmanager
async def running(delivered: Delivered):
    task = asyncio.create_task(delivered.validator.run())
    yield
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task


def versions(snapshot: Snapshot) -> dict[str, Resource]:
    return dict(snapshot.of(CLUSTER).items())


async def test_the_last_good_version_stays(delivered):
    a1, a2, b1, b2, bad = (
        cluster("a", "1"),
        cluster("a", "2"),
        cluster("b", "1"),
        cluster("b", "2"),
        cluster("a", "bad", source="DestinationRule shop/web (rules.yaml:7)"),
    )
    async with running(delivered):
        assert versions(await delivered.submit(a1, b1, generation=1)) == {"a": a1, "b": b1}
        new = cluster("new", "bad")
        held = await delivered.submit(bad, b2, new, generation=2)
        assert (versions(held), held.generation) == ({"a": a1, "b": b2}, 2)
        assert delivered.validator.held_back_from(WEB) == {
            each: f"held back, Envoy refuses Cluster {each.name}: it is bad" for each in (bad, new)
        }
        assert delivered.validator.problem_of(WEB).startswith("Envoy refuses Cluster a: it is bad")
        first, second = delivered.validator.problems
        assert str(first) == (
            "rules.yaml:7: Envoy refuses Cluster a: it is bad"
            " (fix DestinationRule shop/web; sidecars keep the version that they have)"
        )
        assert (first.subject, second.where) == ("DestinationRule shop/web", "Cluster new")
        good = await delivered.submit(a2, b2, generation=3)
        assert (versions(good), good.kept) == ({"a": a2, "b": b2}, frozenset())
        assert not delivered.validator.problems
        assert not delivered.validator.problem_of(WEB)
        assert not delivered.validator.held_back_from(WEB)


async def test_after_a_restart_a_sidecar_keeps_what_it_has(delivered):
    bad = cluster("a", "bad")
    async with running(delivered):
        for _ in range(2):
            snapshot = await delivered.submit(bad, cluster("b"), generation=1)
            assert (versions(snapshot), snapshot.kept) == ({"b": cluster("b")}, {(CLUSTER, "a")})
            assert len(delivered.validator.problems) == 1
        await delivered.submit(cluster("a", "2"))
        snapshot = await delivered.submit(bad)
        assert (versions(snapshot), snapshot.kept) == ({"a": cluster("a", "2")}, frozenset())


async def test_after_a_restart_a_sotw_sidecar_rejects_the_refused_version(delivered):
    """It would delete what a response does not contain."""
    bad = cluster("a", "bad")
    delivered.delta.clear()
    async with running(delivered):
        for _ in range(2):
            assert versions(await delivered.submit(bad, cluster("b"))) == {"a": bad, "b": cluster("b")}
            assert len(delivered.validator.problems) == 1
        later = await delivered.submit(bad, cluster("b", "bad"), cluster("new", "bad"))
        assert versions(later) == {"a": bad, "b": cluster("b")}
        await delivered.submit(cluster("a", "2"))
        assert versions(await delivered.submit(bad)) == {"a": cluster("a", "2")}


async def test_shared_and_own_resources_are_held_back(delivered):
    shared, own = [cluster("s", "1"), cluster("t")], cluster("o", "1")
    async with running(delivered):
        await delivered.submit(own, base=shared)
        snapshot = await delivered.submit(cluster("o", "bad"), base=[cluster("s", "bad"), cluster("t", "2")])
        found = versions(snapshot)
        assert (found["s"], found["t"], found["o"]) == (shared[0], cluster("t", "2"), own)


async def test_a_shared_set_is_validated_once(delivered):
    async with running(delivered):
        await delivered.submit(cluster("o"), base=[cluster("s")])
        await delivered.submit(cluster("p"), base=[cluster("s")], key=API)
    assert delivered.words.calls == [["s", "o"], ["p"]]


async def test_pods_share_a_set_without_a_refused_resource(delivered):
    shared = ResourceSet([cluster("s"), cluster("t", "bad")])
    own = {WEB: cluster("w"), OTHER: cluster("o"), API: cluster("t", "1")}
    for key, resource in own.items():
        snapshot = Snapshot({CLUSTER: ResourceSet([resource], base=shared)})
        delivered.validator.submit(key, snapshot, None, with_key=True)
    async with running(delivered), asyncio.timeout(30):
        while len(delivered.snapshots) < len(own):
            await asyncio.sleep(0)
    sets = {key: snapshot.of(CLUSTER) for key, snapshot in delivered.snapshots.items()}
    assert {key: set(each) for key, each in sets.items()} == {
        WEB: {"s", "w"},
        OTHER: {"s", "o"},
        API: {"s", "t"},
    }
    assert sets[API].root is shared
    assert sets[WEB].root is sets[OTHER].root


async def test_certificates_do_not_wait_for_validation(delivered):
    async with running(delivered):
        await delivered.submit(cluster("a", "1"), secret="old")
        delivered.words.open.clear()
        delivered.validator.submit(
            WEB,
            Snapshot(
                {
                    CLUSTER: ResourceSet([cluster("a", "2")]),
                    SECRET: ResourceSet([Resource.of(SECRET, "default", b"new")]),
                }
            ),
            None,
            with_key=True,
        )
        assert delivered.snapshots[WEB].of(SECRET)["default"].body == b"new"
        assert versions(delivered.snapshots[WEB]) == {"a": cluster("a", "1")}
    assert not any(SECRET in call for call in delivered.words.calls)


async def test_a_deleted_pod_is_forgotten(delivered):
    async with running(delivered):
        await delivered.submit(cluster("a", "1"))
        delivered.pods.discard(WEB)
        delivered.validator.forget(WEB)
        delivered.snapshots.clear()
        delivered.validator.submit(WEB, Snapshot(), None, with_key=True)
        await delivered.submit(cluster("b"), key=API)
        assert {*delivered.snapshots} == {API}
        assert not delivered.validator._last.keys() - {API}


async def test_a_recreated_pod_gets_no_key_of_its_predecessor(delivered):
    old, new = cluster("a", "1"), cluster("a", "2")
    async with running(delivered):
        delivered.words.open.clear()
        delivered.start(old, secret="old")
        await delivered.validating(1)
        delivered.validator.forget(WEB)  # The pod is deleted, and another one has its name.
        delivered.start(new, secret="new")
        delivered.words.open.set()
        assert (await delivered.delivered(1))[0] == ({"a": new}, b"new")


async def test_a_renewed_certificate_is_not_overwritten(delivered):
    old, new = cluster("a", "1"), cluster("a", "2")
    async with running(delivered):
        delivered.words.open.clear()
        delivered.start(old, secret="old")
        await delivered.validating(1)
        delivered.start(new, secret="new")
        delivered.words.open.set()
        assert await delivered.delivered(2) == [({"a": old}, b"new"), ({"a": new}, b"new")]


async def test_oldest_change_includes_what_is_being_validated(delivered):
    assert delivered.validator.oldest_change == inf
    async with running(delivered):
        delivered.words.open.clear()
        delivered.start(cluster("a", "1"), changed_at=1.0)
        await delivered.validating(1)
        delivered.start(cluster("b", "1"), key=API, changed_at=2.0)
        assert delivered.validator.oldest_change == 1.0
        delivered.validator.forget(WEB)
        assert delivered.validator.oldest_change == 2.0
        delivered.words.open.set()
        await delivered.delivered(1)
        assert delivered.validator.oldest_change == inf


async def test_a_validator_that_fails_does_not_end_the_task(delivered):
    a1, a2 = cluster("a", "1"), cluster("a", "2")
    async with running(delivered):
        await delivered.submit(a1)
        delivered.words.error = RuntimeError("no")
        assert versions(await delivered.submit(a2)) == {"a": a1}
        assert "the validator failed: RuntimeError: no" in delivered.validator.problem_of(WEB)
        delivered.words.error = None
        assert versions(await delivered.submit(a2)) == {"a": a2}


async def test_a_set_that_was_not_judged_is_validated_again(delivered, monkeypatch):
    shared = [cluster("s")]

    async def unavailable(resources):
        return Refusals({}, resources)

    async with running(delivered):
        with monkeypatch.context() as patched:
            patched.setattr(delivered.words, "validate", unavailable)
            await delivered.submit(cluster("o"), base=shared)
        await delivered.submit(cluster("o"), base=shared)
        await delivered.submit(cluster("o"), base=shared)
    assert delivered.words.calls == [["s", "o"], ["o"]]


async def test_what_was_not_judged_is_validated_once_that_is_possible(delivered, monkeypatch):
    monkeypatch.setattr(validation, "RETRY_DELAY", 0.01)
    attempts = []

    async def unavailable(resources):
        attempts.append([each.name for each in resources])
        if len(attempts) == 4:
            patched.undo()
        return Refusals({}, resources)

    with monkeypatch.context() as patched:
        patched.setattr(delivered.words, "validate", unavailable)
        async with running(delivered), asyncio.timeout(30):
            await delivered.submit(cluster("a", "bad"))
            assert await delivered.scheduled.get() == WEB
            await delivered.submit(cluster("a", "bad"))
    assert delivered.validator.problem_of(WEB) == "Envoy refuses Cluster a: it is bad"
