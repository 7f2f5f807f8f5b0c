"""How far a proxy is, in words: `synced 2s ago`, `waiting 14s for RDS`, `rejected: MESSAGE (from DestinationRule/full/x)`."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import lru_cache

from google.protobuf.timestamp_pb2 import Timestamp

from xds.mesh.envoy.names import NodeId
from xds.mesh.model.objects import printable
from xds.mesh.v1 import proxies_pb2 as pb
from xds.protocol.types import short_name

_MOST_CAUSES = 2
"""Objects that one line names."""

_ORIGIN = re.compile(r" \([^()]*\)$")
"""Where a source was read, after its name."""


def words(kind: pb.Type, missing: str, now: Timestamp) -> str:
    """Say in one line how far a proxy is with a type, at a time of the same clock; `missing` is the proxy's."""
    because = f" ({missing})" if missing else ""
    if kind.state == pb.REJECTED:
        said = " ".join(kind.rejection.message.split()) or f"code {kind.rejection.code}"
        return printable(f"rejected: {said}{_from(kind.rejection.causes)}")
    if kind.state == pb.SYNCED:
        if not kind.HasField("acked_at"):
            return printable(f"synced{because}")  # It came with everything.
        return printable(f"synced {_since(kind.acked_at, now)} ago{because}")
    waiting = kind.waiting
    if waiting.reason == pb.Waiting.CONFIGURATION and missing:
        return printable(f"waiting: {missing}")
    return printable(f"waiting {_since(waiting.since, now)} for {_awaited(waiting)}{because}")


def resource_words(resource: pb.Resource, now: Timestamp) -> str:
    """Say why a resource is not synced."""
    if resource.state == pb.Resource.ERROR:
        sources = ", ".join(resource.rejection.sources)
        return printable(f"rejected, made from {sources}" if sources else "rejected")
    if resource.state == pb.Resource.NOT_SENT:
        return "not sent yet" if resource.version else "there is none"
    if not resource.version:
        return "to be removed"
    if resource.version != resource.sent_version:
        return "a newer one is due"
    sent = f" {_since(resource.updated_at, now)} ago" if resource.HasField("updated_at") else ""
    return f"sent{sent}, not acknowledged"


def stream_words(stream: pb.Stream, now: Timestamp) -> str:
    """Say what a stream is: `delta ADS from ipv4:127.0.0.1:41234, connected 14s ago`."""
    variant = pb.Stream.Variant.Name(stream.variant).lower()
    what = short_name(stream.type_url) if stream.type_url else "ADS"
    return printable(f"{variant} {what} from {stream.peer}, connected {_since(stream.connected_at, now)} ago")


def object_name(source: str) -> str:
    """Return a source's object as one word, without where it was read: `DestinationRule/full/x`."""
    return _ORIGIN.sub("", source).replace(" ", "/", 1)


def duration(seconds: float) -> str:
    """Write a length of time to two units at most: `14s`, `3m20s`, `5h`, `2d7h`."""
    whole = max(0, round(seconds))
    for unit, length, smaller, part in (("d", 86400, "h", 3600), ("h", 3600, "m", 60), ("m", 60, "s", 1)):
        if whole >= length:
            rest = whole % length // part
            return f"{whole // length}{unit}" + (f"{rest}{smaller}" if rest else "")
    return f"{whole}s"


def absent_words(absent: pb.AbsentSidecar, now: Timestamp, *, may_be_elsewhere: bool) -> str:
    """Say that a pod's sidecar is not connected, and for how long."""
    here = " here" if may_be_elsewhere else ""
    return f"not connected{here} ({_since(absent.since, now) if absent.HasField('since') else 'never'})"


def warning_words(warning: pb.ObjectWarning) -> str:
    """Say what is wrong and where, in the form that editors and CI systems find files in."""
    hint = f" ({warning.hint})" if warning.hint else ""
    return printable(f"{warning.place}: warning: {warning.what}{hint}")


def settled(proxy: pb.Proxy) -> bool:
    """Whether a proxy has all that it should have, and nothing keeps it from getting more."""
    return not proxy.missing and all(kind.state == pb.SYNCED for kind in types(proxy))


@lru_cache(maxsize=1 << 14)
def pod(node_id: str) -> tuple[str, str]:
    """Return the namespace and name of a sidecar's pod; empty for who is none."""
    try:
        name = NodeId.parse(node_id)
    except ValueError:
        return "", ""
    return name.namespace, name.pod


def proxy_name(node_id: str) -> str:
    """Return what to call a proxy: POD.NAMESPACE, or the node id of who is no sidecar."""
    namespace, name = pod(node_id)
    return printable(f"{name}.{namespace}" if name else node_id)


def types(proxy: pb.Proxy) -> Iterator[pb.Type]:
    """Go through the types of all of a proxy's streams."""
    for stream in proxy.streams:
        yield from stream.types


def _awaited(waiting: pb.Waiting) -> str:
    match waiting.reason:
        case pb.Waiting.ACK:
            return "its answer"
        case pb.Waiting.READ:
            return "it to read"
        case pb.Waiting.TYPE:
            return short_name(waiting.type_url)
        case _:
            return "its configuration"


def _from(causes: Sequence[str]) -> str:
    if not causes:
        return ""
    named = ", ".join(object_name(cause) for cause in causes[:_MOST_CAUSES])
    more = len(causes) - _MOST_CAUSES
    return f" (from {named}{f' and {more} more' if more > 0 else ''})"


def _since(moment: Timestamp, now: Timestamp) -> str:
    return duration((now.ToMilliseconds() - moment.ToMilliseconds()) / 1000)
