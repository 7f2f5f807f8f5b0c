"""Subscriptions that result from sequences of requests."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from xds.protocol.subscription import WILDCARD, Subscription

NAMES = st.lists(st.sampled_from([WILDCARD, "a", "b", "c"]), max_size=4)


@given(history=st.lists(NAMES, min_size=1, max_size=5), legacy=st.booleans())
def test_r22_last_list_is_the_subscription(history, legacy):
    subscription = Subscription(legacy=legacy)
    for names in history:
        subscription.replace(names)
    assert subscription.names == set(history[-1]) - {WILDCARD}
    assert subscription.wildcard == (WILDCARD in history[-1] or (legacy and not any(history)))


@given(history=st.lists(st.tuples(NAMES, NAMES), min_size=1, max_size=5), legacy=st.booleans())
def test_r22_r29_changes_add_up_and_adding_comes_first(history, legacy):
    subscription = Subscription(legacy=legacy)
    wanted: set[str] = set()
    unsaid = {WILDCARD} if legacy and not history[0][0] else set()
    for added, taken in history:
        difference = subscription.change(added, taken)
        before, wanted, unsaid = wanted, (wanted | unsaid | set(added)) - set(taken), set()
        assert difference.adds_wildcard == (WILDCARD in wanted - before)
        assert set(difference.names_to_answer) >= (set(added) & wanted) - {WILDCARD}
    assert subscription.names == wanted - {WILDCARD}
    assert subscription.wildcard == (WILDCARD in wanted)
    assert all(subscription.covers(name) == (bool(wanted & {WILDCARD, name})) for name in ("a", "b", "c"))


def test_r20_unsubscribing_from_an_unnamed_name_drops_nothing():
    subscription = Subscription(legacy=False)
    assert not subscription.change(["a"], ["b"]).has_unsubscribed
    assert subscription.change([], ["a"]).has_unsubscribed


def test_the_same_list_again_is_no_difference():
    subscription = Subscription(legacy=True)
    assert subscription.replace(["a", "b"])
    assert not subscription.replace(["b", "a", "a"])
