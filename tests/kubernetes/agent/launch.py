"""Become a container's process: `python launch.py FILE [COMMAND ...]`, already in the pod's network.

FILE describes the mounts and the process. With a command, run that instead, as kubelet's exec does.

This program must not import anything of the project: its mounts may hide it.
"""

from __future__ import annotations

import ctypes
import json
import os
import socket
import sys
from pathlib import Path

_BIND, _REC, _PRIVATE, _RDONLY, _REMOUNT = 0x1000, 0x4000, 1 << 18, 0x1, 0x20
_NEWUTS, _NEWNS = 0x04000000, 0x00020000
_RUN = Path("/run")
_libc = ctypes.CDLL(None, use_errno=True)


def main() -> None:
    """Make the mounts, set the user, and execute the command."""
    config = json.loads(Path(sys.argv[1]).read_text())
    _checked(_libc.unshare(_NEWUTS | _NEWNS), "unshare")
    socket.sethostname(config["hostname"])
    _mount(None, "/", _REC | _PRIVATE)
    sources = [os.open(source, os.O_PATH) for source, *_ in config["mounts"]]
    # The pod's own /run, for mounts such as tokens.
    _mount("tmpfs", "/run", 0, "tmpfs")
    for source, (_, target, read_only) in zip(sources, config["mounts"], strict=True):
        at = Path(target)
        if not at.exists():
            _make(at, directory=Path(f"/proc/self/fd/{source}").is_dir())
        _mount(f"/proc/self/fd/{source}", target, _BIND)
        if read_only:
            _mount(None, target, _BIND | _REMOUNT | _RDONLY)
    if config["read_only"]:
        _mount(None, "/", _BIND | _REMOUNT | _RDONLY)
    os.chdir("/")
    argv = [*config["become"], *(sys.argv[2:] or config["argv"])]
    os.execvpe(argv[0], argv, config["environment"])


def _make(at: Path, *, directory: bool) -> None:
    """Make a mount point without changing this machine: outside /run, a copy covers its folder."""
    if not at.resolve().is_relative_to(_RUN):
        above = next(parent for parent in at.parents if parent.exists())
        assert above != Path("/"), f"{at} would have to be made in /"
        upper, work = (_RUN / f"cover{above}/{name}" for name in ("upper", "work"))
        upper.mkdir(parents=True)
        work.mkdir()
        _mount("overlay", str(above), 0, "overlay", f"lowerdir={above},upperdir={upper},workdir={work}")
    at.parent.mkdir(parents=True, exist_ok=True)
    at.mkdir() if directory else at.touch()


def _mount(source: str | None, target: str, flags: int, kind: str | None = None, options: str = "") -> None:
    arguments = [text.encode() if text is not None else None for text in (source, target, kind)]
    status = _libc.mount(*arguments, ctypes.c_ulong(flags), options.encode())
    _checked(status, f"mount {source} at {target}")


def _checked(status: int, what: str) -> None:
    if status:
        raise OSError(ctypes.get_errno(), f"{what}: {os.strerror(ctypes.get_errno())}")


if __name__ == "__main__":
    main()
