"""Objects of tenants cost time in proportion to their size, and add a bounded number of bounded problems."""

from __future__ import annotations

import copy
import gc
import re
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import xds.mesh.parse
from tests.parse.junk import JUNK, MESH, OBJECTS, places
from tests.parse.steps import assert_linear, assert_quick
from xds.mesh.controlplane.problem_log import BURST, ProblemLog
from xds.mesh.kube.conditions import desired_conditions
from xds.mesh.model.mesh import Mesh
from xds.mesh.model.objects import MAX_PROBLEM_TEXT, MeshConfig, Problem, Ref
from xds.mesh.parse import (
    Parsed,
    authentication,
    authorization,
    core,
    destinationrule,
    dotted,
    endpoints,
    mesh_config,
    meshconfig,
    names,
    nearest,
    parse,
    reading,
)
from xds.mesh.parse.problems import Problems
from xds.mesh.parse.reading import MAX_PROBLEMS, MAX_UNKNOWN
from xds.mesh.sources import documents, files, kubernetes, report, rewriting
from xds.mesh.sources import settings as settings_module
from xds.mesh.sources.report import SourceUpdate

MODULES = (
    *(xds.mesh.parse, authentication, authorization, core, destinationrule, endpoints, meshconfig, names),
    reading,
    *(documents, files, kubernetes, report, rewriting, settings_module),
)
SEARCHED = {
    "_MARKER": "finditer",
    "_TAG_DIRECTIVE": "finditer",
    "_SURROGATES": "finditer",
    "_LINE": "search",
    "_ESCAPED": "search",
    "_PART": "",
}
"""Regular expressions that do not match a whole text. `_PART` is applied to a match of `_DURATION`."""
PATTERNS = {
    f"{module.__name__}.{name}": (pattern, SEARCHED.get(name, "fullmatch"))
    for module in MODULES
    for name, pattern in vars(module).items()
    if isinstance(pattern, re.Pattern) and SEARCHED.get(name) != ""
} | {
    f"{tag}{number}": (pattern, "match")
    for resolvers in documents.Parser.yaml_implicit_resolvers.values()
    for number, (tag, pattern) in enumerate(resolvers)
}
PUMPS = [*"1a-%\\._0\n /", "%\n", "---\n", "\\\\", "\\ud800", "1.", "1s", "1m", ":1"]
SIZE = 200


def rule(policy: object = None, **spec: object) -> dict[str, Any]:
    meta = {"name": "web", "namespace": "shop"}
    spec = {"host": "web.shop.svc.cluster.local", "trafficPolicy": policy} | spec
    return {
        "apiVersion": "networking.istio.io/v1",
        "kind": "DestinationRule",
        "metadata": meta,
        "spec": spec,
    }


def timeout(text: str) -> dict[str, Any]:
    return rule({"connectionPool": {"tcp": {"connectTimeout": text}}})


def read(document: object) -> Parsed:
    [parsed] = parse(document, dotted)
    return parsed


def assert_bounded(problems: tuple[Problem, ...]) -> None:
    assert len(problems) <= 2 * (MAX_PROBLEMS + 1)
    assert all(len(text) <= MAX_PROBLEM_TEXT for p in problems for text in (p.where, p.what, p.hint))


# --- time ---------------------------------------------------------------------------------------------------


def many(value: Any, junk: Any, size: int) -> Any:
    """Make a value large: as a list, a mapping or a text."""
    match value:
        case list():
            return [*value, *(junk if index % 2 else copy.deepcopy(value[0]) for index in range(size))]
        case dict():
            return value | {f"x{index}": junk for index in range(size)}
        case str():
            return value + str(junk) * size
        case _:
            return "1" * size


GROWN = st.tuples(st.sampled_from([*OBJECTS, MESH]), st.integers(min_value=0), JUNK | st.just({"a": 1}))


@settings(max_examples=100, deadline=None)
@given(GROWN)
def test_parsing_is_linear_in_object_size(grown: tuple[Any, int, Any]) -> None:
    good, number, junk = grown
    made = {}
    for size in (SIZE, 2 * SIZE, 4 * SIZE):
        document = copy.deepcopy(good)
        container, key = places(document)[number % len(places(document))]
        container[key] = many(container[key], junk, size)
        made[size] = document

    def work(size: int) -> None:
        if good is MESH:
            mesh_config(made[size], dotted)
        else:
            for parsed in parse(made[size], dotted):
                assert_bounded(parsed.problems)
                assert all(map(str, parsed.problems))

    assert_linear(work, SIZE)


