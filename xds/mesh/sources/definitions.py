"""Definitions of objects in files, and which of them is in use.

An object can be defined several times, its file can be invalid, and its last valid version then stays in use.
The cost of a change depends on the changed files, not on the number of all files.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import NamedTuple, TypeAlias, assert_never

from xds.mesh.inject.workloads import FoundTemplate
from xds.mesh.model.authorization import Action, Rule
from xds.mesh.model.objects import (
    AuthorizationPolicy,
    CallerFact,
    Change,
    DestinationRule,
    Endpoints,
    Fact,
    Mode,
    ModePolicy,
    Namespace,
    Pod,
    Problem,
    Ref,
    Service,
    ServiceAccount,
    ServiceEntry,
    Sidecar,
    UnknownService,
)
from xds.mesh.parse import CALLER_KINDS, Parsed
from xds.mesh.parse.problems import Problems
from xds.mesh.sources.report import ReadObject, rejection_of, with_served_version

MAX_PROBLEMS = 100
"""Maximum number of problems, and of notices, per file; also of duplicate names in the folder."""

Signature: TypeAlias = tuple[int, ...]
"""Times, size and identity of a file, to detect changes."""


@dataclass(frozen=True, slots=True)
class File:
    """A file as it was last read."""

    signature: Signature | None
    """Signature of the file; None to read it again at the next scan."""
    objects: tuple[Parsed, ...] = ()
    """Objects with a name, and objects of kinds that are not enforced."""
    problems: tuple[Problem, ...] = ()
    """Problems of the file, its documents and its unnamed objects, limited by `MAX_PROBLEMS`."""
    templates: tuple[FoundTemplate, ...] = ()
    """Pods and pod templates; empty unless the source reads workloads."""
    targets: tuple[tuple[str, Ref], ...] = ()
    """Workloads that other objects run, with the kinds of these; empty unless the source reads workloads."""
    not_considered: Counter[str] = field(default_factory=Counter)
    """Number of objects of each kind that is not read and may matter; empty unless workloads are read."""
    unreadable: bool = False
    """Whether some part could not be attributed to an object, so that an object may seem to be missing."""
    skipped: int = 0
    """Number of documents that are no Kubernetes objects and were skipped."""
    ignored: Counter[str] = field(default_factory=Counter)
    """Number of objects of each kind that the caller ignores."""
    ignored_names: frozenset[str] = frozenset()
    """Names by which the caller ignores these kinds."""

    @property
    def written_at(self) -> str:
        """Time when the file was written; empty if it was being written when it was read."""
        if self.signature is None:
            return ""
        return datetime.fromtimestamp(self.signature[0] // 10**9, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


class AppliedFact(NamedTuple):
    """A fact in use."""

    fact: Fact
    """The fact."""
    path: str
    """File of the object."""
    is_replacement: bool = False
    """Whether the fact replaces a rejected object. It is then not a version to fall back to."""
    version: str = ""
    """Time when the file of the fact was written."""


_Claim: TypeAlias = tuple[str, Parsed]
"""A definition of an object, with its file."""


class Definitions:
    """The definitions of all objects, and the facts in use.

    Other threads may look up objects during an update.
    """

    def __init__(self) -> None:
        self.files: Mapping[str, File] = {}
        """All files by path, in the order of the last scan."""
        self.applied: dict[Ref, AppliedFact] = {}
        """Facts in use."""
        self._claims: dict[Ref, list[_Claim]] = {}
        """All definitions of each object, in the order of the files."""
        self._changed_paths: dict[str, None] = {}
        """Files that changed since the last call of `resolve`."""
        self._changed_refs: dict[Ref, None] = {}
        """Objects whose definitions changed since the last call of `resolve`."""
        self._file_problems: dict[str, tuple[Problem, ...]] = {}
        """Problems of the files that have any."""
        self._duplicates: dict[Ref, tuple[Problem, ...]] = {}
        """Problems of the objects that have several definitions."""
        self._missing: dict[Ref, Problem] = {}
        """Objects without a definition that stay in use until a whole file is valid."""

    def replace_files(self, files: Mapping[str, File]) -> None:
        """Replace all files. Only the new, changed and deleted ones cost time."""
        old = self.files
        changed: dict[str, tuple[File | None, File | None]] = {
            path: (old.get(path), file) for path, file in files.items() if old.get(path) is not file
        }
        changed |= {path: (file, None) for path, file in old.items() if path not in files}
        self.files = files
        if not changed:
            return
        claims: dict[Ref, list[_Claim]] = {}
        for path, versions in changed.items():
            for file in filter(None, versions):
                for parsed in file.objects:
                    if parsed.ref is None:
                        continue
                    if parsed.ref not in claims:
                        unchanged = self._claims.get(parsed.ref, ())
                        claims[parsed.ref] = [claim for claim in unchanged if claim[0] not in changed]
                    if file is versions[1]:
                        claims[parsed.ref].append((path, parsed))
        position: dict[str, int] = {}
        for ref, claimants in claims.items():
            if len(claimants) > 1:
                position = position or {path: number for number, path in enumerate(files)}
                claimants.sort(key=lambda claim: position[claim[0]])
            if claimants:
                self._claims[ref] = claimants
            else:
                del self._claims[ref]
        self._changed_paths |= dict.fromkeys(changed)
        self._changed_refs |= dict.fromkeys(claims)

    def resolve(self) -> Change | None:
        """Choose the facts to use. Return the differences from the last call; None if no file has changed."""
        if not self._changed_paths:
            return None
        before = self.applied
        refs = self._changed_refs | dict.fromkeys(self._missing)
        may_hide: dict[str, bool] = {}
        resolved = {ref: self._resolve(ref, before.get(ref), may_hide) for ref in refs}
        applied: list[Fact] = []
        removed: list[Ref] = []
        paths = self._changed_paths
        for ref, new in resolved.items():
            old = before.get(ref)
            if new:
                before[ref] = new
                if not old or old.fact != new.fact:
                    applied.append(new.fact)
            elif old:
                del before[ref]
                removed.append(old.fact.ref)
            if new is not old:
                # A problem of a rejected object says which version is in use.
                paths |= dict.fromkeys(path for path, _ in self._claims.get(ref, ()))
        for path in paths:
            problems = self._problems_in(path, self.applied)
            if problems:
                self._file_problems[path] = problems
            else:
                self._file_problems.pop(path, None)
        self._changed_paths, self._changed_refs = {}, {}
        return Change(applied=tuple(applied), removed=tuple(removed))

    def _resolve(self, ref: Ref, last: AppliedFact | None, may_hide: dict[str, bool]) -> AppliedFact | None:
        """Return the fact to use for an object, and record problems about duplicates or a missing object.

        `may_hide` caches whether a file may hide an object.
        """
        claimants = self._claims.get(ref)
        self._missing.pop(ref, None)
        if claimants is None:
            self._duplicates.pop(ref, None)
            if last is None:
                return None
            if last.path not in may_hide:
                may_hide[last.path] = self._may_hide_object(last.path)
            if not may_hide[last.path]:
                return None
            what = f"{ref} is missing, but stays in use until the whole file is valid"
            self._missing[ref] = Problem(where=last.path, what=what, notice=True)
            return last
        path, chosen = _choose(claimants, last)
        if len(claimants) == 1:
            self._duplicates.pop(ref, None)
        else:
            self._duplicates[ref] = tuple(
                Problem(
                    where=parsed.origin,
                    what=f"{ref} is also defined at {chosen.origin}; that definition is used",
                    hint="delete or rename one of them",
                    notice=ref.kind in CALLER_KINDS,  # Patches of kustomize repeat their names.
                )
                for _, parsed in claimants
                if parsed is not chosen
            )
        if chosen.refused and last and not last.is_replacement:
            return last
        fact = chosen.with_replacement().fact if chosen.refused else chosen.fact
        return AppliedFact(fact, path, chosen.refused, self.files[path].written_at) if fact else None

    def _may_hide_object(self, path: str) -> bool:
        """Whether part of a file may be a new, invalid version of an object that seems to be missing."""
        file = self.files.get(path)
        if file is None:
            return False
        new = (parsed for parsed in file.objects if parsed.ref not in self.applied)
        return file.unreadable or any(parsed.refused for parsed in new)

    def problems(self, where: str) -> Iterator[Problem]:
        """Yield the problems of all files, and those of duplicate or missing objects, as of `resolve`.

        Args:
            where: place of a summary, if there are too many duplicates.
        """
        for path in self.files if self._file_problems else ():
            yield from self._file_problems.get(path, ())
        problems = Problems(MAX_PROBLEMS)
        for duplicates in self._duplicates.values():
            problems.add(duplicates)
        problems.add(self._missing.values())
        yield from problems.listed(where)

    def unresolved_problems(self) -> Iterator[Problem]:
        """Yield the problems of all files while no object is in use."""
        for path in self.files:
            yield from self._problems_in(path, {})

    def _problems_in(self, path: str, facts: Mapping[Ref, AppliedFact]) -> tuple[Problem, ...]:
        """Return the problems of a file and its objects, with the effect of replacements."""
        file = self.files.get(path)
        if file is None:
            return ()
        problems = Problems(MAX_PROBLEMS)
        for parsed in file.objects:
            if not parsed.problems:
                continue
            applied = facts.get(parsed.ref) if parsed.ref else None
            uses_replacement = applied and applied.is_replacement and applied.path == path
            described = parsed.with_replacement() if uses_replacement and parsed.refused else parsed
            uses_earlier = applied and parsed.refused and not applied.is_replacement
            problems.add(
                with_served_version(described.problems, applied.version)
                if applied and uses_earlier
                else described.problems
            )
        return (*file.problems, *problems.listed(path))

    def read_object(self, ref: Ref) -> ReadObject | None:
        """Return an object as it was last read; None if it does not exist."""
        claimants, applied = self._claims.get(ref), self.applied.get(ref)
        if not claimants:
            return self._read_missing(applied) if applied else None
        _, chosen = _choose(claimants, applied)
        rejection = rejection_of(chosen.problems) if chosen.refused else None
        return ReadObject(applied.fact if applied else None, rejection=rejection)

    def _read_missing(self, applied: AppliedFact) -> ReadObject | None:
        """Return an object that stays in use because its file is invalid, and the problem of the file."""
        file = self.files.get(applied.path)
        if file is None:
            return None
        refused = (problem for parsed in file.objects if parsed.refused for problem in parsed.problems)
        return ReadObject(applied.fact, rejection=rejection_of((*file.problems, *refused)))


def _choose(claimants: list[_Claim], before: AppliedFact | None) -> _Claim:
    """Choose one of several objects with the same name.

    If a version is in use, prefer the object in the same file, then an object with the same content, then the
    first one. Otherwise, prefer a rejected policy that has a replacement, then a valid object, then the
    strictest policy.
    """
    if len(claimants) == 1:
        return claimants[0]

    def rank(claim: _Claim) -> tuple[int, ...]:
        path, parsed = claim
        if before is None:
            # Fail closed: it is unknown which object was in use before.
            return parsed.replacement is None, parsed.fact is None, *_leniency(parsed.fact)
        return path != before.path, parsed.fact != before.fact

    return min(claimants, key=rank)


def _leniency(fact: Fact | None) -> tuple[int, bool]:
    """Return how much a policy accepts at most, and whether it is for some workloads or services only."""
    match fact:
        case ModePolicy():
            mode = fact.mode or Mode.PERMISSIVE
            modes = [mode, *(each or mode for each in fact.ports.values())]
            is_narrow = bool(fact.selector or fact.targets)
        case AuthorizationPolicy():
            # ALLOW denies all other requests.
            order = (Action.ALLOW, Action.DENY, Action.CUSTOM, Action.AUDIT)
            is_open = fact.dry_run or (fact.action is Action.ALLOW and Rule() in fact.rules)
            return len(order) * is_open + order.index(fact.action), bool(fact.selector)
        case Sidecar():
            # Unless it is REGISTRY_ONLY, clients send plaintext to services that they do not see.
            hides = fact.hosts != Sidecar(meta=fact.meta).hosts
            openness = (False, None, True).index(fact.allow_any_outbound)
            return 2 * openness + (hides and openness > 0), bool(fact.selector)
        case (
            None
            | Namespace()
            | ServiceAccount()
            | Service()
            | UnknownService()
            | Pod()
            | Endpoints()
            | ServiceEntry()
            | DestinationRule()
            | CallerFact()
        ):
            return 0, False
        case _:
            assert_never(fact)
    return max(map((Mode.STRICT, Mode.PERMISSIVE, Mode.DISABLE).index, modes)), is_narrow
