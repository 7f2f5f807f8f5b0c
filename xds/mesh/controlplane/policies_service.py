"""The gRPC service xds.mesh.v1.Policies: explanations of connections, and what the proxies have ACKed.

protos/xds/mesh/v1/policies.proto documents the messages.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import grpc
import grpc.aio

from xds.introspect.clock import Clock
from xds.introspect.cooperative import Checkpoint
from xds.introspect.guard import GuardedServer
from xds.mesh.controlplane.controller import Controller
from xds.mesh.controlplane.explanation import MAX_SERVERS, configured, differences, explanation_message
from xds.mesh.controlplane.proxies_service import ProxySummary, proxy_message
from xds.mesh.controlplane.rollout_text import rule_summary, service_summary
from xds.mesh.controlplane.status import absent_line, pod, type_line, types
from xds.mesh.model.mesh import Endpoint
from xds.mesh.model.names import UnknownNameError, pod_named, ports_named
from xds.mesh.model.objects import Pod
from xds.mesh.policy.destination import could_apply
from xds.mesh.policy.explain import Group, explanations, grouped
from xds.mesh.rollout.progress import rule_progress, service_progress
from xds.mesh.v1 import policies_pb2 as pb
from xds.mesh.v1 import proxies_pb2
from xds.protocol.types import short_name
from xds.server import DiscoveryService, Stream
from xds.server.stream import now
from xds.snapshot import CLUSTER, ENDPOINT, LISTENER, SECRET

SERVICE = "xds.mesh.v1.Policies"

_CLIENT_TYPES = (CLUSTER, ENDPOINT)
"""Types that decide what a client sends, besides secrets."""
_SERVER_TYPES = (LISTENER,)
"""Types that decide what a server accepts, besides secrets."""


class PoliciesService:
    """The service, for `Introspection(added=[...])`."""

    def __init__(self, controller: Controller) -> None:
        self._controller = controller

    def __call__(self, server: GuardedServer, discovery: DiscoveryService) -> None:
        """Add the service to a server that has not started."""

        async def explain(request: pb.ExplainRequest, context: grpc.aio.ServicerContext) -> pb.Explanation:
            try:
                return await self.explain(discovery, request)
            except UnknownNameError as error:
                await context.abort(grpc.StatusCode.NOT_FOUND, str(error))
                raise  # not reached: `abort` raises

        methods = {
            "Explain": grpc.unary_unary_rpc_method_handler(
                explain, pb.ExplainRequest.FromString, pb.Explanation.SerializeToString
            ),
        }
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, methods),))

    async def explain(self, discovery: DiscoveryService, request: pb.ExplainRequest) -> pb.Explanation:
        """Return an explanation. Raises UnknownNameError if the client or the service does not exist."""
        async with self._controller.mesh_lock:
            explainer = _Explainer(self._controller, discovery, request)
        return await explainer.explain()


class _Explainer:
    """Explain one request, for the mesh and the rollouts at the time of its creation.

    Raises UnknownNameError if the client or the service does not exist.
    """

    def __init__(
        self, controller: Controller, discovery: DiscoveryService, request: pb.ExplainRequest
    ) -> None:
        self._controller, self._mesh = controller, controller.mesh
        self._client = pod_named(self._mesh, request.client)
        self._service, self._ports = ports_named(self._mesh, request.service)
        self._progress = [
            progress
            for progress in service_progress(self._mesh, controller.rollouts, self._service.namespace)
            if progress.service == self._service.name
        ]
        self._rules = rule_progress(controller.rollouts)
        self._clock, self._now = Clock.read(), now()
        self._checkpoint = Checkpoint()
        self._absences = controller.absences()
        self._absent = {(absent.namespace, absent.pod): absent for absent in self._absences.pods}
        self._streams: dict[tuple[str, str], list[Stream]] = {}
        for stream in discovery.streams:
            self._streams.setdefault(pod(stream.node.id), []).append(stream)

    async def explain(self) -> pb.Explanation:
        """Return the explanation. The mesh may change meanwhile."""
        mesh, client, service = self._mesh, self._client, self._service
        explained = []
        for explanation in explanations(mesh, client, service, self._ports):
            explained.append(explanation)
            await self._checkpoint()
        groups = grouped(explained)
        message = explanation_message(mesh, client, service, groups)
        message.time.CopyFrom(self._clock.to_timestamp(self._now))
        if client.has_sidecar:
            message.client_proxy.CopyFrom(await self._proxy(client, _CLIENT_TYPES))
        message.rule_transitions.extend(self._rule_transitions())
        for group, group_message in zip(groups, message.groups, strict=True):
            await self._add_facts(message, group, group_message)
        return message

    async def _add_facts(
        self, message: pb.Explanation, group: Group, group_message: pb.EndpointGroup
    ) -> None:
        """Add what is served to a group, what its sidecars have ACKed, and what its endpoints wait for."""
        if group.explanation.served:
            group_message.served.CopyFrom(configured(group.explanation.served))
        servers = await self._servers(group.endpoints)
        group_message.server_proxies.extend(servers)
        client = message.client_proxy if message.HasField("client_proxy") else None
        group_message.differences.extend(differences(group.explanation, client, servers))
        group_message.differences.extend(self._transitions(group.endpoints))

    async def _servers(self, endpoints: Sequence[Endpoint]) -> list[pb.ProxyState]:
        """Return the state of at most MAX_SERVERS sidecars of endpoints, first those that are not synced."""
        synced: list[pb.ProxyState] = []
        unsynced: list[pb.ProxyState] = []
        for server in {e.pod.ref: e.pod for e in endpoints if e.pod and e.pod.has_sidecar}.values():
            state = await self._proxy(server, _SERVER_TYPES)
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

    async def _proxy(self, pod: Pod, type_urls: Sequence[str]) -> pb.ProxyState:
        """Return the state of a pod's sidecar: whether it has ACKed these types and its secrets."""
        key = (pod.namespace, pod.name)
        streams = self._streams.get(key, ())
        state = pb.ProxyState(
            pod=f"{pod.name}.{pod.namespace}",
            status=self._absence(pod),
            acked_generation=min(
                (stream.session.answered_generation(kind) for stream in streams for kind in type_urls),
                default=-1,
            ),
            served_generation=self._mesh.served.generation,
            may_be_on_other_replica=not streams and self._absences.may_be_on_other_replica,
        )
        expires = self._controller.certificates.expires_at(pod)
        if expires:
            state.certificate_expires.FromDatetime(expires)
        if streams:
            problem = self._controller.problem_of(streams[0].subscriber)
            summary = ProxySummary(problem, expires)
            proxy = await proxy_message(streams, summary, self._clock, self._checkpoint, unsynced=False)
            unsynced = [kind for kind in types(proxy) if _must_ack(kind, (*type_urls, SECRET))]
            time = self._clock.to_timestamp(self._now)
            lines = [f"{short_name(kind.type_url)} {type_line(kind, problem, time)}" for kind in unsynced]
            if not lines and (problem or state.acked_generation < state.served_generation):
                lines = [problem or "has not ACKed the served state"]
            state.synced, state.status = not lines, "; ".join(lines) or "synced"
        return state

    def _absence(self, pod: Pod) -> str:
        """Describe a sidecar that is not connected."""
        absent = self._absent.get((pod.namespace, pod.name))
        since = absent.since if absent else None
        return absent_line(
            proxies_pb2.AbsentSidecar(since=None if since is None else self._clock.to_timestamp(since)),
            self._clock.to_timestamp(self._now),
            may_be_on_other_replica=self._absences.may_be_on_other_replica,
        )


def _must_ack(kind: proxies_pb2.Type, type_urls: Sequence[str]) -> bool:
    """Return whether a proxy has not ACKed one of these types.

    A type that is ACKed and waits for another type, such as a listener for its routes, does not count.
    """
    waits_for_other_type = (
        kind.state == proxies_pb2.WAITING and kind.waiting.reason == proxies_pb2.Waiting.TYPE
    )
    return kind.type_url in type_urls and kind.state != proxies_pb2.SYNCED and not waits_for_other_type
