"""State directory: files that preserve the mesh root and the token key across restarts.

Several processes can start on an empty directory at the same time, and agree on one root. Each process writes
a temporary file and hard-links it into place. Only the first link succeeds, and the other processes read the
existing file. The key is written first. If the process crashes before it writes the certificate, the next
start creates it.

A user who can write these files controls the mesh CA. The directory and its files must therefore belong to
the current user or root, and must not be writable by others. Files are checked after opening (fstat), to
prevent a swap between check and use.
"""

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

from xds.mesh.identity.ca import Authority
from xds.mesh.identity.chain import bundle
from xds.mesh.identity.keys import IdentityError, PrivateKey
from xds.mesh.identity.tokens import TokenKey

KEY_FILE = "root-key.pem"
CERTIFICATE_FILE = "root-cert.pem"
MORE_ROOTS_FILE = "more-roots.pem"
"""Optional file with additional trusted roots, to replace a root manually
(docs/how-to/manage-certificates.md)."""
TOKEN_KEY_FILE = "token-key"  # noqa: S105 - a file name


class StateError(Exception):
    """The state directory cannot be used; the text has the reason and the remedy."""


def load_or_create_root(directory: Path | None, trust_domain: str, now: datetime) -> Authority:
    """Load the root in a directory, or create it. Without a directory, create a root that is not stored."""
    if directory is None:
        return Authority.create(PrivateKey.generate(), trust_domain, now)
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        _check_directory(directory)
        return _load_or_create(directory, trust_domain, now)
    except OSError as error:
        raise StateError(f"{error.filename or directory}: {error.strerror}") from error


def _load_or_create(directory: Path, trust_domain: str, now: datetime) -> Authority:
    key_file, certificate_file = directory / KEY_FILE, directory / CERTIFICATE_FILE
    # Check the certificate first: another process writes the key before the certificate.
    had_certificate = certificate_file.exists()
    if not key_file.exists():
        if had_certificate:
            raise StateError(
                f"{key_file} is missing, but {certificate_file} exists: "
                f"restore the key, or remove the certificate to create a new root"
            )
        _create(key_file, PrivateKey.generate().to_pem(), 0o600)
    key = _read_private(key_file)
    try:
        if not certificate_file.exists():
            authority = Authority.create(PrivateKey.from_pem(key), trust_domain, now)
            _create(certificate_file, authority.certificate_pem, 0o644)
        root, more_roots_file = _read_public(certificate_file), directory / MORE_ROOTS_FILE
        authority = Authority.load(root, key, now)
        if not more_roots_file.exists():
            return authority
        return Authority.load(root, key, now, root=root + _read_public(more_roots_file))
    except IdentityError as error:
        raise StateError(
            f"{directory} contains an invalid root: {error}. Restore {KEY_FILE} and "
            f"{CERTIFICATE_FILE}, or remove both to create a new root"
        ) from error


def roots(directory: Path) -> bytes:
    """Return all trusted PEM roots in a directory, without reading keys."""
    certificate_file, more_roots_file = directory / CERTIFICATE_FILE, directory / MORE_ROOTS_FILE
    try:
        _check_directory(directory)
        pems = [_read_public(certificate_file)]
        if more_roots_file.exists():
            pems.append(_read_public(more_roots_file))
        return bundle(pems)
    except FileNotFoundError:
        raise StateError(
            f"{certificate_file} does not exist: xds serve creates it when it starts with this --state-dir"
        ) from None
    except OSError as error:
        raise StateError(f"{error.filename}: {error.strerror}") from error
    except IdentityError as error:
        raise StateError(f"{directory} contains invalid roots: {error}") from error


