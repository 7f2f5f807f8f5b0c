"""Rewriting a YAML text: only changed values change, the rest of the text stays."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from xds.mesh.sources.documents import Document, parse_chunk, split_documents
from xds.mesh.sources.rewriting import rewrite


def documents(text: str) -> list[Document]:
    parsed = list(parse_chunk(text, "", 1))
    assert all(isinstance(document, Document) and not document.flaws for document in parsed)
    return parsed  # type: ignore[return-value]


def changed(text: str, *values: Any) -> str:
    parsed = documents(text)
    assert len(parsed) == len(values)
    result = rewrite(text, list(zip(parsed, values, strict=True)))
    actual = [document.value for document in documents(result)]
    assert json.dumps(actual) == json.dumps(list(values))
    return result


def test_additions_come_last_and_comments_stay() -> None:
    text = "a: 1  # one\n# before b\nb:\n  c: [x]   # list\n\n# after all\n"
    assert changed(text, {"a": 1, "b": {"c": ["x", "y"], "d": 2}, "e": "3"}) == (
        "a: 1  # one\n# before b\nb:\n  c: [x, \"y\"]   # list\n  d: 2\ne: '3'\n\n# after all\n"
    )


def test_last_line_may_lack_a_newline() -> None:
    assert changed("a:\n  b: 1", {"a": {"b": 1, "c": 2}}) == "a:\n  b: 1\n  c: 2\n"


def test_addition_follows_a_block_scalar() -> None:
    text = "a:\n  b: |\n    # text\n    more\n\n# comment\nc: 1\n"
    assert changed(text, {"a": {"b": "# text\nmore\n", "d": 2}, "c": 1}).count("d: 2") == 1


def test_elements_are_added_at_both_ends_of_a_list() -> None:
    text = "l:\n# first\n- name: a\n  x: 1\n- name: b # second\n"
    value = {"l": [{"name": "new"}, {"name": "a", "x": 2}, {"name": "b"}, {"name": "last"}]}
    assert (
        changed(text, {"l": value["l"][:3]})
        == "l:\n# first\n- name: new\n- name: a\n  x: 2\n- name: b # second\n"
    )
    assert changed(text, {"l": [*[{"name": "a", "x": 1}, {"name": "b"}], {"name": "last"}]}).endswith(
        "- name: b # second\n- name: last\n"
    )


@pytest.mark.parametrize("nothing", ["", " ", " null", " ~", " {}", "  # yet"])
def test_empty_value_is_replaced(nothing: str) -> None:
    text = f"a:{nothing}\nb: 1\n"
    before = documents(text)[0].value
    assert isinstance(before, dict)
    result = changed(text, {"a": {"x": {"y": [1]}}, "b": 1})
    assert result.startswith("a:\n  x:\n    y:\n    - 1")
    assert ("# yet" in result) is ("# yet" in nothing)


def test_windows_line_endings_are_kept() -> None:
    text = "a: 1\r\nb:\r\n  c: 2\r\nd: 3\r\n"
    result = changed(text, {"a": 1, "b": {"c": 2, "e": 4}, "d": 3})
    assert result == "a: 1\r\nb:\r\n  c: 2\r\n  e: 4\r\nd: 3\r\n"


def test_changed_alias_is_expanded() -> None:
    text = "base: &base {x: 1}\nuse: *base\nmore: 0x10\n"
    result = changed(text, {"base": {"x": 1}, "use": {"x": 1, "y": 2}, "more": 16})
    assert yaml.safe_load(result) == {"base": {"x": 1}, "use": {"x": 1, "y": 2}, "more": 16}


def test_merged_value_is_overridden() -> None:
    text = "base: &base\n  x: 1\nuse:\n  <<: *base\n  y: 2\n"
    result = changed(text, {"base": {"x": 1}, "use": {"x": 9, "y": 2}})
    assert result == "base: &base\n  x: 1\nuse:\n  <<: *base\n  y: 2\n  x: 9\n"


@pytest.mark.parametrize(
    "word", ["yes", "on", "1e3", "0o17", "017", "1:30", "null", "~", "", "2020-01-01", "<<", "=", "- a", "#"]
)
def test_ambiguous_word_is_quoted(word: str) -> None:
    changed("a: 1\n", {"a": 1, "b": {word: word}})


def test_split_documents_preserves_the_text() -> None:
    text = "%YAML 1.1\n---\na: |\n  ---x\n--- # two\nb: 1\n---\n"
    pieces = list(split_documents(text))
    assert "".join(piece for _, piece in pieces) == text
    assert [line for line, _ in pieces] == [1, 5, 7]


SCALARS = st.none() | st.booleans() | st.integers(-9, 99) | st.text("ab:#-'\"{[*&!|>%@` \n1e0x.", max_size=5)
KEYS = st.text("ab:#-' 1", max_size=3)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3),
    max_leaves=10,
)


@settings(deadline=None)
@given(st.dictionaries(KEYS, VALUES, min_size=1, max_size=4), st.data(), st.sampled_from([None, True, False]))
def test_rewritten_text_has_exactly_the_new_value(
    value: dict[str, Any], data: st.DataObject, flow: bool | None
) -> None:
    text = yaml.safe_dump(value, default_flow_style=flow, sort_keys=False)
    before = documents(text)[0].value
    after = copy.deepcopy(before)
    assert isinstance(after, dict)
    after |= data.draw(st.dictionaries(KEYS, VALUES, max_size=2))
    rewritten = rewrite(text, [(documents(text)[0], after)])
    assert json.dumps(documents(rewritten)[0].value, sort_keys=True) == json.dumps(after, sort_keys=True)
    assert rewrite(text, [(documents(text)[0], before)]) == text
