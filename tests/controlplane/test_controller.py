"""The controller applies changes and publishes snapshots to connected proxies."""

from __future__ import annotations

import asyncio
from collections.abc import Generator, Iterable, MutableMapping
from dataclasses import replace
from datetime import timedelta
from typing import Any

import grpc
import pytest
from structlog.testing import capture_logs

from tests.controlplane.world import (
    AUTHORITY,
    NOW,
    STREAM,
    WITHIN,
    busy,
    namespace,
    node,
    pod,
    published,
    running,
    service,
)
from xds.checkpoint import TIME_SLICE
from xds.mesh.controlplane import batcher, certificates, publisher
from xds.mesh.controlplane.controller import Controller
from xds.mesh.envoy.features import Features
from xds.mesh.envoy.translate import steps
from xds.mesh.identity import CERTIFICATE
from xds.mesh.identity.ca import Authority
from xds.mesh.identity.keys import PrivateKey
from xds.mesh.model.mesh import Mesh
from xds.mesh.model.objects import Change, Fact, MeshConfig, Pod, Ref
from xds.protocol.wire import Node
from xds.server import Refused
from xds.snapshot import CLUSTER, ENDPOINT, SECRET, ResourceSet, Snapshot

KEYLESS = replace(STREAM, keyless=True)


def assert_traceback_is_text(entry: MutableMapping[str, Any]) -> None:
    """Log processors that format tracebacks may show local variables, and so keys."""
    assert entry["stack"].startswith("Traceback")
    assert "RuntimeError: a bug" in entry["stack"]
    assert "exc_info" not in entry


@pytest.mark.parametrize(
    "text",
    ["", "web", "sidecar~10.0.0.1~web~shop.svc.cluster.local", "router~1~web.shop~shop.svc.cluster.local"],
)
async def test_malformed_node_id_is_refused_with_the_expected_form(text: str) -> None:
    async with running() as controller:
        with pytest.raises(Refused) as refused:
            controller.connections.connect(Node(id=text), STREAM)
    assert refused.value.code is grpc.StatusCode.INVALID_ARGUMENT
    assert "sidecar~ADDRESS~POD.NAMESPACE~NAMESPACE.svc.cluster.local" in refused.value.message


async def test_proxy_gets_its_snapshot_and_every_change() -> None:
    async with running(pod("a"), service("web")) as controller:
        subscriber = controller.connections.connect(node("a"), STREAM)
        first = await published(subscriber)
        assert "outbound|80||web.shop.svc.cluster.local" in first.of(CLUSTER)
        controller.change(Change(applied=(service("other"),)))
        second = await published(subscriber)
        assert "outbound|80||other.shop.svc.cluster.local" in second.of(CLUSTER)
        controller.change(Change(removed=(Ref("Service", "shop", "other"),)))
        third = await published(subscriber)
        assert third.of(CLUSTER) == first.of(CLUSTER)


async def test_proxies_share_equal_resources() -> None:
    async with running(pod("a"), pod("bb"), service("web")) as controller:
        streams = [controller.connections.connect(node(name), STREAM) for name in ("a", "a", "bb")]
        one, again, other = [await published(stream) for stream in streams]
        assert one is again
        assert one.of(ENDPOINT) is other.of(ENDPOINT)
        assert one.of(SECRET)["ROOTCA"] is other.of(SECRET)["ROOTCA"]
        assert one.of(SECRET)["default"].body != other.of(SECRET)["default"].body


async def test_unaffected_proxy_is_not_woken() -> None:
    async with running(pod("a"), service("web")) as controller:
        subscriber = controller.connections.connect(node("a"), STREAM)
        first = await published(subscriber)
        controller.change(Change(applied=(namespace("elsewhere"),)))
        controller.change(Change(applied=(service("other"),)))
        await published(subscriber)
        controller.change(Change(applied=(namespace("elsewhere2"),)))
        later = controller.connections.connect(node("a"), STREAM)
        assert (await published(later)).of(SECRET) is not None
        assert not subscriber.changed.is_set()
        assert subscriber.snapshot != first


