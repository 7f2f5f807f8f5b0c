"""Between the streams and `xds.mesh.rollout.machine`: how far each proxy is, as facts for the rollout's next step.

Nothing is kept about resources: a session says up to which generation its client has answered.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from math import inf
from typing import NamedTuple, TypeAlias

from xds.mesh.envoy.inbound import accepting
from xds.mesh.model.mesh import Mesh
from xds.mesh.model.objects import Change, DestinationRule, Mode, PortKey, Ref
from xds.mesh.rollout.machine import Rollout
from xds.mesh.rollout.peers import Elsewhere, Stand
from xds.mesh.rollout.replica_sync import Exchange, View
from xds.mesh.rollout.rules import of_installation as rules_of
from xds.mesh.rollout.rules import silent
from xds.mesh.rollout.transition import Known
from xds.protocol.session import Session
from xds.server import Subscriber
from xds.snapshot import CLUSTER, ENDPOINT, LISTENER

PodName: TypeAlias = tuple[str, str]
"""namespace, name."""

SETTLE = 0.2
"""Seconds after an acknowledgement until Envoy's worker threads, too, do what its main thread has taken."""
AWAY = 10.0
"""Seconds that a proxy which has lost its stream is reckoned with as a client: it comes back within five."""
RECOVERY = 6.0
"""Seconds after the start in which proxies come back that were there before."""
HELLO = 1.0
"""Seconds that a proxy which comes back has to say what it listens with."""
JOINING = 10.0
"""Seconds after which we begin although other replicas cannot be told that we are here; each step waits for its timeout then."""
EVERY = 0.1
"""Seconds between two looks at how far proxies are, while something is on its way."""
LATE_EVERY = 1.0
"""The same, while only those are looked after that were not waited for any longer."""
MOST_STEPS = 8
"""Taken at a time, which only happens where nobody has to be waited for."""


class _Reach:
    """The newest generation that has been in force for a while."""

    def __init__(self) -> None:
        self._ripe = -1
        self._noted: deque[tuple[int, float]] = deque()

    def note(self, generation: int, now: float) -> int:
        """Take note that a generation is in force; return the one that has been for long enough."""
        if generation > (self._noted[-1][0] if self._noted else self._ripe):
            self._noted.append((generation, now + SETTLE))
        while self._noted and self._noted[0][1] <= now:
            self._ripe, _ = self._noted.popleft()
        return self._ripe


class _Stream:
    """How far one stream is, as a client and as a server."""

    def __init__(self, now: float) -> None:
        self.came = now
        self.client = _Reach()
        self.server = _Reach()


class _Reached(NamedTuple):
    client: int
    server: int


@dataclass(slots=True)
class _Away:
    """A proxy that has lost its stream."""

    reached: _Reached
    until: float
    """When it does not count as a client any more."""
    listens: bool
    """Whether it is known to have had listeners in force: as a server it counts until it comes back, or its pod is gone."""
    returned: bool
    """Whether it had taken nothing from us."""
    uid: str | None = None
    """Of its pod."""


