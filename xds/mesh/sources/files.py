"""Source of objects from a folder of manifests.

A `Folder` is read repeatedly, and each update contains only differences. An error is reported once, with file
and line, and the last good version of the object is used. A policy without a good version is STRICT.

The source yields no objects before it has read the settings and every file, and can identify the object of
every
document: an unreadable document may be the policy that makes the mesh STRICT (ADR 0017).
"""

from __future__ import annotations

import asyncio
import os
import stat
import time
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TypeAlias

from watchfiles import awatch

from xds.mesh.model.objects import Change, Fact, MeshConfig, Problem, Ref
from xds.mesh.parse import Parsed, parse
from xds.mesh.parse.problems import Problems
from xds.mesh.sources.documents import read_documents
from xds.mesh.sources.report import SourceUpdate, problems_not_in
from xds.mesh.sources.settings import SettingsLoader

SUFFIXES = frozenset({".yaml", ".yml", ".json"})
MAX_FILE_SIZE = 32 * 2**20
"""Maximum size of a file, in bytes."""
MAX_REASONS = 10
"""Problems that /ready names while the manifests are waited for: its answer must not grow with the folder."""
SETTLE_TIME = 0.05
"""Seconds that a file must have rested before it is read, for it may be half written."""
MAX_SETTLING = 5.0
"""Seconds for which the first reading waits until files rest."""
MAX_PROBLEMS = 100
"""How many problems of one file are listed, and how many notices; likewise of names that are used twice in
the folder."""
RESCAN_INTERVAL = 0.5
"""Seconds between looks at what cannot tell of its changes (network file systems, links that lead
elsewhere)."""

Signature: TypeAlias = tuple[int, ...]
"""Times, size and identity of a file, to detect changes."""


@dataclass(frozen=True, slots=True)
class _File:
    """A file as it was last read."""

    signature: Signature | None
    """None: to be read again next time."""
    objects: tuple[Parsed, ...] = ()
    """Those that have a name, and those of kinds that are not enforced."""
    problems: tuple[Problem, ...] = ()
    """Of the file itself, its documents and what has no name in it: the first ones."""
    unreadable: bool = False
    """Whether it holds something without a name that may be a bad version of an object."""


class _AppliedFact(NamedTuple):
    """A fact in force, and the file it was read from."""

    fact: Fact
    path: Path
    fails_closed: bool = False
    """Whether it applies only because the object was refused: it is no version to go back to."""


