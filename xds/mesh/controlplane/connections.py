"""The streams of sidecars, and what each of them may have."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import NamedTuple, Protocol

import grpc
import structlog

from xds.mesh.controlplane.absence import SidecarTracker
from xds.mesh.controlplane.authorization import NO_KEY, budget_key, recheck_caller
from xds.mesh.envoy.features import Features, features_of
from xds.mesh.envoy.names import NodeId
from xds.mesh.identity import CERTIFICATE
from xds.mesh.identity.claims import Caller, CredentialKind, denial_reason
from xds.mesh.model.mesh import Mesh
from xds.mesh.model.objects import Pod, PodKey
from xds.mesh.observe.workloads import DeletedPods
from xds.mesh.rollout.proxies import ProxyTracker
from xds.protocol.events import Acked, Nacked, Subscribed
from xds.protocol.wire import Node
from xds.server import Refused, StreamInfo, Subscriber
from xds.server.stream import now as clock
from xds.snapshot import SECRET

log = structlog.get_logger(__name__)


class StreamNeeds(NamedTuple):
    """What the configuration of a pod depends on, besides the mesh."""

    features: Features
    """Features of its Envoys."""
    private_key: bool
    """Whether one of its streams may receive its private key."""


class PodQueue(Protocol):
    """Serves pods: `xds.mesh.controlplane.publisher.Publisher`."""

    def schedule(self, key: PodKey, changed_at: float | None = None) -> None:
        """Queue a pod to be served."""


class Connections:
    """The registry of streams, for the servers (`xds.server.Proxies`).

    A stream with an authenticated caller (`xds.mesh.identity.auth`) may act only for the pod that the caller
    authenticated as, and is closed once that no longer holds. A plaintext stream may act for any pod. It gets
    a private key only if `serve_keys` is set, and never over REST.
    """

    def __init__(
        self,
        mesh: Callable[[], Mesh],
        proxies: ProxyTracker,
        queue: PodQueue,
        forget: Callable[[PodKey], None],
        *,
        serve_keys: bool,
    ) -> None:
        """Create a registry without streams.

        Args:
            mesh: returns the current mesh.
            proxies: tracks the progress of proxies.
            queue: serves pods.
            forget: called when the last stream of a pod has ended.
            serve_keys: whether plaintext streams get private keys.
        """
        self.streams: dict[PodKey, set[Subscriber]] = {}
        """The streams of each connected pod."""
        self._needs: dict[PodKey, StreamNeeds] = {}
        """Results of `needs` for the current streams."""
        self.sidecars = SidecarTracker(mesh, self.streams)
        """Tracker of the sidecars that should be connected and are not."""
        self.deleted_pods = DeletedPods()
        """Addresses of pods that were deleted recently, for reports of observed traffic."""
        self._mesh = mesh
        self._proxies = proxies
        self._queue, self._forget = queue, forget
        self._serve_keys = serve_keys

    def connect(self, node: Node, stream: StreamInfo) -> Subscriber:
        """Accept a stream if its caller may act for the pod. The pod may still be unknown.

        Raises:
            Refused: the node ID is invalid, or the caller may not act for the pod.
        """
        try:
            node_id = NodeId.parse(node.id)
        except ValueError as error:
            raise Refused(grpc.StatusCode.INVALID_ARGUMENT, str(error)) from error
        key = (node_id.namespace, node_id.pod)
        caller: Caller | None = stream.caller
        pod = self._mesh().pod(*key)
        if caller and (reason := denial_reason(caller, *key, pod)):
            raise Refused(grpc.StatusCode.PERMISSION_DENIED, reason)
        subscriber = Subscriber(node, stream)
        subscriber.client = budget_key(caller, key, is_known=pod is not None)
        if not (caller or self.may_receive_key(subscriber) or stream.keyless or key in self.streams):
            log.warning("proxy gets no certificate", proxy=node.id, secret=CERTIFICATE, reason=NO_KEY)
        self.streams.setdefault(key, set()).add(subscriber)
        self._needs.pop(key, None)
        self._proxies.connected(subscriber, key, clock())
        self.sidecars.connected(key)
        if pod:
            self._queue.schedule(key)
        else:
            log.warning("proxy waits for its pod", proxy=node.id, pod="/".join(key))
        return subscriber

    def disconnect(self, subscriber: Subscriber) -> None:
        """Remove a stream that has ended."""
        key = pod_name(subscriber)
        streams = self.streams[key]
        needs = self.needs(key)
        streams.discard(subscriber)
        del self._needs[key]
        self._proxies.disconnected(subscriber, key, clock())
        if streams and self.needs(key) != needs:
            self._queue.schedule(key)
        if not streams:
            del self.streams[key]
            self.sidecars.disconnected(key, clock())
            self._forget(key)

    def needs(self, key: PodKey) -> StreamNeeds:
        """Return the features and the permission that a pod's streams have in common.

        For the features, streams that get no private key do not count if another one gets it: in plaintext,
        anyone can name the pod.
        """
        needs = self._needs.get(key)
        if needs is None:
            streams = self.streams.get(key, ())
            trusted = [stream for stream in streams if self.may_receive_key(stream)]
            needs = StreamNeeds(features_of(stream.node for stream in trusted or streams), bool(trusted))
            if streams:
                self._needs[key] = needs
        return needs

    def observe(self, subscriber: Subscriber, event: Subscribed | Acked | Nacked) -> None:
        """Record a subscription, an ACK or a NACK. The server logs NACKs.

        Raises:
            Refused: on an SDS stream, the proxy requests a private key that it may not receive.
        """
        key = pod_name(subscriber)
        if isinstance(event, Subscribed):
            wants_key = event.type_url == subscriber.stream.type_url == SECRET and CERTIFICATE in event.names
            if wants_key and not self.may_receive_key(subscriber):
                raise Refused(grpc.StatusCode.PERMISSION_DENIED, NO_KEY)
            self._proxies.subscribed(subscriber, key, event.type_url)
        self._proxies.received(subscriber, key, clock())

    def may_receive_key(self, subscriber: Subscriber) -> bool:
        """Return whether a stream may receive its pod's private key and certificate.

        A caller with a certificate may not: a stolen certificate must end with its lifetime.
        """
        stream = subscriber.stream
        caller: Caller | None = stream.caller
        if caller:
            return caller.credential is CredentialKind.TOKEN
        return self._serve_keys and not stream.keyless

    def pods(self) -> Iterator[tuple[PodKey, Pod]]:
        """Yield the connected pods that are in the mesh."""
        mesh = self._mesh()
        for key in self.streams:
            if pod := mesh.pod(*key):
                yield key, pod

    def mesh_changed(self, before: Mesh) -> None:
        """Check the streams of pods that have changed, and end those whose caller lost its right."""
        mesh = self._mesh()
        changed = mesh.changed_namespaces(before)
        for key, streams in self.streams.items() if changed else ():
            if key[0] not in changed or (pod := mesh.pod(*key)) is (old_pod := before.pod(*key)):
                continue
            for subscriber in streams:
                if pod:
                    subscriber.charge(budget_key(subscriber.stream.caller, key, is_known=True))
                recheck_caller(subscriber, key, old_pod, pod)


def pod_name(subscriber: Subscriber) -> PodKey:
    """Return the namespace and name of a stream's pod."""
    return _pod_name(subscriber.node.id)


@lru_cache(maxsize=4096)
def _pod_name(node_id: str) -> PodKey:
    """Parse the ID of an accepted node. Each ACK needs it."""
    parsed = NodeId.parse(node_id)
    return parsed.namespace, parsed.pod