class Rolling:
    """Takes a mesh from one step of its rollouts to the next. `apply` and `advance` may run in a thread, nothing else may.

    `timeout`: how many seconds a proxy is waited for; None: what is wanted is served at once.
    """

    def __init__(self, streams: Mapping[PodName, set[Subscriber]], timeout: float | None) -> None:
        self.rollout = Rollout(timeout)
        self.exchange: Exchange | None = None
        """What other replicas know, and are told; None: there are none."""
        self._is_shared = False
        """Whether there may be other replicas."""
        self._joins_until = -inf
        self._rules = View()
        self._stand_ins: set[Ref] = set()
        """Of the rules that installing creates, those in whose place the mesh has what was in force before."""
        self._says: Mapping[PortKey, Stand] = {}
        self._is_heard = self._has_met = False
        self._subscribers = streams
        self._streams: dict[Subscriber, _Stream] = {}
        self._away: dict[PodName, _Away] = {}
        self._met: set[PodName] = set()
        self._came_back: dict[Ref, Mapping[int, Mode]] = {}
        self._recovers_until = inf
        self._missing: set[PodName] = set()
        """Pods that may be about to come back."""
        self._was_before = False
        """Whether any proxy has come with a configuration from before."""
        self._looked = -inf

    # --- how far proxies are -----------------------------------------------------------------------------------------

    def connected(self, subscriber: Subscriber, now: float) -> None:
        """Take note of a new stream."""
        self._streams[subscriber] = _Stream(now)

    def disconnected(self, subscriber: Subscriber, key: PodName, now: float) -> None:
        """Take note that a stream has ended: its proxy goes on with what it has, and will be back."""
        session, is_gone = subscriber.session, not self._subscribers.get(key)
        counts = self.rollout.timeout is not None and is_gone
        if counts and session and (subscriber.snapshot or _has_brought(session)):
            # With several replicas it is another one's, in all probability, by then.
            listens = _listens(session) >= 0 and not self.exchange
            reached = self._reached(subscriber, now)
            self._away[key] = _Away(reached, now + AWAY, listens, _has_returned(session))
            if self.exchange:
                self._met.discard(key)  # It may have been with another replica when it comes back.
        if is_gone and Ref("Pod", *key) in self._came_back:
            self._came_back.pop(
                Ref("Pod", *key), None
            )  # It will say it again; a step may have taken it meanwhile.
            self._met.discard(key)
        del self._streams[subscriber]

    def asked(self, subscriber: Subscriber, key: PodName, type_url: str) -> None:
        """Take note that a proxy has asked for a type: one that was here before says then what it listens with."""
        session = subscriber.session
        if session and type_url == CLUSTER and key not in self._met:
            brought = bool(session.initial_versions(CLUSTER))
            self._was_before |= brought
            self._has_met |= brought and self.exchange is not None
            if not brought:
                self._missing.discard(key)  # It is new: nobody sends it anything by what it had.
        if type_url != LISTENER or not session or key in self._met or self.rollout.timeout is None:
            return
        self._met.add(key)
        self._missing.discard(key)
        if modes := accepting(session.initial_versions(LISTENER)):
            self._came_back[Ref("Pod", *key)] = modes

    def holds(self, subscriber: Subscriber, key: PodName, now: float) -> bool:
        """Whether a proxy is to wait until it is known how far others are, those that were here before.

        If it was here, too, it has a configuration. If not, it waits only where it is known that there are any.
        """
        session = subscriber.session
        if session is None or self.rollout.timeout is None or subscriber.snapshot is not None:
            return False
        if not _has_brought(session):
            return self._was_before and self.is_recovering(now)
        if key not in self._met and now < self._streams[subscriber].came + HELLO:
            return True
        return Ref("Pod", *key) in self._came_back or self.is_recovering(now)

    def began(self, mesh: Mesh, now: float) -> None:
        """Take note that everything is known, and proxies are about to be let in."""
        self._recovers_until = now + RECOVERY
        self._missing = {
            (pod.namespace, pod.name) for pod in mesh.pods() if pod.has_sidecar and not pod.ended
        }

    def is_recovering(self, now: float) -> bool:
        """Whether proxies may be about to come back that were there before the control plane was, or just have."""
        return bool(self._missing or self._came_back) and now < self._recovers_until < inf

    @property
    def is_open(self) -> bool:
        """Whether anything is on its way."""
        return bool(self.rollout.crossings or self.rollout.rules or self._came_back or self._has_met)

    def due(self, now: float) -> float:
        """Return when to look again how far proxies are; infinity: not until something happens."""
        if self._is_heard:
            return min(now, self._looked + EVERY)
        if self.is_open:
            return max(self._looked + EVERY, now)
        return max(self._looked + LATE_EVERY, now) if self._is_late else inf

    @property
    def _is_late(self) -> bool:
        """Whether anybody is looked after who was not waited for any longer."""
        return bool(self.rollout.late or self.rollout.late_rules)

    def known(self, mesh: Mesh, now: float) -> Known:
        """Return how far the proxies are of pods that there are."""
        self._looked, self._is_heard = now, False
        elsewhere = self.exchange.elsewhere(now) if self.exchange else Elsewhere()
        if not (self.is_open or self._is_late):
            # Who is there suffices: nothing has been told yet that could be in force.
            there = [*self._sessions(mesh, now)]
            return Known(
                servers={Ref("Pod", *key): -1 for key, _ in there},
                clients={_name(key): -1 for key, _ in there if self._is_client(key, now)},
                returned=frozenset(_name(key) for key, each in there if self._has_returned(key, each, now)),
                elsewhere=elsewhere,
            )
        waited = {pod for pod, _ in (*self.rollout.crossings, *self.rollout.late)}
        servers: dict[Ref, int] = {}
        clients: dict[str, int] = {}
        rejected: dict[Ref, str] = {}
        refusing: dict[str, dict[str, str]] = {}
        returned: set[str] = set()
        for key, subscriber in self._sessions(mesh, now):
            session = subscriber.session if subscriber else None
            reached = self._reached(subscriber, now) if subscriber else self._away[key].reached
            name, ref = _name(key), Ref("Pod", *key)
            if self._has_returned(key, subscriber, now):
                returned.add(name)
            if self._is_client(key, now):
                clients[name] = min(reached.client, clients.get(name, reached.client))
            # All of them: a change that this is asked for may be the one that makes them waited for.
            if subscriber is None or self._may_listen(subscriber, now):
                servers[ref] = min(reached.server, servers.get(ref, reached.server))
            if session is None:
                continue
            if ref in waited and (why := _rejection(session, _inbound(session))):
                rejected[ref] = why
            for type_url in (CLUSTER, ENDPOINT):
                for what, rejection in session.rejected(type_url).items():
                    refusing.setdefault(name, {})[what] = rejection.message
        return Known(
            servers=servers,
            rejected=rejected,
            clients=clients,
            returned=frozenset(returned),
            refusing=refusing,
            elsewhere=elsewhere,
        )

    def _sessions(self, mesh: Mesh, now: float) -> Iterator[tuple[PodName, Subscriber | None]]:
        """Yield the streams that count, and None for each proxy that has lost its last one."""
        for key, subscribers in self._subscribers.items():
            for subscriber in subscribers if mesh.pod(*key) else ():
                # One that nothing is served to yet, and that brought nothing, has nothing that could be waited for.
                if subscriber.session and (subscriber.snapshot or _has_brought(subscriber.session)):
                    self._away.pop(key, None)
                    yield key, subscriber
        for key, away in tuple(self._away.items()):
            pod = mesh.pod(*key)
            is_same = pod is not None and away.uid in {None, pod.meta.uid}
            if pod is None or not is_same or pod.ended or (now >= away.until and not away.listens):
                del self._away[key]
            else:
                away.uid = pod.meta.uid
                yield key, None

    def _is_client(self, key: PodName, now: float) -> bool:
        """Whether a proxy is there, or may be, as one that sends something."""
        return key not in self._away or now < self._away[key].until

    def _has_returned(self, key: PodName, subscriber: Subscriber | None, now: float) -> bool:
        """Whether a proxy is a client that goes on with what it had when it came."""
        if subscriber is None:
            return self._away[key].returned and self._is_client(key, now)
        return subscriber.session is not None and _has_returned(subscriber.session)

    def _may_listen(self, subscriber: Subscriber, now: float) -> bool:
        """Whether a stream is one on which a sidecar gets its listeners, as all have it that use ADS."""
        session = subscriber.session
        asked = session is not None and session.is_subscribed(LISTENER)
        return asked or (not subscriber.stream.type_url and now < self._streams[subscriber].came + HELLO)

    def _reached(self, subscriber: Subscriber, now: float) -> _Reached:
        session, stream = subscriber.session, self._streams[subscriber]
        assert session  # noqa: S101 - whoever is asked for has one
        return _Reached(
            stream.client.note(
                min(session.answered_generation(CLUSTER), session.answered_generation(ENDPOINT)), now
            ),
            stream.server.note(_listens(session), now),
        )

    def in_force(self, key: PodName) -> int:
        """Return the newest generation of which a pod's sidecar is known to have the listeners in force; -1: of none."""
        sessions = (each.session for each in self._subscribers.get(key, ()))
        return max((_listens(each) for each in sessions if each), default=-1)

    def is_elsewhere(self, key: PodName) -> bool:
        """Whether a pod's sidecar, if there is one, is connected to another replica."""
        return self.exchange is not None and key not in self._away and not self._subscribers.get(key)

    # --- other replicas ----------------------------------------------------------------------------------------------

    def may_be_elsewhere(self, now: float) -> bool:
        """Whether there are other replicas that sidecars may be connected to, or it is not known that there are none."""
        if not self._is_shared:
            return False
        known = self.exchange.elsewhere(now) if self.exchange else None
        return known is None or known.cut_off or bool(known.others)

    def share(self, now: float) -> Exchange | None:
        """Begin to reckon with other replicas; None: nobody is waited for here anyway."""
        self._is_shared = True
        if self.rollout.timeout is not None:
            self.exchange, self._joins_until = Exchange(), now + JOINING
        return self.exchange

    def begins_at(self, now: float) -> float:
        """Return when the first mesh may be made: once others reckon with us, and it is known what is on its way with them."""
        return now if self.exchange is None or self.exchange.is_known else max(self._joins_until, now)

    def hear(self) -> None:
        """Take note that others have said something, or can know by now what we said."""
        self._is_heard = True

    def tell(self) -> None:
        """Have others told how far we are."""
        if self.exchange:
            self.exchange.say(self._rules.version, self._says)

    # --- steps -------------------------------------------------------------------------------------------------------

    def first(self, change: Change, known: Known, now: float) -> Mesh:
        """Return the first mesh, with nothing on its way but what is with other replicas."""
        mesh = Mesh(change.applied, change.config)
        self._rules.follow(change.applied, (), mesh.config)
        self.rollout.follow(mesh, (), now)
        return self.advance(mesh.serving(self.rollout.served), known, now)

    def apply(self, mesh: Mesh, change: Change, known: Known, now: float) -> Mesh:
        """Return the mesh after a change, as it is to be served."""
        if self.rollout.timeout is None:
            return mesh.apply(change)
        rules, others = _rules_apart(change)
        self._stand_ins.difference_update(rule.ref for rule in rules.applied)
        installing = self._installing(mesh, change)
        stand_ins = [rule for ref, (rule, _) in installing.items() if ref not in self._stand_ins]
        self._stand_ins |= installing.keys()
        after = mesh.apply(replace(others, applied=(*others.applied, *stand_ins)))
        self._rules.follow(rules.applied, rules.removed, after.config)
        for ref, (_, new) in installing.items():
            self.rollout.change_rule(after, ref, new, now)
        self._met.difference_update((ref.namespace, ref.name) for ref in change.removed if ref.kind == "Pod")
        for rule in rules.applied:
            self.rollout.change_rule(
                after, rule.ref, rule if isinstance(rule, DestinationRule) else None, now
            )
        for ref in rules.removed:
            self.rollout.change_rule(after, ref, None, now)
        self.rollout.follow(after, change.removed, now)
        return self.advance(after, known, now)

    def _installing(
        self, mesh: Mesh, change: Change
    ) -> Mapping[Ref, tuple[DestinationRule, DestinationRule | None]]:
        """Return which rules that installing creates become others: what is in force until then, and the new ones."""
        was, will = rules_of(mesh.config), rules_of(change.config or mesh.config)
        changed = [ref for ref in was.keys() | will.keys() if was.get(ref) != will.get(ref)]
        others = {rule.ref for rule in change.applied}
        return {
            ref: (was.get(ref) or silent(will[ref]), will.get(ref))
            for ref in changed
            if ref in self._stand_ins or not (ref in others or _is_given(mesh, ref))
        }

    def _withdraw(self, mesh: Mesh, now: float) -> Mesh:
        """Return a mesh without the rules that are found to be too early."""
        early = self.rollout.withdraw_rules(mesh, now)
        given = tuple(ref for ref in early if ref not in self._stand_ins and _is_given(mesh, ref))
        created = [ref for ref in early if not _is_given(mesh, ref)]
        self._stand_ins.update(created)
        rules = rules_of(mesh.config)
        change = Change(applied=tuple(silent(rules[ref]) for ref in created), removed=given)
        return mesh.apply(change) if change != Change() else mesh

    def _release(self, rules: Change) -> Change:
        """Return how rules come into force: those that installing creates are there once nothing is in their place."""
        back = tuple(rule.ref for rule in rules.applied if rule.ref in self._stand_ins)
        self._stand_ins.difference_update(back, rules.removed)
        applied = tuple(rule for rule in rules.applied if rule.ref not in back)
        return Change(applied=applied, removed=(*rules.removed, *back))

    def advance(self, mesh: Mesh, known: Known, now: float) -> Mesh:
        """Return the mesh as it is to be served now, given how far proxies are; itself, if nothing is to be served anew."""
        # Those that came since are not in what is known, and would not be waited for.
        came = [ref for ref in tuple(self._came_back) if ref in known.servers]
        for ref in came:
            # Meanwhile its stream may have ended, elsewhere than in this thread.
            if modes := self._came_back.pop(ref, None):
                self.rollout.recover(mesh, ref, modes, now)
        if came:
            mesh = self._withdraw(mesh, now)
        if self._has_met:
            self._has_met = False
            self.rollout.meet(now)
        for _ in range(MOST_STEPS):
            step = self.rollout.step(mesh, known, now)
            if step is None:
                break
            if step.rules != Change():
                mesh = mesh.apply(self._release(step.rules))
                self.rollout.follow(mesh, (), now)
            mesh = mesh.serving(step.served)
        if self.exchange:
            self._says = self.rollout.stands()
        return mesh


