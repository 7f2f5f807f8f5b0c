"""A folder that reads only the files with events."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import aclosing
from pathlib import Path
from typing import TypeAlias

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.sources.files import place
from xds.mesh.model.objects import Problem, Ref
from xds.mesh.sources import files as files_module
from xds.mesh.sources.documents import Document, read_documents
from xds.mesh.sources.files import Folder
from xds.mesh.sources.report import SourceUpdate

TIMEOUT = 60.0
NAMESPACE = "apiVersion: v1\nkind: Namespace\nmetadata: {{name: {}}}\n"


def names(update: SourceUpdate) -> list[str]:
    return [fact.name for fact in update.change.applied]


# --- work ---------------------------------------------------------------------------------------------------


async def test_one_changed_file_of_many_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A change reads and parses one file, whether a program replaces it or writes to it."""
    for number in range(1000):
        place(tmp_path / f"{number // 100}/{number}.yaml", NAMESPACE.format(f"n{number}"))
    parsed: list[str] = []

    def counted(text: str, name: str, *, json: bool) -> Iterator[Document | Problem]:
        parsed.append(name)
        return read_documents(text, name, json=json)

    monkeypatch.setattr(files_module, "read_documents", counted)
    folder = Folder(tmp_path)
    async with asyncio.timeout(TIMEOUT), aclosing(folder.watch()) as updates:
        assert len(names(await anext(updates))) == 1000
        assert folder.files_read == len(parsed) == 1000
        replaced, written = tmp_path / "3/333.yaml", tmp_path / "4/444.yaml"
        place(replaced, NAMESPACE.format("replaced"))
        assert names(await anext(updates)) == ["replaced"]
        written.write_text(NAMESPACE.format("written"))
        assert names(await anext(updates)) == ["written"]
        assert folder.files_read == 1002
        assert parsed[1000:] == [str(replaced), str(written)]


def test_event_of_a_file_scans_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(10):
        place(tmp_path / f"{number}.yaml", NAMESPACE.format(f"n{number}"))
    folder = Folder(tmp_path)
    folder.load()
    place(tmp_path / "3.yaml", NAMESPACE.format("x3"))
    scans: list[object] = []
    monkeypatch.setattr(files_module, "Walk", scans.append)
    events = {str(tmp_path / name): True for name in ("3.yaml", ".3.yaml", ".git/index", "..data/a.yaml")}
    (tmp_path / "4.yaml~").touch()  # an editor's backup
    assert names(folder.load(events | {str(tmp_path / "4.yaml~"): True})) == ["x3"]
    assert scans == []


def test_replaced_file_is_read_at_once_and_a_written_one_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("xds.mesh.sources.scan.SETTLE_TIME", 3600.0)  # So that a slow test sees it too.
    path, new = tmp_path / "a.yaml", tmp_path / ".new"
    place(path, NAMESPACE.format("a"))
    folder = Folder(tmp_path)
    folder.load()
    new.write_text(NAMESPACE.format("b"))
    new.rename(path)
    assert names(folder.load({str(path): True})) == ["b"]
    for is_new_name in (True, False):
        path.write_text(NAMESPACE.format("c"))
        update = folder.load({str(path): is_new_name})
        assert update.unsettled
        assert update.empty
    place(path, NAMESPACE.format("d"))
    assert names(folder.load({})) == ["d"], "an unsettled file is read again without an event"


def test_event_of_a_mounted_config_map_scans_the_folder(tmp_path: Path) -> None:
    place(tmp_path / "..v1/a.yaml", NAMESPACE.format("v1"))
    place(tmp_path / "..v2/a.yaml", NAMESPACE.format("v2"))
    (tmp_path / "..data").symlink_to("..v1")
    (tmp_path / "a.yaml").symlink_to("..data/a.yaml")
    folder = Folder(tmp_path)
    assert names(folder.load()) == ["v1"]
    (tmp_path / "..tmp").symlink_to("..v2")
    (tmp_path / "..tmp").rename(tmp_path / "..data")
    assert names(folder.load({str(tmp_path / "..tmp"): False, str(tmp_path / "..data"): True})) == ["v2"]


