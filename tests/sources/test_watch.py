"""Changes of files are reported without polling by the caller."""

from __future__ import annotations

import asyncio
import shutil
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import watchfiles

from xds.mesh.model.objects import Change, Ref
from xds.mesh.sources import files
from xds.mesh.sources.files import Folder
from xds.mesh.sources.report import SourceUpdate

TIMEOUT = 30.0
"""Time limit for a report, in seconds. The documentation promises 1 s; a busy machine needs longer."""
NAMESPACE = "apiVersion: v1\nkind: Namespace\nmetadata: {{name: {}}}\n"


class Watched:
    """The state of a folder according to its reports."""

    def __init__(self, reports: AsyncIterator[SourceUpdate]) -> None:
        self._reports = reports
        self.names: set[str] = set()
        self.problems: list[str] = []

    async def until(self, *names: str) -> None:
        async with asyncio.timeout(TIMEOUT):
            while self.names != set(names):
                await self.next()

    async def next(self) -> SourceUpdate:
        report = await anext(self._reports)
        self.names |= {fact.name for fact in report.change.applied}
        self.names -= {ref.name for ref in report.change.removed}
        self.problems += [problem.what for problem in report.problems]
        return report


@asynccontextmanager
async def watching(*roots: Path) -> AsyncIterator[Watched]:
    reports = Folder(roots).watch()
    try:
        yield Watched(reports)
    finally:
        await reports.aclose()  # type: ignore[attr-defined]


async def test_file_changes_are_followed(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(NAMESPACE.format("a"))
    async with watching(tmp_path) as world:
        await world.until("a")
        (tmp_path / "b.yaml").write_text(NAMESPACE.format("b"))
        await world.until("a", "b")
        (tmp_path / "b.yaml").write_text(NAMESPACE.format("b2"))
        await world.until("a", "b2")
        (tmp_path / ".new").write_text(NAMESPACE.format("b3"))
        (tmp_path / ".new").rename(tmp_path / "b.yaml")
        await world.until("a", "b3")
        (tmp_path / "b.yaml").rename(tmp_path / "b.txt")
        await world.until("a")
        (tmp_path / "b.txt").rename(tmp_path / "c.yaml")
        await world.until("a", "b3")
        (tmp_path / "a.yaml").unlink()
        await world.until("b3")
    assert world.problems == []


async def test_folder_is_current_once_later_writes_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "MAX_RESCAN_SHARE", 1e-9)  # After the first scan, only on request.
    folder = Folder(tmp_path)
    ref = Ref("Namespace", "", "one")
    reports = folder.watch()
    await anext(reports)
    (tmp_path / "a.yaml").write_text(NAMESPACE.format("one"))
    written_at = time.monotonic()
    assert not folder.is_current(written_at)
    pending = asyncio.ensure_future(anext(reports))
    try:
        async with asyncio.timeout(TIMEOUT):
            await pending
            assert folder.read_object(ref)
            assert not folder.is_current(written_at), "the caller has not passed the change on"
            pending = asyncio.ensure_future(anext(reports))
            for _ in range(2):
                while not folder.is_current(written_at):
                    await asyncio.sleep(0.01)
                written_at = time.monotonic()
    finally:
        pending.cancel()
        await asyncio.gather(pending, return_exceptions=True)


async def test_folder_changes_are_followed(tmp_path: Path) -> None:
    async with watching(tmp_path) as world:
        await world.until()
        (tmp_path / "x/y").mkdir(parents=True)
        (tmp_path / "x/y/a.yaml").write_text(NAMESPACE.format("a"))
        await world.until("a")
        (tmp_path / "x").rename(tmp_path / "z")
        (tmp_path / "z/y/b.yaml").write_text(NAMESPACE.format("b"))
        await world.until("a", "b")
        shutil.rmtree(tmp_path / "z")
        await world.until()


async def test_several_folders_are_followed(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "n.yaml").write_text(NAMESPACE.format(name))
    async with watching(tmp_path / "a", tmp_path / "b") as world:
        await world.until("a", "b")
        (tmp_path / "b/n.yaml").write_text(NAMESPACE.format("b2"))
        await world.until("a", "b2")
        (tmp_path / "a/n.yaml").write_text(NAMESPACE.format("a2"))
        await world.until("a2", "b2")