class Folder:
    """All facts below a folder, and the settings of the mesh."""

    what = "manifests"
    """What it reads, in a word for the log."""

    def __init__(self, root: Path, settings: SettingsLoader | None = None) -> None:
        self.root = root
        self._settings = settings or SettingsLoader()
        self._config: MeshConfig | None = None
        self._files: dict[Path, _File] | None = None
        self._complete = False
        self._blocking_problems: tuple[Problem, ...] = ()
        """Why it is not known yet which objects there are."""
        self._applied: dict[Ref, _AppliedFact] = {}
        self._of_objects: tuple[Problem, ...] = ()
        self._problems: tuple[Problem, ...] = ()

    def load(self) -> SourceUpdate:
        """Read what changed since the last time. The first time that is everything, and the folder must exist."""
        files, unread, unsettled = self._scan()
        config, of_settings = self._settings.load()
        self._blocking_problems = (
            () if self._complete else _blocking_problems(files, unread, of_settings if config is None else ())
        )
        if self._blocking_problems:
            self._files = files
            return self._make_update(
                Change(), (*of_settings, *unread, *_listed_problems(files, {})), unsettled
            )
        before = self._applied
        if files != self._files or not self._complete:
            self._files = files
            self._applied, conflicts = _resolve(files, before)
            self._of_objects = (*_listed_problems(files, self._applied), *conflicts.listed(str(self.root)))
        self._complete = True
        change = Change(
            applied=tuple(
                held.fact
                for ref, held in self._applied.items()
                if ref not in before or before[ref].fact != held.fact
            ),
            removed=tuple(ref for ref in before if ref not in self._applied),
            config=config if config != self._config else None,
        )
        self._config = config
        return self._make_update(change, (*of_settings, *unread, *self._of_objects), unsettled)

    def _make_update(self, change: Change, problems: tuple[Problem, ...], unsettled: bool) -> SourceUpdate:
        known, self._problems = self._problems, problems
        new, solved = problems_not_in(problems, known), problems_not_in(known, problems)
        return SourceUpdate(change, new, solved, unsettled, self._complete)

    @property
    def problems(self) -> tuple[Problem, ...]:
        """Current problems."""
        return self._problems

    @property
    def unenforced(self) -> Mapping[str, int]:
        """How many objects there are of each kind that is not enforced."""
        files = (self._files or {}).values()
        return Counter(each.unenforced for file in files for each in file.objects if each.unenforced)

    def pending_reason(self) -> str:
        """Return why the source is not complete; empty if it is complete."""
        if self._complete:
            return ""
        if not self._blocking_problems:
            return "the manifests are being read"
        lines = [
            f"waiting for the manifests to be repaired: {problem}"
            for problem in self._blocking_problems[:MAX_REASONS]
        ]
        if more := len(self._blocking_problems) - len(lines):
            lines.append(f"and {more} more problems, which the log names")
        return "\n".join(lines)

    def staleness(self) -> str:
        """Return an empty text: files are never stale."""
        return ""

    def stale_seconds(self) -> float:
        """Return the seconds since changes could last be read."""
        return 0.0

    async def watch(self) -> AsyncGenerator[SourceUpdate, None]:
        """Yield everything once, then each change."""
        await self._wait_until_settled()
        report = await asyncio.to_thread(self.load)
        yield report
        async for _ in _change_events(self.root):
            unsettled = True
            while unsettled:
                told, report = report.complete, await asyncio.to_thread(self.load)
                if not report.empty or report.complete != told:
                    yield report
                unsettled = report.unsettled
                if unsettled:
                    await asyncio.sleep(SETTLE_TIME)

    async def _wait_until_settled(self) -> None:
        """Wait until no file is being written, such as the policy that locks the mesh; for MAX_SETTLING at most."""
        for _ in range(round(MAX_SETTLING / SETTLE_TIME)):
            now = time.time()
            entries = await asyncio.to_thread(lambda: list(_walk(self.root, set())))
            if all(isinstance(found, OSError) or _is_resting(found, now) for _, found in entries):
                return
            await asyncio.sleep(SETTLE_TIME)

    def _scan(self) -> tuple[dict[Path, _File], list[Problem], bool]:
        """Scan all files, and read those that have changed."""
        known = self._files or {}
        files: dict[Path, _File] = {}
        unread: list[Problem] = []
        unsettled = False
        now = time.time()
        for path, found in _walk(self.root, set()):
            if isinstance(found, OSError):
                if path == self.root and self._files is None:
                    raise found
                unread.append(Problem(where=str(path), what=f"cannot be read: {found.strerror}"))
                files |= {below: file for below, file in known.items() if below.is_relative_to(path)}
                continue
            signature = (found.st_mtime_ns, found.st_ctime_ns, found.st_size, found.st_ino, found.st_dev)
            resting = _is_resting(found, now)
            if path in known and known[path].signature == signature:
                files[path] = known[path]
            elif resting or not self._complete:
                files[path] = _read_file(path, signature if resting else None, found.st_size)
            else:
                unsettled = True
                files |= {path: known[path]} if path in known else {}
        return files, unread, unsettled


def _is_resting(found: os.stat_result, now: float) -> bool:
    """Whether a file was not written just before; a time in the future says nothing."""
    return not 0 <= now - found.st_mtime < SETTLE_TIME


def _walk(folder: Path, seen: set[tuple[int, int]]) -> Iterator[tuple[Path, os.stat_result | OSError]]:
    """Yield the files below a folder in order of their names, each once, and what cannot be looked at.

    Names that begin with a dot are left out: Kubernetes keeps the versions of a mounted ConfigMap below
    `..data`, and who replaces files atomically writes them under such a name first.
    """
    try:
        with os.scandir(folder) as listing:
            entries = sorted(listing, key=lambda entry: entry.name)
    except OSError as error:
        yield folder, error
        return
    for entry in entries:
        path = folder / entry.name
        if entry.name.startswith("."):
            continue
        try:
            found = entry.stat()
        except OSError as error:
            if path.suffix in SUFFIXES and (entry.is_symlink() or not isinstance(error, FileNotFoundError)):
                yield path, error
            continue
        identity = (found.st_dev, found.st_ino)
        if identity in seen:
            continue
        if stat.S_ISDIR(found.st_mode):
            seen.add(identity)
            yield from _walk(path, seen)
        elif stat.S_ISREG(found.st_mode) and path.suffix in SUFFIXES:
            seen.add(identity)
            yield path, found


