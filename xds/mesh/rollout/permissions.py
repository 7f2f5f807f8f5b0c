"""ALLOW policies that change while clients change between plaintext and mutual TLS.

An ALLOW policy by identity refuses plaintext, as STRICT does. Until the transition of a pod ends, connections
as only its earlier state allows clients to send them are therefore subject to the ALLOW policies from before.
Other policies, and those of pods without a transition, are enforced at once.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from xds.mesh.model.mesh import Mesh
from xds.mesh.model.objects import (
    POLICY_KINDS,
    ROLLOUT,
    AllowStage,
    AuthorizationPolicy,
    Change,
    Mode,
    Pod,
    PortKey,
    Ref,
)
from xds.mesh.policy.authorization import allow_policies_of
from xds.mesh.policy.mtls import Send
from xds.mesh.rollout.desired import services_at
from xds.mesh.rollout.rollout import Rollout
from xds.mesh.rollout.rules import sends_under
from xds.mesh.rollout.stages import BOTH

MAX_TIMEOUTS = 3
"""Number of timeouts, one for each phase, after which new policies are enforced in any case."""
MAX_STAGES = 4
"""Maximum number of stages of a pod: the first one, and the last ones."""
RECENT = 2.0
"""Seconds after a change of ALLOW policies in which a server may not have ACKed it yet."""

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
    since: float
    """When policies and modes had both changed, in seconds of the event loop's clock."""

    @property
    def served(self) -> tuple[AllowStage, ...]:
        """The policies of each state, and the connections to which they apply.

        The earliest policies also apply to what no client sends after the transition: its mode may refuse
        that. Only the current ones apply to what all clients in transition send after it.
        """
        *earlier, current = self.stages
        others = frozenset(BOTH) - current.sends
        applied = [sends & others if others else sends for _, sends in earlier]
        applied[0] |= others
        stages = zip(self.stages, (*applied, current.sends), strict=True)
        return tuple(
            AllowStage(policies=policies, mtls=frozenset(send is Send.MTLS for send in sends))
            for (policies, _), sends in stages
        )

    def followed_by(self, stage: _Stage) -> _Transition:
        """Return the transition with another state."""
        first, *others = self.stages
        others = [each for each in others if each != stage]
        return self._replace(stages=(first, *others[2 - MAX_STAGES :], stage))


class Permissions:
    """The ALLOW policies of pods in transition."""

    def __init__(self, rollout: Rollout) -> None:
        self._rollout = rollout
        self._transitions: dict[Ref, _Transition] = {}
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
        kinds = {ref.kind for ref in (*(fact.ref for fact in change.applied), *change.removed)}
        is_changed = "AuthorizationPolicy" in kinds
        changes_sends = change.config is not None or not kinds.isdisjoint((*POLICY_KINDS, "DestinationRule"))
        if is_changed:
            self._recent.append((now, before.with_own_caches()))
        self._recent = [each for each in self._recent if each[0] > now - RECENT]
        known, self._transitions = self._transitions, {}
        for ref in self._rollout.pods_in_transition(after) if known or self._recent else ():
            old, pod, transition = before.get(ref), after.get(ref), known.get(ref)
            if not (transition or is_changed or changes_sends):
                continue
            if not isinstance(old, Pod) or not isinstance(pod, Pod) or old.meta.uid != pod.meta.uid:
                continue  # No client uses a new pod yet.
            possible, desired = self._sends(after, pod)
            stage = _Stage(allow_policies_of(after, pod), desired)
            if not desired or any(
                each.meta.annotations.get(ROLLOUT) == "immediate" for each in stage.policies
            ):
                continue
            policies = allow_policies_of(before, old) if is_changed else stage.policies
            if transition is None and policies != stage.policies:
                transition = _Transition((_Stage(policies, possible),), now)
            earlier = [*self._recent_policies(pod)] if changes_sends else []
            if transition:
                if transition.stages[-1] != stage:
                    earlier += (each.policies for each in transition.stages)
                self._transitions[ref] = transition.followed_by(stage)
            if any(each and each != stage.policies for each in earlier):
                modes = frozenset(_REFUSING[send] for send in desired)
                self._rollout.refusals.update(dict.fromkeys(_ports(after, pod), modes))

    def _recent_policies(self, pod: Pod) -> Iterator[tuple[AuthorizationPolicy, ...]]:
        """Yield the ALLOW policies of a pod before each recent change."""
        for _, mesh in self._recent:
            if isinstance(earlier := mesh.get(pod.ref), Pod):
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
        rollout, oldest = self._rollout, now - MAX_TIMEOUTS * (self._rollout.timeout or 0)
        if self._transitions or rollout.refusals:
            in_transition = rollout.pods_in_transition(mesh)
            self._transitions = {
                ref: transition
                for ref, transition in self._transitions.items()
                if ref in in_transition and transition.since > oldest
            }
            rollout.refusals = {
                key: rollout.refusals[key] for key in rollout.refusals if key[0] in in_transition
            }
        return {ref: transition.served for ref, transition in self._transitions.items()}


def _ports(mesh: Mesh, pod: Pod) -> set[PortKey]:
    """Return the ports of a pod that a Service exposes."""
    return {(pod.ref, exposure.target) for exposure in mesh.exposures(pod)}
