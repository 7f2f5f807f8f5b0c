"""Errors in a file are reported with file and line, and affect no other object."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.sources.files import place
from tests.sources.objects import BAD, POD, RULE, SERVICE
from xds.mesh.model.objects import Problem, Ref, Service
from xds.mesh.sources import files
from xds.mesh.sources.files import Folder


def empty(path: Path) -> Folder:
    """Return a folder that was read once: an unreadable file no longer makes it incomplete."""
    folder = Folder(path)
    assert folder.load().complete
    return folder


@pytest.mark.parametrize(("good", "old", "new", "line", "words"), BAD)
def test_bad_object_is_reported_and_keeps_its_last_version(
    tmp_path: Path, good: str, old: str, new: str, line: int, words: str
) -> None:
    assert good.count(old), "the case must change something"
    bad = good.replace(old, new, 1)
    beside = "apiVersion: v1\nkind: Namespace\nmetadata: {name: beside}\n"
    place(tmp_path / "object.yaml", good)
    folder = Folder(tmp_path)
    first = folder.load()
    assert [p for p in first.problems if not p.notice] == []
    [known] = first.change.applied

    place(tmp_path / "object.yaml", f"{bad}---\n{beside}")
    report = folder.load()

    refusals = [problem for problem in report.problems if not problem.notice]
    assert [p for p in refusals if p.where == f"{tmp_path}/object.yaml:{line}" and words in str(p)], refusals
    # A bad object with another name has no valid version, and fails closed.
    new = {fact.ref for fact in report.change.applied}
    assert known.ref not in new
    assert Ref("Namespace", "", "beside") in new
    assert report.change.removed == ()

    place(tmp_path / "object.yaml", f"# repaired\n{good}")
    report = folder.load()
    assert set(refusals) <= set(report.solved)
    assert report.problems == ()
    assert report.change.applied == ()
    assert set(report.change.removed) == new


def test_object_that_was_never_valid_is_left_out(tmp_path: Path) -> None:
    place(tmp_path / "bad.yaml", POD.replace("podIP: 10", "podIP: x10") + "---\n" + SERVICE)
    report = Folder(tmp_path).load()
    assert report.complete
    assert [fact.ref for fact in report.change.applied] == [Ref("Service", "shop", "web")]
    assert len(report.problems) == 1


def test_all_errors_of_an_object_are_reported_together(tmp_path: Path) -> None:
    place(tmp_path / "bad.yaml", SERVICE.replace("port: 80", "port: http").replace("10.0.0.1", "ten"))
    assert len(Folder(tmp_path).load().problems) == 2


def test_possible_key_is_not_quoted(tmp_path: Path) -> None:
    place(tmp_path / "bad.yaml", RULE.replace("/etc/certs/key.pem", "MC4CAQAwBQYDK2VwBCIEI"))
    [problem] = Folder(tmp_path).load().problems
    assert "absolute path" in str(problem)
    assert "MC4CAQ" not in str(problem)


def test_control_characters_of_the_input_are_escaped(tmp_path: Path) -> None:
    place(
        tmp_path / "odd.yaml",
        'apiVersion: v1\nkind: "Odd\\nx.yaml:1: problem: forged \\e[31m"\nmetadata: {name: x}\n',
    )
    [notice] = Folder(tmp_path).load().problems
    assert str(notice).isprintable()


def test_internal_error_affects_one_document(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = files.parse

    def broken(document: object, *more: object, **options: object) -> object:
        if "kind: Pod" in str(document) or "'Pod'" in str(document):
            raise RecursionError("too deep")
        return real(document, *more, **options)

    folder = empty(tmp_path)
    monkeypatch.setattr(files, "parse", broken)
    place(tmp_path / "two.yaml", POD + "---\n" + SERVICE)
    report = folder.load()
    assert [fact.ref for fact in report.change.applied] == [Ref("Service", "shop", "web")]
    [problem] = report.problems
    assert (
        str(problem)
        == f"{tmp_path}/two.yaml:1: cannot be read: RecursionError: too deep (please report this)"
    )


def test_nested_aliases_are_limited(tmp_path: Path) -> None:
    bomb = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
        f"{chr(97 + i)}: &{chr(97 + i)} [{', '.join([f'*{chr(96 + i)}'] * 10)}]\n" for i in range(1, 20)
    )
    place(tmp_path / "bomb.yaml", f"{SERVICE}---\n{SERVICE.replace('name: web', 'name: bomb')}{bomb}")
    report = Folder(tmp_path).load()
    assert [fact.name for fact in report.change.applied if isinstance(fact, Service)] == ["web"]
    assert any("values that aliases may repeat" in problem.what for problem in report.problems)


@pytest.mark.parametrize(
    "text",
    ["[" * 100_000, "{a: " * 999, "- " * 5_000, "a:\n" + "".join(" " * i + "a:\n" for i in range(1, 900))],
)
def test_deep_nesting_is_refused(tmp_path: Path, text: str) -> None:
    folder = empty(tmp_path)
    place(tmp_path / "deep.yaml", text)
    place(tmp_path / "good.yaml", SERVICE)
    report = folder.load()
    assert len(report.change.applied) == 1
    assert report.problems


def test_invalid_utf8_is_refused_with_its_line(tmp_path: Path) -> None:
    (tmp_path / "latin.yaml").write_bytes(b"apiVersion: v1\n# caf\xe9\n")
    assert Folder(tmp_path).load().problems == (
        Problem(where=f"{tmp_path}/latin.yaml:2", what="is not UTF-8 text", hint="save it as UTF-8"),
    )
