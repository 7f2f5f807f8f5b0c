"""ALLOW policies that change while clients change between plaintext and mutual TLS.

An ALLOW policy by identity refuses plaintext, as STRICT does. Until the transition of a pod ends, connections
as its clients sent them before are therefore subject to the ALLOW policies from before. No request fails that
all states since then allow, and none is allowed that all of them deny. Other policies, and those of pods
without a transition, are enforced at once.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import inf
from typing import NamedTuple

from xds.mesh.model.mesh import Mesh
from xds.mesh.model.objects import ROLLOUT, AllowStage, AuthorizationPolicy, Change, Mode, Pod, PortKey, Ref
from xds.mesh.policy.authorization import allow_policies_of
from xds.mesh.policy.mtls import Send
from xds.mesh.rollout.desired import services_at
from xds.mesh.rollout.rollout import Rollout
from xds.mesh.rollout.rules import sends_under
from xds.mesh.rollout.stages import BOTH

MAX_TIMEOUTS = 3
"""Number of timeouts, one for each phase, after which new policies are enforced in any case."""
TOGETHER = 2.0
"""Seconds in which changes count as made together, as those of one `kubectl apply`.

Policies that changed so recently before a transition began count as changed during it.
"""
MAX_STAGES = 8
"""Maximum number of stages of a pod. With more, the oldest is forgotten: what only it allows is denied."""

_REFUSING = {Send.PLAINTEXT: Mode.STRICT, Send.MTLS: Mode.DISABLE}
"""The mode in which a server refuses what clients send."""


class _Stage(NamedTuple):
    """A state of the mesh since the transition of a pod began."""

    policies: tuple[AuthorizationPolicy, ...]
    """ALLOW policies that applied to the pod."""
    sends: frozenset[Send]
    """What clients may send to the pod's ports in transition."""


class _Transition(NamedTuple):
    """The transition of a pod during which ALLOW policies have changed."""

    stages: tuple[_Stage, ...]
    """The states, of which the last is the current one."""
    uid: str
    """UID of the pod."""
    since: float
    """When policies and modes had both changed, in seconds of the event loop's clock."""

    @property
    def served(self) -> tuple[AllowStage, ...]:
        """The policies of each state, and the connections to which they apply.

        The earliest policies also apply to what no client sends after the transition, because the mode may
        refuse that. If clients do not change what they send, only the current policies apply to it.
        """
        *earlier, current = self.stages
        is_changing = len(frozenset().union(*(sends for _, sends in self.stages))) > 1
        applied = [sends if is_changing else frozenset[Send]() for _, sends in earlier]
        applied[0] |= frozenset(BOTH) - current.sends
        stages = zip(self.stages, (*applied, current.sends), strict=True)
        return tuple(
            AllowStage(policies=policies, tls=frozenset(send is Send.MTLS for send in sends))
            for (policies, _), sends in stages
        )

    def followed_by(self, stage: _Stage) -> _Transition:
        """Return the transition with another state."""
        known = (each for each in self.stages if each != stage)
        return self._replace(stages=(*known, stage)[-MAX_STAGES:])


class Permissions:
    """The ALLOW policies of pods in transition."""

    def __init__(self, rollout: Rollout) -> None:
        self._rollout = rollout
        self._transitions: dict[Ref, _Transition] = {}
        self._ended: dict[Ref, float] = {}
        """When transitions ended recently."""
        self._recent: list[tuple[float, Mesh]] = []
        """The meshes before recent changes of AuthorizationPolicies, and when these were made."""

    def update(self, before: Mesh, after: Mesh, change: Change, now: float) -> None:
        """Record the ALLOW policies before and after a change, for pods in transition.

        Args:
            before: the mesh before the change.
            after: the mesh after the change, which the rollout has recorded.
            change: the change.
            now: the time, in seconds of the event loop's clock.
        """
        refs = (*(fact.ref for fact in change.applied), *change.removed)
        if any(ref.kind == "AuthorizationPolicy" for ref in refs):
            self._recent.append((now, before.with_own_caches()))
        self._recent = [each for each in self._recent if each[0] > now - TOGETHER]
        if not self._recent and not self._transitions:
            return
        for ref in self._rollout.pods_in_transition(after):
            pod, known = after.get(ref), self._transitions.pop(ref, None)
            if not isinstance(pod, Pod):
                continue
            possible, desired = self._sends(after, pod)
            stage = _Stage(allow_policies_of(after, pod), desired)
            if known is None or known.uid != pod.meta.uid:
                stages = (_Stage(policies, possible) for policies in self._recent_policies(pod))
                known = _Transition(tuple(stages)[-MAX_STAGES:], pod.meta.uid, now)
            is_immediate = any(each.meta.annotations.get(ROLLOUT) == "immediate" for each in stage.policies)
            is_same = all(each.policies == stage.policies for each in known.stages)
            if is_same or is_immediate or not desired:
                continue
            self._transitions[ref] = known.followed_by(stage)
            if known.stages[-1] != stage and any(each.policies for each in known.stages):
                modes = frozenset(_REFUSING[send] for send in desired)
                self._rollout.refusals.update(dict.fromkeys(_ports(after, pod), modes))

    def _recent_policies(self, pod: Pod) -> Iterator[tuple[AuthorizationPolicy, ...]]:
        """Yield the ALLOW policies of a pod before each recent change."""
        ended = self._ended.get(pod.ref, -inf)
        for changed_at, mesh in self._recent:
            earlier = mesh.get(pod.ref)
            if changed_at > ended and isinstance(earlier, Pod) and earlier.meta.uid == pod.meta.uid:
                yield allow_policies_of(mesh, earlier)

    def _sends(self, mesh: Mesh, pod: Pod) -> tuple[frozenset[Send], frozenset[Send]]:
        """Return what clients may send to a pod's ports in transition, and what they are to send."""
        rollout, possible, desired = self._rollout, set[Send](), set[Send]()
        for key in _ports(mesh, pod):
            if port := rollout.ports.get(key):
                hosts, transition = services_at(mesh, key), rollout.plan.ports.get(key)
                before = transition.clients.possible if transition else (port.send,)
                after = (port.desired.send,)
                for rule in rollout.rules.values():
                    if rule.affects(hosts):
                        possible.update(*(sends_under(version, before) for version in rule.rule.possible))
                        desired |= sends_under(rule.desired, after)
                if transition or key in rollout.pending:
                    possible.update(before)
                    desired.update(after)
        return frozenset(possible), frozenset(desired)

    def served(self, mesh: Mesh, now: float) -> dict[Ref, tuple[AllowStage, ...]]:
        """Return the policies to serve during transitions, by pod. Forget transitions that have ended."""
        if self._transitions:
            in_transition = self._rollout.pods_in_transition(mesh)
            oldest = now - MAX_TIMEOUTS * (self._rollout.timeout or 0)
            ended = {
                ref
                for ref, transition in self._transitions.items()
                if ref not in in_transition or transition.since <= oldest
            }
            self._ended = {ref: at for ref, at in self._ended.items() if at > now - TOGETHER}
            self._ended |= dict.fromkeys(ended, now)
            for ref in ended:
                del self._transitions[ref]
        refusals = self._rollout.refusals
        self._rollout.refusals = {key: refusals[key] for key in refusals if key[0] in self._transitions}
        return {ref: transition.served for ref, transition in self._transitions.items()}


def _ports(mesh: Mesh, pod: Pod) -> set[PortKey]:
    """Return the ports of a pod that a Service exposes."""
    return {(pod.ref, exposure.target) for exposure in mesh.exposures(pod)}
