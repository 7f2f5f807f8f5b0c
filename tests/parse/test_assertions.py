"""Assertions of `xds prove`: what is valid, and what is said of mistakes."""

from __future__ import annotations

from typing import Any

import pytest

from xds.mesh.model.assertions import Assertion, Claim, Servers
from xds.mesh.model.authorization import Attribute, Condition, Pattern
from xds.mesh.parse import dotted
from xds.mesh.parse.assertions import parse_assertions


def read(*items: Any) -> tuple[list[Assertion], list[str]]:
    found, problems = parse_assertions({"assertions": list(items)}, dotted)
    return found, [f"{each.what} ({each.hint})" if each.hint else each.what for each in problems]


def patterns(*texts: str) -> tuple[Pattern, ...]:
    return tuple(map(Pattern.parse, texts))


def test_assertion_is_read() -> None:
    found, problems = read(
        {
            "name": "it",
            "only": {
                "from": [{"namespaces": ["a*"], "notNamespaces": ["ab"]}, {"serviceAccounts": ["b/c"]}],
                "to": [{"services": ["web.a:80"]}, {"namespaces": ["*b"]}],
            },
        },
        {"name": "all", "strict": {}},
    )
    assert not problems
    assert found == [
        Assertion(
            name="it",
            claim=Claim.ONLY,
            sources=(
                (Condition(Attribute.NAMESPACE, patterns("a*"), patterns("ab")),),
                (Condition(Attribute.SERVICE_ACCOUNT, patterns("b/c")),),
            ),
            servers=(Servers(("web.a:80",)), Servers((), patterns("*b"))),
            origin="assertions[0]",
        ),
        Assertion("all", Claim.STRICT, (), (Servers(),), "assertions[1]"),
    ]


TO = {"to": [{"services": ["web.a"]}]}
MISTAKES: list[tuple[Any, str]] = [
    ({"strict": {}}, "assertions[0].name is required"),
    ({"name": "x"}, "assertions[0] must have exactly one of only, deny, encrypted, strict"),
    (
        {"name": "x", "strict": {}, "deny": {}},
        "assertions[0] must have exactly one of only, deny, encrypted, strict",
    ),
    ({"name": "x", "onlyy": {}}, "assertions[0].onlyy is not a known field (did you mean only?)"),
    (
        {"name": "x", "strict": None},
        "assertions[0].strict must be a mapping (to assert it of all servers, write strict: {})",
    ),
    (
        {"name": "x", "only": TO},
        "assertions[0].only.from is required (to assert that no client can connect, use deny without from)",
    ),
    (
        {"name": "x", "deny": {"from": [], **TO}},
        "assertions[0].deny.from must have an item (remove from if it is not to restrict anything)",
    ),
    ({"name": "x", "encrypted": {"from": []}}, "assertions[0].encrypted.from is not a known field"),
    (
        {"name": "x", "deny": {"from": [{"namespace": ["a"]}]}},
        "assertions[0].deny.from[0].namespace is not a known field (did you mean namespaces?)",
    ),
    (
        {"name": "x", "deny": {"from": [{}]}},
        (
            "assertions[0].deny.from[0] must have one of "
            "namespaces, notNamespaces, serviceAccounts, notServiceAccounts"
        ),
    ),
    (
        {"name": "x", "deny": {"from": [{"namespaces": ["a*b"]}]}},
        (
            "assertions[0].deny.from[0].namespaces[0] 'a*b' is not a namespace, "
            "nor one with '*' at its start or end"
        ),
    ),
    (
        {"name": "x", "deny": {"from": [{"serviceAccounts": ["a"]}]}},
        "assertions[0].deny.from[0].serviceAccounts[0] 'a' is not a service account (write NAMESPACE/NAME)",
    ),
    (
        {"name": "x", "strict": {"to": [{"services": ["web.a"], "namespaces": ["a"]}]}},
        (
            "assertions[0].strict.to[0].services must be alone in its item "
            "(write namespaces as another item of to)"
        ),
    ),
    (
        {"name": "x", "strict": {"to": [{}]}},
        (
            "assertions[0].strict.to[0] must have services, namespaces or notNamespaces "
            "(to select all servers, remove to)"
        ),
    ),
    (
        {"name": "x", "strict": {"to": {"services": ["a.b"]}}},
        "assertions[0].strict.to must be a list, not a mapping (start each item of to with '- ')",
    ),
]


@pytest.mark.parametrize(("item", "problem"), MISTAKES)
def test_mistakes(item: Any, problem: str) -> None:
    assert problem in read(item)[1]


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        ({}, "assertions is required"),
        ({"assertions": []}, "assertions must have an item"),
        ({"assertion": []}, "assertion is not a known field (did you mean assertions?)"),
        (["x"], "must be a mapping, not a list"),
    ],
)
def test_documents(value: Any, problem: str) -> None:
    _, problems = parse_assertions(value, dotted)
    assert any(problem in f"{each.what} ({each.hint})" for each in problems), problems
