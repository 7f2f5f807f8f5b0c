"""Reading a file takes linear time, whatever it contains, and reports a bounded number of problems."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.parse.steps import assert_linear, assert_quick
from tests.sources.files import place
from tests.sources.objects import POD, RULE, SERVICE
from xds.mesh.model.objects import MAX_PROBLEM_TEXT, MeshConfig, Problem
from xds.mesh.parse import parse
from xds.mesh.sources import definitions, documents
from xds.mesh.sources import settings as settings_module
from xds.mesh.sources.documents import MAX_ALIASED_VALUES, MAX_FLAWS, Document, parse_chunk, split_documents
from xds.mesh.sources.files import Folder
from xds.mesh.sources.rewriting import rewrite
from xds.mesh.sources.settings import SettingsLoader

POOL = RULE.partition("    connectionPool:\n")[0] + "    connectionPool:\n"
"""A DestinationRule that ends with its connectionPool, so that tests can append fields."""
LIST = "apiVersion: v1\nkind: List\nitems:\n"


def read(text: str, *, json: bool = False) -> list[Problem]:
    """Read a text as a manifest file, and return its problems."""
    problems: list[Problem] = []
    for document in documents.read_documents(text, "in.yaml", json=json):
        if isinstance(document, Problem):
            problems.append(document)
        else:
            for obj in parse(document.value, document.locate, document.flaws):
                problems += obj.problems
    for problem in problems:
        assert max(map(len, (problem.where, problem.what, problem.hint))) <= MAX_PROBLEM_TEXT
    return problems


# --- time ---------------------------------------------------------------------------------------------------

UNITS = [
    *("a", "b: 1", "- ", "-\n", "\n", "  ", ": ", "? ", *"{}[],1'\"#%", "%TAG !a! b\n", "---\n", "...\n"),
    *("|\n", ">\n", "<<: ", "<<: {}\n", "&a ", "!b ", "!!int ", "!!float ", "0x", "\\", "\\ud83d", "\t"),
    *("é", "\x01", "null", "{a: 1}\n", "[1, x]\n"),
    *("kind: List\n", "items:\n", "apiVersion: v1\n", "- kind: Pod\n"),
]
TEXTS = st.lists(st.sampled_from(UNITS), max_size=8).map("".join)


@settings(max_examples=150, deadline=None)
@given(TEXTS, TEXTS.filter(bool), TEXTS, st.booleans())
def test_reading_cost_is_linear(before: str, pump: str, after: str, json: bool) -> None:
    texts = {size: before + pump * size + after for size in (100, 200, 400)}
    assert_linear(lambda size: read(texts[size], json=json), 100)


@settings(max_examples=100, deadline=None)
@given(st.sampled_from([SERVICE, POD, RULE]), TEXTS.filter(bool), st.integers(min_value=0))
def test_reading_cost_within_an_object_is_linear(good: str, pump: str, at: int) -> None:
    at %= len(good)
    texts = {size: good[:at] + pump * size + good[at:] for size in (100, 200, 400)}
    assert_linear(lambda size: read(texts[size]), 100)


MANY = {
    "unknown": lambda size: POOL + "".join(f"      x{number}: 1\n" for number in range(size)),
    "repeated": lambda size: POOL + "".join(f"      x{number}: 1\n" * 2 for number in range(size)),
    "members": lambda size: LIST + "- {a: 1, a: 2}\n" * size,
    "tagged": lambda size: LIST + "- !a {}\n" * size,
    "documents": lambda size: "---\nkind: 1\n" * size,
    "copies": lambda size: f"---\n{SERVICE}" * size,
}


@pytest.mark.parametrize("kind", MANY)
def test_cost_of_mistakes_is_linear(kind: str) -> None:
    texts = {size: MANY[kind](size) for size in (100, 200, 400)}
    assert_linear(lambda size: read(texts[size]), 100)


@pytest.mark.parametrize(
    "text",
    [
        POOL + "".join(f"      x{number}: 1\n" for number in range(30_000)),
        "%\n" * 100_000,
        "%\n#\n" * 50_000,
        "".join(f"%TAG !a{number}! b\n" for number in range(200_000)) + "--- a\n",
        "".join(f"x{number}: 1\n" for number in range(80_000)) + "<<: {}\n" * 80_000,
        "a: !!float " + "1" * 5_000_000,
        "---\n-\n" * 30_000,
        '{"a": "' + "\\\\" * 1_000_000 + '"}',
    ],
    ids=lambda text: repr(text[-30:])[1:-1],
)
def test_large_text_is_read_quickly(text: str) -> None:
    assert_quick(lambda: read(text))


@pytest.mark.parametrize(
    "text",
    [
        "a: &a [" + "1," * 20_000 + "]\nb: [" + "*a," * 20_000 + "]",
        "a: &a {" + '"": 1,' * 20_000 + "}\nb: [" + "*a," * 20_000 + "]",
        "a: &a {" + "[]: 1," * 20_000 + "}\nb: [" + "*a," * 20_000 + "]",
        "a: &a " + "1" * 100_000 + "\nb: [" + "*a," * 50_000 + "]",
        "a: &a !!bool " + "1" * 100_000 + "\nb: [" + "*a," * 50_000 + "]",
        "a: &a !" + "b" * 100_000 + " 1\nb: [" + "*a," * 50_000 + "]",
        RULE.replace('exportTo: ["."]', "exportTo: [&a " + "n" * 500_000 + "," + "*a," * 50_000 + "]"),
        "a: &a {" + "".join(f"x{number}: 1," for number in range(20_000)) + "}\n" + "<<: *a\n" * 20_000,
    ],
    ids=lambda text: repr(text[:12] + text[-12:])[1:-1],
)
def test_values_of_aliases_are_counted(text: str) -> None:
    def work() -> None:
        problems = read(text)
        assert problems
        assert len(problems) < 40

    assert_quick(work)


def test_aliases_are_accepted_up_to_the_limit() -> None:
    text = f"a: &a [{'1, ' * 99}]\nb: [{'*a, ' * (MAX_ALIASED_VALUES // 100)}]\n"
    [document] = documents.read_documents(text, "in.yaml")
    assert isinstance(document, Document)
    assert document.flaws == []
    [document] = documents.read_documents(text + "c: *a", "in.yaml")
    assert isinstance(document, Document)
    assert [what for _, what in document.flaws] == [
        f"exceeds the limit of {MAX_ALIASED_VALUES} values that aliases may repeat"
    ]


@pytest.mark.parametrize(
    "text",
    [
        "{<<: " * 500 + "{}" + "}" * 500,
        "\n".join(["a0: &a0 {k: 1}", *(f"a{n}: &a{n} {{<<: *a{n - 1}}}" for n in range(1, 2000))])
        + "\n<<: *a1999",
        "\n".join(["a0: &a0 {k: 1}", *(f"a{n}: &a{n} [*a{n - 1}]" for n in range(1, 2000))]),
        "[" * 900 + "]" * 900,
        "- " * 900 + "[" * 900,
        "[" * 1_000_000,
    ],
    ids=lambda text: repr(text[:8])[1:-1],
)
def test_deep_nesting_is_a_problem(text: str) -> None:
    assert read(text)


def test_too_many_values_in_a_document_are_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(documents, "MAX_VALUES", 100)
    [good, bad] = documents.read_documents("---\n[" + "1," * 99 + "]\n---\n[" + "1," * 100 + "]\n", "in.yaml")
    assert isinstance(good, Document)
    assert (
        str(bad)
        == "in.yaml:3: cannot be read as YAML: it has more than 100 values (split it into several documents)"
    )


def test_too_many_mistakes_make_a_document_unreadable() -> None:
    """A flaw beyond the limit could otherwise hide the loss of part of an object."""
    items = f"apiVersion: v1\nkind: List\nitems:\n{'- {a: 1, a: 2}' + chr(10)}"
    text = items + "- {a: 1, a: 2}\n" * MAX_FLAWS
    [problem] = documents.read_documents("# first\n" + text, "in.yaml")
    assert isinstance(problem, Problem)
    assert str(problem) == (
        f"in.yaml:2: cannot be read as YAML: it has more than {MAX_FLAWS} mistakes; the first is:"
        " items[0].a is set twice"
    )


# --- round trips and merges ---------------------------------------------------------------------------------


@given(TEXTS, TEXTS, TEXTS)
def test_chunks_preserve_the_text(before: str, middle: str, after: str) -> None:
    text = before + "\n" + middle + "\n---\n" + after
    assert "".join(chunk for _, chunk in split_documents(text)) == text
    for line, chunk in split_documents(text):
        assert text.split("\n")[line - 1 :][0].startswith(chunk.split("\n")[0])


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("a\n---\nb\n", [1, 2]),
        ("---\na\n---\nb", [1, 3]),
        ("a\n%YAML 1.1\n%X\n---\nb", [1, 2]),
        ("%YAML 1.1\n---\na", [1]),
        ("a\n%X\n\n%Y\n---\nb", [1, 4]),
        ("a\n--- b\n---c\n%", [1, 2]),
        ("a\n%X\nb\n---\n", [1, 4]),
        ("\n---\n---\n", [1, 2, 3]),
    ],
)
def test_document_starts_with_its_directives(text: str, lines: list[int]) -> None:
    assert [line for line, _ in split_documents(text)] == lines


def test_lines_of_duplicate_and_merged_keys() -> None:
    text = "base: &b\n  deep: 1\nmore: &m\n  <<: *b\n  own: 1\nit:\n  <<: [*m]\n  twice: 1\n  twice: 2\n"
    [document] = documents.read_documents(text, "f")
    assert isinstance(document, Document)
    places = {
        ("it", "deep"): 2,
        ("it", "own"): 5,
        ("it", "twice"): 9,
        ("it", "none"): 6,
        ("base", "deep", "x"): 2,
    }
    assert {path: document.locate(path) for path in places} == {
        path: f"f:{line}" for path, line in places.items()
    }


@given(st.lists(st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 3)), max_size=3), max_size=4))
def test_first_merge_wins(parts: list[list[tuple[str, int]]]) -> None:
    merges = [dict(part) for part in parts]
    text = "a: own\n" + "".join(
        f"<<: {yaml.safe_dump(part, default_flow_style=True, sort_keys=False)}" for part in merges
    )
    [document] = documents.read_documents(text, "f")
    expected: dict[str, object] = {"a": "own"}
    for part in merges:
        expected = part | expected
    assert isinstance(document, Document)
    assert isinstance(document.value, dict)
    assert document.value == expected
    assert [*document.value] == [*expected]


# --- rewriting ----------------------------------------------------------------------------------------------


def test_many_changes_of_a_large_text_are_quick() -> None:
    comment = "  # " + "x" * 4000 + "\n"
    text = "a:\n" + "".join(f"- {{name: n{number}, v: 1}}{comment}" for number in range(5000))
    [document] = parse_chunk(text, "f", 1)
    assert isinstance(document, Document)
    items = [{"name": f"n{number}", "v": 2, "extra": number} for number in range(5000)]
    result = ""

    def work() -> None:
        nonlocal result
        result = rewrite(text, [(document, {"a": items})])

    assert_quick(work)
    assert result.count('v: 2, "extra": 4999}') == 1
    assert result.count(comment) == 5000


# --- problems -----------------------------------------------------------------------------------------------


def test_problems_of_a_file_are_limited_and_counted(tmp_path: Path) -> None:
    limit = definitions.MAX_PROBLEMS
    folder = Folder(tmp_path)
    folder.load()
    place(tmp_path / "bad.yaml", "--- [\n" * 500 + "---\nkind: 1\n" * 500)
    place(tmp_path / "jobs.yaml", "---\n{apiVersion: batch/v1, kind: Job, metadata: {name: a}}\n" * 500)
    place(tmp_path / "pod.yaml", POD)
    report = folder.load()
    assert len(report.change.applied) == 1
    assert len(report.problems) == 2 * (limit + 1)
    assert str(report.problems[limit]) == (
        f"{tmp_path}/bad.yaml: {1500 - limit} more problems not listed (the limit is {limit})"
        " (fix the listed problems to see the others)"
    )
    assert (
        str(report.problems[-1])
        == f"{tmp_path}/jobs.yaml: {500 - limit} more notices not listed (the limit is {limit})"
    )


def test_problems_about_duplicates_are_limited(tmp_path: Path) -> None:
    (tmp_path / "pods.yaml").write_text(f"---\n{POD}" * 1000)
    report = Folder(tmp_path).load()
    assert len(report.change.applied) == 1
    assert len(report.problems) == definitions.MAX_PROBLEMS + 1


def test_unlisted_bad_document_keeps_earlier_objects(tmp_path: Path) -> None:
    path = tmp_path / "pod.yaml"
    path.write_text(POD)
    folder = Folder(tmp_path)
    folder.load()
    place(path, "---\n{apiVersion: batch/v1, kind: Job, metadata: {name: a}}\n" * 500 + "---\n[\n")
    report = folder.load()
    assert report.problems
    assert report.change.removed == ()


def test_cost_of_objects_leaving_a_bad_file_is_linear(tmp_path: Path) -> None:
    path = tmp_path / "pods.yaml"
    objects = {
        f"pod-{number}": f"---\n{{apiVersion: v1, kind: Namespace, metadata: {{name: n{number}}}}}\n"
        for number in range(4000)
    }
    path.write_text("".join(objects.values()))
    folder = Folder(tmp_path)
    folder.load()
    renamed = "".join(objects.values()).replace("name: n", "name: m")
    path.write_text(renamed + "---\n{apiVersion: v1, kind: Pod, metadata: {name: x}, spec: 1}\n")
    folder._definitions.replace_files({str(path): folder._read_file(str(path), None, 1)})
    assert_quick(folder._definitions.resolve, 2.0)


# --- settings -----------------------------------------------------------------------------------------------


def test_settings_beyond_the_size_limit_are_not_read() -> None:
    config, [problem] = SettingsLoader().read(
        "enableAutoMtls: false\n#" + "x" * settings_module.MAX_SIZE, "mesh.yaml"
    )
    assert config == MeshConfig()
    assert problem.what.endswith(f"is not read (the limit is {settings_module.MAX_SIZE})")


def test_problems_of_settings_are_limited() -> None:
    text = "---\n{enableAutoMtls: 1, x: 1}\n" * 500
    _, problems = SettingsLoader().read(text, "mesh.yaml")
    assert len(problems) == 2 * (settings_module.MAX_PROBLEMS + 1)
    assert_quick(lambda: SettingsLoader().read(text, "mesh.yaml"))
