"""Source of objects from folders of manifests.

A `Folder` is read repeatedly, and each update contains only differences. An error is reported once, with file
and line, and the last valid version of the object stays in use. A policy without a valid version is STRICT.

The source yields no objects before it has read the settings and every file, and can identify the object of
every document. An unreadable document may be the policy that makes the mesh STRICT (ADR 0017).
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import AsyncGenerator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from math import inf
from pathlib import Path
from typing import NamedTuple, TypeAlias

from xds.mesh.inject.kinds import find_templates
from xds.mesh.inject.workloads import FoundTemplate, expected_pods, stopped_pods
from xds.mesh.model.objects import Change, Fact, MeshConfig, Namespace, Problem, Ref
from xds.mesh.parse import Parsed, parse
from xds.mesh.parse.problems import Problems
from xds.mesh.sources.documents import Document, read_documents
from xds.mesh.sources.report import (
    ReadObject,
    SourceUpdate,
    problems_not_in,
    rejection_of,
    with_served_version,
)
from xds.mesh.sources.scan import SETTLE_TIME, is_settled, walk
from xds.mesh.sources.settings import SettingsLoader

MAX_FILE_SIZE = 32 * 2**20
"""Maximum size of a file, in bytes."""
MAX_REASONS = 10
"""Maximum number of problems in the response of /ready, which must not grow with the folder."""
MAX_PROBLEMS = 100
"""Maximum number of problems, and of notices, per file; also of duplicate names in the folder."""

Signature: TypeAlias = tuple[int, ...]
"""Times, size and identity of a file, to detect changes."""


@dataclass(frozen=True, slots=True)
class _File:
    """A file as it was last read."""

    signature: Signature | None
    """Signature of the file; None to read it again at the next scan."""
    objects: tuple[Parsed, ...] = ()
    """Objects with a name, and objects of kinds that are not enforced."""
    problems: tuple[Problem, ...] = ()
    """Problems of the file, its documents and its unnamed objects, limited by `MAX_PROBLEMS`."""
    templates: tuple[FoundTemplate, ...] = ()
    """Pods and pod templates; empty unless the source reads workloads."""
    unreadable: bool = False
    """Whether some part could not be attributed to an object, so that an object may seem to be missing."""


class Text(NamedTuple):
    """Manifests that are not in a file, such as those on standard input."""

    name: str
    """Name in place of a file name, such as `stdin`."""
    text: str
    """YAML or JSON."""


class _AppliedFact(NamedTuple):
    """A fact in use."""

    fact: Fact
    """The fact."""
    path: Path
    """File of the object."""
    is_replacement: bool = False
    """Whether the fact replaces a rejected object. It is then not a version to fall back to."""
    version: str = ""
    """Time when the file of the fact was written."""


_Claims: TypeAlias = dict[Ref, list[tuple[Path, Parsed]]]
"""All definitions of each object, with their files."""


class Folder:
    """All facts below folders, and the settings of the mesh.

    Args:
        roots: a folder, or several folders and files.
        settings: loader of the mesh's settings.
        texts: manifests that are not in a file.
        reads_workloads: whether to read pod templates for `expected_pods`. Otherwise, workloads are ignored.
    """

    what = "manifests"
    """Name of the source in logs."""
    has_versions = False
    """Whether its objects have a resourceVersion."""

    def __init__(
        self,
        roots: Path | Sequence[Path],
        settings: SettingsLoader | None = None,
        *,
        texts: Iterable[Text] = (),
        reads_workloads: bool = False,
    ) -> None:
        self._roots = (roots,) if isinstance(roots, Path) else tuple(roots)
        self._settings = settings or SettingsLoader()
        self._reads_workloads = reads_workloads
        self._texts = {Path(name): self._parse(text, name) for name, text in texts}
        self._config: MeshConfig | None = None
        self._files: dict[Path, _File] | None = None
        self._claims: _Claims = {}
        """The objects in `_files`."""
        self._complete = False
        self._blocking_problems: tuple[Problem, ...] = ()
        """Problems that keep the source from being complete."""
        self._applied: dict[Ref, _AppliedFact] = {}
        self._object_problems: tuple[Problem, ...] = ()
        self._problems: tuple[Problem, ...] = ()
        self._read_at = -inf
        """When the last complete scan started whose changes were yielded, in seconds of `time.monotonic`."""

    def load(self) -> SourceUpdate:
        """Read the changes since the last call. The first call reads everything; the folder must exist."""
        files, scan_problems, unsettled = self._scan()
        config, settings_problems = self._settings.load()
        is_changed = files != self._files
        if is_changed:
            self._files, self._claims = files, _find_claims(files)
        self._blocking_problems = (
            ()
            if self._complete
            else _blocking_problems(files, scan_problems, settings_problems if config is None else ())
        )
        if self._blocking_problems:
            return self._make_update(
                Change(), (*settings_problems, *scan_problems, *_listed_problems(files, {})), unsettled
            )
        before = self._applied
        if is_changed or not self._complete:
            self._applied, problems = _resolve(files, self._claims, before)
            self._object_problems = (
                *_listed_problems(files, self._applied),
                *problems.listed(", ".join(map(str, self._roots))),
            )
        self._complete = True
        change = Change(
            applied=tuple(
                applied.fact
                for ref, applied in self._applied.items()
                if ref not in before or before[ref].fact != applied.fact
            ),
            removed=tuple(ref for ref in before if ref not in self._applied),
            config=config if config != self._config else None,
        )
        self._config = config
        return self._make_update(
            change, (*settings_problems, *scan_problems, *self._object_problems), unsettled
        )

    def _make_update(self, change: Change, problems: tuple[Problem, ...], unsettled: bool) -> SourceUpdate:
        known, self._problems = self._problems, problems
        new, solved = problems_not_in(problems, known), problems_not_in(known, problems)
        return SourceUpdate(change, new, solved, unsettled, self._complete)

    def expected_pods(self, namespaces: Iterable[Namespace] = ()) -> tuple[Parsed, ...]:
        """Return a pod for each workload whose pods are not in the manifests, or its problems.

        Call it after `load` has returned a complete update.

        Args:
            namespaces: Namespaces that are not in the manifests.
        """
        facts = (applied.fact for applied in self._applied.values())
        own = (fact for fact in facts if isinstance(fact, Namespace))
        labels = {namespace.name: namespace.meta.labels for namespace in (*namespaces, *own)}
        return tuple(expected_pods(self._all_templates, labels, self._config or MeshConfig()))

    @property
    def stopped_pods(self) -> tuple[Ref, ...]:
        """Names of the pods that workloads which are scaled to 0 or suspended would have."""
        return tuple(stopped_pods(self._all_templates))

    @property
    def _all_templates(self) -> list[FoundTemplate]:
        return [template for file in (self._files or {}).values() for template in file.templates]

    def has_unusable_objects(self, namespaces: Iterable[Namespace] = ()) -> bool:
        """Whether an object is invalid or defined twice, or a workload is invalid, as of the last load.

        Args:
            namespaces: Namespaces that are not in the manifests.
        """
        objects = [parsed for file in (self._files or {}).values() for parsed in file.objects]
        refs = [parsed.ref for parsed in objects if parsed.ref]
        invalid = any(parsed.refused for parsed in (*objects, *self.expected_pods(namespaces)))
        return invalid or len(refs) > len(set(refs))

    @property
    def is_empty(self) -> bool:
        """Whether the last load found no file."""
        return not self._files

    @property
    def problems(self) -> tuple[Problem, ...]:
        """Current problems."""
        return self._problems

    @property
    def unenforced(self) -> Mapping[str, int]:
        """Number of objects of each kind that is not enforced."""
        files = (self._files or {}).values()
        return Counter(parsed.unenforced for file in files for parsed in file.objects if parsed.unenforced)

    def read_object(self, ref: Ref) -> ReadObject | None:
        """Return an object as it was last read; None if it does not exist."""
        claimants, applied = self._claims.get(ref), self._applied.get(ref)
        if not claimants:
            return self._read_hidden(applied) if applied else None
        _, chosen = _choose(claimants, applied)
        rejection = rejection_of(chosen.problems) if chosen.refused else None
        return ReadObject(applied.fact if applied else None, rejection=rejection)

    def _read_hidden(self, applied: _AppliedFact) -> ReadObject | None:
        """Return an object that stays in use because its file is invalid, and the problem of the file."""
        file = (self._files or {}).get(applied.path)
        if file is None:
            return None
        refused = (problem for parsed in file.objects if parsed.refused for problem in parsed.problems)
        return ReadObject(applied.fact, rejection=rejection_of((*file.problems, *refused)))

    def is_current(self, since: float) -> bool:
        """Return whether all files were read after a time of `time.monotonic`."""
        return self._read_at >= since

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
            lines.append(f"and {more} more problems, see the log")
        return "\n".join(lines)

    def staleness(self) -> str:
        """Return an empty string: files are never stale."""
        return ""

    def stale_seconds(self) -> float:
        """Return 0: files are never stale."""
        return 0.0

    async def watch(self) -> AsyncGenerator[SourceUpdate, None]:
        """Yield everything once, then each change."""
        # asyncio and watchfiles are slow to import, and most commands read a folder once.
        import asyncio  # noqa: PLC0415

        from xds.mesh.sources.changes import change_events, wait_until_settled  # noqa: PLC0415

        await wait_until_settled(self._roots)
        update = await asyncio.to_thread(self.load)
        yield update
        async for _ in change_events(self._roots):
            unsettled = True
            while unsettled:
                was_complete, started_at = update.complete, time.monotonic()
                update = await asyncio.to_thread(self.load)
                if not update.empty or update.complete != was_complete:
                    yield update
                unsettled = update.unsettled
                if unsettled:
                    await asyncio.sleep(SETTLE_TIME)
                else:
                    self._read_at = started_at

    def _scan(self) -> tuple[dict[Path, _File], list[Problem], bool]:
        """Scan all files and read the changed ones. Return files, errors, and whether a file is unsettled."""
        known = self._files or {}
        files = dict(self._texts)
        scan_problems: list[Problem] = []
        unsettled = False
        now = time.time()
        for path, status in walk(self._roots):
            if isinstance(status, OSError):
                if path in self._roots and self._files is None:
                    raise status
                scan_problems.append(Problem(where=str(path), what=f"cannot be read: {status.strerror}"))
                files |= {below: file for below, file in known.items() if below.is_relative_to(path)}
                continue
            signature = (status.st_mtime_ns, status.st_ctime_ns, status.st_size, status.st_ino, status.st_dev)
            settled = is_settled(status, now)
            if path in known and known[path].signature == signature:
                files[path] = known[path]
            elif settled or not self._complete:
                files[path] = self._read_file(path, signature if settled else None, status.st_size)
            else:
                unsettled = True
                files |= {path: known[path]} if path in known else {}
        return files, scan_problems, unsettled

    def _read_file(self, path: Path, signature: Signature | None, size: int) -> _File:
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
            # The error may pass without a change to the file. Retry.
            problem = Problem(where=name, what=f"cannot be read: {error.strerror}")
            return _File(None, problems=(problem,), unreadable=True)
        return replace(self._parse(text, name, json=path.suffix == ".json"), signature=signature)

    def _parse(self, text: str, name: str, *, json: bool | None = None) -> _File:
        """Parse the documents of a text. The result contains its problems."""
        objects: list[Parsed] = []
        templates: list[FoundTemplate] = []
        problems = Problems(MAX_PROBLEMS)
        unreadable = False
        is_json = text.lstrip().startswith("{") if json is None else json
        for document in read_documents(text, name, json=is_json):
            if isinstance(document, Problem):
                problems.add([document])
                unreadable = True
                continue
            try:
                found = list(_templates(document)) if self._reads_workloads else []
                roots = [item.template.root for item in found if item.template.kind != "Pod"]
                parsed_objects = parse(document.value, document.locate, document.flaws, elsewhere=roots)
            except Exception as error:  # noqa: BLE001 - one document must not affect the others
                what = f"cannot be read: {type(error).__name__}: {error}"
                problems.add([Problem(where=document.locate(()), what=what, hint="please report this")])
                unreadable = True
                continue
            templates += found
            for parsed in parsed_objects:
                if parsed.ref or parsed.unenforced:
                    objects.append(parsed)
                else:
                    problems.add(parsed.problems)
                    unreadable |= parsed.refused
        return _File(None, tuple(objects), problems.listed(name), tuple(templates), unreadable)


def _templates(document: Document) -> Iterator[FoundTemplate]:
    """Yield the Pods and pod templates of a document."""
    for template in find_templates(document.value):
        depth = len(template.root)
        flaws = tuple(flaw for flaw in document.flaws if flaw[0][:depth] == template.root)
        yield FoundTemplate(template, document.locate, flaws)


def _blocking_problems(
    files: Mapping[Path, _File], scan_problems: Iterable[Problem], settings_problems: Iterable[Problem]
) -> tuple[Problem, ...]:
    """Return the problems of settings, files and documents that keep the source from being complete."""
    file_problems = (problem for file in files.values() if file.unreadable for problem in file.problems)
    return tuple(
        problem for problem in (*settings_problems, *scan_problems, *file_problems) if not problem.notice
    )


def _listed_problems(files: Mapping[Path, _File], facts: Mapping[Ref, _AppliedFact]) -> Iterator[Problem]:
    """Yield the problems of each file and its objects, with the effect of replacements."""
    for path, file in files.items():
        yield from file.problems
        problems = Problems(MAX_PROBLEMS)
        for parsed in file.objects:
            applied = facts.get(parsed.ref) if parsed.ref else None
            uses_replacement = applied and applied.is_replacement and applied.path == path
            described = parsed.with_replacement() if uses_replacement and parsed.refused else parsed
            uses_earlier = applied and parsed.refused and not applied.is_replacement
            problems.add(
                with_served_version(described.problems, applied.version)
                if applied and uses_earlier
                else described.problems
            )
        yield from problems.listed(str(path))


def _find_claims(files: Mapping[Path, _File]) -> _Claims:
    claims: _Claims = {}
    for path, file in files.items():
        for parsed in file.objects:
            if parsed.ref:
                claims.setdefault(parsed.ref, []).append((path, parsed))
    return claims


def _resolve(
    files: Mapping[Path, _File], claims: _Claims, before: Mapping[Ref, _AppliedFact]
) -> tuple[dict[Ref, _AppliedFact], Problems]:
    """Return the facts to use, and problems about duplicate or missing objects."""
    applied: dict[Ref, _AppliedFact] = {}
    problems = Problems(MAX_PROBLEMS)
    for ref, claimants in claims.items():
        last = before.get(ref)
        path, chosen = _choose(claimants, last)
        if chosen.refused and last and not last.is_replacement:
            applied[ref] = last
        elif fact := chosen.with_replacement().fact if chosen.refused else chosen.fact:
            applied[ref] = _AppliedFact(fact, path, chosen.refused, _written_at(files[path]))
        problems.add(
            Problem(
                where=parsed.origin,
                what=f"{ref} is also defined at {chosen.origin}; that definition is used",
                hint="delete or rename one of them",
            )
            for _, parsed in claimants
            if parsed is not chosen
        )
    suspect_paths = {path for path, file in files.items() if _may_hide_object(file, before)}
    for ref, last in before.items():
        if ref not in claims and last.path in suspect_paths:
            applied[ref] = last
            what = f"{ref} is missing, but stays in use until the whole file is valid"
            problems.add([Problem(where=str(last.path), what=what, notice=True)])
    return applied, problems


def _written_at(file: _File) -> str:
    """Return when a file was written; empty if it was being written when it was read."""
    if file.signature is None:
        return ""
    return datetime.fromtimestamp(file.signature[0] // 10**9, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _may_hide_object(file: _File, before: Mapping[Ref, _AppliedFact]) -> bool:
    """Whether part of a file may be a new, invalid version of an object that seems to be missing."""
    return file.unreadable or any(parsed.refused and parsed.ref not in before for parsed in file.objects)


def _choose(claimants: list[tuple[Path, Parsed]], before: _AppliedFact | None) -> tuple[Path, Parsed]:
    """Choose one of several objects with the same name.

    If a version is in use, prefer the object in the same file, then an object with the same content, then the
    first one. Otherwise, prefer a rejected policy that has a replacement, then a valid object.
    """

    def rank(claimant: tuple[Path, Parsed]) -> tuple[bool, bool]:
        path, parsed = claimant
        if before is None:
            # Fail closed: it is unknown which object was in use before.
            return parsed.replacement is None, parsed.fact is None
        return path != before.path, parsed.fact != before.fact

    return min(claimants, key=rank)
