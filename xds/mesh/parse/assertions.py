"""Parse the assertions of `xds prove`: a mapping with a list named `assertions`."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from xds.mesh.model.assertions import Assertion, Claim, Servers
from xds.mesh.model.authorization import SOURCE_FIELDS, Attribute, Condition, Pattern
from xds.mesh.model.objects import Problem
from xds.mesh.parse import names
from xds.mesh.parse.reading import Field, Flaw, Locate, Log, shown

_SOURCES = (Attribute.NAMESPACE, Attribute.SERVICE_ACCOUNT)
_SOURCE_NAMES = " ".join(name for attribute in _SOURCES for name in SOURCE_FIELDS[attribute])
_NAMESPACE = re.compile(r"[a-z0-9-]*")


def parse_assertions(
    value: object, locate: Locate, flaws: Iterable[Flaw] = ()
) -> tuple[list[Assertion], list[Problem]]:
    """Return the assertions of a document, and its problems. With a problem, the assertions are not usable.

    Args:
        value: plain value of the document.
        locate: function that returns the place of a path.
        flaws: problems of the document's text.
    """
    log = Log(locate)
    for path, what in flaws:
        log.add(path, what)
    document = Field(value, (), log).mapping("assertions", strict=True)
    found = [_assertion(item) for item in document["assertions"].required().items()]
    if document["assertions"].value == []:
        document["assertions"].refuse("must have an item")
    return found, log.problems


def _assertion(item: Field) -> Assertion:
    item.mapping(" ".join(("name", *Claim)), strict=True)
    claims = [claim for claim in Claim if item.has(claim)]
    if isinstance(item.value, dict) and len(claims) != 1:
        item.refuse(f"must have exactly one of {', '.join(Claim)}")
    claim = claims[0] if claims else Claim.ONLY
    body = item[claim]
    if claims and not body:
        body.refuse("must be a mapping", f"to assert it of all servers, write {claim}: {{}}")
    body.mapping("from to" if claim.is_about_clients else "to", strict=True)
    if claim is Claim.ONLY and claims and not body["from"]:
        body["from"].refuse("is required", "to assert that no client can connect, use deny without from")
    return Assertion(
        name=item["name"].required().text(),
        claim=claim,
        sources=tuple(map(_source, _items(body, "from"))) if claim.is_about_clients else (),
        servers=tuple(map(_servers, _items(body, "to"))) or (Servers(),),
        origin=item.log.locate(item.path),
    )


def _items(parent: Field, name: str) -> Iterator[Field]:
    """Yield the items of a list that may be absent, but not empty."""
    if parent.has(name) and parent[name].value in (None, []):
        parent[name].refuse("must have an item", f"remove {name} if it is not to restrict anything")
    yield from parent[name].items()


def _source(item: Field) -> tuple[Condition, ...]:
    item.mapping(_SOURCE_NAMES, strict=True)
    if not item.value:
        item.refuse(f"must have one of {_SOURCE_NAMES.replace(' ', ', ')}")
    fields = ((attribute, *SOURCE_FIELDS[attribute]) for attribute in _SOURCES)
    return tuple(
        Condition(attribute, tuple(_patterns(item, values)), tuple(_patterns(item, excluded)))
        for attribute, values, excluded in fields
        if item.has(values) or item.has(excluded)
    )


def _servers(item: Field) -> Servers:
    item.mapping("services namespaces notNamespaces", strict=True)
    if not item.value:
        item.refuse("must have services, namespaces or notNamespaces", "to select all servers, remove to")
    elif item.has("services") and len(item.value) > 1:
        item["services"].refuse("must be alone in its item", "write namespaces as another item of to")
    services = tuple(each.required().text() for each in _items(item, "services"))
    namespaces, excluded = (tuple(_patterns(item, name)) for name in ("namespaces", "notNamespaces"))
    return Servers(services, namespaces, excluded)


def _patterns(parent: Field, name: str) -> Iterator[Pattern]:
    """Yield the namespaces, which may start or end with `*`, or the service accounts of a list."""
    for item in _items(parent, name):
        text = item.required().text()
        pattern = Pattern.parse(text)
        if name in SOURCE_FIELDS[Attribute.SERVICE_ACCOUNT]:
            namespace, slash, account = text.partition("/")
            if text and (not slash or names.label(namespace) or names.subdomain(account)):
                item.refuse(f"{shown(text)} is not a service account", "write NAMESPACE/NAME")
            pattern = pattern._replace(text=text)
        elif not _NAMESPACE.fullmatch(pattern.text):
            item.refuse(f"{shown(text)} is not a namespace, nor one with '*' at its start or end")
        yield pattern
