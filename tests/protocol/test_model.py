"""Sessions against a model of Envoy, driven at random: what must hold whatever happens in whatever order.

The model does what Envoy was seen to do (O1-O18): it subscribes to the assignments of the clusters that it has and to
the routes of its listeners, acknowledges clusters only when they are warm, keeps a listener in force until the new one
has its routes, and takes the good part of a rejected response of clusters or listeners but nothing of any other.
"""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass, field

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tests.protocol.stream import TYPES, Reply, Stream
from xds.protocol.session import Variant
from xds.snapshot import ENDPOINT, ROUTE, Resource, ResourceSet, Snapshot

CLUSTERS, LISTENERS, ROUTES = ("a", "b", "c"), ("l", "m"), ("r", "s")
FULL = ("CDS", "LDS")
BAD = "bad"


@dataclass
class World:
    """What should be, by type and name: the version, which also says what the resource refers to."""

    versions: dict[str, dict[str, str]] = field(default_factory=lambda: {short: {} for short in TYPES})
    count: int = 0

    def put(self, short: str, name: str, *refs: str, bad: bool = False) -> None:
        self.count += 1
        self.versions[short][name] = f"{self.count}{BAD if bad else ''}/{'+'.join(refs)}"

    def snapshot(self) -> Snapshot:
        return Snapshot(
            {
                TYPES[short]: ResourceSet(
                    resource(short, name, version) for name, version in versions.items()
                )
                for short, versions in self.versions.items()
            }
        )


def resource(short: str, name: str, version: str) -> Resource:
    refs = {"CDS": ((ENDPOINT, name),), "LDS": tuple((ROUTE, ref) for ref in referred(version))}
    body = f"{name}={version}".encode()
    return Resource.of(TYPES[short], name, body, version=version, refs=refs.get(short, ()))


def referred(version: str) -> list[str]:
    return [name for name in version.partition("/")[2].split("+") if name]


class Client:
    """A model of Envoy: what it has, and what it says."""

    def __init__(self, variant: Variant) -> None:
        self.variant = variant
        self.have: dict[str, dict[str, str]] = {short: {} for short in TYPES}
        self.active: dict[str, str] = {}
        """The routes of each listener in force."""
        self.draining: set[str] = set()
        """Routes of listeners that are gone, whose connections are not."""
        self.warming: set[str] = set()
        self.warm: set[str] = set()
        """Clusters that have been warm, and so can be used."""

    def connect(self, stream: Stream) -> None:
        """Begin a stream, with what it has from the last one."""
        self.stream = stream
        self.inbox: deque[Reply] = deque()
        self.outbox: deque[tuple[str, tuple[str, ...], dict]] = deque()
        self.nonces: dict[str, str] = {}
        self.subscribed: dict[str, tuple[str, ...]] = {}
        self.withheld: list[str] = []
        self.warm |= self.warming
        self.warming.clear()  # What is warming when a stream breaks has to wait for its time-out.
        for short, names in (
            ("CDS", ()),
            ("EDS", self.wanted("EDS")),
            ("LDS", ()),
            ("RDS", self.wanted("RDS")),
        ):
            if short in FULL or names:
                brought = {
                    name: self.have[short][name]
                    for name in names or self.have[short]
                    if name in self.have[short]
                }
                initial = {"initial": brought} if self.variant is Variant.DELTA else {}
                self.subscribed[short] = names
                self.outbox.append((short, names, initial))

    def wanted(self, short: str) -> tuple[str, ...]:
        if short == "EDS":
            return tuple(sorted(self.have["CDS"]))
        listeners = [ref for version in self.have["LDS"].values() for ref in referred(version)]
        return tuple(sorted({*listeners, *self.active.values(), *self.draining}))

    def process(self) -> None:
        """Take the next response, and say what comes of it."""
        reply = self.inbox.popleft()
        short = reply.type
        self.nonces[short] = reply.nonce
        bad = [name for name, version in reply.resources.items() if BAD in version]
        good = {name: version for name, version in reply.resources.items() if name not in bad}
        if bad and short not in FULL:
            good = {}
        if self.variant is Variant.SOTW and short in FULL:
            for name in self.have[short].keys() - reply.resources.keys():
                self.lose(short, name)
        for name in reply.removed:
            if short in FULL:
                self.lose(short, name)
        for name, version in good.items():
            self.take(short, name, version)
        for listener, version in self.have["LDS"].items():
            if all(ref in self.have["RDS"] for ref in referred(version)):
                self.use(listener, referred(version)[0])
        if short in FULL and bad:
            self.resubscribe("EDS" if short == "CDS" else "RDS")
            self.answer(short, reply.nonce, error=f"no: {bad[0]}")
        elif short == "CDS":
            self.resubscribe("EDS")
            self.withheld.append(reply.nonce)
        elif short == "LDS":
            # The acknowledgement may come first, and then it says nothing of the routes that are still to be asked for.
            self.answer(short, reply.nonce)
            self.resubscribe("RDS")
        else:
            self.answer(short, reply.nonce, error=f"no: {bad[0]}" if bad else "")
            self.resubscribe("RDS")
        if not self.warming:
            while self.withheld:
                self.answer("CDS", self.withheld.pop(0))

    def take(self, short: str, name: str, version: str) -> None:
        if short not in FULL and name not in self.subscribed.get(short, ()):
            return
        if short == "CDS" and self.have["CDS"].get(name) != version:
            self.warming.add(name)
        if short == "EDS" and name in self.have["CDS"]:
            self.warming.discard(name)
            self.warm.add(name)
        self.have[short][name] = version

    def lose(self, short: str, name: str) -> None:
        self.have[short].pop(name, None)
        if short == "CDS":
            self.warming.discard(name)
            self.warm.discard(name)
        elif name in self.active:
            self.draining.add(self.active.pop(name))

    def use(self, listener: str, route: str) -> None:
        before = self.active.get(listener, route)
        self.active[listener] = route
        if before != route:
            self.draining.add(before)

    def drain(self) -> None:
        """The last connections of listeners that are gone are gone."""
        self.draining.clear()
        self.resubscribe("RDS")

    def resubscribe(self, short: str) -> None:
        """Follow what the client has: names come and go with clusters and listeners."""
        names, before = self.wanted(short), self.subscribed.get(short, ())
        if names == before:
            return
        self.subscribed[short] = names
        gone = tuple(name for name in before if name not in names)
        for name in gone:
            self.have[short].pop(name, None)
        if self.variant is Variant.SOTW:
            self.outbox.append((short, names, {"nonce": self.nonces.get(short, "")}))
        else:
            added = tuple(name for name in names if name not in before)
            self.outbox.append((short, added, {"unsubscribe": gone}))

    def answer(self, short: str, nonce: str, error: str = "") -> None:
        if self.variant is Variant.SOTW and nonce != self.nonces[short]:
            return  # The answer to the latest response that was read is an answer to all.
        names = self.subscribed.get(short, ()) if self.variant is Variant.SOTW else ()
        self.outbox.append((short, names, {"nonce": nonce, "error": error}))