def _is_given(mesh: Mesh, ref: Ref) -> bool:
    """Whether an object is there that installing did not create."""
    return ref in mesh.in_namespace(ref.namespace, given=True).facts


def _rules_apart(change: Change) -> tuple[Change, Change]:
    """Return what a change says of DestinationRules, and the rest."""
    rules = Change(
        applied=tuple(each for each in change.applied if isinstance(each, DestinationRule)),
        removed=tuple(ref for ref in change.removed if ref.kind == "DestinationRule"),
    )
    others = Change(
        applied=tuple(each for each in change.applied if not isinstance(each, DestinationRule)),
        removed=tuple(ref for ref in change.removed if ref.kind != "DestinationRule"),
        config=change.config,
    )
    return rules, others


def _has_brought(session: Session) -> bool:
    """Whether a proxy has a configuration from before."""
    return any(session.initial_versions(each) for each in (CLUSTER, ENDPOINT, LISTENER))


def _has_returned(session: Session) -> bool:
    """Whether a proxy goes on with a configuration from before: it has taken nothing yet."""
    return (
        _has_brought(session)
        and min(session.answered_generation(CLUSTER), session.answered_generation(ENDPOINT)) < 0
    )


def _name(key: PodName) -> str:
    namespace, pod = key
    return f"{pod}.{namespace}"


def _inbound(session: Session) -> list[str]:
    """Return the names of the listeners that take what comes for a session's pod: those that say what they accept."""
    return session.tagged(LISTENER)


def _listens(session: Session) -> int:
    """Return the generation, if its listeners for what comes for the pod are in force; else -1."""
    inbound = _inbound(session)
    return session.generation if inbound and session.has_acked(LISTENER, inbound) else -1


def _rejection(session: Session, names: Iterable[str]) -> str:
    rejected = session.rejected(LISTENER)
    return next((rejected[name].message for name in names if name in rejected), "")
