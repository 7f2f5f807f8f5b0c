"""Where the root survives a restart: two files in the state directory.

Any number of processes may start at once on an empty directory and agree on one root: each file is written aside and
linked into place, which exactly one of them can do; the others use what they find. The key comes first, so a crash in
between leaves a key for which the next start makes the certificate.
"""

from __future__ import annotations

import os
import stat
import tempfile
from datetime import datetime
from pathlib import Path

from xds.identity.ca import Authority
from xds.identity.keys import IdentityError, PrivateKey

KEY_FILE = "root-key.pem"
CERTIFICATE_FILE = "root-cert.pem"
MORE_ROOTS_FILE = "more-roots.pem"
"""Roots that are trusted besides; read if somebody put it there. So a root is replaced by hand: docs/certificates.md."""


class StateError(Exception):
    """The state directory cannot be used: what is wrong, and what to do about it."""


def root_authority(directory: Path | None, trust_domain: str, now: datetime) -> Authority:
    """Return the root kept in a directory, made on first use; without a directory, one that lasts as long as we do."""
    if directory is None:
        return Authority.create(PrivateKey.generate(), trust_domain, now)
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        return _load_or_create(directory, trust_domain, now)
    except OSError as error:
        raise StateError(f"{error.filename or directory}: {error.strerror}") from error


def _load_or_create(directory: Path, trust_domain: str, now: datetime) -> Authority:
    key_file, certificate_file = directory / KEY_FILE, directory / CERTIFICATE_FILE
    had_certificate = certificate_file.exists()  # asked first: others write the key before the certificate
    if not key_file.exists():
        if had_certificate:
            raise StateError(
                f"{key_file} is missing, but {certificate_file} is there: "
                f"put the key back, or remove the certificate to start with a new root"
            )
        _create(key_file, PrivateKey.generate().to_pem(), 0o600)
    key = _read_private(key_file)
    try:
        if not certificate_file.exists():
            made = Authority.create(PrivateKey.from_pem(key), trust_domain, now)
            _create(certificate_file, made.certificate_pem, 0o644)
        root, more = certificate_file.read_bytes(), directory / MORE_ROOTS_FILE
        made = Authority.load(root, key, now)
        return Authority.load(root, key, now, root=root + more.read_bytes()) if more.exists() else made
    except IdentityError as error:
        raise StateError(
            f"{directory} holds a root that cannot be used: {error}. Put the right {KEY_FILE} and "
            f"{CERTIFICATE_FILE} there, or remove both to start with a new root"
        ) from error


def _read_private(path: Path) -> bytes:
    with path.open("rb") as file:
        mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
        if mode & 0o077:
            raise StateError(
                f"{path} can be used by others (mode {mode:04o}): run 'chmod 600 {path}', or, if somebody "
                f"may have read it, remove it and {CERTIFICATE_FILE} to start with a new root"
            )
        return file.read()


def _create(path: Path, content: bytes, mode: int) -> None:
    """Put a whole file in place, unless another process was faster: then its file stays."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    aside = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            os.fchmod(handle, mode)
            file.write(content)
            file.flush()
            os.fsync(handle)
        path.hardlink_to(aside)
        _sync_directory(path.parent)
    except FileExistsError:
        pass
    finally:
        aside.unlink()


def _sync_directory(directory: Path) -> None:
    """Make the new name in the directory survive a power cut."""
    handle = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
