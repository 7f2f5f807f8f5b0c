"""Finding files of manifests below folders."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path

SUFFIXES = (".yaml", ".yml", ".json")
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
    for path, status in Walk(map(str, roots)):
        if isinstance(status, OSError):
            raise status
        yield Path(path)


class Walk:
    """Iterates over the status of each file that is a root or below one, without duplicates.

    The files of a folder are sorted by name. If a file or folder cannot be read, its status is the error.
    Names that start with a dot are skipped: Kubernetes keeps versions of a mounted ConfigMap below `..data`,
    and programs that replace files atomically first write them under such a name.
    """

    def __init__(self, roots: Iterable[str]) -> None:
        self._roots = roots
        self._seen: set[tuple[int, int]] = set()
        self.has_links = False
        """Whether a file has several names, or a name that was not skipped is a symbolic link."""

    def __iter__(self) -> Iterator[tuple[str, os.stat_result | OSError]]:
        for root in self._roots:
            try:
                status = Path(root).stat()
            except OSError as error:
                yield root, error
                continue
            if stat.S_ISDIR(status.st_mode):
                yield from self._walk_folder(root)
            elif (status.st_dev, status.st_ino) not in self._seen:
                self._seen.add((status.st_dev, status.st_ino))
                yield root, status

    def _walk_folder(self, folder: str) -> Iterator[tuple[str, os.stat_result | OSError]]:
        try:
            with os.scandir(folder) as listing:
                entries = sorted(listing, key=lambda entry: entry.name)
        except OSError as error:
            yield folder, error
            return
        for entry in entries:
            name = entry.name
            is_manifest = name.endswith(SUFFIXES)
            # A path below the folder `.` has no prefix, as in pathlib.
            path = name if folder == "." else entry.path
            try:
                if name.startswith(".") or not (is_manifest or entry.is_symlink() or entry.is_dir()):
                    continue
                self.has_links |= entry.is_symlink()
                status = entry.stat()
            except OSError as error:
                if is_manifest and (Path(path).is_symlink() or not isinstance(error, FileNotFoundError)):
                    yield path, error
                continue
            identity = (status.st_dev, status.st_ino)
            if identity in self._seen:
                continue
            if stat.S_ISDIR(status.st_mode):
                self._seen.add(identity)
                yield from self._walk_folder(path)
            elif stat.S_ISREG(status.st_mode) and is_manifest:
                self._seen.add(identity)
                self.has_links |= status.st_nlink > 1
                yield path, status


def is_skipped(path: str, roots: Iterable[str]) -> bool:
    """Whether `Walk` skips an existing or deleted file because of its name.

    False if it may be a folder: deleting or moving a folder affects all files below it.
    """
    for root in roots:
        folder = "" if root == "." else root.rstrip("/") + "/"
        below = path[len(folder) :] if path.startswith(folder) else ""
        if below.startswith(".") or "/." in below:
            return True
    try:
        return stat.S_ISREG(os.lstat(path).st_mode) and not path.endswith(SUFFIXES)
    except OSError:
        return False


def regular_file_status(path: str) -> os.stat_result | None:
    """Return the status of a file; None if it is missing, a symbolic link, or has several names."""
    try:
        status = os.lstat(path)
    except OSError:
        return None
    return status if stat.S_ISREG(status.st_mode) and status.st_nlink == 1 else None