LARGE_OBJECTS = {
    "number": lambda: timeout("1" * 100_000),
    "durations": lambda: timeout("1s" * 100_000),
    "duration": lambda: timeout("1" * 100_000 + "s"),
    "namespaces": lambda: rule(exportTo=[f"n{number}" for number in range(100_000)]),
    "unknown fields": lambda: rule({f"x{number}": 1 for number in range(100_000)}),
    "unknown fields of a field": lambda: rule(
        {"connectionPool": {f"x{number}": 1 for number in range(100_000)}}
    ),
    "unknown fields of ports": lambda: rule(
        {"portLevelSettings": [{f"x{number}": 1} for number in range(20_000)]}
    ),
    "mode": lambda: rule({"tls": {"mode": "S" * 1_000_000}}),
    "server name": lambda: rule({"tls": {"sni": "a." * 500_000}}),
    "labels": lambda: rule(subsets=[{"name": "a", "labels": {"k" * 1_000_000: "v" * 1_000_000}}] * 100),
}


@pytest.mark.parametrize("name", LARGE_OBJECTS)
def test_large_object_is_parsed_quickly(name: str) -> None:
    document = LARGE_OBJECTS[name]()

    def work() -> None:
        assert_bounded(read(document).problems)

    assert_quick(work)


@pytest.mark.parametrize("name", PATTERNS)
def test_regular_expressions_are_linear(name: str) -> None:
    pattern, method = PATTERNS[name]
    for pump in PUMPS:
        for before, after in (("", ""), ("1", "!"), ("a", "\n"), ("%", "---x")):
            text = before + pump * (50_000 // len(pump)) + after
            apply: Callable[[str], Any] = getattr(pattern, method)

            def work(apply: Callable[[str], Any] = apply, text: str = text) -> None:
                found = apply(text)
                if method == "finditer":
                    assert sum(1 for _ in found) >= 0

            assert_quick(work, 1.0)


def test_suggestions_are_made_for_short_words_only() -> None:
    assert nearest("portz", ["ports"]) == "did you mean ports?"
    assert nearest("x" * 1_000_000, ["x" * 1_000_000]) == ""


# --- numbers that Python refuses to read or write -----------------------------------------------------------


@pytest.mark.parametrize("digits", [5, 6, 5000])
def test_port_with_many_digits_is_refused(digits: int) -> None:
    spec = {"selector": {"matchLabels": {"app": "web"}}, "portLevelMtls": {"9" * digits: {"mode": "STRICT"}}}
    meta = {"name": "web", "namespace": "shop"}
    parsed = read(
        {"apiVersion": "security.istio.io/v1", "kind": "PeerAuthentication", "metadata": meta, "spec": spec}
    )
    assert "must be a port of the workload" in parsed.problems[0].what


def test_duration_with_other_digits_is_refused() -> None:
    assert "must be a duration such as 10s" in read(timeout("\u0661s")).problems[0].what


def test_number_that_cannot_be_formatted_is_a_problem() -> None:
    parsed = read(rule({"connectionPool": {"tcp": {"maxConnections": 10**5000}}}))
    assert parsed.problems[0].what.endswith("not a number of 16610 bits")


def test_number_in_set_that_cannot_be_parsed_is_a_problem() -> None:
    _, [problem] = xds.mesh.parse.settings([f"meshConfig.proxyListenPort={'1' * 5000}"], MeshConfig())
    assert "must be a number from 1 to 65535" in problem.what


# --- problems -----------------------------------------------------------------------------------------------


def test_more_unknown_fields_are_counted_in_one_notice() -> None:
    parsed = read(rule({"connectionPool": {f"field{number}": 1 for number in range(100_000)}}))
    assert parsed.fact
    assert len(parsed.problems) == MAX_UNKNOWN + 1
    assert parsed.problems[-1].what == (
        "DestinationRule shop/web: spec.trafficPolicy.connectionPool has 99997 more unknown fields that are "
        "ignored: field3, field4, field5, ..."
    )
    assert sum(len(str(problem)) for problem in parsed.problems) < 2000


def test_unknown_fields_of_strict_mapping_refuse_it() -> None:
    parsed = read(rule(**{f"field{number}": 1 for number in range(12)}))
    assert parsed.refused
    assert [problem.what.partition(": ")[2] for problem in parsed.problems] == [
        *(f"spec.field{number} is not a known field" for number in range(3)),
        "spec has 9 more unknown fields: field3, field4, field5, ...",
    ]


def test_problem_after_many_notices_refuses_the_object() -> None:
    settings = [{"port": {"number": 80 + number}, "loadBalancer": {"unknown": "1s"}} for number in range(50)]
    parsed = read(rule({"portLevelSettings": settings, "tls": {"mode": "BAD"}}))
    assert parsed.refused
    assert parsed.fact is None
    [problem] = [problem for problem in parsed.problems if not problem.notice]
    assert "spec.trafficPolicy.tls.mode must be one of" in problem.what
    assert (
        parsed.problems[-1].what == "DestinationRule shop/web: 40 more notices not listed (the limit is 10)"
    )


def test_unlisted_problem_refuses_the_object() -> None:
    problems = Problems(2)
    problems.add(Problem(where="a", what=str(number)) for number in range(5))
    assert [str(problem) for problem in problems.listed("f.yaml")] == [
        "a: 0",
        "a: 1",
        "f.yaml: 3 more problems not listed (the limit is 2) (fix the listed problems to see the others)",
    ]


def test_problem_texts_are_cut_and_keep_the_line() -> None:
    problem = Problem(where="x" * 5000 + ":17", what="y" * 5000, hint="z" * 5000)
    assert len(problem.where) == len(problem.what) == len(problem.hint) == MAX_PROBLEM_TEXT
    assert problem.where.endswith("x:17")
    assert problem.what.endswith("y...")


def test_condition_message_fits_into_an_event() -> None:
    where = "DestinationRule shop/web"
    problems = [Problem(where=where, what="\x00" * 1000, hint="\U000e0001" * 1000) for _ in range(20)]
    [said] = desired_conditions(Mesh(), problems)[Ref("DestinationRule", "shop", "web")].values()
    assert len(said.message) == 1000


# --- the log ------------------------------------------------------------------------------------------------


class Lines:
    """Takes what is logged."""

    def __init__(self) -> None:
        self.lines: list[tuple[str, dict[str, Any]]] = []

    def info(self, event: str, **about: Any) -> None:
        self.lines.append((event, about))

    warning = info

    def take(self) -> list[tuple[str, dict[str, Any]]]:
        taken, self.lines = self.lines, []
        return taken


@pytest.mark.parametrize(("kind", "most"), [("Pod", 37), ("EndpointSlice", 27)])
def test_object_is_read_with_few_fields(monkeypatch: pytest.MonkeyPatch, kind: str, most: int) -> None:
    """Most of the start is spent on the fields of pods and endpoints."""
    read = reading.Field.__getitem__
    names: list[str] = []

    def count(field: reading.Field, name: str) -> reading.Field:
        names.append(name)
        return read(field, name)

    monkeypatch.setattr(reading.Field, "__getitem__", count)
    [obj] = (obj for obj in OBJECTS if obj["kind"] == kind)
    [parsed] = parse(obj, lambda _: "", served=True)
    assert parsed.fact
    assert not parsed.problems
    assert 10 < len(names) <= most, names


def test_garbage_collection_ignores_fields() -> None:
    field = reading.Field({"a": {"b": 1}}, (), reading.Log(dotted))
    assert not any(map(gc.is_tracked, (field, field["a"], field["a"]["b"])))


def noise(count: int, *, notice: bool) -> SourceUpdate:
    return SourceUpdate(problems=tuple(Problem(where="a", what=str(n), notice=notice) for n in range(count)))


def test_problem_log_limits_bursts() -> None:
    now = 0.0
    lines = Lines()
    log = ProblemLog(lines, lambda: now)  # type: ignore[arg-type]
    log.add(noise(10_000, notice=True))
    told = lines.take()
    assert [event for event, _ in told] == ["notice"] * BURST + ["notices not logged"]
    assert told[-1][1]["count"] == 10_000 - BURST
    for _ in range(1000):
        log.add(noise(1, notice=True))
    assert lines.take() == []
    log.add(noise(1, notice=False))
    assert [event for event, _ in lines.take()] == ["problem found"], "notices cannot hide a problem"
    now = 1.0
    log.add(noise(1, notice=True))
    told = lines.take()
    assert [event for event, _ in told] == ["notice", "notices not logged"]
    assert told[-1][1]["count"] == 1000