class SessionMachine(RuleBasedStateMachine):
    """A world that changes, a client, and a network that delivers when it likes."""

    patience = grace = float("inf")
    rejecting = False

    @initialize(variant=st.sampled_from(Variant), settled=st.booleans())
    def begin(self, variant: Variant, settled: bool) -> None:
        self.world = World()
        self.client = Client(variant)
        self.now = 0.0
        self.connected()
        if settled:
            self.put_cluster("a", bad=False)
            self.put_cluster("b", bad=False)
            self.put_route("r", {"a"}, bad=False)
            self.put_listener("l", "r", bad=False)
            self.let_everything_flow()

    def connected(self) -> None:
        stream = Stream(self.client.variant, patience=self.patience, grace=self.grace)
        stream.now = self.now
        self.client.connect(stream)
        self.nonces: set[str] = set()
        self.delivered: dict[tuple[str, str], str] = {}
        self.again: set[tuple[str, str]] = set()
        """What may be sent though the client was sent it before, for a reason."""
        self.unanswered: dict[str, set[str]] = {}
        """By nonce, the clusters that were news in a response that the client has not answered."""
        self.rejected: list[tuple[str, frozenset[tuple[str, str]]]] = []

    # --- the world ---------------------------------------------------------------------------------------------------

    @rule(name=st.sampled_from(CLUSTERS), bad=st.booleans())
    def put_cluster(self, name: str, bad: bool) -> None:
        self.world.put("CDS", name, bad=bad and self.rejecting)
        self.world.versions["EDS"].setdefault(name, "0/")

    @rule(name=st.sampled_from(CLUSTERS), bad=st.booleans())
    def put_assignment(self, name: str, bad: bool) -> None:
        if name in self.world.versions["CDS"]:
            self.world.put("EDS", name, bad=bad and self.rejecting)

    @rule(bad=st.sampled_from(CLUSTERS))
    def change_all_assignments(self, bad: str) -> None:
        for name in self.world.versions["CDS"]:
            self.put_assignment(name, bad=name == bad)
        self.serve()

    @rule(
        name=st.sampled_from(ROUTES), uses=st.sets(st.sampled_from(CLUSTERS), max_size=2), bad=st.booleans()
    )
    def put_route(self, name: str, uses: set[str], bad: bool) -> None:
        uses &= self.world.versions["CDS"].keys()
        self.world.put("RDS", name, *sorted(uses), bad=bad and self.rejecting)

    @rule(name=st.sampled_from(LISTENERS), route=st.sampled_from(ROUTES), bad=st.booleans())
    def put_listener(self, name: str, route: str, bad: bool) -> None:
        if route in self.world.versions["RDS"]:
            self.world.put("LDS", name, route, bad=bad and self.rejecting)

    @rule(name=st.sampled_from(CLUSTERS))
    def drop_cluster(self, name: str) -> None:
        if self.world.versions["CDS"].pop(name, None):
            del self.world.versions["EDS"][name]
            for route, version in tuple(self.world.versions["RDS"].items()):
                if name in referred(version):
                    self.world.put("RDS", route, *(ref for ref in referred(version) if ref != name))

    @rule(old=st.sampled_from(CLUSTERS), new=st.sampled_from(CLUSTERS))
    def replace_cluster(self, old: str, new: str) -> None:
        if old != new and old in self.world.versions["CDS"]:
            self.put_cluster(new, bad=False)
            for route, version in tuple(self.world.versions["RDS"].items()):
                if old in referred(version):
                    self.world.put("RDS", route, *{new if ref == old else ref for ref in referred(version)})
            self.drop_cluster(old)
            self.serve()

    @rule(name=st.sampled_from(LISTENERS), old=st.sampled_from(ROUTES))
    def replace_route(self, name: str, old: str) -> None:
        """Another listener, another route, another cluster: all at once."""
        new = next(route for route in ROUTES if route != old)
        if name in self.world.versions["LDS"] and old in self.world.versions["RDS"]:
            used = referred(self.world.versions["RDS"].pop(old))
            unused = next(cluster for cluster in CLUSTERS if cluster not in used)
            self.put_cluster(unused, bad=False)
            self.put_route(new, {unused}, bad=False)
            for listener in self.world.versions["LDS"]:
                self.world.put("LDS", listener, new)
            for cluster in used:
                self.drop_cluster(cluster)
            self.serve()

    @rule(name=st.sampled_from(LISTENERS))
    def drop_listener(self, name: str) -> None:
        self.world.versions["LDS"].pop(name, None)
        used = {ref for version in self.world.versions["LDS"].values() for ref in referred(version)}
        for route in self.world.versions["RDS"].keys() - used:
            del self.world.versions["RDS"][route]

    @rule()
    def serve(self) -> None:
        self.client.stream.serve(self.world.snapshot())

    # --- the network -------------------------------------------------------------------------------------------------

    @rule(steps=st.lists(st.sampled_from(["ask", "write", "read"]), min_size=1, max_size=12))
    def let_some_flow(self, steps: list[str]) -> None:
        for step in steps:
            {"ask": self.deliver_request, "write": self.deliver_response, "read": self.process_response}[
                step
            ]()
            self.make_before_break()

    def deliver_request(self) -> bool:
        if not self.client.outbox:
            return False
        short, names, more = self.client.outbox.popleft()
        if self.client.variant is Variant.DELTA:
            self._note_change(short, names, more)
        else:
            self._note_list(short, names, more)
        if more.get("nonce") in self.unanswered:
            while more["nonce"] in self.unanswered:  # Those before it will not get an answer any more.
                del self.unanswered[next(iter(self.unanswered))]
        if more.get("error"):
            self._note_rejection(short, more["nonce"])
        self.client.stream.ask(short, *names, **more)
        return True

    def deliver_response(self) -> bool:
        data = self.client.stream.session.next(self.now)
        if data is None:
            return False
        reply = self.client.stream._decode(data)
        self._check(reply)
        self.client.inbox.append(reply)
        return True

    def process_response(self) -> bool:
        if not self.client.inbox:
            return False
        self.client.process()
        return True

    @rule()
    def let_everything_flow(self) -> None:
        self.serve()
        while self.deliver_request() or self.deliver_response() or self.process_response():
            self.make_before_break()

    @rule()
    @precondition(lambda self: self.client.variant is Variant.DELTA)
    def reconnect(self) -> None:
        self.connected()

    @rule(old=st.sampled_from(CLUSTERS), new=st.sampled_from(CLUSTERS))
    @precondition(lambda self: self.client.variant is Variant.DELTA)
    def reconnect_to_another_world(self, old: str, new: str) -> None:
        self.replace_cluster(old, new)
        self.connected()
        self.serve()

    @rule()
    def drain(self) -> None:
        self.client.drain()

    @rule(name=st.sampled_from(CLUSTERS))
    @precondition(lambda self: self.client.variant is Variant.DELTA)
    def ask_again(self, name: str) -> None:
        if name in self.client.subscribed.get("EDS", ()):
            self.client.outbox.append(("EDS", (name,), {}))

    # --- what must hold ----------------------------------------------------------------------------------------------

    def _note_list(self, short: str, names: tuple[str, ...], more: dict) -> None:
        last = self.client.stream.last.get(short)
        stale = last and more.get("nonce") and more["nonce"] != last.nonce
        if short not in FULL and not stale:
            for key in [key for key in self.delivered if key[0] == short and key[1] not in names]:
                del self.delivered[key]

    def _note_change(self, short: str, names: tuple[str, ...], more: dict) -> None:
        brought = more.get("initial", {})
        for name in names:
            if name not in brought:
                self.again.add((short, name))
        for name, version in brought.items():
            self.delivered[short, name] = version

    def _note_rejection(self, short: str, nonce: str) -> None:
        reply = next(reply for reply in self.client.stream.replies if reply.nonce == nonce)
        self.rejected.append((short, frozenset(reply.resources.items())))
        for name in reply.resources:
            self.again.add((short, name))

    def _check(self, reply: Reply) -> None:
        assert reply.nonce not in self.nonces, "R4: nonces are unique"
        self.nonces.add(reply.nonce)
        delta = self.client.variant is Variant.DELTA
        for short, rejected in self.rejected:
            if short == reply.type and rejected:
                content = frozenset(reply.resources.items())
                as_it_was = rejected == content if short in FULL and not delta else rejected <= content
                asked = delta and any((short, name) in self.again_asked for name, _ in rejected)
                assert not as_it_was or asked, "R12: what was rejected is not sent again as it was"
        if reply.type in FULL and not delta:
            # After another response, the same as before may be needed to take that one back.
            self.rejected = [each for each in self.rejected if each[0] != reply.type]
        if reply.type == "CDS":
            before = {name for names in self.unanswered.values() for name in names}
            news = {
                name
                for name, version in reply.resources.items()
                if self.delivered.get(("CDS", name)) != version
                or ("CDS", name) in self.again
                or name in before
            }
            self.again |= {("EDS", name) for name in news}
            self.unanswered[reply.nonce] = news
        for name, version in reply.resources.items():
            key = (reply.type, name)
            if delta or reply.type not in FULL:
                assert self.delivered.get(key) != version or key in self.again, "R14: the client has it"
            self.again.discard(key)
            self.delivered[key] = version
        for name in reply.removed:
            key = (reply.type, name)
            assert key in self.delivered or key in self.again, "R27: only what the client knows is removed"
            self.delivered.pop(key, None)
            self.again.discard(key)

    @property
    def again_asked(self) -> set[tuple[str, str]]:
        return {("EDS", name) for name in CLUSTERS} if self.client.variant is Variant.DELTA else set()

    @invariant()
    def make_before_break(self) -> None:
        if not hasattr(self, "client") or self.rejecting:
            return
        for route in {*self.client.active.values(), *self.client.draining}:
            for cluster in referred(self.client.have["RDS"][route]):
                assert cluster in self.client.warm, (
                    f"R41: the route {route} is in force, the cluster {cluster} is not"
                )

    @invariant()
    def resources_are_counted_as_they_are(self) -> None:
        if hasattr(self, "client"):
            for status in self.client.stream.session.status():
                assert +status.counts == Counter(resource.state for resource in status.resources)

    def flow_and_drain(self) -> None:
        for _ in range(2):
            self.let_everything_flow()
            self.drain()

    def teardown(self) -> None:
        if not hasattr(self, "client"):
            return
        for short, versions in self.world.versions.items():
            for name, version in tuple(versions.items()):
                if BAD in version:
                    self.world.put(short, name, *referred(version))
        self.flow_and_drain()
        while self.client.stream.session.deadline() is not None:
            self.now = self.client.stream.now = self.client.stream.session.deadline()
            self.flow_and_drain()
        for short in ("CDS", "EDS", "LDS"):
            assert self.client.have[short] == self.world.versions[short], (
                f"the client has the {short} that it should"
            )
        wanted = self.client.wanted("RDS")
        assert {name: self.client.have["RDS"].get(name) for name in wanted} == {
            name: self.world.versions["RDS"].get(name) for name in wanted
        }
        assert not self.client.warming, "O3: every cluster got its assignment"
        assert self.client.active == {
            name: referred(version)[0] for name, version in self.world.versions["LDS"].items()
        }
        assert not self.deliver_response()


class RejectingMachine(SessionMachine):
    """The same with responses that are rejected, and with time limits that run out."""

    patience, grace = 20.0, 60.0
    rejecting = True

    @rule(seconds=st.sampled_from([1.0, 19.0, 61.0]))
    def pass_time(self, seconds: float) -> None:
        self.now += seconds
        self.client.stream.now = self.now

    @rule()
    @precondition(lambda self: self.client.variant is Variant.SOTW)
    def reconnect_sotw(self) -> None:
        self.connected()


BUDGET = settings(max_examples=200, stateful_step_count=40, deadline=None)
TestSession = SessionMachine.TestCase
TestSession.settings = BUDGET
TestRejections = RejectingMachine.TestCase
TestRejections.settings = BUDGET
