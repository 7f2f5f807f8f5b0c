"""Sessions against a model of Envoy, with random events: invariants that hold in any order."""

from __future__ import annotations

from collections import Counter

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import initialize, invariant, precondition, rule

from tests.protocol.changing_world import ChangingWorld
from tests.protocol.envoy_model import (
    BAD,
    CLUSTERS,
    EMPTY,
    FULL,
    ORDER,
    STAYS_BAD,
    UNREADABLE,
    Client,
    World,
    referred,
)
from tests.protocol.stream import SHORT, Reply, Stream
from xds.protocol.session import Variant
from xds.protocol.status import State
from xds.snapshot import ENDPOINT, ROUTE
from xds.testing import Request


class SessionMachine(ChangingWorld):
    """A changing world, a client, and a network that delivers messages at random times."""

    patience = grace = float("inf")

    @initialize(variant=st.sampled_from(Variant), settled=st.booleans())
    def begin(self, variant: Variant, settled: bool) -> None:
        self.world = World()
        self.client = Client(variant)
        self.now = 0.0
        self.connected()
        if settled:
            self.put_cluster("a", bad="")
            self.put_cluster("b", bad="")
            self.put_route("r", {"a"}, bad="")
            self.put_listener("l", "r", bad="")
            self.let_everything_flow()

    def connected(self) -> None:
        stream = Stream(self.client.variant, patience=self.patience, grace=self.grace)
        stream.now = self.now
        self.uncertain: set[tuple[str, str]] = set()
        """Versions that the client may have, as far as the server knows."""
        self.client.open(stream)
        self.was_here = {SHORT[request.type_url] for request in self.client.outbox if request.version}
        """Types of which the client reports a version from an earlier stream (SotW)."""
        self.unreported = {
            (short, name)
            for short in FULL
            for name in self.client.have[short]
            if self.client.variant is Variant.SOTW and short not in self.was_here
        }
        """Resources from an earlier stream that the server cannot know of: Envoy reports no version of a type
        until it has accepted a whole response."""
        self.nonces: set[str] = set()
        self.delivered: dict[tuple[str, str], str] = {}
        self.again: set[tuple[str, str]] = set()
        """Names that may be sent again, for a valid reason."""
        self.unanswered: dict[str, set[str]] = {}
        """New clusters of each unanswered response, by nonce."""
        self.rejected: list[tuple[str, frozenset[tuple[str, str]]]] = []
        self.never: set[tuple[str, str, str]] = set()
        """Resources that the client rejected individually."""
        self.in_flight: dict[str, list[str]] = {short: [] for short in ORDER}
        """Nonces of responses that the server has no answer to."""
        self.served: dict[str, dict[str, str]] = {}
        self.last_type = 0
        """Position in the sending order of the last response since the last other event."""

    @rule()
    def serve(self) -> None:
        self.last_type = 0
        self.served = {short: dict(versions) for short, versions in self.world.versions.items()}
        self.client.stream.serve(self.world.snapshot())

    # --- the network ---

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
        request = self.client.outbox.popleft()
        short, nonce = SHORT[request.type_url], request.nonce
        self.last_type = 0
        flying = self.in_flight[short]
        if nonce in flying:
            place = flying.index(nonce)
            del flying[place if self.client.variant is Variant.DELTA else 0 : place + 1]
        if self.client.variant is Variant.DELTA:
            self._note_change(short, request)
        else:
            self._note_list(short, request)
        while nonce in self.unanswered:  # Earlier responses are not answered any more.
            del self.unanswered[next(iter(self.unanswered))]
        if request.error is not None:
            self._note_rejection(short, nonce)
        self.client.stream.send(request)
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
        reply = self.client.inbox[0]
        self.client.process()
        accepted = reply.resources.items() & self.client.have[reply.type].items()
        self.unreported -= {(reply.type, name) for name, _ in accepted}
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
    @precondition(lambda self: self.client.variant is Variant.SOTW)
    def reconnect_sotw(self) -> None:
        """Reconnect to the same world. The client cannot report resources of another one."""
        self.flow_and_drain()
        self.connected()
        self.let_everything_flow()

    @rule()
    def drain(self) -> None:
        self.client.send_drain()

    @rule(name=st.sampled_from(CLUSTERS))
    @precondition(lambda self: self.client.variant is Variant.DELTA)
    def ask_again(self, name: str) -> None:
        if self.client.is_subscribed(ENDPOINT, name):
            self.client.outbox.append(Request(type_url=ENDPOINT, names=(name,)))

    # --- what must hold ---

    def _note_list(self, short: str, request: Request) -> None:
        last, names = self.client.stream.last.get(short), request.names
        stale = last and request.nonce and request.nonce != last.nonce
        if short not in FULL and not stale:
            for key in [key for key in self.delivered if key[0] == short and key[1] not in names]:
                del self.delivered[key]
            # A client may subscribe again to a rejected resource that it unsubscribed from (R18).
            self.rejected = [
                (kind, content)
                for kind, content in self.rejected
                if kind != short or {name for name, _ in content} <= {*names}
            ]

    def _note_change(self, short: str, request: Request) -> None:
        brought = request.initial_versions
        for name in request.names:
            if name not in brought:
                self.again.add((short, name))
        for name, version in brought.items():
            self.delivered[short, name] = version

    def _note_rejection(self, short: str, nonce: str) -> None:
        reply = next(reply for reply in self.client.stream.replies if reply.nonce == nonce)
        self.rejected.append((short, frozenset(reply.resources.items())))
        for name in (*reply.resources, *reply.removed):
            self.again.add((short, name))
        bad = [(short, *item) for item in reply.resources.items() if BAD in item[1]]
        if short in FULL and not any(UNREADABLE in version for version in reply.resources.values()):
            self.never.update(bad)

    def _check_order(self, reply: Reply) -> None:
        place = ORDER.index(reply.type)
        assert place >= self.last_type, "R40: types go out in order"
        self.last_type = place
        if self.patience == float("inf") and reply.type in {"LDS", "RDS"}:
            assert not self.in_flight["CDS"], "R42: listeners and routes wait for the clusters"
        if self.grace == float("inf") and reply.type == "CDS" and self._loses(reply):
            assert not self.in_flight["LDS"] + self.in_flight["RDS"], "R41: clusters go last"
        self.in_flight[reply.type].append(reply.nonce)

    def _loses(self, reply: Reply) -> set[str]:
        """Return the names that a response removes and no earlier response has removed."""
        before = {name for short, name in self.delivered if short == reply.type}
        if self.client.variant is Variant.DELTA:
            return set(reply.removed) & before
        return before - reply.resources.keys() if reply.type in FULL else set()

    def _check_rejected(self, reply: Reply) -> None:
        for name, version in reply.resources.items():
            again = (reply.type, name, version) in self.never
            unknown = (reply.type, name) in self.uncertain
            assert not again or unknown, "R12: individually rejected resources are never sent again"
        if reply.type in self.was_here and self.client.variant is Variant.SOTW:
            self.uncertain.update((reply.type, name) for name in reply.resources)
            self.was_here.discard(reply.type)
        if self.client.variant is Variant.SOTW and reply.type in FULL:
            unreported = {name for short, name in self.unreported if short == reply.type}
            left_out = self.client.have[reply.type].keys() - reply.resources.keys() - unreported
            assert not left_out & self.served[reply.type].keys(), "R12: what the client has is not left out"

    def _check(self, reply: Reply) -> None:
        assert reply.nonce not in self.nonces, "R4: nonces are unique"
        self.nonces.add(reply.nonce)
        self._check_order(reply)
        self._check_rejected(reply)
        delta = self.client.variant is Variant.DELTA
        for short, rejected in self.rejected:
            if short == reply.type and rejected:
                content = frozenset(reply.resources.items())
                as_it_was = rejected == content if short in FULL and not delta else rejected <= content
                asked = delta and any((short, name) in self.again_asked for name, _ in rejected)
                assert not as_it_was or asked, "R12: what was rejected is not sent again as it was"
        if reply.type in FULL and not delta:
            # After another response, the earlier content may be needed to revert it.
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
        for name in self._loses(reply) - set(reply.removed):
            self.delivered.pop((reply.type, name))
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
        routes = self.client.have["RDS"]
        for route in self.client.used_routes:
            for cluster in referred(routes[route]):
                assert cluster in self.client.warm_clusters, (
                    f"R41: the route {route} is in force, the cluster {cluster} is not"
                )

    @invariant()
    def resources_are_counted_as_they_are(self) -> None:
        if hasattr(self, "client"):
            for status in self.client.stream.session.status():
                assert +status.counts == Counter(resource.state for resource in status.resources)

    @invariant()
    def what_is_said_to_be_synced_is(self) -> None:
        if not hasattr(self, "client"):
            return
        silent = {SHORT[request.type_url] for request in self.client.outbox}
        for status in self.client.stream.session.status():
            short = SHORT[status.type_url]
            have = self.client.have[short]
            for each in () if short in silent or self.client.inbox else status.resources:
                if each.state is State.SYNCED and have.get(each.name) != EMPTY:
                    assert have.get(each.name) == each.version, f"the client has the {short} {each.name}"

    def flow_and_drain(self) -> None:
        for _ in range(2):
            self.let_everything_flow()
            self.drain()

    def teardown(self) -> None:
        if not hasattr(self, "client"):
            return
        for short, versions in self.world.versions.items():
            for name, version in tuple(versions.items()):
                if name != STAYS_BAD and (BAD in version or UNREADABLE in version):
                    self.world.put(short, name, *referred(version))
        self.flow_and_drain()
        while self.client.stream.session.deadline() is not None:
            self.now = self.client.stream.now = self.client.stream.session.deadline()
            self.flow_and_drain()
        stays_bad = self.world.versions["LDS"].pop(STAYS_BAD, None)
        for short in FULL:
            assert self.client.have[short] == self.world.versions[short], f"the client has all {short}"
        assert self.client.have["EDS"].keys() <= self.world.versions["CDS"].keys()
        for name, version in self.world.versions["EDS"].items():
            assert self.client.have["EDS"][name] == version, "the client has all EDS"
        wanted = self.client.wanted(ROUTE)
        assert {name: self.client.have["RDS"].get(name) for name in wanted} == {
            name: self.world.versions["RDS"].get(name) for name in wanted
        }
        assert not self.client.warming, "O3: every cluster got its assignment"
        active = {name: listener.version for name, listener in self.client.active.items()}
        assert active == self.world.versions["LDS"]
        assert not self.deliver_response()
        for status in self.client.stream.session.status():
            short = SHORT[status.type_url]
            assert status.synced != (short == "LDS" and stays_bad is not None), (
                f"nothing is waited for: {status}"
            )
            assert not self.client.stream.session._watch(status.type_url).lingering, f"no {short} lingers"


class RejectingMachine(SessionMachine):
    """The same model with rejections and expiring timeouts."""

    patience, grace = 20.0, 60.0
    rejecting = True

    @rule(seconds=st.sampled_from([1.0, 19.0, 61.0]))
    def pass_time(self, seconds: float) -> None:
        self.last_type = 0
        self.now += seconds
        self.client.stream.now = self.now

    @rule()
    def put_a_listener_that_stays_bad(self) -> None:
        self.world.put("LDS", STAYS_BAD, bad=BAD)

    @rule()
    @precondition(lambda self: self.client.variant is Variant.SOTW)
    def reconnect_sotw(self) -> None:
        self.connected()


BUDGET = settings(max_examples=200, stateful_step_count=40, deadline=None)
TestSession = SessionMachine.TestCase
TestSession.settings = BUDGET
TestRejections = RejectingMachine.TestCase
TestRejections.settings = BUDGET
