"""Prove assertions about who may connect to which servers, or find counterexamples."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from enum import StrEnum
from typing import NamedTuple

from xds.mesh.model.assertions import Assertion, Claim, Servers
from xds.mesh.model.authorization import Attribute, Pattern, Rule
from xds.mesh.model.mesh import Endpoint, Mesh
from xds.mesh.model.names import UnknownNameError, natural_key, ports_named, service_named, unknown_name
from xds.mesh.model.objects import Mode, Namespace, Pod, Ref, spiffe_id
from xds.mesh.policy.acceptance import (
    Enforcement,
    accepted,
    enforcement,
    pod_endpoints,
    service_endpoints,
    why_accepted,
)
from xds.mesh.policy.access import Permission, identity_patterns, patterns_of
from xds.mesh.policy.authorization import Request, holds, is_like
from xds.mesh.policy.describe import OTHER_PORTS
from xds.mesh.policy.hop_text import format_target
from xds.mesh.policy.identities import account_of, representatives


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
    identity: str
    """SPIFFE ID of a client; empty for plaintext, which any client can send."""
    accounts: tuple[str, ...]
    """Existing service accounts with the same result, as NAMESPACE/NAME; empty if there is none."""
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
    """What is not known: noun phrases."""


def prove(mesh: Mesh, assertion: Assertion, not_considered: Iterable[str] = ()) -> Proof:
    """Prove an assertion for all clients that could exist, or find counterexamples.

    Raises UnknownNameError if a name exists nowhere, so that the assertion would be about nothing.

    Args:
        mesh: the facts.
        assertion: the assertion.
        not_considered: what the mesh does not contain, and could change the result.
    """
    by_enforcement: dict[Enforcement, dict[str, None]] = {}
    unknown = dict.fromkeys(not_considered)
    for item in assertion.servers:
        for label, endpoint in _servers(mesh, item, unknown):
            by_enforcement.setdefault(enforcement(mesh, endpoint), {})[label] = None
    found: dict[Counterexample, dict[str, None]] = {}
    for enforced, labels in by_enforcement.items():
        for counterexample in _counterexamples(mesh, assertion, enforced):
            found.setdefault(counterexample, {}).update(labels)
    counterexamples = tuple(each._replace(servers=tuple(labels)) for each, labels in found.items())
    if not by_enforcement:
        unknown["servers: no pod is known"] = None
    verdict = Verdict.FAILS if counterexamples else Verdict.UNKNOWN if unknown else Verdict.HOLDS
    return Proof(assertion, verdict, counterexamples, tuple(unknown))


def _counterexamples(mesh: Mesh, assertion: Assertion, enforced: Enforcement) -> Iterator[Counterexample]:
    config = mesh.config
    if assertion.claim is Claim.STRICT:
        if not enforced.is_closed and not (enforced.mode and enforced.mode.mode is Mode.STRICT):
            yield _counterexample(enforced, "", None)
        return
    if plaintext := accepted(config, enforced, ""):
        yield _counterexample(enforced, "", plaintext)
    if not assertion.claim.is_about_clients or enforced.mode is None:
        return
    patterns = {*identity_patterns([Rule(sources=assertion.sources)])}
    if enforced.rules:
        patterns |= patterns_of(enforced.rules)
    examples: dict[Permission, list[str]] = {}
    known: dict[Permission, list[str]] = {}

    def add(identity: str, found: dict[Permission, list[str]]) -> None:
        if _is_concerned(mesh, assertion, identity) and (allowed := accepted(config, enforced, identity)):
            found.setdefault(allowed, []).append(identity)

    for identity in representatives(config, patterns):
        add(identity, examples)
    for identity in _known_identities(mesh) if examples else ():
        add(identity, known)
    for allowed, identities in examples.items():
        existing = known.get(allowed, ())
        identity = [*existing, *identities][0]
        accounts = tuple(dict.fromkeys(map(account_of, existing)))
        yield _counterexample(enforced, identity, allowed)._replace(accounts=accounts)


def _counterexample(enforced: Enforcement, identity: str, found: Permission | None) -> Counterexample:
    why, refs = why_accepted(enforced, identity, found)
    return Counterexample((), identity, (), why, refs)


def _is_concerned(mesh: Mesh, assertion: Assertion, identity: str) -> bool:
    """Whether an assertion says that a client with this identity cannot connect."""
    request = Request(identity=identity, port=OTHER_PORTS)
    matches = not assertion.sources or any(
        all(holds(mesh.config, condition, request) for condition in conditions)
        for conditions in assertion.sources
    )
    return matches is (assertion.claim is Claim.DENY)


def _known_identities(mesh: Mesh) -> list[str]:
    """Return the SPIFFE IDs of the service accounts of the mesh, in natural order."""
    key = "known identities"
    if key not in mesh.scratch:
        accounts = [
            (name, each) for name in mesh.namespaces() for each in mesh.in_namespace(name).service_accounts
        ]
        accounts.sort(key=lambda account: natural_key(*account))
        mesh.scratch[key] = [spiffe_id(mesh.config.trust_domain, *account) for account in accounts]
    found: list[str] = mesh.scratch[key]
    return found


# --- names ------------------------------------------------------------------------------------------------


def _servers(mesh: Mesh, item: Servers, unknown: dict[str, None]) -> Iterator[tuple[str, Endpoint]]:
    """Yield the ports that an item of `to` selects, and add what is not known of them."""
    for text in item.services:
        service_named(mesh, text.partition(":")[0])  # The whole name, and not only its start.
        service, ports = ports_named(mesh, text)
        for port in ports:
            endpoints = service_endpoints(mesh, service, port)
            yield from ((format_target(service, port), endpoint) for endpoint in endpoints)
            if not endpoints:
                unknown[f"pods of {format_target(service, port)}"] = None
            for listed in mesh.unknown_endpoints(service, port):
                unknown[f"{listed.entry.pod}, which {listed.source} lists"] = None
    if item.services:
        return
    known = _namespaces(mesh)
    for pattern in item.namespaces:
        if not any(is_like(name, pattern) for name in known):
            raise UnknownNameError(unknown_name("namespace", str(pattern), known, "to"))
    for pod in _pods(mesh, item):
        for endpoint in pod_endpoints(mesh, pod):
            yield _pod_port(pod, endpoint.port), endpoint


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
    accounts = [account_of(identity) for identity in _known_identities(mesh)]
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
    named = (fact.name for fact in mesh.in_namespace("").facts.values() if isinstance(fact, Namespace))
    return sorted({*named, *filter(None, mesh.namespaces())})
