"""A gRPC client of a running control plane: the services of xds.mesh.v1, and CSDS."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, NoReturn, Self, TypeVar

import grpc
from google.protobuf.message import Message

from xds.cli.client_credentials import ClientCredentials
from xds.cli.options import (
    AS_WRITTEN,
    Address,
    Reading,
    fail,
    fail_unknown,
    fail_unreachable,
)
from xds.mesh.controlplane.status import VERSION_HEADER, proxy_name
from xds.mesh.model.names import ambiguous_name
from xds.mesh.model.objects import Problem, printable
from xds.mesh.v1 import objects_pb2, policies_pb2, proxies_pb2, reports_pb2, rollouts_pb2, traffic_pb2

if TYPE_CHECKING:
    from xds.cli.port_forward import PortForward
    from xds.mesh.observe.record import Record

_Response = TypeVar("_Response", bound=Message)
_Method = TypeVar("_Method")

OBJECTS = "xds.mesh.v1.Objects"
PROXIES = "xds.mesh.v1.Proxies"
ROLLOUTS = "xds.mesh.v1.Rollouts"
TRAFFIC = "xds.mesh.v1.Traffic"
POLICIES = "xds.mesh.v1.Policies"
REPORTS = "xds.mesh.v1.Reports"
CSDS = "envoy.service.status.v3.ClientStatusDiscoveryService"
_PLAINTEXT = ClientCredentials()
RPC_TIMEOUT = 10.0
"""Timeout of a unary call, in seconds."""
_CLOSED = frozenset({grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED})
"""Status codes of a stream that the control plane has closed."""


def _reason(details: str) -> str:
    """Return the reason in gRPC's details of a failed connection, which name each step that failed."""
    if not details.startswith(("failed to connect to all addresses", "errors resolving")):
        return details
    if "SSL" in details or "Ssl" in details:
        return "the TLS handshake failed: " + details.rpartition(":")[2].strip()
    return details.rpartition(": ")[2].rstrip("]").lower()


def _method(
    kind: Callable[..., _Method], service: str, name: str, request: Message, response: type[Message]
) -> _Method:
    """Return a method of a service. `kind` is the function of a channel for its kind of method."""
    return kind(f"/{service}/{name}", type(request).SerializeToString, response.FromString)


