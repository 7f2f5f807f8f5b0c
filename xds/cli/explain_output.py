"""The text output of `xds explain` and `xds describe`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TypeAlias

import typer
from google.protobuf.timestamp_pb2 import Timestamp

from xds.cli.options import Address
from xds.mesh.controlplane.status import since
from xds.mesh.model.names import join_names
from xds.mesh.model.objects import Ref, printable
from xds.mesh.observe.edges import address_words, format_rate
from xds.mesh.policy.reach import Failure, Result
from xds.mesh.v1 import policies_pb2 as pb
from xds.mesh.v1 import traffic_pb2

_MAX_ENDPOINTS = 5
"""Maximum number of endpoints that a heading names."""
_MAX_LINES = 10
"""Maximum number of values under one label, such as sidecars or identities."""
_MAX_ADDRESSES = 3
"""Maximum number of clients that one note names."""

_Row: TypeAlias = tuple[str, str]
"""A label and its value. The label is empty if the value belongs to the label above."""


def print_explanation(explanation: pb.Explanation) -> None:
    """Print an explanation, one paragraph for each group of endpoints."""
    typer.echo(printable(f"{explanation.client} -> {explanation.service}"))
    if not explanation.groups:
        typer.echo("\nThe service has no TCP port.")
    for group in explanation.groups:
        typer.echo(f"\n{printable(_heading(group))}")
        print_rows(_rows(explanation, group))


def print_rows(rows: Iterable[_Row]) -> None:
    """Print labels and values in two columns."""
    found = list(rows)
    width = max((len(label) for label, _ in found), default=0)
    for label, value in found:
        typer.echo(f"  {label:{width}}  {printable(value)}")


def _object(named: pb.PolicyObject) -> str:
    """Return an object with its scope and place: `Policy full/x for the service (mesh/policy.yaml:12)`."""
    scope = f" for {named.scope}" if named.scope else ""
    place = f" ({named.place})" if named.place else ""
    return f"{Ref(named.kind, named.namespace, named.name)}{scope}{place}"


def _heading(group: pb.EndpointGroup) -> str:
    names = join_names(map(_endpoint, group.endpoints), _MAX_ENDPOINTS)
    return f"Port {group.port} at {names}" if names else f"Port {group.port}"


def _endpoint(endpoint: pb.EndpointName) -> str:
    address = str(Address(endpoint.address or "?", endpoint.port))
    return f"{endpoint.pod} ({address})" if endpoint.pod else address


def _rows(explanation: pb.Explanation, group: pb.EndpointGroup) -> Iterator[_Row]:
    differences = [*group.differences, *explanation.rule_transitions]
    if explanation.HasField("time"):
        yield "In use:", _in_use(explanation, group, has_differences=bool(differences))
        yield from listed("", differences)
    yield from listed("Observed:", _observed(explanation, group.port))
    yield "Outcome:", group.summary
    if group.HasField("client"):
        yield from side_rows("Client sends:", group.client)
    if group.HasField("server"):
        yield from side_rows("Server accepts:", group.server)
    if group.HasField("access"):
        fails = group.outcome == Result.FAILS and group.reason != Failure.ACCESS_DENIED
        yield from _access_rows(group.access, ", if the connection did not fail" if fails else "")
    yield from refused_rows(group.refused)
    yield from listed("Expected identity:", group.identities)
    if group.tls:
        yield "Configured TLS:", group.tls
    if explanation.HasField("client_proxy"):
        yield "Client sidecar:", proxy_text(explanation.client_proxy, explanation.time)
    yield from listed(
        "Server sidecar:", [proxy_text(server, explanation.time) for server in group.server_proxies]
    )


def _observed(explanation: pb.Explanation, port: int) -> Iterator[str]:
    """Yield the traffic of the client's service account to a service port, a line for each mode."""
    for edge in explanation.observed:
        if edge.port == port:
            last_seen = since(edge.last_seen.ToDatetime(), explanation.time)
            account = f"{edge.client_namespace}/{edge.client}"
            if edge.HasField("denial"):
                per_day = f"{edge.requests_per_day:,}/day from {account}, last {last_seen} ago"
                yield f"{_denied_words(edge.denial)}: {per_day}"
                continue
            failed = f", {edge.failed_per_hour:,} failed in the last hour" if edge.failed_per_hour else ""
            yield f"{format_traffic(edge)} from {account}, last {last_seen} ago{failed}"