def load_or_create_token_key(directory: Path) -> TokenKey:
    """Load the token key in an existing directory, or create it."""
    file = directory / TOKEN_KEY_FILE
    try:
        _check_directory(directory)
        if not file.exists():
            _create(file, TokenKey.generate().to_text(), 0o600)
        return TokenKey.from_text(_read_private(file))
    except OSError as error:
        raise StateError(f"{error.filename or file}: {error.strerror}") from error
    except IdentityError as error:
        raise StateError(
            f"{file}: {error}. Restore the file, or remove it to create a new key, "
            "which invalidates all tokens"
        ) from error


def write_atomically(path: Path, content: bytes, mode: int) -> None:
    """Replace a file atomically. Raise OSError on failure."""
    with _temporary_file(path, content, mode) as temporary:
        temporary.replace(path)


def _check_directory(directory: Path) -> None:
    """Raise StateError if other users can write to the directory; OSError if it cannot be read."""
    handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        status = os.fstat(handle)
    finally:
        os.close(handle)
    _check_owner(directory, status)
    # With fsGroup, Kubernetes makes the volume writable by one of this process's groups. Its members can
    # remove files. They cannot substitute files, because the owner of each file is checked.
    is_own_group = status.st_gid in {os.getegid(), *os.getgroups()}
    if status.st_mode & (stat.S_IWOTH if is_own_group else stat.S_IWOTH | stat.S_IWGRP):
        raise StateError(
            f"{directory} is writable by other users ({_mode(status)}): run 'chmod go-w {directory}', "
            f"or use a subdirectory, which is created with mode 0700"
        )


def _read_private(path: Path) -> bytes:
    """Return the content of a key file. Raise StateError if other users have access to it, or OSError."""
    remedy = (
        "it to create a new key"
        if path.name == TOKEN_KEY_FILE
        else f"it and {CERTIFICATE_FILE} to create a new root"
    )
    if path.is_symlink():
        raise StateError(f"{path} is a symbolic link: replace it with the key, as a file of mode 0600")
    content, status = _read(path, os.O_NOFOLLOW)
    if status.st_mode & 0o077:
        raise StateError(
            f"{path} is accessible to other users ({_mode(status)}): run 'chmod 600 {path}', "
            f"or, if it may have leaked, remove {remedy}"
        )
    return content


def _read_public(path: Path) -> bytes:
    """Return the content of a public file. Raise StateError if other users can write to it, or OSError."""
    content, status = _read(path)
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise StateError(
            f"{path} is writable by other users ({_mode(status)}), so it may contain foreign roots: "
            f"check it, then run 'chmod go-w {path}'"
        )
    return content


def _read(path: Path, flags: int = 0) -> tuple[bytes, os.stat_result]:
    # O_NONBLOCK: do not block if the path is a FIFO.
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | flags)
    with os.fdopen(handle, "rb") as file:
        status = os.fstat(handle)
        if not stat.S_ISREG(status.st_mode):
            raise StateError(f"{path} is not a regular file: remove it")
        _check_owner(path, status)
        return file.read(), status


def _check_owner(path: Path, status: os.stat_result) -> None:
    user = os.geteuid()
    if status.st_uid not in {user, 0}:
        raise StateError(
            f"{path} belongs to user {status.st_uid}, but xds runs as user {user}: run 'chown {user} {path}' "
            f"if you trust its content, or run xds as user {status.st_uid}"
        )


def _mode(status: os.stat_result) -> str:
    return f"mode {stat.S_IMODE(status.st_mode):04o}"


def _create(path: Path, content: bytes, mode: int) -> None:
    """Create a file atomically, unless another process has already created it."""
    with _temporary_file(path, content, mode) as temporary:
        try:
            path.hardlink_to(temporary)
        except FileExistsError:
            return
        _sync_directory(path.parent)


@contextmanager
def _temporary_file(path: Path, content: bytes, mode: int) -> Iterator[Path]:
    """Write a temporary file in the same directory, and remove it afterwards."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    temporary = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            os.fchmod(handle, mode)
            file.write(content)
            file.flush()
            os.fsync(handle)
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)


def _sync_directory(directory: Path) -> None:
    """Flush a new directory entry to disk."""
    handle = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
