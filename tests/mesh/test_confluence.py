"""However the same facts arrive, the same bytes come out: the memory that `apply` keeps must never show."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.golden.cases import CASES, load
from tests.support.predictions import predict
from xds.mesh.envoy.translate import translate
from xds.mesh.model.mesh import Mesh
from xds.mesh.model.objects import TRAFFIC_KINDS, Change, MeshConfig, Service
from xds.snapshot import SECRET

WORLDS = {param.id: load(param.values[0]) for param in CASES}
FACTS = {
    name: [
        f for f in world.facts() if world.in_namespace(f.namespace, with_defaults=False).facts.get(f.ref) is f
    ]
    for name, world in WORLDS.items()
}


def served(mesh: Mesh) -> dict[object, object]:
    """Every sidecar's resources."""
    found: dict[object, object] = {}
    for pod in mesh.pods():
        if pod.has_sidecar:
            for type_url, resources in translate(mesh, pod).types.items():
                if type_url != SECRET:
                    found[pod.ref, type_url] = {r.name: (r.version, r.body) for r in resources.values()}
    return found


def outcome(mesh: Mesh) -> dict[object, object]:
    """All that a mesh comes to: every sidecar's resources, and every hop."""
    hops = [(o.client.ref, o.service.ref, o.port, o.endpoint, o.result, o.decided_by) for o in predict(mesh)]
    return {**served(mesh), "reach": hops}


@pytest.mark.parametrize("kind", TRAFFIC_KINDS)
def test_each_kind_of_policy_is_enforced(kind):
    """A kind that is read and not enforced would fail open: a golden case has to show what it changes."""
    assert any(
        served(Mesh(facts, WORLDS[name].config))
        != served(Mesh([other for other in facts if other is not fact], WORLDS[name].config))
        for name, facts in FACTS.items()
        for fact in facts
        if fact.ref.kind == kind
    )


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.sampled_from(sorted(WORLDS)), st.data())
def test_order_and_batches_of_changes_do_not_matter(name, data):
    facts, config = FACTS[name], WORLDS[name].config
    order = data.draw(st.permutations(facts))
    detours = data.draw(st.lists(st.sampled_from(facts), max_size=6))
    mesh = Mesh(config=MeshConfig())
    queue = list(order)
    while queue:
        size = data.draw(st.integers(1, len(queue)))
        batch, queue = queue[:size], queue[size:]
        mesh = mesh.apply(Change(applied=tuple(batch)))
        if data.draw(st.booleans()):
            outcome(mesh)  # fill what is remembered
    mesh = mesh.apply(Change(config=config))
    for fact in detours:
        outcome(mesh)
        without = mesh.apply(Change(removed=(fact.ref,)))
        if data.draw(st.booleans()):
            outcome(without)
        mesh = without.apply(Change(applied=(fact,)))
    assert outcome(mesh) == outcome(Mesh(facts, config))


@pytest.mark.parametrize("name", WORLDS)
def test_age_of_a_service_takes_effect(name):
    facts, config = FACTS[name], WORLDS[name].config
    whole = Mesh(facts, config)
    outcome(whole)
    for fact in facts:
        if isinstance(fact, Service):
            for created in (datetime(1999, 1, 1, tzinfo=UTC), datetime(2099, 1, 1, tzinfo=UTC)):
                aged = replace(fact, meta=replace(fact.meta, created=created))
                fresh = Mesh([aged if other is fact else other for other in facts], config)
                assert outcome(whole.apply(Change(applied=(aged,)))) == outcome(fresh)


@pytest.mark.parametrize("name", WORLDS)
def test_removing_and_adding_an_object_leaves_no_trace(name):
    facts, config = FACTS[name], WORLDS[name].config
    whole = Mesh(facts, config)
    expected = outcome(whole)
    for fact in facts:
        without = whole.apply(Change(removed=(fact.ref,)))
        assert outcome(without) == outcome(Mesh([other for other in facts if other is not fact], config))
        assert outcome(without.apply(Change(applied=(fact,)))) == expected
    assert outcome(whole) == expected


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_facts_of_different_meshes_can_be_mixed(data):
    """The golden cases share names: switching between them changes labels, ports, selectors and policies."""
    one, two = (data.draw(st.sampled_from(sorted(WORLDS))) for _ in range(2))
    taken = data.draw(st.lists(st.sampled_from(FACTS[two]), max_size=8, unique_by=lambda fact: fact.ref))
    mesh = Mesh(FACTS[one])
    outcome(mesh)
    for fact in taken:
        mesh = mesh.apply(Change(applied=(fact,)))
        if data.draw(st.booleans()):
            outcome(mesh)
    assert outcome(mesh) == outcome(Mesh([*FACTS[one], *taken]))