class AdminClient:
    """A connection to a control plane. On an error, every method prints a message and exits by default."""

    def __init__(
        self,
        address: Address | PortForward,
        credentials: ClientCredentials = _PLAINTEXT,
        *,
        timeout: float = RPC_TIMEOUT,
        on_error: Callable[[str], NoReturn] | None = None,
    ) -> None:
        """Create a client.

        Args:
            address: xDS address of the control plane, or a port-forward, which the client closes.
            credentials: the files for a connection over TLS.
            timeout: seconds to wait for a response.
            on_error: called with the message if a call fails.
        """
        self.address = str(address)
        """Name of the control plane, for messages."""
        self._forward = None if isinstance(address, Address) else address
        self._timeout = timeout
        self._on_error = on_error or fail_unreachable
        # The state of a large mesh exceeds the default message limit of 4 MiB. Ignore http_proxy: a web
        # proxy does not forward to this port.
        options = (("grpc.max_receive_message_length", -1), ("grpc.enable_http_proxy", 0))
        channel_credentials = credentials.load()
        target = self._forward.target if self._forward else self.address
        self._channel: grpc.Channel = (
            grpc.secure_channel(target, channel_credentials, options)
            if channel_credentials
            else grpc.insecure_channel(target, options)
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._channel.close()
        if self._forward:
            self._forward.close()

    def server_version(self) -> str:
        """Return the version of the control plane; empty if it is too old to send its version."""
        # "-" is the name of no namespace: the response contains no proxy.
        request = proxies_pb2.ListProxiesRequest(namespace="-")
        method = _method(self._channel.unary_unary, PROXIES, "List", request, proxies_pb2.ListProxiesResponse)
        try:
            _, call = method.with_call(request, timeout=self._timeout)
        except grpc.RpcError as error:
            self._fail(PROXIES, error)
        return str(dict(call.initial_metadata()).get(VERSION_HEADER, ""))

    def list_proxies(self, filters: dict[str, str], *, unsynced: bool) -> proxies_pb2.ListProxiesResponse:
        """Return the state of proxies. With `unsynced`, include the resources that are not synced."""
        request = proxies_pb2.ListProxiesRequest(**filters, unsynced=unsynced)
        return self._call(PROXIES, "List", request, proxies_pb2.ListProxiesResponse)

    def watch_proxies(
        self, filters: dict[str, str], *, unsynced: bool
    ) -> Iterator[proxies_pb2.WatchProxiesResponse]:
        """Yield the state of proxies, then each change until the control plane stops."""
        request = proxies_pb2.WatchProxiesRequest(**filters, unsynced=unsynced)
        return self._stream(PROXIES, "Watch", request, proxies_pb2.WatchProxiesResponse)

    def list_resources(self, node_id: str) -> list[proxies_pb2.ServedResource]:
        """Return the resources that a proxy is served, without their contents."""
        request = proxies_pb2.ResourcesRequest(node_id=node_id)
        return list(self._stream(PROXIES, "Resources", request, proxies_pb2.ServedResource, ends=True))

    def list_rollouts(self, namespace: str) -> rollouts_pb2.ListRolloutsResponse:
        """Return the progress of rollouts, and the transitions that finished within the last hour."""
        request = rollouts_pb2.ListRolloutsRequest(namespace=namespace, finished=True)
        return self._call(ROLLOUTS, "List", request, rollouts_pb2.ListRolloutsResponse)

    def watch_rollouts(self, namespace: str) -> Iterator[rollouts_pb2.ListRolloutsResponse]:
        """Yield the progress of rollouts, again at each change, until the control plane stops."""
        request = rollouts_pb2.ListRolloutsRequest(namespace=namespace)
        return self._stream(ROLLOUTS, "Watch", request, rollouts_pb2.ListRolloutsResponse)

    def list_traffic(self, request: traffic_pb2.ListTrafficRequest) -> traffic_pb2.ListTrafficResponse:
        """Return the observed traffic."""
        return self._call(TRAFFIC, "List", request, traffic_pb2.ListTrafficResponse)

    def watch_traffic(
        self, request: traffic_pb2.ListTrafficRequest
    ) -> Iterator[traffic_pb2.ListTrafficResponse]:
        """Yield the observed traffic, again after new reports, until the control plane stops."""
        return self._stream(TRAFFIC, "Watch", request, traffic_pb2.ListTrafficResponse)

    def list_problems(self, namespace: str, *, notices: bool) -> objects_pb2.ListProblemsResponse:
        """Return the problems of objects."""
        request = objects_pb2.ListProblemsRequest(namespace=namespace, notices=notices)
        return self._call(OBJECTS, "ListProblems", request, objects_pb2.ListProblemsResponse)

    def wait(self, request: objects_pb2.WaitRequest, timeout: float) -> Iterator[objects_pb2.WaitResponse]:
        """Yield the progress of an object, until its state is final or the timeout passes."""
        return self._stream(OBJECTS, "Wait", request, objects_pb2.WaitResponse, timeout)

    def stream_client_status(self, request: Message, response: type[_Response]) -> Iterator[_Response]:
        """Yield the parts of the answer to a request of Envoy's client status discovery service (CSDS)."""
        method = _method(self._channel.stream_stream, CSDS, "StreamClientStatus", request, response)
        try:
            yield from method(iter([request]), timeout=RPC_TIMEOUT)
        except grpc.RpcError as error:
            self._fail(CSDS, error)

    def explain(self, request: policies_pb2.ExplainRequest) -> policies_pb2.Explanation:
        """Return the explanation of a client's connections to a service; exit if either does not exist."""
        return self._call(POLICIES, "Explain", request, policies_pb2.Explanation)

    def problems(self) -> list[Problem]:
        """Return the problems of objects, and the objects without effect."""
        listed = self.list_problems("", notices=False)
        return [Problem(where=item.place, what=item.what, hint=item.hint) for item in listed.problems]

    def reach(self, request: policies_pb2.ReachRequest) -> Iterator[policies_pb2.ReachResponse]:
        """Yield the results of connections; if the request has `watch`, again after each change."""
        return self._stream(POLICIES, "Reach", request, policies_pb2.ReachResponse, ends=not request.watch)

    def plan(
        self,
        filenames: Sequence[str],
        deletions: Sequence[str],
        observed: float | None = None,
        reading: Reading = AS_WRITTEN,
        replay: Record | float | None = None,
    ) -> policies_pb2.PlanResponse:
        """Return the effects of applying manifests and deleting objects.

        With `observed`, also compare them with the plaintext traffic of so many seconds; with `replay`, also
        replay all traffic of so many seconds. A control plane replays no record.
        """
        from xds.cli.manifests import read_texts  # noqa: PLC0415 - other calls do not need it

        period = replay if isinstance(replay, float) else None
        return self.plan_texts(read_texts(filenames), deletions, observed, reading, period)

    def plan_texts(
        self,
        texts: Iterable[tuple[str, str]],
        deletions: Sequence[str] = (),
        observed: float | None = None,
        reading: Reading = AS_WRITTEN,
        replay: float | None = None,
    ) -> policies_pb2.PlanResponse:
        """Like `plan`, for pairs of a file's name and text."""
        manifests = (policies_pb2.Manifest(name=name, text=text) for name, text in texts)
        request = policies_pb2.PlanRequest(
            manifests=manifests,
            deletions=deletions,
            default_namespace=reading.default_namespace,
            ignored_kinds=reading.ignored_kinds,
        )
        if observed:
            request.observed.FromMilliseconds(round(observed * 1000))
        if replay:
            request.replay.FromMilliseconds(round(replay * 1000))
        found = policies_pb2.PlanResponse()
        for response in self._stream(POLICIES, "Plan", request, policies_pb2.PlanResponse, ends=True):
            found.MergeFrom(response)
        has_compared = not (found.invalid or found.nothing_to_compare)
        for option, seconds, field in (
            ("--observed", observed, "observation"),
            ("--replay", replay, "replay"),
        ):
            if seconds and has_compared and not found.HasField(field):
                fail(f"the control plane at {self.address} does not support {option}: upgrade it", 1)
        return found

    def describe_pod(self, name: str) -> policies_pb2.PodDescription:
        """Return a pod as a server; exit if it does not exist."""
        request = policies_pb2.DescribePodRequest(pod=name)
        return self._call(POLICIES, "DescribePod", request, policies_pb2.PodDescription)

    def report(self, request: reports_pb2.CreateReportRequest) -> reports_pb2.Report:
        """Return a report; exit if a namespace has no pods."""
        found = reports_pb2.Report()
        for part in self._stream(REPORTS, "Create", request, reports_pb2.Report, ends=True):
            found.MergeFrom(part)
        return found

    def resolve_proxy(self, proxy: str, namespace: str) -> str:
        """Return a filter that selects exactly one proxy; exit if `proxy` matches none or several."""

        def list_names(prefix: str) -> list[str]:
            response = self.list_proxies({"proxy": prefix, "namespace": namespace}, unsynced=False)
            names = dict.fromkeys(proxy_name(connected.node_id) for connected in response.proxies)
            absent = response.not_connected
            if not (names and absent.may_be_on_other_replica):
                names |= dict.fromkeys(f"{sidecar.pod}.{sidecar.namespace}" for sidecar in absent.pods)
            return list(names)

        names = list_names(proxy)
        if not names:
            known = list_names("")
            if not known:
                fail(f"proxy {proxy} not found: no proxy is connected to {self.address}")
            fail_unknown("proxy", proxy, known, "POD.NAMESPACE")
        if len(names) > 1:
            fail(ambiguous_name(proxy, names))
        return names[0] if names[0].startswith(proxy) else proxy

    def _call(self, service: str, name: str, request: Message, response: type[_Response]) -> _Response:
        method = _method(self._channel.unary_unary, service, name, request, response)
        try:
            result: _Response = method(request, timeout=self._timeout)
        except grpc.RpcError as error:
            self._fail(service, error)
        return result

    def _stream(
        self,
        service: str,
        name: str,
        request: Message,
        response: type[_Response],
        timeout: float | None = None,
        *,
        ends: bool = False,
    ) -> Iterator[_Response]:
        """Yield the responses of a call. Exit if it ends, unless it has a timeout or `ends` is set."""
        method = _method(self._channel.unary_stream, service, name, request, response)
        responses = iter(method(request, timeout=timeout))
        try:
            first = next(responses, None)
        except grpc.RpcError as error:
            self._fail(service, error)
        try:
            if first:
                yield first
            yield from responses
            has_ended = ends or timeout is not None
        except grpc.RpcError as error:
            has_ended = timeout is not None and error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
            if not has_ended and error.code() not in _CLOSED:
                self._fail(service, error)
        if not has_ended:
            self._on_error(self._forward_error or f"the control plane at {self.address} closed the stream")

    @property
    def _forward_error(self) -> str:
        """Why the port-forward failed; empty if it did not, or there is none."""
        return self._forward.error if self._forward else ""

    def _fail(self, service: str, error: grpc.RpcError) -> NoReturn:
        match error.code():
            case grpc.StatusCode.NOT_FOUND:
                fail(printable(error.details() or ""))
            case grpc.StatusCode.UNAVAILABLE if self._forward:
                self._on_error(self._forward_error or f"{self.address} closed the connection")
            case grpc.StatusCode.UNAVAILABLE:
                message = (
                    f"cannot connect to a control plane at {self.address}: start `xds serve`, or set "
                    "--xds-address to its xDS address, or --context to find it in a cluster"
                )
            case grpc.StatusCode.UNAUTHENTICATED | grpc.StatusCode.PERMISSION_DENIED:
                message = f"{self.address} denied the request"
            case grpc.StatusCode.UNIMPLEMENTED:
                message = (
                    f"the server at {self.address} does not implement {service}: it is not `xds serve`, or "
                    "is an older version"
                )
            case grpc.StatusCode.DEADLINE_EXCEEDED:
                message = f"the server at {self.address} did not respond within {self._timeout:.0f} s"
            case code:
                message = f"the server at {self.address} responded with {code.name}"
        details = _reason(error.details() or "")
        self._on_error(message + (f" ({printable(details)})" if details else ""))
