"""When changes are applied."""

from __future__ import annotations

from math import inf

import pytest

from xds.mesh.controlplane.batcher import DEBOUNCE, ENDPOINT_DEBOUNCE, MAX_DEBOUNCE, ChangeBatcher
from xds.mesh.model.objects import Change, MeshConfig, Meta, Namespace, Pod, Ref

POD = Change(applied=(Pod(meta=Meta(ref=Ref("Pod", "shop", "web")), address="127.9.0.1"),))
DELETED_SLICE = Change(removed=(Ref("EndpointSlice", "shop", "web-1"),))
NAMESPACE = Change(applied=(Namespace(meta=Meta(ref=Ref("Namespace", "", "shop"))),))
DELETED_POLICY = Change(removed=(Ref("PeerAuthentication", "shop", "default"),))
SETTINGS = Change(config=MeshConfig())


def debounce(*changes: Change, after: float = inf) -> float:
    """Return the quiet period for changes that arrive at once, `after` seconds after the last batch."""
    batcher, now = ChangeBatcher(), 100.0
    if after < inf:
        batcher.add(POD, now - 2 * after)
        batcher.take()
        batcher.applied(now - after)
    for change in changes:
        batcher.add(change, now)
    return batcher.due_at - now


def test_nothing_is_due_without_a_change():
    assert ChangeBatcher().due_at == inf


@pytest.mark.parametrize("changes", [(POD,), (DELETED_SLICE,), (POD, DELETED_SLICE)])
def test_endpoints_are_applied_sooner(changes):
    assert debounce(*changes) == pytest.approx(ENDPOINT_DEBOUNCE)


@pytest.mark.parametrize("other", [NAMESPACE, DELETED_POLICY, SETTINGS])
def test_other_objects_wait_for_those_that_change_with_them(other):
    assert debounce(other) == debounce(POD, other) == debounce(other, POD) == pytest.approx(DEBOUNCE)


def test_frequent_endpoint_changes_are_batched():
    assert debounce(POD, after=MAX_DEBOUNCE / 2) == pytest.approx(DEBOUNCE)
    assert debounce(POD, after=MAX_DEBOUNCE) == pytest.approx(ENDPOINT_DEBOUNCE)


def test_constant_changes_are_applied_in_time():
    batcher = ChangeBatcher()
    for number in range(100):
        batcher.add(POD, number * ENDPOINT_DEBOUNCE / 2)
    assert batcher.due_at == pytest.approx(MAX_DEBOUNCE)


def test_each_batch_has_its_own_quiet_period():
    batcher, due = ChangeBatcher(), []
    for change, now in ((NAMESPACE, 0.0), (POD, 1.0), (NAMESPACE, 2.0)):
        batcher.add(change, now)
        due.append(batcher.due_at - now)
        batcher.take()
        batcher.applied(now)
    assert due == pytest.approx([DEBOUNCE, ENDPOINT_DEBOUNCE, DEBOUNCE])
