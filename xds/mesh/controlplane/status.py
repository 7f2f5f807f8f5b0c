"""One-line descriptions of a proxy's status.

For example `synced 2s ago`, `waiting 14s for RDS`, `rejected: MESSAGE (from DestinationRule full/x)`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from datetime import datetime
from functools import lru_cache

from google.protobuf.timestamp_pb2 import Timestamp

from xds.mesh.envoy.names import NodeId
from xds.mesh.model.names import join_names
from xds.mesh.model.objects import PodKey, printable
from xds.mesh.v1 import proxies_pb2 as pb
from xds.protocol.types import short_name

VERSION_HEADER = "xds-version"
"""Header of xds.mesh.v1.Proxies/List with the version of the control plane."""

_MAX_CAUSES = 2
"""Maximum number of objects that a line names."""

_RESOURCE_WORDS = {
    pb.Resource.SYNCED: "synced",
    pb.Resource.STALE: "stale",
    pb.Resource.NOT_SENT: "not sent",
    pb.Resource.ERROR: "rejected",
}

_NUMBERS = re.compile(r"([0-9]{1,18})")
"""A number in a name. Longer numbers are split, because converting them is slow."""

_ORIGIN = re.compile(r" \([^()]*\)$")
"""The location of a source, in parentheses after its name."""


def type_line(kind: pb.Type, problem: str, now: Timestamp) -> str:
    """Describe the status of a proxy for one type.

    Args:
        kind: the status.
        problem: the proxy's `problem`.
        now: the time of the response.
    """
    suffix = f" ({problem})" if problem else ""
    if kind.state == pb.REJECTED:
        return rejection_line(kind.rejection)
    if kind.state == pb.SYNCED:
        if not kind.HasField("acked_at"):
            return printable(f"synced{suffix}")  # The proxy was up to date when it connected.
        return printable(f"synced {_since(kind.acked_at, now)} ago{suffix}")
    waiting = kind.waiting
    if waiting.reason == pb.Waiting.CONFIGURATION and problem:
        return printable(f"waiting: {problem}")
    return printable(f"waiting {_since(waiting.since, now)} for {_awaited(waiting)}{suffix}")


def rejection_line(rejection: pb.Rejection) -> str:
    """Describe a rejection: the error message, and the objects that caused it."""
    message = " ".join(rejection.message.split()) or f"code {rejection.code}"
    return printable(f"rejected: {message}{_from(rejection.causes)}")


def type_word(kind: pb.Type, now: Timestamp) -> str:
    """Describe the status of a proxy for one type in a word, such as `synced` or `waiting 14s`."""
    if kind.state == pb.WAITING:
        return f"waiting {_since(kind.waiting.since, now)}"
    return "rejected" if kind.state == pb.REJECTED else "synced"


def proxy_state(proxy: pb.Proxy, now: Timestamp) -> str:
    """Describe the status of a proxy: when it was synced, or each type that is not synced, and why."""
    lines = {printable(proxy.problem): None} if proxy.problem else {}
    for kind in types(proxy):
        is_explained = proxy.problem and kind.waiting.reason == pb.Waiting.CONFIGURATION
        if kind.state != pb.SYNCED and not is_explained:
            lines[f"{short_name(kind.type_url)} {type_line(kind, '', now)}"] = None
    if lines:
        return "; ".join(lines)
    acked = [kind.acked_at.ToDatetime() for kind in types(proxy) if kind.HasField("acked_at")]
    return f"synced {since(max(acked), now)} ago" if acked else "synced"


def expiry(proxy: pb.Proxy, now: Timestamp) -> str:
    """Describe in how much time the certificate of a proxy expires; `-` if it is served none."""
    if not proxy.HasField("certificate_expires_at"):
        return "-"
    seconds = (proxy.certificate_expires_at.ToDatetime() - now.ToDatetime()).total_seconds()
    return duration(seconds) if seconds > 0 else "expired"


def since(moment: datetime, now: Timestamp) -> str:
    """Describe the time from a moment (UTC, without a time zone) until now."""
    return duration((now.ToDatetime() - moment).total_seconds())


def resource_word(state: pb.Resource.State) -> str:
    """Describe the state of a resource at a proxy in a word."""
    return _RESOURCE_WORDS[state]


def resource_line(resource: pb.Resource, now: Timestamp) -> str:
    """Describe why a resource is not synced."""
    if resource.state == pb.Resource.ERROR:
        sources = ", ".join(resource.rejection.sources)
        return printable(f"rejected, made from {sources}" if sources else "rejected")
    if resource.state == pb.Resource.NOT_SENT:
        return "not sent yet" if resource.version else "does not exist"
    if not resource.version:
        return "removal pending"
    if resource.version != resource.sent_version:
        return "update pending"
    sent = f" {_since(resource.updated_at, now)} ago" if resource.HasField("updated_at") else ""
    return f"sent{sent}, not ACKed"


def stream_line(stream: pb.Stream, now: Timestamp) -> str:
    """Describe a stream, such as `delta ADS from ipv4:127.0.0.1:41234, connected 14s ago`."""
    variant = pb.Stream.Variant.Name(stream.variant).lower()
    kind = short_name(stream.type_url) if stream.type_url else "ADS"
    return printable(f"{variant} {kind} from {stream.peer}, connected {_since(stream.connected_at, now)} ago")


def object_name(source: str) -> str:
    """Return the object of a source without its location, such as `DestinationRule full/x`."""
    return _ORIGIN.sub("", source)


def duration(seconds: float) -> str:
    """Format a duration with at most two units, such as `14s`, `3m20s`, `5h` or `2d7h`."""
    whole = max(0, round(seconds))
    for unit, length, next_unit, next_length in (
        ("d", 86400, "h", 3600),
        ("h", 3600, "m", 60),
        ("m", 60, "s", 1),
    ):
        if whole >= length:
            remainder = whole % length // next_length
            return f"{whole // length}{unit}" + (f"{remainder}{next_unit}" if remainder else "")
    return f"{whole}s"


def absent_line(absent: pb.AbsentSidecar, now: Timestamp, *, may_be_on_other_replica: bool) -> str:
    """Describe a pod whose sidecar is not connected, and for how long."""
    here = " here" if may_be_on_other_replica else ""
    return f"not connected{here} ({_since(absent.since, now) if absent.HasField('since') else 'never'})"


def problem_line(warning: pb.ObjectWarning) -> str:
    """Describe a problem and its location, as one line."""
    hint = f" ({warning.hint})" if warning.hint else ""
    served = f"; version {warning.served_version} stays in use" if warning.served_version else ""
    return printable(f"{warning.place}: problem: {warning.what}{hint}{served}")


def settled(proxy: pb.Proxy) -> bool:
    """Return whether a proxy has ACKed its whole configuration, and the configuration is up to date."""
    return not proxy.problem and all(kind.state == pb.SYNCED for kind in types(proxy))


def overall_state(proxy: pb.Proxy) -> str:
    """Return the status of a proxy in a word: `synced`, `waiting` or `rejected`."""
    if any(kind.state == pb.REJECTED for kind in types(proxy)):
        return "rejected"
    return "synced" if settled(proxy) else "waiting"


@lru_cache(maxsize=1 << 14)
def pod(node_id: str) -> PodKey:
    """Return the namespace and name of a sidecar's pod; both empty if the node ID is not a sidecar's."""
    try:
        parsed = NodeId.parse(node_id)
    except ValueError:
        return "", ""
    return parsed.namespace, parsed.pod


def proxy_name(node_id: str) -> str:
    """Return the display name of a proxy: POD.NAMESPACE, or the node ID if it is not a sidecar."""
    namespace, name = pod(node_id)
    return printable(f"{name}.{namespace}" if name else node_id)


def types(proxy: pb.Proxy) -> Iterator[pb.Type]:
    """Yield the types of all streams of a proxy."""
    for stream in proxy.streams:
        yield from stream.types


def _awaited(waiting: pb.Waiting) -> str:
    match waiting.reason:
        case pb.Waiting.ACK:
            return "an ACK"
        case pb.Waiting.READ:
            return "the proxy to read"
        case pb.Waiting.TYPE:
            return short_name(waiting.type_url)
        case _:
            return "its configuration"


def _from(causes: Sequence[str]) -> str:
    if not causes:
        return ""
    return f" (from {join_names(map(object_name, causes), _MAX_CAUSES)})"


def _since(moment: Timestamp, now: Timestamp) -> str:
    return since(moment.ToDatetime(), now)
