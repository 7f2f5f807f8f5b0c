"""Rollouts in random order: no request fails, and the desired state is reached."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from tests.policy.rollout_world import (
    CLIENTS,
    PERMISSIONS,
    PORTS,
    RULES,
    SERVERS,
    Client,
    Proxies,
    Server,
    client_rule,
    permission,
)
from tests.policy.world import peer
from xds.mesh.model.authorization import Action
from xds.mesh.model.objects import Ref

MODES = (None, "DISABLE", "PERMISSIVE", "STRICT")
mode = st.sampled_from(MODES)
server = st.sampled_from(SERVERS)
client = st.sampled_from(CLIENTS)


class RolloutMachine(RuleBasedStateMachine):
    """Policies change, proxies lag, reject and reconnect, pods are replaced, the control plane restarts."""

    def __init__(self) -> None:
        super().__init__()
        self.world = Proxies()

    @rule(mode=mode)
    def set_mode_for_all(self, mode: str | None) -> None:
        self.world.set_mode(mode)

    @rule(mode=mode, name=server)
    def set_mode_for_server(self, mode: str | None, name: str) -> None:
        self.world.set_mode(mode, name=name)

    @rule(mode=mode, name=server, port=st.sampled_from(PORTS))
    def set_mode_for_port(self, mode: str | None, name: str, port: int) -> None:
        self.world.set_mode(mode, name=name, port=port)

    @rule(mode=st.sampled_from(RULES), name=st.sampled_from(("", *CLIENTS)))
    def set_rule_for_clients(self, mode: str | None, name: str) -> None:
        self.world.set_rule(mode, name)

    @rule(
        allowed=st.sampled_from((None, *PERMISSIONS)),
        action=st.sampled_from((Action.ALLOW, Action.ALLOW, Action.DENY)),
        name=st.sampled_from(("web", "more")),
        mode=st.sampled_from(("as before", *MODES)),
        of=st.sampled_from(("as before", *RULES)),
    )
    def set_permission(
        self, allowed: str | None, action: Action, name: str, mode: str | None, of: str | None
    ) -> None:
        objects = permission(allowed, action, name)
        if mode != "as before":
            objects[Ref("PeerAuthentication", "ns", "default")] = peer("ns", mode) if mode else None
        if of != "as before":
            objects |= client_rule(of)
        self.world.set(objects)

    @rule(enabled=st.booleans())
    def set_mesh_wide_mtls(self, enabled: bool) -> None:
        self.world.change(config=replace(self.world.config, mtls_enabled=enabled))

    @rule(name=server, ack=st.booleans())
    def server_activates(self, name: str, ack: bool) -> None:
        if self.world.servers[name].connected:
            self.world.deliver_to_server(name)
            if ack:
                self.world.receive_ack(self.world.servers[name])

    @rule(name=client, ack=st.booleans())
    def client_activates(self, name: str, ack: bool) -> None:
        if self.world.clients[name].connected:
            self.world.deliver_to_client(name)
            if ack:
                self.world.receive_ack(self.world.clients[name])

    @rule(name=st.sampled_from((*SERVERS, *CLIENTS)))
    def ack_arrives(self, name: str) -> None:
        self.world.receive_ack({**self.world.servers, **self.world.clients}[name])

    @rule()
    def step(self) -> None:
        self.world.step()

    @rule(seconds=st.sampled_from((0.0, 0.5)))
    def advance(self, seconds: float) -> None:
        self.world.now += seconds
        self.world.advance()

    @rule(name=client)
    def client_restarts(self, name: str) -> None:
        self.world.clients[name] = Client()

    @rule(name=server)
    def server_restarts(self, name: str) -> None:
        self.world.servers[name] = Server()

    @rule(name=st.sampled_from((*SERVERS, *CLIENTS)))
    def proxy_rejects(self, name: str) -> None:
        self.world.reject({**self.world.servers, **self.world.clients}[name])

    @rule(name=st.sampled_from((*SERVERS, *CLIENTS)))
    def proxy_reconnects(self, name: str) -> None:
        self.world.reconnect({**self.world.servers, **self.world.clients}[name])

    @rule(name=server)
    def pod_is_replaced(self, name: str) -> None:
        self.world.replace(name)

    # If a server restarts together with the control plane, its modes are unknown.
    @precondition(lambda self: all(each.modes for each in self.world.servers.values()))
    @rule(reports=st.booleans())
    def control_plane_restarts(self, reports: bool) -> None:
        self.world.start(reports=reports)

    @rule()
    def settle(self) -> None:
        self.world.settle()

    @invariant()
    def no_request_fails(self) -> None:
        self.world.check()

    def teardown(self) -> None:
        self.world.settle()


TestRollout = RolloutMachine.TestCase
TestRollout.settings = settings(
    max_examples=150, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck)
)


def test_model_fails_without_waiting() -> None:
    world = Proxies(timeout=None)
    world.set_mode("DISABLE")
    world.deliver_to_server("web-1")
    with pytest.raises(AssertionError, match=r"sends mtls to web-1:.*, which accepts DISABLE"):
        world.check()
