"""Finding files of manifests below folders."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path

SUFFIXES = frozenset({".yaml", ".yml", ".json"})
SETTLE_TIME = 0.05
"""Seconds without a write before a file is read, because it may be written in parts."""
RESCAN_INTERVAL = 0.5
"""Seconds between scans, for changes that cause no events (network file systems, links to other folders)."""


def is_settled(status: os.stat_result, now: float) -> bool:
    """Whether the last write to a file is at least SETTLE_TIME ago.

    A file with a modification time in the future counts as settled.
    """
    return not 0 <= now - status.st_mtime < SETTLE_TIME


def manifest_files(roots: Iterable[Path]) -> Iterator[Path]:
    """Yield each file that is a root or below one. Raises OSError if a folder cannot be read."""
    for path, status in walk(roots):
        if isinstance(status, OSError):
            raise status
        yield path


def walk(roots: Iterable[Path]) -> Iterator[tuple[Path, os.stat_result | OSError]]:
    """Yield the status of each file that is a root or below one, without duplicates."""
    seen: set[tuple[int, int]] = set()
    for root in roots:
        try:
            status = root.stat()
        except OSError as error:
            yield root, error
            continue
        if stat.S_ISDIR(status.st_mode):
            yield from _walk_folder(root, seen)
        elif (status.st_dev, status.st_ino) not in seen:
            seen.add((status.st_dev, status.st_ino))
            yield root, status


def _walk_folder(folder: Path, seen: set[tuple[int, int]]) -> Iterator[tuple[Path, os.stat_result | OSError]]:
    """Yield the status of each file below a folder, sorted by name, or the error that prevents reading it.

    No file is yielded twice. Names that start with a dot are skipped: Kubernetes keeps versions of a mounted
    ConfigMap below `..data`, and programs that replace files atomically first write them under such a name.
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
            status = entry.stat()
        except OSError as error:
            if path.suffix in SUFFIXES and (entry.is_symlink() or not isinstance(error, FileNotFoundError)):
                yield path, error
            continue
        identity = (status.st_dev, status.st_ino)
        if identity in seen:
            continue
        if stat.S_ISDIR(status.st_mode):
            seen.add(identity)
            yield from _walk_folder(path, seen)
        elif stat.S_ISREG(status.st_mode) and path.suffix in SUFFIXES:
            seen.add(identity)
            yield path, status