async def test_mounted_config_map_changes_atomically(tmp_path: Path) -> None:
    (tmp_path / "..v1").mkdir()
    (tmp_path / "..v1/a.yaml").write_text(NAMESPACE.format("v1"))
    (tmp_path / "..data").symlink_to("..v1")
    (tmp_path / "a.yaml").symlink_to("..data/a.yaml")
    async with watching(tmp_path) as world:
        await world.until("v1")
        (tmp_path / "..v2").mkdir()
        (tmp_path / "..v2/a.yaml").write_text(NAMESPACE.format("v2"))
        (tmp_path / "..tmp").symlink_to("..v2")
        (tmp_path / "..tmp").rename(tmp_path / "..data")
        await world.until("v2")
    assert world.problems == []


async def test_changes_behind_symlinks_are_followed(tmp_path: Path) -> None:
    root, away = tmp_path / "root", tmp_path / "away"
    root.mkdir()
    away.mkdir()
    (root / "linked").symlink_to(away)
    async with watching(root) as world:
        await world.until()
        (away / "a.yaml").write_text(NAMESPACE.format("a"))
        await world.until("a")


async def test_folder_may_be_a_symlink_that_changes(tmp_path: Path) -> None:
    for version in ("v1", "v2"):
        (tmp_path / version).mkdir()
        (tmp_path / version / "a.yaml").write_text(NAMESPACE.format(version))
    (tmp_path / "current").symlink_to("v1")
    async with watching(tmp_path / "current") as world:
        await world.until("v1")
        (tmp_path / "next").symlink_to("v2")
        (tmp_path / "next").rename(tmp_path / "current")
        await world.until("v2")


async def test_recreated_folder_is_followed_again(tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    (root / "a.yaml").write_text(NAMESPACE.format("a"))
    async with watching(root) as world:
        await world.until("a")
        root.rename(tmp_path / "away")
        async with asyncio.timeout(TIMEOUT):
            report = await world.next()
        assert report.change == Change()
        assert report.problems[0].where == str(root)
        root.mkdir()
        (root / "b.yaml").write_text(NAMESPACE.format("b"))
        await world.until("b")


async def test_many_simultaneous_changes_are_batched(tmp_path: Path) -> None:
    async with watching(tmp_path) as world:
        await world.until()
        for number in range(200):
            (tmp_path / f"{number}.yaml").write_text(NAMESPACE.format(f"n{number}"))
        reports = 0
        async with asyncio.timeout(TIMEOUT):
            while len(world.names) < 200:
                await world.next()
                reports += 1
        assert reports < 20


async def test_partially_written_file_is_not_read(tmp_path: Path) -> None:
    whole = NAMESPACE.format("a") + "---\n" + NAMESPACE.format("b")
    (tmp_path / "a.yaml").write_text(whole)
    async with watching(tmp_path) as world:
        await world.until("a", "b")
        with (tmp_path / "a.yaml").open("w") as file:
            for part in (
                NAMESPACE.format("a"),
                "---\napiVersion: v1\nkind: Names",
                "pace\nmetadata: {name: c}\n",
            ):
                file.write(part)
                file.flush()
        async with asyncio.timeout(TIMEOUT):
            report = await world.next()
        assert [fact.name for fact in report.change.applied] == ["c"]
        assert report.change.removed == (Ref("Namespace", "", "b"),)
    assert world.problems == []


async def test_folder_is_polled_without_inotify(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_more_watches(*_: Any, **__: Any) -> AsyncIterator[None]:
        raise OSError(28, "inotify watch limit reached")

    monkeypatch.setattr(watchfiles, "awatch", no_more_watches)
    async with watching(tmp_path) as world:
        await world.until()
        (tmp_path / "a.yaml").write_text(NAMESPACE.format("a"))
        await world.until("a")


async def test_cancelled_watch_ends(tmp_path: Path) -> None:
    async def follow() -> None:
        async for _ in Folder(tmp_path).watch():
            seen.set()

    seen = asyncio.Event()
    task = asyncio.create_task(follow())
    await seen.wait()
    task.cancel()
    async with asyncio.timeout(TIMEOUT):
        with pytest.raises(asyncio.CancelledError):
            await task
