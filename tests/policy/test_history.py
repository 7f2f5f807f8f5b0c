"""What is remembered of finished transitions."""

from __future__ import annotations

import pytest

from tests.policy.rollout_world import UNREAD, Proxies, settled
from xds.mesh.model.objects import Mode, Ref
from xds.mesh.rollout import history
from xds.mesh.rollout.history import HISTORY_SECONDS, Finished
from xds.mesh.rollout.plan import Phase

WEB = Ref("Pod", "ns", "web-1")
KEY = (WEB, 8080)


def finished(world: Proxies) -> Finished:
    """Return the last finished transition of a port."""
    return next(each for each in world.rollout.history.recent(world.now) if each.key == KEY)


def changed(mode: str = "STRICT") -> Proxies:
    """Return a world whose servers start a transition from DISABLE."""
    world = settled("DISABLE", timeout=30.0)
    world.set_mode(mode)
    return world


def test_finished_transition_has_the_time_of_each_phase():
    world = changed()
    started_at = world.now
    world.now += 5
    world.ack(*world.servers)
    world.advance()
    world.now += 7
    world.ack(*world.clients)
    world.step()
    world.now += 3
    world.ack(*world.servers)
    world.advance()
    found = finished(world)
    assert (found.before, found.after, found.skipped) == (Mode.DISABLE, Mode.STRICT, False)
    assert (found.started_at, found.finished_at) == (started_at, world.now)
    assert found.phases == pytest.approx({Phase.EXPAND: 5, Phase.MIGRATE: 7 + UNREAD, Phase.CONTRACT: 3})
    assert found.hosts == {("web.ns.svc.cluster.local", 80)}


def test_finished_transition_that_skipped_a_proxy_says_so():
    world = changed("PERMISSIVE")
    world.now += 30
    world.ack("two")
    world.step()
    world.ack(*world.clients)
    world.step()
    assert finished(world).skipped


def test_history_of_a_deleted_pod_ends():
    world = changed()
    count = world.rollout.history.count
    world.change(removed=(WEB,))
    for _ in range(3):
        world.ack("web-2", *world.clients)
        world.step()
    assert not world.rollout.plan.ports
    assert world.rollout.history.count == count + 2
    assert {each.key[0].name for each in world.rollout.history.recent(world.now)[:2]} == {"web-2"}


def test_history_is_bounded_by_number_and_time(monkeypatch):
    monkeypatch.setattr(history, "MAX_FINISHED", 3)
    world = changed()
    world.settle()
    assert len(world.rollout.history.recent(world.now)) == 3
    assert world.rollout.history.count > 3
    assert not world.rollout.history.recent(world.now + HISTORY_SECONDS)


def test_unknown_transition_is_ignored():
    empty = history.History()
    empty.skip(KEY)
    empty.end(KEY, Mode.STRICT, 1.0)
    assert (empty.count, empty.recent(1.0)) == (0, [])