async def test_proxy_of_unknown_pod_waits_for_the_pod() -> None:
    async with running(service("web")) as controller:
        with capture_logs() as logs:
            subscriber = controller.connections.connect(node("late"), STREAM)
            controller.change(Change(applied=(namespace("x"),)))
            controller.change(Change(applied=(pod("late"),)))
            snapshot = await published(subscriber)
        assert snapshot.of(CLUSTER)
        warnings = [entry for entry in logs if entry["log_level"] == "warning"]
        assert [(entry["event"], entry["pod"]) for entry in warnings] == [
            ("proxy waits for its pod", "shop/late")
        ]


async def test_proxy_that_connects_early_waits_for_the_first_change() -> None:
    controller = Controller(AUTHORITY)
    task = asyncio.create_task(controller.run())
    subscriber = controller.connections.connect(node("a"), STREAM)
    controller.change(Change(applied=(pod("a"),)))
    assert (await published(subscriber)).of(CLUSTER)
    task.cancel()


async def test_proxy_of_deleted_pod_keeps_its_configuration() -> None:
    async with running(pod("a"), service("web")) as controller:
        subscriber = controller.connections.connect(node("a"), STREAM)
        snapshot = await published(subscriber)
        controller.change(Change(removed=(Ref("Pod", "shop", "a"),)))
        controller.change(Change(applied=(pod("bb"),)))
        await published(controller.connections.connect(node("bb"), STREAM))
        assert subscriber.snapshot is snapshot


async def test_new_pod_of_the_same_name_gets_a_new_key() -> None:
    async with running(pod("a", created=NOW)) as controller:
        subscriber = controller.connections.connect(node("a"), STREAM)
        first = await published(subscriber)
        controller.change(Change(removed=(Ref("Pod", "shop", "a"),)))
        controller.change(Change(applied=(pod("a", created=NOW + timedelta(seconds=1)),)))
        second = await published(subscriber)
        assert first.of(SECRET)["default"] != second.of(SECRET)["default"]


async def test_close_changes_are_batched(monkeypatch: pytest.MonkeyPatch) -> None:
    applied: list[Change] = []
    apply = Mesh.apply
    monkeypatch.setattr(Mesh, "apply", lambda mesh, change: applied.append(change) or apply(mesh, change))
    async with running(pod("a")) as controller:
        subscriber = controller.connections.connect(node("a"), STREAM)
        await published(subscriber)
        for number in range(100):
            controller.change(Change(applied=(service(f"s{number}"),)))
        controller.change(
            Change(removed=(Ref("Service", "shop", "s0"),), config=MeshConfig(connect_timeout=3))
        )
        controller.change(Change(applied=(service("s1"),)))
        await published(subscriber)
    [change] = applied
    assert len(change.applied) == 99
    assert change.removed == (Ref("Service", "shop", "s0"),)
    assert change.config == MeshConfig(connect_timeout=3)


async def test_constant_changes_do_not_starve_proxies() -> None:
    async with running(pod("a")) as controller:
        subscriber = controller.connections.connect(node("a"), STREAM)
        await published(subscriber)

        async def hurry() -> None:
            for number in range(10_000):
                controller.change(Change(applied=(service(f"s{number % 50}"), namespace(f"n{number}"))))
                await asyncio.sleep(batcher.DEBOUNCE / 4)

        task = asyncio.create_task(hurry())
        await published(subscriber)
        task.cancel()


async def test_translation_yields_to_the_event_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    def slow(
        mesh: Mesh, pod: Pod, secrets: ResourceSet, features: Features
    ) -> Generator[None, None, Snapshot]:
        for _ in range(100):
            busy(0.002)
            yield
        return Snapshot()

    monkeypatch.setattr(publisher, "translation_steps", slow)
    async with running(pod("a"), pod("bb")) as controller:
        streams = [controller.connections.connect(node(name), STREAM) for name in ("a", "bb")]
        turns = 0
        while not all(stream.changed.is_set() for stream in streams):
            await asyncio.sleep(0)
            turns += 1
    assert turns > 2 * 100 * 0.002 / TIME_SLICE / 3


