"""Explanations of connections: what policies require, what is served, and what the proxies have ACKed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from xds.checkpoint import Checkpoint
from xds.mesh.controlplane.controller import Controller
from xds.mesh.controlplane.explanation import (
    MAX_SERVERS,
    configured,
    differences,
    explanation_message,
    http_request,
)
from xds.mesh.controlplane.rollout_text import rule_summary, service_summary
from xds.mesh.controlplane.sidecar_states import CLIENT_TYPES, SERVER_TYPES, SidecarStates
from xds.mesh.controlplane.traffic_service import observed_edges
from xds.mesh.envoy.features import describe_tls, features_of
from xds.mesh.model.mesh import Endpoint
from xds.mesh.model.names import pod_matching, ports_named
from xds.mesh.observe.edges import Edges
from xds.mesh.policy.destination import could_apply
from xds.mesh.policy.explain import Explained, explanations, grouped
from xds.mesh.policy.reach import Result
from xds.mesh.rollout.progress import rule_progress, service_progress
from xds.mesh.v1 import policies_pb2 as pb
from xds.server import DiscoveryService
from xds.server.stream import now


class Explainer:
    """Explain one request, for the mesh and the rollouts at the time of its creation.

    Raises UnknownNameError if the client or the service does not exist.
    """

    def __init__(
        self,
        controller: Controller,
        discovery: DiscoveryService,
        traffic: tuple[Edges, ...],
        request: pb.ExplainRequest,
    ) -> None:
        self._controller, self._mesh, self._traffic = controller, controller.mesh, traffic
        self._client = pod_matching(self._mesh, request.client)
        self._service, self._ports = ports_named(self._mesh, request.service)
        self._request = http_request(request)
        self._progress = [
            progress
            for progress in service_progress(self._mesh, controller.rollouts, self._service.namespace)
            if progress.service == self._service.name
        ]
        self._rules = rule_progress(controller.rollouts)
        self._now = now()
        self._checkpoint = Checkpoint()
        self._sidecars = SidecarStates(controller, discovery, self._checkpoint)

    async def explain(self) -> pb.Explanation:
        """Return the explanation. The mesh may change meanwhile."""
        mesh, client, service = self._mesh, self._client, self._service
        explained = []
        for explanation in explanations(mesh, client, service, self._ports, self._request):
            explained.append(explanation)
            await self._checkpoint()
        groups = grouped(explained)
        message = explanation_message(mesh, client, service, groups)
        message.time.CopyFrom(self._sidecars.time)
        if client.has_sidecar:
            message.client_proxy.CopyFrom(await self._sidecars.find(client, CLIENT_TYPES))
        message.rule_transitions.extend(self._rule_transitions())
        for traffic in self._traffic:
            message.observed.extend(observed_edges(traffic, client, service))
        for group, group_message in zip(groups, message.groups, strict=True):
            await self._add_facts(message, group, group_message)
        return message

    async def _add_facts(
        self, message: pb.Explanation, group: Explained, group_message: pb.EndpointGroup
    ) -> None:
        """Add what is served to a group, what its sidecars have ACKed, and what its endpoints wait for."""
        if group.explanation.served:
            group_message.served.CopyFrom(configured(group.explanation.served))
        servers = await self._servers(group.endpoints)
        group_message.server_proxies.extend(servers)
        client = message.client_proxy if message.HasField("client_proxy") else None
        group_message.differences.extend(differences(group.explanation, client, servers))
        group_message.differences.extend(self._transitions(group.endpoints))
        if group.explanation.result is Result.MTLS:
            group_message.tls = self._tls(group.endpoints)

    def _tls(self, endpoints: Sequence[Endpoint]) -> str:
        """Describe the configured TLS. Empty if a sidecar is not connected, because its Envoy is unknown."""
        servers = {endpoint.pod.ref: endpoint.pod for endpoint in endpoints if endpoint.pod}.values()
        streams = self._controller.connections.streams
        found = [streams.get(pod.key, ()) for pod in (self._client, *servers)]
        if not all(found):
            return ""
        client, *others = (features_of(subscriber.node for subscriber in each) for each in found)
        return describe_tls(self._mesh.config, client, others)

    async def _servers(self, endpoints: Sequence[Endpoint]) -> list[pb.ProxyState]:
        """Return the state of at most MAX_SERVERS sidecars of endpoints, first those that are not synced."""
        synced: list[pb.ProxyState] = []
        unsynced: list[pb.ProxyState] = []
        for server in {e.pod.ref: e.pod for e in endpoints if e.pod and e.pod.has_sidecar}.values():
            state = await self._sidecars.find(server, SERVER_TYPES)
            await self._checkpoint()
            (synced if state.synced else unsynced).append(state)
            if len(unsynced) == MAX_SERVERS:
                break
        return [*unsynced, *synced][:MAX_SERVERS]

    def _transitions(self, endpoints: Sequence[Endpoint]) -> Iterator[str]:
        """Yield what endpoints of the service wait for, in the words of `xds status --rollout`."""
        keys = {(endpoint.pod.ref, endpoint.port) for endpoint in endpoints if endpoint.pod}
        for progress in self._progress:
            waiting = tuple(each for each in progress.waiting if each.key in keys)
            if waiting:
                yield service_summary(replace(progress, waiting=waiting), self._now)

    def _rule_transitions(self) -> Iterator[str]:
        """Yield which rules in transition the client waits for."""
        client = self._client
        for rule in self._rules if client.has_sidecar else ():
            if any(
                could_apply(self._mesh, version, client.namespace, client.meta.labels, self._service)
                for version in rule.versions
            ):
                yield rule_summary(rule, self._now)
