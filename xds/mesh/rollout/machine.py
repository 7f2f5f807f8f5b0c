"""What is served now, given what is wanted and what is known to be in force: how modes change without a failed request.

A server passes through PERMISSIVE, its clients change over once its listener takes what they are going to send, and it is locked
(or goes back to plaintext) once none of them is going to send anything else; each port of each pod by itself. Nothing here knows
time or proxies: `step` is told both, and says what to serve next. The order, and why it takes acknowledgements:
docs/rollout.md.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import replace
from typing import NamedTuple

from xds.mesh.model.mesh import Mesh, ServiceKey
from xds.mesh.model.objects import Change, DestinationRule, Mode, PortKey, Ref, Served
from xds.mesh.policy.mtls import Send
from xds.mesh.rollout import rules
from xds.mesh.rollout.desired import Want, is_there, services_at, wanted_of
from xds.mesh.rollout.peers import NOT_HERE, TAKES, Elsewhere, Stand
from xds.mesh.rollout.rules import RuleChange
from xds.mesh.rollout.transition import Crossing, Known, Stage, other_than, service_of

_FOR = {takes: mode for mode, takes in TAKES.items()}

_BOTH = TAKES[Mode.PERMISSIVE]

_ARRIVING = 0.2
"""Seconds that a connection takes to get from a client's sidecar to the server's."""

THE_API = "the API server"
"""What is waited for while other replicas cannot know yet what is about to be done."""


class Step(NamedTuple):
    """What is to be served from now on."""

    served: Served
    rules: Change
    """DestinationRules that were held back, and may be in force now."""


class Rollout:
    """Where all ports of all pods are on their way to what is wanted.

    `timeout` is how many seconds any proxy is waited for; None: nobody is waited for, what is wanted is served at once.
    """

    def __init__(self, timeout: float | None = 30.0) -> None:
        self.timeout = timeout
        self.served = Served(generation=1)
        self.crossings: dict[PortKey, Crossing] = {}
        self.rules: dict[Ref, RuleChange] = {}
        self.late: dict[PortKey, Crossing] = {}
        """Where somebody was not waited for any longer and is not there yet, as it was then."""
        self.late_rules: dict[Ref, RuleChange] = {}
        """The same of DestinationRules."""
        self.passed_over = 0
        """How many times that was so."""
        self.locked = 0
        """How many times a port was closed to plaintext."""
        self.finished: Callable[[float], object] = float
        """Told how many seconds a port was on its way, when what is wanted is in force there."""
        self.closed: Callable[[PortKey, int], object] = lambda _, __: None
        """Told of each port that is closed to plaintext, and since which generation."""
        self._wanted: dict[Ref, dict[int, Want]] = {}
        self._listed: dict[ServiceKey, frozenset[PortKey]] = {}
        """What each service leads to."""
        self._lagging: dict[int, Mapping[str, str]] = {}
        """During a step, the clients that have not reached a generation."""
        self._new: set[PortKey] = set()
        """What has just come, and may be on its way with other replicas."""
        self._opened: list[Crossing] = []
        """What went on its way since the last step."""
        self._asked: frozenset[PortKey] = frozenset()
        """What other replicas want to know of."""

    # --- what is wanted ----------------------------------------------------------------------------------------------

    def follow(self, mesh: Mesh, removed: Iterable[Ref], now: float) -> None:
        """Learn what a mesh wants; `removed` is what is gone since the one before."""
        for ref in removed:
            self._wanted.pop(ref, None)
        names: Collection[ServiceKey] | None = mesh.touched
        if names is None:
            names = self._listed.keys() | {(each.namespace, each.name) for each in mesh.services()}
        gone: set[PortKey] = set()
        for name in sorted(names):
            service = mesh.service(*name)
            wants = dict(wanted_of(mesh, service)) if service else {}
            gone |= self._listed.pop(name, frozenset()) - wants.keys()
            if wants:
                self._listed[name] = frozenset(wants)
            for key, want in wants.items():
                self._want(mesh, key, want, now)
        for key in gone:
            # Nobody uses it, and it does not go step by step: it is new if it comes again.
            if key not in self.crossings and not any(key in each for each in self._listed.values()):
                self._wanted.get(key[0], {}).pop(key[1], None)

    def recover(self, mesh: Mesh, pod: Ref, modes: Mapping[int, Mode], now: float) -> None:
        """Learn from a server which modes it has had in force since before we were here."""
        for port, mode in modes.items():
            want = self._wanted.get(pod, {}).get(port)
            key = (pod, port)
            if key in self.crossings:
                self.crossings[key].may_serve.add(mode)  # Another replica may have told it that.
                continue
            if want is None or want.mode is mode or self.timeout is None:
                continue
            tells = want.will if want.will in TAKES[mode] else other_than(want.will)
            crossing = self._open(mesh, key, want._replace(mode=mode, will=tells), now)
            crossing.wanted, crossing.will = want.mode, want.will
            # Its clients may be sending either.
            crossing.may_tell, crossing.tells_at = set(_BOTH), self.served.generation

    def meet(self, now: float) -> None:
        """Learn that a client has come which another replica may have told something else."""
        for crossing in self.crossings.values():
            if crossing.may_tell == {crossing.tells}:
                crossing.told_since = now
            crossing.may_tell, crossing.heard_at, crossing.settled = set(_BOTH), None, False

    def change_rule(self, mesh: Mesh, ref: Ref, new: DestinationRule | None, now: float) -> None:
        """Learn that a DestinationRule is to be another one, or none; `step` says when."""
        before = self.rules.get(ref) or self.late_rules.pop(ref, None)
        self.rules[ref] = rules.change(mesh, before, ref, new, now)

    def withdraw_rules(self, mesh: Mesh, now: float) -> list[Ref]:
        """Return the DestinationRules to take back because servers are found not to take yet what they say."""
        for rule in mesh.rules():
            change = replace(rules.change(mesh, None, rule.ref, rule, now), old=None)
            if rule.ref not in self.rules and rules.is_too_early(change, self.crossings, Elsewhere()):
                self.rules[rule.ref] = change
        held = [ref for ref, each in self.rules.items() if each.at is None and not each.old and each.new]
        return [ref for ref in held if mesh.get(ref)]

    def _want(self, mesh: Mesh, key: PortKey, want: Want, now: float) -> None:
        pod, port = key
        known = self._wanted.setdefault(pod, {})
        before = known.get(port)
        known[port] = want
        if before is None or before.uid != want.uid or self.timeout is None:
            self.crossings.pop(key, None)  # Nobody uses what has just come.
            if self.timeout is not None:
                self._new.add(key)
                hosts = services_at(mesh, key)
                if any(rule.is_about(hosts) for rule in self.rules.values()):
                    # Clients may be sending what a rule said until now, or will say.
                    crossing = self._open(mesh, key, want, now)
                    crossing.serves = crossing.to_serve = Mode.PERMISSIVE
                    crossing.may_serve = {crossing.serves}
        elif key in self.crossings:
            crossing = self.crossings[key]
            crossing.wanted, crossing.will, crossing.immediate = want.mode, want.will, want.immediate
            crossing.hosts = services_at(mesh, key)
        elif (before.mode, before.will) != (want.mode, want.will):
            crossing = self._open(mesh, key, before, now)
            crossing.wanted, crossing.will, crossing.immediate = want.mode, want.will, want.immediate

    def _open(self, mesh: Mesh, key: PortKey, now_is: Want, now: float) -> Crossing:
        crossing = self.crossings[key] = Crossing(
            wanted=now_is.mode,
            will=now_is.will,
            immediate=now_is.immediate,
            serves=now_is.mode,
            serves_at=0,
            may_serve={now_is.mode},
            tells=now_is.will,
            tells_at=0,
            may_tell={now_is.will},
            hosts=services_at(mesh, key),
            began=now,
            served_since=now,
            told_since=now,
            to_serve=now_is.mode,
            to_tell=now_is.will,
        )
        self._opened.append(crossing)
        # Who was not waited for the last time, and is there still, is waited for this time.
        late = self.late.pop(key, None)
        if late and late.stage is Stage.LISTENER:
            crossing.may_serve |= late.may_serve
            crossing.serves_at = late.serves_at
        elif late and late.stage is Stage.CLIENTS:
            crossing.may_tell |= late.may_tell
            crossing.tells_at = late.tells_at
        return crossing

    # --- other replicas ----------------------------------------------------------------------------------------------

    def stands(self) -> dict[PortKey, Stand]:
        """Return what other replicas are to know."""
        found = dict.fromkeys(self._asked, NOT_HERE)
        return found | {key: self._stand(crossing) for key, crossing in self.crossings.items()}

    def _stand(self, crossing: Crossing) -> Stand:
        wanted = TAKES[crossing.wanted]
        sends = {crossing.to_tell, *crossing.may_tell} if crossing.will in wanted else set()
        for uses, wants in rules.users(self.rules, crossing):
            if wants & wanted:
                sends |= uses
        modes = frozenset({crossing.to_serve, *crossing.may_serve})
        return Stand(open=not crossing.settled, modes=modes, sends=frozenset(sends))

    def _join(self, mesh: Mesh, elsewhere: Elsewhere, now: float) -> None:
        """Take part in what is on its way elsewhere: what nothing is said of here, nobody can go on with."""
        self._asked = elsewhere.opened
        for key in elsewhere.opened - self.crossings.keys():
            pod, port = key
            if (want := self._wanted.get(pod, {}).get(port)) is None or not is_there(mesh, key):
                continue
            crossing = self._open(mesh, key, want, now)
            if key not in self._new:
                continue
            # It is new here alone: it takes all that others may send, and is sent what all others take.
            crossing.serves = crossing.to_serve = Mode.PERMISSIVE
            crossing.may_serve = {crossing.serves}
            modes, other = elsewhere.modes(key), other_than(want.will)
            is_taken = all(want.will in TAKES[mode] for mode in modes) and not elsewhere.silent(key)
            if not is_taken and all(other in TAKES[mode] for mode in modes):
                crossing.tells = crossing.to_tell = other
                crossing.may_tell = {crossing.tells}
        self._new.clear()

    # --- what is served ----------------------------------------------------------------------------------------------

    def step(self, mesh: Mesh, known: Known, now: float) -> Step | None:
        """Go on as far as is known to be good; None: nothing is to be served that was not before."""
        self._lagging.clear()
        generation = self.served.generation + 1
        for key in [key for key in self.crossings if not is_there(mesh, key)]:
            del self.crossings[key]
        self._join(mesh, known.elsewhere, now)
        for crossing in self._opened:
            crossing.may_tell |= _BOTH if known.returned else set()
        self._opened.clear()
        self._look_after_late(mesh, known)
        # A listener waits that long for a client to speak first. A server that does so itself has clients that say nothing:
        # whatever their connections turn out to be, they are refused if it is not taken any more by then.
        unread = mesh.config.protocol_detection_timeout + _ARRIVING
        self._confirm_rules(known, now, unread)
        for key, crossing in self.crossings.items():
            self._confirm(key, crossing, known, now, unread)
        released = self._release_rules(known, generation, now)
        moved = False
        for key, crossing in tuple(self.crossings.items()):
            moved |= self._move(key, crossing, known, generation, now)
            if self._is_over(key, crossing, known, now):
                del self.crossings[key]
                self.finished(now - crossing.began)
            else:
                self._tell(key, crossing, known)
        modes = {key: each.serves for key, each in self.crossings.items() if each.serves is not each.wanted}
        mtls = {
            key: each.tells is Send.MTLS
            for key, each in self.crossings.items()
            if each.tells is not each.will
        }
        changed = (modes, mtls) != (self.served.modes, self.served.mtls)
        if not (moved or released or changed):
            return None
        self.served = Served(generation=generation, modes=modes, mtls=mtls)
        return Step(
            self.served,
            Change(
                applied=tuple(each.new for each in released.values() if each.new),
                removed=tuple(ref for ref, each in released.items() if not each.new),
            ),
        )

    def _is_late(self, since: float, now: float) -> bool:
        return self.timeout is None or now >= since + self.timeout

    def _confirm(self, key: PortKey, crossing: Crossing, known: Known, now: float, unread: float) -> None:
        """Draw the conclusions from what is known to be in force.

        `unread`: for how many seconds a listener may not know yet what a new connection is, and judge it afterwards.
        """
        pod, _ = key
        if (reached := known.servers.get(pod)) is None or reached >= crossing.serves_at:
            crossing.may_serve = {crossing.serves}
        elif (
            crossing.may_serve != {crossing.serves}
            and not known.rejected.get(pod)
            and self._is_late(crossing.served_since, now)
        ):
            self._pass_over(key, crossing, Stage.LISTENER, known)
            crossing.may_serve = {crossing.serves}
        if crossing.may_tell == {crossing.tells}:
            return
        behind = self._behind(crossing, known)
        if _is_heard(crossing, behind, now, 0.0 if crossing.tells is Send.PLAINTEXT else unread):
            crossing.may_tell = {crossing.tells}
        elif behind and self._is_late(crossing.told_since, now):
            self._pass_over(key, crossing, Stage.CLIENTS, known)
            crossing.may_tell = {crossing.tells}

    def _is_over(self, key: PortKey, crossing: Crossing, known: Known, now: float) -> bool:
        """Whether nothing is on its way any more, nor anybody wants to know of it."""
        if not crossing.done:
            crossing.done_since, crossing.settled = None, False
            return False
        if crossing.done_since is None:
            crossing.done_since = now
        if crossing.immediate or self._is_late(crossing.done_since, now):
            crossing.settled = True
        elif not crossing.settled:
            # Once they have been there together, others may cease to speak of it.
            crossing.settled = not known.elsewhere.apart(key, crossing.serves, crossing.tells)
        return crossing.settled and key not in known.elsewhere.opened

    def _pass_over(self, key: PortKey, crossing: Crossing, stage: Stage, known: Known) -> None:
        behind = (
            self._behind(crossing, known) if stage is Stage.CLIENTS else dict.fromkeys(crossing.held_by, "")
        )
        self.late[key] = replace(
            crossing,
            may_serve=set(crossing.may_serve),
            may_tell=set(crossing.may_tell),
            stage=stage,
            laggards=tuple(behind),
            rejection=next(filter(None, behind.values()), ""),
        )
        self.passed_over += 1

    def _look_after_late(self, mesh: Mesh, known: Known) -> None:
        """Forget who was late once they are there."""
        for key, late in tuple(self.late.items()):
            # Who is gone meanwhile was never there: it may be alive, and open.
            reached = known.servers.get(key[0], -1)
            match late.stage:
                case Stage.LISTENER:
                    arrived = reached >= late.serves_at
                case Stage.REPLICAS:
                    arrived = key not in self.crossings
                case _:
                    arrived = not self._behind(late, known)
            if arrived or not is_there(mesh, key):
                del self.late[key]
        for ref, rule in tuple(self.late_rules.items()):
            if not self._behind_rule(rule, known):
                del self.late_rules[ref]

    def _move(self, key: PortKey, crossing: Crossing, known: Known, generation: int, now: float) -> bool:
        """Say what to serve; tell whether that is something else."""
        wanted, before = TAKES[crossing.wanted], (crossing.serves, crossing.tells)
        if crossing.immediate:
            self._serve(key, crossing, crossing.wanted, generation, now)
            self._say(crossing, crossing.will, generation, now)
            return before != (crossing.serves, crossing.tells)
        will_work, others = crossing.will in wanted, known.elsewhere
        late = crossing.held_since is not None and self._is_late(crossing.held_since, now)
        held: list[str] | None = None
        crossing.to_tell = crossing.tells
        if crossing.tells is not crossing.will and (
            not will_work or all(crossing.will in TAKES[mode] for mode in crossing.may_serve)
        ):
            crossing.to_tell = crossing.will
            if will_work and (
                (who := others.refusing(key, crossing.will)) or not others.may_tell(key, crossing.will)
            ):
                held = who
            if held is None or late:
                self._say(crossing, crossing.will, generation, now)
        need = set(wanted)
        if will_work:
            need |= crossing.may_tell & TAKES[crossing.serves]
        for uses, wants in rules.users(self.rules, crossing):
            if wants & wanted:
                need |= uses & TAKES[crossing.serves]
        crossing.to_serve = _FOR[frozenset(need)]
        refused = TAKES[crossing.serves] - need
        narrower: list[str] | None = None
        if refused and (
            (who := others.sending(key, refused)) or not others.may_serve(key, crossing.to_serve)
        ):
            narrower = who
        if narrower is None or late:
            self._serve(key, crossing, crossing.to_serve, generation, now)
        if narrower is not None:
            held = [*(held or ()), *narrower]
        self._hold(key, crossing, known, held, now, late=late)
        return before != (crossing.serves, crossing.tells)

    def _hold(
        self,
        key: PortKey,
        crossing: Crossing,
        known: Known,
        held: list[str] | None,
        now: float,
        *,
        late: bool,
    ) -> None:
        """Note which replicas are in the way; None: none was, not even our own report."""
        if held is not None and late:
            self._pass_over(key, crossing, Stage.REPLICAS, known)
        if held is None or late:
            crossing.held_since, crossing.held_by = None, ()
            return
        crossing.held_by = tuple(sorted(set(held))) or (THE_API,)
        if crossing.held_since is None:
            crossing.held_since = now

    def _serve(self, key: PortKey, crossing: Crossing, mode: Mode, generation: int, now: float) -> None:
        if crossing.serves is not mode:
            if mode is Mode.STRICT:
                self.closed(key, generation)
                self.locked += 1
            crossing.serves, crossing.serves_at, crossing.served_since = mode, generation, now
            crossing.may_serve.add(mode)

    def _say(self, crossing: Crossing, send: Send, generation: int, now: float) -> None:
        if crossing.tells is not send:
            crossing.tells, crossing.tells_at, crossing.told_since = send, generation, now
            crossing.may_tell.add(send)
            crossing.heard_at = None

    def _tell(self, key: PortKey, crossing: Crossing, known: Known) -> None:
        """Note what it waits for."""
        pod, _ = key
        waits_for_clients = crossing.may_tell != {crossing.tells} or any(rules.users(self.rules, crossing))
        if crossing.may_serve != {crossing.serves}:
            crossing.stage, crossing.rejection = Stage.LISTENER, known.rejected.get(pod, "")
            crossing.laggards = ()
        elif waits_for_clients:
            behind = self._behind(crossing, known)
            crossing.stage, crossing.laggards = Stage.CLIENTS, tuple(behind)
            crossing.rejection = next(filter(None, behind.values()), "")
        else:
            crossing.stage = Stage.REPLICAS if crossing.held_by else None
            crossing.laggards, crossing.rejection = crossing.held_by, ""

    def _behind(self, crossing: Crossing, known: Known) -> Mapping[str, str]:
        """Return the clients that have not taken what they were told, with what they said if they rejected it; by name."""
        return self._lags(crossing.tells_at, known, crossing.hosts.__contains__)

    def _behind_rule(self, rule: RuleChange, known: Known) -> Mapping[str, str]:
        return self._lags(rule.at or 0, known, lambda service: rule.is_about((service,)))

    def _lags(
        self, generation: int, known: Known, concerns: Callable[[tuple[str, int]], bool]
    ) -> Mapping[str, str]:
        if generation not in self._lagging:
            lagging = sorted(name for name, reached in known.clients.items() if reached < generation)
            self._lagging[generation] = dict.fromkeys(lagging, "")
        if not known.refusing:
            return self._lagging[generation]
        behind = dict(self._lagging[generation])
        for name, rejected in known.refusing.items():
            for cluster, why in rejected.items():
                if concerns(service_of(cluster)):
                    behind[name] = why
        return dict(sorted(behind.items()))

    def _confirm_rules(self, known: Known, now: float, unread: float) -> None:
        for ref, rule in tuple(self.rules.items()):
            if rule.at is None:
                continue
            behind = self._behind_rule(rule, known)
            rule.laggards, rule.rejection = tuple(behind), next(filter(None, behind.values()), "")
            if _is_heard(rule, behind, now, unread):
                del self.rules[ref]
            elif behind and (rule.told_since is None or self._is_late(rule.told_since, now)):
                rule.told_since = None
                self.passed_over += 1
                self.late_rules[ref] = self.rules.pop(ref)

    def _release_rules(self, known: Known, generation: int, now: float) -> dict[Ref, RuleChange]:
        """Put those in force that no server would refuse by which it was not meant to."""
        held = {ref: rule for ref, rule in self.rules.items() if rule.at is None}
        early = {
            ref for ref, rule in held.items() if rules.is_too_early(rule, self.crossings, known.elsewhere)
        }
        late = {ref for ref, rule in held.items() if self._is_late(rule.since, now)}
        self.passed_over += len(early & late)
        waiting = rules.together(held, early - late)
        released = {ref: rule for ref, rule in held.items() if ref not in waiting}
        for rule in released.values():
            rule.at, rule.since = generation, now
            rule.told_since = now if rule.told_since is None else rule.told_since
        return released


def _is_heard(told: Crossing | RuleChange, behind: Collection[str], now: float, unread: float) -> bool:
    """Whether nobody has been behind for so long that what they sent before has been read."""
    if behind:
        told.heard_at = None
    elif told.heard_at is None:
        told.heard_at = now
    return told.heard_at is not None and now >= told.heard_at + unread
