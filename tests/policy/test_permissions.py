"""ALLOW policies that change together with modes and DestinationRules."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.policy.rollout_world import PERMISSIONS, UNREAD, Proxies, client_rule, permission
from tests.policy.world import HTTP, peer, rule, service, slices
from xds.mesh.model.objects import ROLLOUT, Fact, Ref, ServicePort
from xds.mesh.policy import authorization
from xds.mesh.policy.mtls import Send
from xds.mesh.rollout.permissions import MAX_STAGES, MAX_TIMEOUTS, RECENT

WEB = Ref("Pod", "ns", "web-1")


def world_with(
    allowed: str | None, of: str | None, mode: str = "PERMISSIVE", timeout: float = 1e9
) -> Proxies:
    """Return proxies that all have ACKed an ALLOW policy, a DestinationRule and a mode."""
    world = Proxies(timeout)
    world.set(state(allowed, of, mode))
    world.settle()
    world.now += RECENT
    return world


def state(allowed: str | None, of: str | None, mode: str = "PERMISSIVE") -> dict[Ref, Fact | None]:
    return permission(allowed) | modes(of, mode)


def modes(of: str | None, mode: str = "PERMISSIVE") -> dict[Ref, Fact | None]:
    policy = peer("ns", mode)
    return client_rule(of) | {policy.ref: policy}


def permits(world: Proxies, send: Send, client: str = "one") -> bool:
    """Whether the rules that a server is served allow a client, by what it sends."""
    world.deliver_to_server("web-1")
    return world.permits(world.servers["web-1"].rules, client, 8080, send)


@pytest.mark.parametrize(
    ("before", "after", "plaintext", "mtls"),
    [
        pytest.param((None, "DISABLE"), ("one", None), True, True, id="first policy, by identity"),
        pytest.param((None, "DISABLE"), ("nothing", None), True, False, id="everything is denied"),
        pytest.param(("plaintext", "DISABLE"), ("mutual TLS", None), True, True, id="the other way"),
        pytest.param(
            ("mutual TLS", "DISABLE"), ("plaintext", None), False, False, id="denied before and after"
        ),
        pytest.param(("mutual TLS", None), ("plaintext", "DISABLE"), True, True, id="to plaintext"),
        pytest.param(("plaintext", None), ("mutual TLS", "DISABLE"), False, False, id="to plaintext, denied"),
        pytest.param(("one", "DISABLE"), (None, None), False, True, id="last policy"),
    ],
)
def test_connections_are_subject_to_the_policies_of_their_time(before, after, plaintext, mtls):
    world = world_with(*before)
    world.set(state(*after))
    assert permits(world, Send.PLAINTEXT) is plaintext
    assert permits(world, Send.MTLS) is mtls
    world.settle()
    assert not world.mesh.served.allow


def check_order(world: Proxies, order: tuple[str, ...]) -> None:
    """Let proxies receive everything in this order, and check that no request of a client fails."""
    for _ in range(8):
        for name in order:
            world.ack(name)
            rules = world.servers["web-1"].rules
            assert world.permits(rules, "one", 8080, *world.sent("one", (WEB, 8080)))
            world.check()
        world.step()
    assert ("one", (WEB, 8080)) in set.intersection(*world.must_reach)
    world.settle()


CHANGES = [
    ((None, "DISABLE"), ("one", None)),
    (("mutual TLS", None), (None, "DISABLE")),
    (("mutual TLS", None), (None, None, "DISABLE")),
    ((None, None, "DISABLE"), ("one", None, "STRICT")),
    ((None, "DISABLE", "PERMISSIVE"), ("one", None, "STRICT")),
]
ORDERS = [("one", "web-1"), ("web-1", "one")]


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(
    ("before", "after"),
    [
        *CHANGES,
        (("plaintext", "DISABLE"), ("one", None)),
        (("mutual TLS", None), ("plaintext", "DISABLE")),
        (("mutual TLS", None, "STRICT"), ("plaintext", None, "DISABLE")),
        (("plaintext", None, "DISABLE"), ("one", None, "STRICT")),
    ],
)
def test_no_request_fails_whoever_is_first(before, after, order):
    world = world_with(*before)
    world.set(state(*after))
    check_order(world, order)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(("before", "after"), CHANGES)
def test_changes_of_one_command_may_arrive_one_after_the_other(before, after, order):
    world = world_with(*before)
    changes = [permission(after[0]), modes(*after[1:])]
    # The policy comes last, unless it is deleted.
    for change in changes if after[0] is None else reversed(changes):
        world.set(change)
        world.now += RECENT / 2
    check_order(world, order)


def test_earlier_policies_are_not_revived_by_a_later_change():
    world = world_with(None, "DISABLE")
    world.set(permission("one"))
    world.set(client_rule(None))
    world.change(service("else", "ns", HTTP))
    assert not world.mesh.served.allow
    assert not permits(world, Send.PLAINTEXT)


def test_policies_of_a_finished_transition_are_not_revived():
    world = world_with(None, "DISABLE")
    world.set(state("one", None))
    for seconds in (0.0, UNREAD, 0.0):
        world.ack("web-1", "web-2", "one", "two")
        world.now += seconds
        world.advance()
    assert not world.mesh.served.allow
    world.set(client_rule("DISABLE"))
    assert not world.mesh.served.allow


def test_new_policies_are_enforced_although_a_transition_never_ends():
    world = world_with(None, "DISABLE", timeout=10.0)
    world.set(state("one", None))
    for number in range(3 * MAX_TIMEOUTS):
        assert world.mesh.served.allow, number
        # Somebody changes the mode again and again.
        world.set_mode(("DISABLE", "STRICT")[number % 2])
        world.now += 10.0 / 3
    world.advance()
    assert not world.mesh.served.allow
    assert not permits(world, Send.PLAINTEXT, "two")


def test_number_of_stages_is_limited():
    world = world_with("plaintext", "DISABLE")
    world.set(state("one", None))
    for name in (*PERMISSIONS, *PERMISSIONS):
        world.set(permission("one", name=f"also {name}") | permission(name))
    (stages,) = set(map(len, world.mesh.served.allow.values()))
    assert stages == MAX_STAGES
    assert permits(world, Send.MTLS)
    assert permits(world, Send.PLAINTEXT), "clients may still send what they did at first"


@pytest.mark.parametrize("limit", [3, 4])
def test_policies_of_too_many_values_are_not_combined(monkeypatch, limit):
    """A sidecar might not be able to receive all of them."""
    monkeypatch.setattr(authorization, "MAX_VALUES", limit)
    world = world_with("plaintext", "DISABLE")
    world.set(state("one", None))
    assert world.mesh.served.allow
    assert permits(world, Send.PLAINTEXT) is (limit == 4)
    assert permits(world, Send.MTLS)


def test_server_that_is_not_connected_is_not_waited_for():
    world = world_with("plaintext", "DISABLE")
    world.servers["web-1"].connected = world.servers["web-2"].connected = False
    world.set(state("one", None))
    for _ in range(5):
        world.step()
    assert world.mesh.served.generation < 10


def test_replaced_pod_starts_with_the_new_policies():
    world = world_with(None, "DISABLE")
    world.set(state("one", None))
    assert WEB in world.mesh.served.allow
    world.replace("web-1")
    assert WEB not in world.mesh.served.allow


def test_immediate_policy_is_enforced_at_once():
    world = world_with(None, "DISABLE")
    policy = permission("one")
    ((ref, fact),) = policy.items()
    assert fact
    immediate = replace(fact, meta=replace(fact.meta, annotations={ROLLOUT: "immediate"}))
    world.set({**state("one", None), ref: immediate})
    assert not world.mesh.served.allow
    assert not permits(world, Send.PLAINTEXT)


def test_service_without_listed_pods_has_no_say():
    """A terminating pod, which no EndpointSlice lists, keeps its ports, but no client sends to them."""
    world = world_with(None, "DISABLE")
    other = service("other", "ns", ServicePort(port=70, target=7070, name="http"), app="web")
    world.change(other, slices(other, port=7070), service("else", "ns", HTTP))
    world.set(state("one", None))
    assert permits(world, Send.PLAINTEXT)
    assert permits(world, Send.MTLS)


def test_rule_of_another_service_permits_nothing():
    """It says nothing about what clients send to this one."""
    world = world_with("mutual TLS", "DISABLE")
    world.change(service("other", "ns", HTTP))
    other = rule("clients", "other.ns.svc.cluster.local", "DISABLE", name="for-other")
    world.set({**state("plaintext", None), other.ref: other})
    assert len(world.rollout.rules) == 2
    assert not permits(world, Send.PLAINTEXT), "denied before and after"


def test_pod_that_is_newer_than_the_policy_change():
    world = world_with("mutual TLS", None)
    world.set(permission("one"))
    pod = world.facts[WEB]
    world.change(replace(pod, meta=replace(pod.meta, ref=Ref("Pod", "ns", "web-9")), address="10.9.9.9"))
    world.set(client_rule("DISABLE"))
    assert not world.mesh.served.allow


def test_pod_that_was_replaced_unseen_starts_with_the_new_policies():
    """A watch that was interrupted reports only the new pod."""
    world = world_with(None, "DISABLE")
    world.set(state("one", None))
    pod = world.facts[WEB]
    world.change(replace(pod, meta=replace(pod.meta, uid="another")))
    assert WEB not in world.mesh.served.allow
