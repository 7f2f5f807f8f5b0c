"""Source of objects from folders of manifests.

A `Folder` is read repeatedly, and each update contains only differences. An error is reported once, with file
and line, and the last valid version of the object stays in use. A policy without a valid version is STRICT.

The source yields no objects before it has read the settings and every file, and can identify the object of
every document. An unreadable document may be the policy that makes the mesh STRICT (ADR 0017).
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import AsyncGenerator, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from math import inf
from pathlib import Path
from typing import NamedTuple

from xds.mesh.inject.kinds import find_targets, find_templates
from xds.mesh.inject.workloads import FoundTemplate, expected_pods, stopped_pods
from xds.mesh.model.names import join_names
from xds.mesh.model.objects import Change, MeshConfig, Namespace, Problem, Ref
from xds.mesh.parse import CALLER_KINDS, DEFAULT_NAMESPACE, Parsed, parse
from xds.mesh.parse.problems import Problems
from xds.mesh.sources.definitions import MAX_PROBLEMS, Definitions, File, Signature
from xds.mesh.sources.documents import Document, read_documents
from xds.mesh.sources.report import ReadObject, SourceUpdate, problems_not_in
from xds.mesh.sources.scan import (
    RESCAN_INTERVAL,
    SETTLE_TIME,
    Walk,
    is_settled,
    is_skipped,
    regular_file_status,
)
from xds.mesh.sources.settings import SettingsLoader

MAX_FILE_SIZE = 32 * 2**20
"""Maximum size of a file, in bytes."""
MAX_REASONS = 10
"""Maximum number of problems in the response of /ready, which must not grow with the folder."""
MAX_RESCAN_SHARE = 0.02
"""Maximum share of a core's time for scans without events. Scans of large folders are less frequent."""


class Text(NamedTuple):
    """Manifests that are not in a file, such as those on standard input."""

    name: str
    """Name in place of a file name, such as `stdin`."""
    text: str
    """YAML or JSON."""


_MAX_NAMES = 3
"""Maximum number of files, objects or kinds that a problem names."""


