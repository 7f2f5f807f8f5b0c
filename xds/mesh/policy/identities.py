"""Identities that could exist: the service accounts that patterns of rules can tell apart.

Rules may match identities that no pod has, such as `principals: ["*/sa/admin"]`, and whoever may create a
namespace or a service account can get one of them. A proof must therefore consider them all. They are
infinitely many, but rules distinguish only a few classes of them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from itertools import chain, product
from string import ascii_lowercase, digits
from typing import NamedTuple

from xds.mesh.model.authorization import PatternKind
from xds.mesh.model.objects import MeshConfig, spiffe_id
from xds.mesh.policy.access import IdentityPattern
from xds.mesh.policy.authorization import SpiffePattern, spiffe_patterns

_LABEL = re.compile(r"(?=.{1,63}$)[a-z0-9]([-a-z0-9]*[a-z0-9])?")
_SUBDOMAIN = re.compile(r"(?=.{1,253}$)[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")


class _Texts(NamedTuple):
    """What patterns say about a name."""

    exact: set[str]
    """Names that they match."""
    starts: set[str]
    """Starts of names that they match."""
    ends: set[str]
    """Ends of names that they match."""
    taken: set[str]
    """Names in complete identities that they match."""


def representatives(config: MeshConfig, patterns: Iterable[IdentityPattern]) -> Iterator[str]:
    """Yield SPIFFE IDs of service accounts, at least one of each class that patterns can tell apart.

    Two identities are in the same class if the same patterns match them. An identity that is none of these,
    whether it exists or not, thus has the same class as one of them.

    Args:
        config: settings of the mesh.
        patterns: patterns of rules for identities.
    """
    # In namespace sa, the separators of a SPIFFE ID look like the end of a namespace.
    namespaces, accounts = _Texts({"sa"}, {""}, {""}, set()), _Texts(set(), {""}, {""}, set())
    complete = set[str]()
    for each in {item for pattern in patterns for item in spiffe_patterns(config, *pattern)}:
        if each.pattern.kind is PatternKind.EXACT:
            complete.add(each.pattern.text)
            namespace, _, account = account_of(each.pattern.text).partition("/")
            namespaces.taken.add(namespace)
            accounts.taken.add(account)
        else:
            _split(each, namespaces, accounts)
    yield from (each for each in sorted(complete) if _is_service_account(config, each))
    names = config.trust_domains, _names(namespaces, _LABEL), _names(accounts, _SUBDOMAIN)
    for domain, namespace, account in product(*names):
        if (identity := spiffe_id(domain, namespace, account)) not in complete:
            yield identity


def account_of(identity: str) -> str:
    """Return the service account of a SPIFFE ID as NAMESPACE/NAME."""
    namespace, _, account = identity.removeprefix("spiffe://").partition("/ns/")[2].partition("/sa/")
    return f"{namespace}/{account}"


def _is_service_account(config: MeshConfig, identity: str) -> bool:
    """Whether an identity can be one of the mesh. Sidecars accept no other trust domains."""
    namespace, _, account = account_of(identity).partition("/")
    is_of_mesh = identity in (spiffe_id(domain, namespace, account) for domain in config.trust_domains)
    return is_of_mesh and bool(_LABEL.fullmatch(namespace) and _SUBDOMAIN.fullmatch(account))


def _split(each: SpiffePattern, namespaces: _Texts, accounts: _Texts) -> None:
    """Add what a pattern says about the namespace and the name of service accounts."""
    text = each.pattern.text
    match each.pattern.kind:
        case PatternKind.PREFIX:
            _, marker, rest = text.removeprefix("spiffe://").partition("/ns/")
            namespace, slash, rest = rest.partition("/")
            (namespaces.exact if slash else namespaces.starts).add(namespace)
            if marker and rest.startswith("sa/"):
                accounts.starts.add(rest.removeprefix("sa/"))
        case PatternKind.SUFFIX:
            rest, slash, account = text.rpartition("/")
            (accounts.exact if slash else accounts.ends).add(account)
            if rest.endswith("/sa"):
                _, slash, namespace = rest.removesuffix("/sa").rpartition("/")
                (namespaces.exact if slash else namespaces.ends).add(namespace)
        case _:  # CONTAINS, only for the end of a namespace
            namespaces.ends.add(text.removesuffix("/sa/"))


def _names(texts: _Texts, valid: re.Pattern[str]) -> list[str]:
    """Return a valid name of each class that exact names, starts and ends can tell apart."""
    ends = product(sorted(texts.starts), sorted(texts.ends))
    names = dict.fromkeys((*(_between(*each, texts, valid) for each in ends), *sorted(texts.exact)))
    return [name for name in names if valid.fullmatch(name)]


def _between(start: str, end: str, texts: _Texts, valid: re.Pattern[str]) -> str:
    """Return a valid name with this start and end, and no longer ones of the texts; empty if there is none.

    Names of complete identities are a last resort: they may be the only ones that are short enough.
    """
    taken = ""
    for name in _candidates(start, end):
        if (
            name not in texts.exact
            and valid.fullmatch(name)
            and not _has_longer(start, filter(name.startswith, texts.starts))
            and not _has_longer(end, filter(name.endswith, texts.ends))
        ):
            if name not in texts.taken:
                return name
            taken = taken or name
    return taken


def _candidates(start: str, end: str) -> Iterator[str]:
    """Yield names with this start and end: with something between them, nothing, or an overlap."""
    characters = ascii_lowercase + digits + "-."
    pairs = map("".join, product(characters, characters))
    yield from (start + middle + end for middle in chain(("other", "new"), characters, pairs))
    for size in range(min(len(start), len(end)) + 1):
        if start.endswith(end[:size]):
            yield start + end[size:]


def _has_longer(text: str, others: Iterable[str]) -> bool:
    return any(len(other) > len(text) for other in others)