async def test_superseded_translation_is_abandoned_but_not_twice(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ended: list[tuple[str, bool]] = []

    def slow(
        mesh: Mesh, pod: Pod, secrets: ResourceSet, features: Features
    ) -> Generator[None, None, Snapshot]:
        whole = False
        try:
            for _ in range(20):
                controller.change(Change(applied=(namespace("more"),)))
                busy(batcher.MAX_DEBOUNCE / 10)
                yield
            whole = True
            return Snapshot()
        finally:
            ended.append((pod.name, whole))

    monkeypatch.setattr(publisher, "translation_steps", slow)
    async with running(pod("a"), pod("bb")) as controller:
        await published(controller.connections.connect(node("a"), STREAM))
        await published(controller.connections.connect(node("bb"), STREAM))
    assert ended[:2] == [("a", False), ("a", True)]
    assert [whole for name, whole in ended if name == "bb"][:2] == [False, True]


async def test_change_is_applied_before_the_next_translation(monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []

    def slow(
        mesh: Mesh, pod: Pod, secrets: ResourceSet, features: Features
    ) -> Generator[None, None, Snapshot]:
        order.append(pod.name)
        if len(order) == 1:
            controller.change(Change(applied=(namespace("more"),)))
            busy(2 * batcher.DEBOUNCE)
        yield
        return Snapshot()

    monkeypatch.setattr(publisher, "translation_steps", slow)
    async with running(pod("a"), pod("bb")) as controller:
        controller.on_applied = lambda *_: order.append("applied")
        streams = [controller.connections.connect(node(name), STREAM) for name in ("a", "bb")]
        for stream in streams:
            await published(stream)
    assert order[:2] == ["a", "applied"]


class Held:
    """A translation that does not end while `is_held` is set."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.is_held = False
        self.started = asyncio.Event()
        monkeypatch.setattr(publisher, "translation_steps", self._steps)

    def _steps(
        self, mesh: Mesh, pod: Pod, secrets: ResourceSet, features: Features
    ) -> Generator[None, None, Snapshot]:
        while self.is_held:
            self.started.set()
            busy(TIME_SLICE)
            yield
        return (yield from steps(mesh, pod, secrets, features))

    async def change(self, controller: Controller) -> None:
        """Add the Service `other`, and wait until the translation is held."""
        self.is_held = True
        controller.change(Change(applied=(service("other"),)))
        async with asyncio.timeout(WITHIN):
            await self.started.wait()


def has_other(snapshot: Snapshot) -> bool:
    return "outbound|80||other.shop.svc.cluster.local" in snapshot.of(CLUSTER)


async def test_stream_that_gets_a_key_connects_during_a_translation(monkeypatch: pytest.MonkeyPatch) -> None:
    held = Held(monkeypatch)
    async with running(pod("a"), service("web")) as controller:
        keyless = controller.connections.connect(node("a"), KEYLESS)
        await published(keyless)
        await held.change(controller)
        keyed = controller.connections.connect(node("a"), STREAM)
        held.is_held = False
        for stream, has_key in ((keyless, False), (keyed, True)):
            snapshot = await published(stream)
            assert has_other(snapshot)
            assert (CERTIFICATE in snapshot.of(SECRET)) is has_key
        assert keyless.changed_at is not None


async def test_stream_that_gets_a_key_ends_during_a_translation(monkeypatch: pytest.MonkeyPatch) -> None:
    held = Held(monkeypatch)
    async with running(pod("a"), service("web")) as controller:
        keyless = controller.connections.connect(node("a"), KEYLESS)
        keyed = controller.connections.connect(node("a"), STREAM)
        await published(keyless)
        await published(keyed)
        await held.change(controller)
        controller.connections.disconnect(keyed)
        held.is_held = False
        snapshot = await published(keyless)
        assert has_other(snapshot)
        assert CERTIFICATE not in snapshot.of(SECRET)
        assert keyless.changed_at is not None


async def test_failed_translation_does_not_block_other_pods(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def broken(
        mesh: Mesh, pod: Pod, secrets: ResourceSet, features: Features
    ) -> Generator[None, None, Snapshot]:
        if pod.name == "a":
            raise RuntimeError("a bug")
        return steps(mesh, pod, secrets, features)

    monkeypatch.setattr(publisher, "translation_steps", broken)
    async with running(pod("a"), pod("bb"), service("web")) as controller:
        with capture_logs() as logs:
            controller.connections.connect(node("a"), STREAM)
            await published(controller.connections.connect(node("bb"), STREAM))
        (entry,) = (entry for entry in logs if entry["log_level"] == "error")
        assert entry["pod"] == "shop/a"
        assert_traceback_is_text(entry)


@pytest.fixture
def unappliable(monkeypatch: pytest.MonkeyPatch) -> Ref:
    """A service that no mesh can contain."""
    ref, apply, create = service("bad").ref, Mesh.apply, Mesh.__init__

    def check(facts: Iterable[Fact]) -> None:
        if any(fact.ref == ref for fact in facts):
            raise RuntimeError("a bug")

    def broken_apply(mesh: Mesh, change: Change) -> Mesh:
        check(change.applied)
        return apply(mesh, change)

    def broken_create(mesh: Mesh, facts: Iterable[Fact] = (), config: MeshConfig | None = None) -> None:
        check(facts)
        create(mesh, facts, config)

    monkeypatch.setattr(Mesh, "apply", broken_apply)
    monkeypatch.setattr(Mesh, "__init__", broken_create)
    return ref


async def test_object_that_cannot_be_applied_is_skipped(unappliable: Ref) -> None:
    """All other objects of the same change are applied."""
    async with running(pod("a"), service("old")) as controller:
        subscriber = controller.connections.connect(node("a"), STREAM)
        await published(subscriber)
        with capture_logs() as logs:
            controller.change(
                Change(
                    applied=(service("bad"), service("web")),
                    removed=(service("old").ref,),
                    config=MeshConfig(connect_timeout=3),
                )
            )
            snapshot = await published(subscriber)
        assert "outbound|80||web.shop.svc.cluster.local" in snapshot.of(CLUSTER)
        assert "outbound|80||old.shop.svc.cluster.local" not in snapshot.of(CLUSTER)
        assert controller.mesh.config == MeshConfig(connect_timeout=3)
        assert controller.stats.batches == 2
        (entry,) = logs
        assert (entry["log_level"], entry["objects"]) == ("error", [str(unappliable)])
        assert_traceback_is_text(entry)
        controller.change(Change(applied=(service("later"),)))
        assert "outbound|80||later.shop.svc.cluster.local" in (await published(subscriber)).of(CLUSTER)


async def test_controller_starts_without_an_object_that_cannot_be_applied(unappliable: Ref) -> None:
    with capture_logs() as logs:
        async with running(pod("a"), service("bad"), service("web")) as controller:
            subscriber = controller.connections.connect(node("a"), STREAM)
            snapshot = await published(subscriber)
    assert "outbound|80||web.shop.svc.cluster.local" in snapshot.of(CLUSTER)
    assert [entry["objects"] for entry in logs] == [[str(unappliable)]]


async def test_certificates_are_renewed_at_half_their_lifetime(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(certificates, "CLOCK_CHECK_INTERVAL", 0.01)
    clock = [NOW]
    async with running(pod("a"), now=lambda: clock[0]) as controller:
        subscriber = controller.connections.connect(node("a"), STREAM)
        first = await published(subscriber)
        clock[0] += timedelta(hours=11, minutes=59)
        controller.change(Change(applied=(service("web"),)))
        second = await published(subscriber)
        assert second.of(SECRET) == first.of(SECRET)
        clock[0] += timedelta(minutes=2)
        third = await published(subscriber)
        assert third.of(SECRET)["default"] != first.of(SECRET)["default"]
        assert third.of(SECRET)["ROOTCA"] is first.of(SECRET)["ROOTCA"]
        assert third.of(CLUSTER) is second.of(CLUSTER)


async def test_failed_renewal_is_retried_with_a_delay(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(certificates, "RETRY_DELAY", 0.02)
    monkeypatch.setattr(certificates, "CLOCK_CHECK_INTERVAL", 0.02)
    clock = [NOW]
    async with running(pod("a"), now=lambda: clock[0]) as controller:
        subscriber = controller.connections.connect(node("a"), STREAM)
        await published(subscriber)
        secrets_for = controller.certificates._issuer.secrets_for
        with capture_logs() as logs:
            monkeypatch.setattr(controller.certificates._issuer, "secrets_for", lambda *_: 1 / 0)
            clock[0] += timedelta(hours=13)
            async with asyncio.timeout(WITHIN):
                while len(logs) < 3:
                    await asyncio.sleep(0.01)
        monkeypatch.setattr(controller.certificates._issuer, "secrets_for", secrets_for)
        assert (await published(subscriber)).of(SECRET)["default"]


async def test_proxy_without_key_gets_roots_and_one_warning() -> None:
    async with running(pod("a"), serve_keys=False) as controller:
        with capture_logs() as logs:
            subscribers = [controller.connections.connect(node("a"), STREAM) for _ in range(2)]
            first = await published(subscribers[0])
        for subscriber in subscribers:
            controller.connections.disconnect(subscriber)
        with capture_logs() as later:
            controller.connections.connect(node("a"), STREAM)
        assert list(first.of(SECRET)) == ["ROOTCA"]
        [entry] = logs
        assert [again["event"] for again in later] == [entry["event"]]
        assert entry["proxy"] == node("a").id
        assert entry["secret"] == "default"


async def test_ended_streams_leave_no_state() -> None:
    async with running(pod("a")) as controller:
        streams = [controller.connections.connect(node(name), STREAM) for name in ("a", "a", "unknown")]
        await published(streams[0])
        for stream in streams:
            controller.connections.disconnect(stream)
        assert (
            controller.connections.streams,
            controller.publisher._due,
            controller.publisher._superseded,
        ) == ({}, {}, set())
        assert await published(controller.connections.connect(node("a"), STREAM))


async def test_changed_pod_is_served_again() -> None:
    async with running(pod("a"), service("web")) as controller:
        subscriber = controller.connections.connect(node("a"), STREAM)
        first = await published(subscriber)
        controller.change(Change(applied=(replace(pod("a"), address="10.9.9.9"),)))
        assert (await published(subscriber)).of(ENDPOINT) != first.of(ENDPOINT)


# --- rotation of the root certificate --------------------------------------------------------------------


async def test_rotation_replaces_roots_and_then_certificates() -> None:
    new = Authority.create(PrivateKey.generate(), "cluster.local", NOW)
    async with running(pod("a"), pod("bb")) as controller:
        streams = [controller.connections.connect(node(name), STREAM) for name in ("a", "bb")]
        first = [await published(stream) for stream in streams]
        controller.rotate(AUTHORITY, [new.root_pem])
        second = [await published(stream) for stream in streams]
        controller.rotate(new, [AUTHORITY.root_pem])
        third = [await published(stream) for stream in streams]
        assert controller.certificates.stats().issued == 4
    for before, between, after in zip(first, second, third, strict=True):
        assert before.of(SECRET)["default"] == between.of(SECRET)["default"] != after.of(SECRET)["default"]
        assert len({each.of(SECRET)["ROOTCA"].version for each in (before, between, after)}) == 3


async def test_rotated_roots_reach_proxies_without_keys() -> None:
    new = Authority.create(PrivateKey.generate(), "cluster.local", NOW)
    async with running(pod("a"), serve_keys=False) as controller:
        stream = controller.connections.connect(node("a"), STREAM)
        before = await published(stream)
        controller.rotate(AUTHORITY, [new.root_pem])
        after = await published(stream)
    assert list(after.of(SECRET)) == ["ROOTCA"]
    assert before.of(SECRET)["ROOTCA"] != after.of(SECRET)["ROOTCA"]


async def test_no_secrets_are_served_with_an_sds_socket() -> None:
    async with running(pod("a")) as controller:
        stream = controller.connections.connect(node("a"), STREAM)
        assert set((await published(stream)).of(SECRET)) == {"ROOTCA", "default"}
        controller.change(Change(config=MeshConfig(sds_socket="/run/agent.sock")))
        assert not (await published(stream)).of(SECRET)
        controller.change(Change(config=MeshConfig()))
        assert set((await published(stream)).of(SECRET)) == {"ROOTCA", "default"}