def _read_file(path: Path, signature: Signature | None, size: int) -> _File:
    """Read a file. The result contains its problems."""
    name = str(path)
    if size > MAX_FILE_SIZE:
        problem = Problem(where=name, what=f"is larger than {MAX_FILE_SIZE >> 20} MiB and is not read")
        return _File(signature, problems=(problem,), unreadable=True)
    try:
        data = path.read_bytes()
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        problem = Problem(where=f"{name}:{line}", what="is not UTF-8 text", hint="save it as UTF-8")
        return _File(signature, problems=(problem,), unreadable=True)
    except OSError as error:
        # Permissions may be given without the file changing: it is tried again.
        problem = Problem(where=name, what=f"cannot be read: {error.strerror}")
        return _File(None, problems=(problem,), unreadable=True)
    objects: list[Parsed] = []
    problems = Problems(MAX_PROBLEMS)
    unreadable = False
    for document in read_documents(text, name, json=path.suffix == ".json"):
        if isinstance(document, Problem):
            problems.add([document])
            unreadable = True
            continue
        try:
            found = parse(document.value, document.locate, document.flaws)
        except Exception as error:  # noqa: BLE001 - whatever is wrong with one document, the others go on
            what = f"cannot be read: {type(error).__name__}: {error}"
            problems.add([Problem(where=document.locate(()), what=what, hint="please report this")])
            unreadable = True
            continue
        for parsed in found:
            if parsed.ref or parsed.unenforced:
                objects.append(parsed)
            else:
                problems.add(parsed.problems)
                unreadable |= parsed.refused
    return _File(signature, tuple(objects), problems.listed(name), unreadable)


def _blocking_problems(
    files: Mapping[Path, _File], unread: Iterable[Problem], of_settings: Iterable[Problem]
) -> tuple[Problem, ...]:
    """Return what hides which objects there are: settings, files and documents that cannot be read or told by name."""
    of_files = (problem for file in files.values() if file.unreadable for problem in file.problems)
    return tuple(problem for problem in (*of_settings, *unread, *of_files) if not problem.notice)


def _listed_problems(files: Mapping[Path, _File], held: Mapping[Ref, _AppliedFact]) -> Iterator[Problem]:
    """Yield what is wrong with each file and its objects; of those that fail closed, also what that means."""
    for path, file in files.items():
        yield from file.problems
        problems = Problems(MAX_PROBLEMS)
        for parsed in file.objects:
            in_force = held.get(parsed.ref) if parsed.ref else None
            closed = in_force and in_force.fails_closed and in_force.path == path
            problems.add((parsed.fails_closed if closed and parsed.refused else parsed).problems)
        yield from problems.listed(str(path))


def _resolve(
    files: Mapping[Path, _File], before: Mapping[Ref, _AppliedFact]
) -> tuple[dict[Ref, _AppliedFact], Problems]:
    """Return the version of each object to use, and the problems of duplicate names."""
    claims: dict[Ref, list[tuple[Path, Parsed]]] = {}
    for path, file in files.items():
        for parsed in file.objects:
            if parsed.ref:
                claims.setdefault(parsed.ref, []).append((path, parsed))
    held: dict[Ref, _AppliedFact] = {}
    conflicts = Problems(MAX_PROBLEMS)
    for ref, claimants in claims.items():
        path, chosen = _choose(claimants, before.get(ref))
        last = before.get(ref)
        if chosen.refused and last and not last.fails_closed:
            held[ref] = last
        elif fact := chosen.fails_closed.fact if chosen.refused else chosen.fact:
            held[ref] = _AppliedFact(fact, path, chosen.refused)
        conflicts.add(
            Problem(
                where=parsed.origin,
                what=f"{ref} is at {chosen.origin} already, and that one is used",
                hint="delete one of them, or give it another name",
            )
            for _, parsed in claimants
            if parsed is not chosen
        )
    hiding = {path for path, file in files.items() if _may_hide_object(file, before)}
    for ref, kept in before.items():
        if ref not in claims and kept.path in hiding:
            held[ref] = kept
            what = f"{ref} is no longer here, but stays in force until all of this file can be used"
            conflicts.add([Problem(where=str(kept.path), what=what, notice=True)])
    return held, conflicts


def _may_hide_object(file: _File, before: Mapping[Ref, _AppliedFact]) -> bool:
    """Whether something in a file may be a new, bad version of an object that is missing from it."""
    return file.unreadable or any(parsed.refused and parsed.ref not in before for parsed in file.objects)


def _choose(claimants: list[tuple[Path, Parsed]], before: _AppliedFact | None) -> tuple[Path, Parsed]:
    """Choose who has a name: what is in force already, else the first that fails closed, else the first that is good."""

    def unfit(claimant: tuple[Path, Parsed]) -> tuple[bool, bool]:
        path, parsed = claimant
        if before is None:
            # One that fails closed comes before one that is good: nobody knows which of them was in force.
            return parsed.fail_closed is None, parsed.fact is None
        return path != before.path, parsed.fact != before.fact

    return min(claimants, key=unfit)


async def _change_events(root: Path) -> AsyncIterator[None]:
    """Come back whenever the folder says that something changed, and now and then because it may not say so."""
    try:
        async for _ in awatch(
            root,
            watch_filter=None,
            debounce=200,
            step=20,
            rust_timeout=round(RESCAN_INTERVAL * 1000),
            yield_on_timeout=True,
        ):
            yield
    except (OSError, RuntimeError):
        # The kernel has no more watches to give: looking is slower than being told, and works.
        pass
    while True:
        await asyncio.sleep(RESCAN_INTERVAL)
        yield