def _denied_words(denial: traffic_pb2.Denial) -> str:
    """Return what is denied, or would be, and why: `denied GET /admin/* by RULE`."""
    result = "would be denied" if denial.dry_run else "denied"
    request = printable(f"{denial.method} {denial.path}".strip()) or "connections"
    return f"{result} {request}, {f'by {printable(denial.rule)}' if denial.rule else 'no ALLOW rule matches'}"


def format_traffic(traffic: traffic_pb2.TrafficEdge | pb.ModeTraffic) -> str:
    """Return the requests per minute in one mode, such as `1.2k/min mtls`."""
    mode = traffic_pb2.TrafficEdge.Mode.Name(traffic.mode).lower()
    return f"{format_rate(traffic.requests_per_minute)}/min {mode}"


def address_notes(edges: Iterable[traffic_pb2.TrafficEdge]) -> Iterator[str]:
    """Yield what those clients of observed traffic are that are no other pods: `ADDRESS: WORDS`."""
    names: dict[str, dict[str, None]] = {}
    for edge in edges:
        if not edge.client_namespace:
            names.setdefault(address_words(edge.client), {})[printable(edge.client)] = None
    yield from (f"{join_names(found, _MAX_ADDRESSES)}: {words}" for words, found in names.items())


def _in_use(explanation: pb.Explanation, group: pb.EndpointGroup, *, has_differences: bool) -> str:
    proxies = (explanation.client_proxy, *group.server_proxies)
    if has_differences:
        return "no"
    if any(proxy.may_be_on_other_replica for proxy in proxies):
        return "not known: a sidecar may be connected to another replica; query that one too"
    return "yes: the policies are served, and all sidecars have ACKed them"


def side_rows(label: str, side: pb.Side) -> Iterator[_Row]:
    """Yield what one side of a connection does, and the objects that decided and that are overridden."""
    yield label, side.summary
    if side.HasField("decided_by"):
        yield "  decided by:", _object(side.decided_by)
    yield from listed("  overridden:", [_object(named) for named in side.overridden])


_RESULTS = {"matched": "matches", "not-matched": "does not match", "depends": "depends on the request"}


def _access_rows(access: pb.AccessExplanation, suffix: str) -> Iterator[_Row]:
    """Yield how AuthorizationPolicies decide. `suffix` is a condition of the decision."""
    yield "Access:", ("depends on the request" if access.access == "depends" else access.access) + suffix
    yield from listed("  policies:", map(_policy_match, access.policies))
    if access.HasField("nearest"):
        yield "  nearest rule:", f"{access.nearest.policy} rules[{access.nearest.rule}]"
        yield from listed("", map(_field_match, access.nearest.fields))


def _policy_match(match: pb.PolicyMatch) -> str:
    note = "" if match.enforced else " (not enforced)"
    return f"{match.action}{note} {_object(match.policy)}: {_RESULTS[match.result]}"


def _field_match(match: pb.FieldMatch) -> str:
    result = "matches" if match.result == "matched" else f"is {match.actual}"
    return f"{match.field} {match.expected}: {result}"


def refused_rows(refused: Iterable[pb.RefusedTraffic]) -> Iterator[_Row]:
    """Yield clients outside the mesh that sidecars refuse, and what to do."""
    yield from listed(
        "Refused:", [f"{refused_client(each)} of port {each.port}: {each.remedy}" for each in refused]
    )


def refused_client(refused: pb.RefusedTraffic) -> str:
    """Return the client of refused traffic, and the object that proves it, if any."""
    return f"{refused.traffic} ({refused.source})" if refused.source else refused.traffic


def listed(label: str, values: Iterable[str]) -> Iterator[_Row]:
    """Yield the values, with the label before the first one."""
    found = list(values)
    for index, value in enumerate(found[:_MAX_LINES]):
        yield label if index == 0 else "", value
    if more := len(found[_MAX_LINES:]):
        yield "", f"... and {more} more (-o json lists all)"


def proxy_text(proxy: pb.ProxyState, now: Timestamp) -> str:
    """Return the state of a sidecar in one line."""
    text = f"{proxy.pod}: {proxy.status}"
    if proxy.acked_generation >= 0:
        text += f", has ACKed generation {proxy.acked_generation} of {proxy.served_generation}"
    if proxy.HasField("certificate_expires"):
        expires = proxy.certificate_expires
        verb = "expires" if expires.ToNanoseconds() > now.ToNanoseconds() else "expired"
        text += f", certificate {verb} {expires.ToDatetime():%Y-%m-%d %H:%M} UTC"
    return text