class Folder:
    """All facts below folders, and the settings of the mesh.

    Args:
        roots: a folder, or several folders and files.
        settings: loader of the mesh's settings.
        texts: manifests that are not in a file.
        reads_workloads: whether to read pod templates for `expected_pods`. Otherwise, workloads are ignored.
        default_namespace: namespace of objects that do not specify one, as of `kubectl apply -n`; empty for
            `default`, with a notice.
        ignored_kinds: kinds that are handled elsewhere (`parse`). Their objects are only counted.
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
        default_namespace: str = "",
        ignored_kinds: Collection[str] = (),
    ) -> None:
        self._roots = (str(roots),) if isinstance(roots, Path) else tuple(map(str, roots))
        self._settings = settings or SettingsLoader()
        self._reads_workloads = reads_workloads
        self._default_namespace = default_namespace
        self._ignored_kinds = ignored_kinds
        self._texts = {name: self._parse(text, name) for name, text in texts}
        self._config: MeshConfig | None = None
        self._definitions = Definitions()
        self._complete = False
        self._blocking_problems: tuple[Problem, ...] = ()
        """Problems that keep the source from being complete."""
        self._object_problems: tuple[Problem, ...] = ()
        self._problems: tuple[Problem, ...] = ()
        self._scan_problems: list[Problem] | None = None
        """Problems of the last scan of all files; None before the first scan."""
        self._has_links = False
        """Whether the last scan of all files found symbolic links or hard links."""
        self._unsettled: frozenset[str] = frozenset()
        """Files that were being written, and must be read again soon."""
        self._read_at = -inf
        """When the last complete scan started whose changes were yielded, in seconds of `time.monotonic`."""
        self._is_scan_requested = False
        """Whether somebody waits for a complete scan."""
        self.files_read = 0
        """Number of times that a file was read."""

    def load(self, events: Mapping[str, bool] | None = None) -> SourceUpdate:
        """Read the changes since the last call. The first call reads everything; the folder must exist.

        Args:
            events: paths that may have changed, from `change_events`; None to scan all files.
        """
        files = self._scan_events(events) if events is not None else None
        if files is None:
            files = self._scan()
        scan_problems = self._scan_problems or ()
        config, settings_problems = self._settings.load()
        self._definitions.replace_files(files)
        self._blocking_problems = (
            ()
            if self._complete
            else _blocking_problems(files, scan_problems, settings_problems if config is None else ())
        )
        if self._blocking_problems:
            return self._make_update(
                Change(),
                (*settings_problems, *scan_problems, *self._definitions.unresolved_problems()),
            )
        change = self._definitions.resolve()
        if change is not None:
            self._object_problems = tuple(self._definitions.problems(", ".join(self._roots)))
        self._complete = True
        change = replace(change or Change(), config=config if config != self._config else None)
        self._config = config
        return self._make_update(change, (*settings_problems, *scan_problems, *self._object_problems))

    def _make_update(self, change: Change, problems: tuple[Problem, ...]) -> SourceUpdate:
        known, self._problems = self._problems, problems
        new, solved = problems_not_in(problems, known), problems_not_in(known, problems)
        return SourceUpdate(change, new, solved, bool(self._unsettled), self._complete)

    def expected_pods(
        self, namespaces: Iterable[Namespace] = (), changed: Iterable[Namespace] = ()
    ) -> tuple[Parsed, ...]:
        """Return a pod for each workload whose pods are not in the manifests, or its problems.

        Call it after `load` has returned a complete update.

        Args:
            namespaces: Namespaces that are not in the manifests.
            changed: Namespaces that replace those in the manifests.
        """
        facts = (applied.fact for applied in self._definitions.applied.values())
        own = (fact for fact in facts if isinstance(fact, Namespace))
        labels = {namespace.name: namespace.meta.labels for namespace in (*namespaces, *own, *changed)}
        targets = {ref for _, ref in self._targets}
        return tuple(expected_pods(self._all_templates, labels, self._config or MeshConfig(), targets))

    @property
    def stopped_pods(self) -> tuple[Ref, ...]:
        """Names of the pods that workloads which are scaled to 0 or suspended would have."""
        return tuple(stopped_pods(self._all_templates, {ref for _, ref in self._targets}))

    @property
    def skipped(self) -> Iterator[Problem]:
        """A notice if documents were skipped, and one if objects were ignored."""
        if skipped := {path: file.skipped for path, file in self._definitions.files.items() if file.skipped}:
            names = join_names(skipped, _MAX_NAMES)
            what = f"documents without apiVersion and kind are skipped ({sum(skipped.values())}): {names}"
            yield Problem(where=", ".join(self._roots), what=what, notice=True)
        ignored = sum((file.ignored for file in self._definitions.files.values()), Counter[str]())
        if ignored:
            counts = ", ".join(f"{count:,} {kind}" for kind, count in ignored.most_common())
            yield Problem(where=self._where, what=f"ignored: {counts}", notice=True)

    @property
    def unused_names(self) -> Iterator[Problem]:
        """A notice for each name of an ignored kind of which there is no object."""
        files = self._definitions.files.values()
        used = frozenset[str]().union(*(file.ignored_names for file in files))
        for name in self._ignored_kinds:
            if name not in used:
                what = f"--ignore-kind {name} has no effect: no object is of this kind"
                hint = "write the kind or its plural, such as VirtualService or virtualservices"
                yield Problem(where=self._where, what=what, hint=hint, notice=True)

    @property
    def unknown_kinds(self) -> str:
        """Number of objects of each kind that is not read, and may create pods or call Services."""
        files = self._definitions.files.values()
        counts = sum((file.not_considered for file in files), Counter[str]())
        workloads = {template.ref for template in self._all_templates}
        # An object that runs a known workload is considered with it.
        counts -= Counter(kind for kind, ref in self._targets if ref in workloads)
        names = [f"{count:,} {kind}" for kind, count in counts.most_common(_MAX_NAMES)]
        if others := counts.total() - sum(count for _, count in counts.most_common(_MAX_NAMES)):
            names.append(f"{others:,} of other kinds")
        return ", ".join(names)

    @property
    def _where(self) -> str:
        return ", ".join((*self._roots, *self._texts))

    @property
    def _targets(self) -> list[tuple[str, Ref]]:
        return [target for file in self._definitions.files.values() for target in file.targets]

    @property
    def _all_templates(self) -> list[FoundTemplate]:
        return [template for file in self._definitions.files.values() for template in file.templates]

    @property
    def rejected(self) -> list[str]:
        """Names of the objects that are invalid, as of the last load. Workloads are not among them."""
        objects = (parsed for file in self._definitions.files.values() for parsed in file.objects)
        return [str(parsed.ref) for parsed in objects if parsed.refused]

    def has_unusable_objects(self, namespaces: Iterable[Namespace] = ()) -> bool:
        """Whether an object is invalid or defined twice, or a workload is invalid, as of the last load.

        Args:
            namespaces: Namespaces that are not in the manifests.
        """
        objects = [parsed for file in self._definitions.files.values() for parsed in file.objects]
        refs = [parsed.ref for parsed in objects if parsed.ref and parsed.ref.kind not in CALLER_KINDS]
        invalid = any(parsed.refused for parsed in (*objects, *self.expected_pods(namespaces)))
        return invalid or len(refs) > len(set(refs))

    @property
    def is_empty(self) -> bool:
        """Whether the last load found no file."""
        return not self._definitions.files

    @property
    def problems(self) -> tuple[Problem, ...]:
        """Current problems."""
        return self._problems

    @property
    def unenforced(self) -> Mapping[str, int]:
        """Number of objects of each kind that is not enforced."""
        files = self._definitions.files.values()
        return Counter(parsed.unenforced for file in files for parsed in file.objects if parsed.unenforced)

    def read_object(self, ref: Ref) -> ReadObject | None:
        """Return an object as it was last read; None if it does not exist."""
        return self._definitions.read_object(ref)

    def is_current(self, since: float) -> bool:
        """Return whether all files were read after a time of `time.monotonic`. If not, scan them soon."""
        self._is_scan_requested |= self._read_at < since
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
        rescan_at = 0.0
        async for events in change_events(self._roots):
            started_at = time.monotonic()
            is_rescan = started_at >= rescan_at or self._is_scan_requested
            if not (is_rescan or events):
                continue
            if is_rescan:
                self._is_scan_requested = False
            was_complete = update.complete
            update = await asyncio.to_thread(self.load, None if is_rescan else events)
            duration = time.monotonic() - started_at
            if is_rescan:
                rescan_at = started_at + max(RESCAN_INTERVAL, duration / MAX_RESCAN_SHARE)
            if not update.empty or update.complete != was_complete:
                yield update
            if update.unsettled:
                await asyncio.sleep(SETTLE_TIME)
                update = await asyncio.to_thread(self.load, {})
                if not update.empty:
                    yield update
            if is_rescan and not update.unsettled:
                self._read_at = started_at

    def _scan_events(self, events: Mapping[str, bool]) -> Mapping[str, File] | None:
        """Read the changed ones of some files. Return all files, or None if a scan of all files is necessary.

        It is necessary if folders, symbolic links, hard links or new files may be concerned.
        """
        known = self._definitions.files
        if not self._complete or self._scan_problems or self._has_links:
            return None
        files: dict[str, File] | None = None
        unsettled: set[str] = set()
        now = time.time()
        for path in events.keys() | self._unsettled:
            if path not in known:
                if not is_skipped(path, self._roots):
                    return None
                continue
            status = regular_file_status(path)
            if status is None:
                return None
            old, signature = known[path].signature, _signature(status)
            if signature == old:
                continue
            # Another file that was moved here is complete, unless it was written after that.
            is_replaced = events.get(path, False) and old is not None and signature[-2:] != old[-2:]
            if is_replaced or is_settled(status, now):
                files = files or {**known}
                files[path] = self._read_file(path, signature, status.st_size)
            else:
                unsettled.add(path)
        self._unsettled = frozenset(unsettled)
        return files or known

    def _scan(self) -> Mapping[str, File]:
        """Scan all files, and read the changed ones."""
        known = self._definitions.files
        files = dict(self._texts)
        scan_problems: list[Problem] = []
        unsettled: set[str] = set()
        now = time.time()
        walk = Walk(self._roots)
        for path, status in walk:
            if isinstance(status, OSError):
                if path in self._roots and self._scan_problems is None:
                    raise status
                scan_problems.append(Problem(where=path, what=f"cannot be read: {status.strerror}"))
                below = f"{path}/"
                files |= {
                    name: file for name, file in known.items() if name == path or name.startswith(below)
                }
                continue
            signature = _signature(status)
            settled = is_settled(status, now)
            if path in known and known[path].signature == signature:
                files[path] = known[path]
            elif settled or not self._complete:
                files[path] = self._read_file(path, signature if settled else None, status.st_size)
            else:
                unsettled.add(path)
                files |= {path: known[path]} if path in known else {}
        self._scan_problems, self._has_links = scan_problems, walk.has_links
        self._unsettled = frozenset(unsettled)
        return files

    def _read_file(self, name: str, signature: Signature | None, size: int) -> File:
        """Read a file. The result contains its problems."""
        self.files_read += 1
        if size > MAX_FILE_SIZE:
            problem = Problem(where=name, what=f"is larger than {MAX_FILE_SIZE >> 20} MiB and is not read")
            return File(signature, problems=(problem,), unreadable=True)
        try:
            data = Path(name).read_bytes()
            text = data.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            line = data.count(b"\n", 0, error.start) + 1
            problem = Problem(where=f"{name}:{line}", what="is not UTF-8 text", hint="save it as UTF-8")
            return File(signature, problems=(problem,), unreadable=True)
        except OSError as error:
            # The error may pass without a change to the file. Retry.
            problem = Problem(where=name, what=f"cannot be read: {error.strerror}")
            return File(None, problems=(problem,), unreadable=True)
        # A file that the user names must contain objects. A repository also contains other files.
        skips_others = self._reads_workloads and name not in self._roots
        file = self._parse(text, name, json=name.endswith(".json"), skips_others=skips_others)
        return replace(file, signature=signature)

    def _parse(self, text: str, name: str, *, json: bool | None = None, skips_others: bool = False) -> File:
        """Parse the documents of a text. The result contains its problems."""
        default_namespace = self._default_namespace or DEFAULT_NAMESPACE
        objects: list[Parsed] = []
        in_default: list[str] = []
        ignored = Counter[str]()
        templates: list[FoundTemplate] = []
        targets: list[tuple[str, Ref]] = []
        not_considered = Counter[str]()
        ignored_names = set[str]()
        problems = Problems(MAX_PROBLEMS)
        unreadable, skipped = False, 0
        is_json = text.lstrip().startswith("{") if json is None else json
        for document in read_documents(text, name, json=is_json):
            if isinstance(document, Problem):
                problems.add([document])
                unreadable = True
                continue
            if skips_others and _is_no_object(document.value):
                skipped += 1
                continue
            try:
                found = list(_templates(document, default_namespace)) if self._reads_workloads else []
                tests = [item.template for item in found if item.is_helm_test]
                found = [item for item in found if not item.is_helm_test]
                workloads = [item for item in found if item.template.kind != "Pod"]
                parsed_objects = parse(
                    document.value,
                    document.locate,
                    document.flaws,
                    elsewhere=[
                        template.root for template in (*tests, *(item.template for item in workloads))
                    ],
                    default_namespace=default_namespace,
                    ignored_kinds=self._ignored_kinds,
                )
            except Exception as error:  # noqa: BLE001 - one document must not affect the others
                what = f"cannot be read: {type(error).__name__}: {error}"
                problems.add([Problem(where=document.locate(()), what=what, hint="please report this")])
                unreadable = True
                continue
            templates += found
            in_default += (document.locate(item.template.root) for item in workloads if item.is_in_default)
            for by, kind, namespace, target in find_targets(document.value) if self._reads_workloads else ():
                targets.append((by, Ref(kind, namespace or default_namespace, target)))
            for parsed in parsed_objects:
                if parsed.not_considered and self._reads_workloads:
                    not_considered[parsed.not_considered] += 1
                elif parsed.ref or parsed.unenforced:
                    objects.append(parsed)
                else:
                    problems.add(parsed.problems)
                    unreadable |= parsed.refused
            in_default += (parsed.origin for parsed in parsed_objects if parsed.is_in_default)
            ignored.update(f"{template.kind} of helm test" for template in tests)
            ignored.update(parsed.ignored for parsed in parsed_objects if parsed.ignored)
            ignored_names.update(parsed.ignored_name for parsed in parsed_objects if parsed.ignored)
        if in_default and not self._default_namespace:
            what = f"objects without metadata.namespace are in namespace default ({len(in_default):,})"
            problems.add([Problem(where=in_default[0], what=what, notice=True)])
        return File(
            signature=None,
            objects=tuple(objects),
            problems=problems.listed(name),
            templates=tuple(templates),
            targets=tuple(targets),
            not_considered=not_considered,
            unreadable=unreadable,
            skipped=skipped,
            ignored=ignored,
            ignored_names=frozenset(ignored_names),
        )


def _is_no_object(value: object) -> bool:
    """Whether a document cannot be meant as a Kubernetes object: Helm's values, and other data."""
    if isinstance(value, list):
        return all(map(_is_no_object, value))
    names = {str(name).lower() for name in value} if isinstance(value, Mapping) else set[str]()
    return names.isdisjoint(("apiversion", "kind", "metadata", "spec"))


def _templates(document: Document, default_namespace: str) -> Iterator[FoundTemplate]:
    """Yield the Pods and pod templates of a document."""
    for template in find_templates(document.value):
        depth = len(template.root)
        flaws = tuple(flaw for flaw in document.flaws if flaw[0][:depth] == template.root)
        in_namespace = template._replace(namespace=template.namespace or default_namespace)
        yield FoundTemplate(in_namespace, document.locate, flaws, is_in_default=not template.namespace)


def _blocking_problems(
    files: Mapping[str, File], scan_problems: Iterable[Problem], settings_problems: Iterable[Problem]
) -> tuple[Problem, ...]:
    """Return the problems of settings, files and documents that keep the source from being complete."""
    file_problems = (problem for file in files.values() if file.unreadable for problem in file.problems)
    return tuple(
        problem for problem in (*settings_problems, *scan_problems, *file_problems) if not problem.notice
    )


def _signature(status: os.stat_result) -> Signature:
    return status.st_mtime_ns, status.st_ctime_ns, status.st_size, status.st_ino, status.st_dev
