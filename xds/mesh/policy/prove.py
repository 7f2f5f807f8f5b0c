"""Prove assertions about who may connect to which servers, or find counterexamples."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from enum import StrEnum
from typing import NamedTuple

from xds.mesh.model.assertions import Assertion, Claim, Servers
from xds.mesh.model.authorization import Attribute, Pattern, Rule
from xds.mesh.model.mesh import Endpoint, Mesh
from xds.mesh.model.names import UnknownNameError, ports_named, service_named, unknown_name
from xds.mesh.model.objects import Mode, Pod, Ref
from xds.mesh.policy.acceptance import (
    ClientClass,
    Enforcement,
    accepted,
    clients_by_result,
    enforcement,
    known_identities,
    pod_endpoints,
    service_endpoints,
    unknown_pods,
    why_accepted,
)
from xds.mesh.policy.access import Permission, identity_patterns, patterns_of
from xds.mesh.policy.authorization import Request, holds, is_like
from xds.mesh.policy.describe import OTHER_PORTS
from xds.mesh.policy.hop_text import format_target
from xds.mesh.policy.identities import account_of

MAX_COUNTEREXAMPLES = 100
"""Number of counterexamples of an assertion after which no more servers are examined."""


class Verdict(StrEnum):
    """Whether an assertion is true."""

    HOLDS = "holds"
    FAILS = "fails"
    UNKNOWN = "not known"
    """No counterexample was found, but not everything is known."""


class Counterexample(NamedTuple):
    """Connections that a server accepts although an assertion says otherwise."""

    servers: tuple[str, ...]
    """Ports that accept them, as SERVICE.NAMESPACE:PORT, or `port PORT of POD.NAMESPACE`."""
    clients: ClientClass
    """The clients."""
    why: str
    """Why the server accepts them."""
    decided_by: tuple[Ref, ...]
    """Objects that decide it; empty if a policy is missing."""


class Proof(NamedTuple):
    """The result for an assertion."""

    assertion: Assertion
    """The assertion."""
    verdict: Verdict
    """Whether it is true."""
    counterexamples: tuple[Counterexample, ...]
    """Why it fails."""
    unknown: tuple[str, ...]
    """What is not known of the servers: noun phrases."""
    is_truncated: bool = False
    """Whether some servers were not examined, because MAX_COUNTEREXAMPLES were found."""


def prove(mesh: Mesh, assertion: Assertion, *, is_complete: bool = True) -> Proof:
    """Prove an assertion for all clients that could exist, or find counterexamples.

    Raises UnknownNameError if a name exists nowhere, so that the assertion would be about nothing.

    Args:
        mesh: the facts.
        assertion: the assertion.
        is_complete: whether the mesh contains everything that could change the result.
    """
    by_enforcement: dict[Enforcement, dict[str, None]] = {}
    unknown: dict[str, None] = {}
    for item in assertion.servers:
        for label, endpoint in _servers(mesh, item, unknown):
            by_enforcement.setdefault(enforcement(mesh, endpoint), {})[label] = None
    found: dict[Counterexample, dict[str, None]] = {}
    is_truncated = False
    for enforced, labels in by_enforcement.items():
        if is_truncated := len(found) >= MAX_COUNTEREXAMPLES:
            break
        for counterexample in _counterexamples(mesh, assertion, enforced):
            found.setdefault(counterexample, {}).update(labels)
    counterexamples = tuple(each._replace(servers=tuple(labels)) for each, labels in found.items())
    verdict = Verdict.HOLDS if is_complete and not unknown else Verdict.UNKNOWN
    if counterexamples:
        verdict = Verdict.FAILS
    return Proof(assertion, verdict, counterexamples, tuple(unknown), is_truncated)


def _counterexamples(mesh: Mesh, assertion: Assertion, enforced: Enforcement) -> Iterator[Counterexample]:
    config = mesh.config
    if assertion.claim is Claim.STRICT:
        if not enforced.is_closed and not (enforced.mode and enforced.mode.mode is Mode.STRICT):
            yield _counterexample(enforced, ClientClass(""), None)
        return
    if plaintext := accepted(config, enforced, ""):
        yield _counterexample(enforced, ClientClass(""), plaintext)
    if not assertion.claim.is_about_clients or enforced.mode is None:
        return
    patterns = {*identity_patterns([Rule(sources=assertion.sources)]), *patterns_of(enforced.rules)}

    def result(identity: str) -> Permission | None:
        return accepted(config, enforced, identity) if _is_concerned(mesh, assertion, identity) else None

    for allowed, clients in clients_by_result(mesh, patterns, result):
        yield _counterexample(enforced, clients, allowed)


def _counterexample(enforced: Enforcement, clients: ClientClass, found: Permission | None) -> Counterexample:
    why, refs = why_accepted(enforced, clients.identity, found)
    return Counterexample((), clients, why, refs)


def _is_concerned(mesh: Mesh, assertion: Assertion, identity: str) -> bool:
    """Whether an assertion says that a client with this identity cannot connect."""
    request = Request(identity=identity, port=OTHER_PORTS)
    matches = not assertion.sources or any(
        all(holds(mesh.config, condition, request) for condition in conditions)
        for conditions in assertion.sources
    )
    return matches is (assertion.claim is Claim.DENY)


# --- names ------------------------------------------------------------------------------------------------


def _servers(mesh: Mesh, item: Servers, unknown: dict[str, None]) -> Iterator[tuple[str, Endpoint]]:
    """Yield the ports that an item of `to` selects, and add what is not known of them."""
    for text in item.services:
        service_named(mesh, text.partition(":")[0])  # The whole name, and not only its start.
        service, ports = ports_named(mesh, text)
        for port in ports:
            endpoints = service_endpoints(mesh, service, port)
            yield from ((format_target(service, port), endpoint) for endpoint in endpoints)
            unknown.update(dict.fromkeys(unknown_pods(mesh, service, port)))
    if item.services:
        return
    known = _namespaces(mesh)
    for pattern in item.namespaces:
        if not any(is_like(name, pattern) for name in known):
            raise UnknownNameError(unknown_name("namespace", str(pattern), known, "to"))
    pods = [*_pods(mesh, item)]
    if not pods:
        unknown[f"pods of {_namespaces_text(item)}"] = None
    for pod in pods:
        for endpoint in pod_endpoints(mesh, pod):
            yield _pod_port(pod, endpoint.port), endpoint


def _namespaces_text(item: Servers) -> str:
    texts = (*map(str, item.namespaces), *(f"not {pattern}" for pattern in item.excluded))
    return f"namespaces {', '.join(texts)}" if texts else "the mesh"


def _pods(mesh: Mesh, item: Servers) -> Iterator[Pod]:
    for pod in mesh.pods():
        is_included = not item.namespaces or _matches(item.namespaces, pod.namespace)
        if is_included and not _matches(item.excluded, pod.namespace) and not pod.ended:
            yield pod


def _pod_port(pod: Pod, port: int) -> str:
    return f"{'other ports' if port == OTHER_PORTS else f'port {port}'} of {pod.name}.{pod.namespace}"


def _matches(patterns: Iterable[Pattern], name: str) -> bool:
    return any(is_like(name, pattern) for pattern in patterns)


def unknown_clients(mesh: Mesh, assertion: Assertion) -> Iterator[str]:
    """Yield a message for each name in `from` that exists nowhere, and makes the assertion only stronger.

    Raises UnknownNameError if it makes the assertion weaker, such as a client that is denied.
    """
    namespaces = _namespaces(mesh)
    accounts = [account_of(identity) for identity in known_identities(mesh)]
    for condition in (each for conditions in assertion.sources for each in conditions):
        is_account = condition.attribute is Attribute.SERVICE_ACCOUNT
        kind, known = ("service account", accounts) if is_account else ("namespace", namespaces)
        for pattern in (*condition.values, *condition.excluded):
            if not any(is_like(name, pattern) for name in known):
                message = unknown_name(kind, str(pattern), known, "from")
                is_denied = assertion.claim is Claim.DENY
                if pattern in (condition.values if is_denied else condition.excluded):
                    raise UnknownNameError(message)
                yield message


def _namespaces(mesh: Mesh) -> list[str]:
    """Return the names of the namespaces."""
    named = (fact.name for fact in mesh.namespace_objects())
    return sorted({*named, *filter(None, mesh.namespaces())})
