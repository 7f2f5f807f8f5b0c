"""Random changes of a world, for state machines."""

from __future__ import annotations

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule

from tests.protocol.envoy_model import (
    BAD,
    CLUSTERS,
    LISTENERS,
    NAMELESS,
    ROUTES,
    STAYS_BAD,
    UNREADABLE,
    World,
    referred,
)

FAULTS = ["", BAD, UNREADABLE, NAMELESS]


class ChangingWorld(RuleBasedStateMachine):
    """Clusters, assignments, routes and listeners that are added, changed, replaced and removed."""

    world: World
    rejecting = False
    """Whether the client rejects some resources."""

    def serve(self) -> None:
        """Serve the current world."""
        raise NotImplementedError

    @rule(name=st.sampled_from(CLUSTERS), bad=st.sampled_from(FAULTS))
    def put_cluster(self, name: str, bad: str) -> None:
        self.world.put("CDS", name, bad=bad if self.rejecting else "")
        self.world.versions["EDS"].setdefault(name, "0/")

    @rule(name=st.sampled_from(CLUSTERS), bad=st.sampled_from(FAULTS))
    def put_assignment(self, name: str, bad: str) -> None:
        if name in self.world.versions["CDS"]:
            self.world.put("EDS", name, bad=bad if self.rejecting else "")

    @rule(bad=st.sampled_from(CLUSTERS))
    def change_all_assignments(self, bad: str) -> None:
        for name in self.world.versions["CDS"]:
            self.put_assignment(name, bad=BAD if name == bad else "")
        self.serve()

    @rule(name=st.sampled_from(CLUSTERS))
    def drop_assignment(self, name: str) -> None:
        self.world.versions["EDS"].pop(name, None)

    @rule(
        name=st.sampled_from(ROUTES),
        uses=st.sets(st.sampled_from(CLUSTERS), max_size=2),
        bad=st.sampled_from(FAULTS),
    )
    def put_route(self, name: str, uses: set[str], bad: str) -> None:
        uses &= self.world.versions["CDS"].keys()
        self.world.put("RDS", name, *sorted(uses), bad=bad if self.rejecting else "")

    @rule(
        name=st.sampled_from(LISTENERS),
        route=st.sampled_from(ROUTES),
        bad=st.sampled_from(FAULTS),
    )
    def put_listener(self, name: str, route: str, bad: str) -> None:
        if route in self.world.versions["RDS"]:
            self.world.put("LDS", name, route, bad=bad if self.rejecting else "")

    @rule(name=st.sampled_from(CLUSTERS))
    def drop_cluster(self, name: str) -> None:
        if self.world.versions["CDS"].pop(name, None):
            self.world.versions["EDS"].pop(name, None)
            for route, version in tuple(self.world.versions["RDS"].items()):
                if name in referred(version):
                    self.world.put("RDS", route, *(ref for ref in referred(version) if ref != name))

    @rule(old=st.sampled_from(CLUSTERS), new=st.sampled_from(CLUSTERS))
    def replace_cluster(self, old: str, new: str) -> None:
        if old != new and old in self.world.versions["CDS"]:
            self.put_cluster(new, bad="")
            for route, version in tuple(self.world.versions["RDS"].items()):
                if old in referred(version):
                    self.world.put("RDS", route, *{new if ref == old else ref for ref in referred(version)})
            self.drop_cluster(old)
            self.serve()

    @rule(name=st.sampled_from(LISTENERS), old=st.sampled_from(ROUTES))
    def replace_route(self, name: str, old: str) -> None:
        """Replace a listener, its route and its cluster at once."""
        new = next(route for route in ROUTES if route != old)
        if name in self.world.versions["LDS"] and old in self.world.versions["RDS"]:
            used = referred(self.world.versions["RDS"].pop(old))
            unused = next(cluster for cluster in CLUSTERS if cluster not in used)
            self.put_cluster(unused, bad="")
            self.put_route(new, {unused}, bad="")
            for listener in self.world.versions["LDS"].keys() - {STAYS_BAD}:
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
