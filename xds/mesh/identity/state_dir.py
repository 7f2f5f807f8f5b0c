"""Where the root and the key for tokens survive a restart: files in the state directory.

Any number of processes may start at once on an empty directory and agree on one root: each file is written aside and
linked into place, which exactly one of them can do; the others use what they find. The key comes first, so a crash in
between leaves a key for which the next start makes the certificate.

Whoever can write these files is the mesh's CA, so every file and the directory must belong to our user or to root, and must not
be writable by others. Each file is checked after it is opened (fstat), so it cannot be exchanged between check and use.
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
"""Roots that are trusted besides; read if somebody put it there. So a root is replaced by hand: docs/how-to/manage-certificates.md."""
TOKEN_KEY_FILE = "token-key"  # noqa: S105 - a name


class StateError(Exception):
    """The state directory cannot be used: what is wrong, and what to do about it."""


def load_or_create_root(directory: Path | None, trust_domain: str, now: datetime) -> Authority:
    """Return the root kept in a directory, made on first use; without a directory, one that lasts as long as we do."""
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
            authority = Authority.create(PrivateKey.from_pem(key), trust_domain, now)
            _create(certificate_file, authority.certificate_pem, 0o644)
        root, more = _read_public(certificate_file), directory / MORE_ROOTS_FILE
        authority = Authority.load(root, key, now)
        return Authority.load(root, key, now, root=root + _read_public(more)) if more.exists() else authority
    except IdentityError as error:
        raise StateError(
            f"{directory} holds a root that cannot be used: {error}. Put the right {KEY_FILE} and "
            f"{CERTIFICATE_FILE} there, or remove both to start with a new root"
        ) from error


def roots(directory: Path) -> bytes:
    """Return all roots that are trusted, in PEM form, of a directory where there is one; no key is read."""
    certificate, more = directory / CERTIFICATE_FILE, directory / MORE_ROOTS_FILE
    try:
        _check_directory(directory)
        return bundle([_read_public(certificate), *([_read_public(more)] if more.exists() else ())])
    except FileNotFoundError:
        raise StateError(
            f"{certificate} is not there yet: xds serve makes it when it starts with this --state-dir"
        ) from None
    except OSError as error:
        raise StateError(f"{error.filename}: {error.strerror}") from error
    except IdentityError as error:
        raise StateError(f"{directory} holds roots that cannot be used: {error}") from error


def load_or_create_token_key(directory: Path) -> TokenKey:
    """Return the key that signs tokens, made on first use of a directory that is there."""
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
            f"{file}: {error}. Put the right one there, or remove it to start with a new one, which refuses all tokens that there are"
        ) from error


def write_atomically(path: Path, content: bytes, mode: int) -> None:
    """Put a whole file in the place of another, at once. OSError."""
    with _temporary_file(path, content, mode) as temporary:
        temporary.replace(path)


def _check_directory(directory: Path) -> None:
    """Refuse a directory in which another user can put files. OSError, StateError."""
    handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        status = os.fstat(handle)
    finally:
        os.close(handle)
    _check_owner(directory, status)
    # Kubernetes makes a volume with an fsGroup writable by that group, which is then one of ours. Members of it can remove files;
    # the files' owners are checked, so they cannot make us use files of theirs.
    ours = status.st_gid in {os.getegid(), *os.getgroups()}
    if status.st_mode & (stat.S_IWOTH if ours else stat.S_IWOTH | stat.S_IWGRP):
        raise StateError(
            f"{directory} can be written by other users ({_mode(status)}): run 'chmod go-w {directory}', or name a "
            f"directory within it, which is then made with mode 0700"
        )


def _read_private(path: Path) -> bytes:
    """Return the content of a key file that only its owner can use. OSError, StateError."""
    remedy = (
        "it to start with a new one"
        if path.name == TOKEN_KEY_FILE
        else f"it and {CERTIFICATE_FILE} to start with a new root"
    )
    if path.is_symlink():
        raise StateError(f"{path} is a symbolic link: put the key itself there, as a file of mode 0600")
    content, status = _read(path, os.O_NOFOLLOW)
    if status.st_mode & 0o077:
        raise StateError(
            f"{path} can be used by others ({_mode(status)}): run 'chmod 600 {path}', or, if somebody may have read "
            f"it, remove {remedy}"
        )
    return content


def _read_public(path: Path) -> bytes:
    """Return the content of a file that others may read but not write. OSError, StateError."""
    content, status = _read(path)
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise StateError(
            f"{path} can be written by others ({_mode(status)}), who could add a root of their own: check that it holds "
            f"only roots that you trust, then run 'chmod go-w {path}'"
        )
    return content


def _read(path: Path, flags: int = 0) -> tuple[bytes, os.stat_result]:
    # O_NONBLOCK: to open a FIFO must not wait for a writer.
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | flags)
    with os.fdopen(handle, "rb") as file:
        status = os.fstat(handle)
        if not stat.S_ISREG(status.st_mode):
            raise StateError(f"{path} is not a regular file: remove it")
        _check_owner(path, status)
        return file.read(), status


def _check_owner(path: Path, status: os.stat_result) -> None:
    us = os.geteuid()
    if status.st_uid not in {us, 0}:
        raise StateError(
            f"{path} belongs to user {status.st_uid}, who can change it; xds runs as user {us}: run 'chown {us} {path}' "
            f"if its content is yours, or run xds as user {status.st_uid}"
        )


def _mode(status: os.stat_result) -> str:
    return f"mode {stat.S_IMODE(status.st_mode):04o}"


def _create(path: Path, content: bytes, mode: int) -> None:
    """Put a whole file in place, unless another process was faster: then its file stays."""
    with _temporary_file(path, content, mode) as temporary:
        try:
            path.hardlink_to(temporary)
        except FileExistsError:
            return
        _sync_directory(path.parent)


@contextmanager
def _temporary_file(path: Path, content: bytes, mode: int) -> Iterator[Path]:
    """Write a file beside where it will be; it is removed if it is still there afterwards."""
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
    """Make the new name in the directory survive a power cut."""
    handle = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