# --- equivalence --------------------------------------------------------------------------------------------

PATHS = ("a.yaml", "b.yaml", "d/a.yaml", "new.json", "linked/a.yaml")
POLICY = (
    "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {{name: p, namespace: x}}\n{}\n"
)
TEXTS = st.lists(
    st.sampled_from(
        [
            NAMESPACE.format("a"),
            NAMESPACE.format("b"),
            POLICY.format("spec: {mtls: {mode: STRICT}}"),
            POLICY.format("spec: {mtls: {mode: DISABLE}}"),
            POLICY.format("spec: {mtls: {mode: 1}}"),
            "apiVersion: v1\nkind: Pod\nmetadata: {name: 1}\n",
            "apiVersion: batch/v1\nkind: Job\nmetadata: {name: j}\n",
            "{",
        ]
    ),
    max_size=3,
).map("---\n".join)
Step: TypeAlias = tuple[str, str, str]
STEPS = st.tuples(
    st.sampled_from(["place", "delete", "move", "link", "copy", "move folder"]),
    st.sampled_from(PATHS),
    st.one_of(TEXTS, st.sampled_from(PATHS)),
)


def perform(root: Path, step: Step) -> list[Path]:
    """Change a file or folder, and return the paths that have events."""
    action, name, argument = step
    path, other = root / name, root / (argument if argument in PATHS else "a.yaml")
    if action == "place":
        place(path, "" if argument in PATHS else argument)
        return [path, path.with_name(f".{path.name}")]
    if action == "move folder":
        old, new = root / "d", root / "e"
        old, new = (old, new) if old.exists() else (new, old)
        if old.exists() and not new.exists():
            old.rename(new)
        return [old, new]
    if not path.exists() or path == other:
        return []
    if action == "delete":
        path.unlink()
        return [path]
    other.unlink(missing_ok=True)
    other.parent.mkdir(exist_ok=True)
    if action == "move":
        path.rename(other)
    elif action == "link":
        other.symlink_to(path)
    else:
        other.hardlink_to(path)
    return [path, other]


def texts(problems: tuple[Problem, ...]) -> list[str]:
    return sorted(map(str, problems))


@settings(max_examples=80, deadline=None)
@given(st.lists(STEPS, max_size=12), st.sets(st.integers(0, 11)), st.booleans())
def test_events_report_the_same_as_scans(steps: list[Step], joined: set[int], has_link: bool) -> None:
    """Reading the files with events reports the same changes and problems as a scan of all files."""
    root = Path(tempfile.mkdtemp())
    try:
        (root / "target").mkdir()
        (root / "d").mkdir()
        if has_link:
            (root / "linked").symlink_to("target")
        for path in ("a.yaml", "b.yaml", "d/a.yaml"):
            place(root / path, NAMESPACE.format(path[0]))
        by_events, by_scans = Folder(root), Folder(root)
        by_events.load()
        by_scans.load()
        events: dict[str, bool] = {}
        for number, step in enumerate(steps):
            events |= {str(path): True for path in perform(root, step)}
            if number in joined:
                continue
            update, expected = by_events.load(events), by_scans.load()
            events = {}
            assert sorted(map(repr, update.change.applied)) == sorted(map(repr, expected.change.applied))
            assert set(update.change.removed) == set(expected.change.removed)
            assert texts(update.problems) == texts(expected.problems)
            assert texts(update.solved) == texts(expected.solved)
            for ref in (Ref("Namespace", "", "a"), Ref("PeerAuthentication", "x", "p")):
                assert by_events.read_object(ref) == by_scans.read_object(ref)
    finally:
        shutil.rmtree(root)
