"""Where the root and the key for tokens survive a restart: files in the state directory.

Any number of processes may start at once on an empty directory and agree on one root: each file is written aside and
linked into place, which exactly one of them can do; the others use what they find. The key comes first, so a crash in
between leaves a key for which the next start makes the certificate.
"""

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

from xds.identity.ca import Authority
from xds.identity.chain import bundle
from xds.identity.keys import IdentityError, PrivateKey
from xds.identity.tokens import TokenKey

KEY_FILE = "root-key.pem"
CERTIFICATE_FILE = "root-cert.pem"
MORE_ROOTS_FILE = "more-roots.pem"
"""Roots that are trusted besides; read if somebody put it there. So a root is replaced by hand: docs/certificates.md."""
TOKEN_KEY_FILE = "token-key"  # noqa: S105 - a name


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


def roots(directory: Path) -> bytes:
    """Return all roots that are trusted, in PEM form, of a directory where there is one; no key is read."""
    certificate, more = directory / CERTIFICATE_FILE, directory / MORE_ROOTS_FILE
    try:
        return bundle([certificate.read_bytes(), *([more.read_bytes()] if more.exists() else ())])
    except FileNotFoundError:
        raise StateError(
            f"{certificate} is not there yet: xds serve makes it when it starts with this --state-dir"
        ) from None
    except OSError as error:
        raise StateError(f"{error.filename}: {error.strerror}") from error
    except IdentityError as error:
        raise StateError(f"{directory} holds roots that cannot be used: {error}") from error


def token_key(directory: Path) -> TokenKey:
    """Return the key that signs tokens, made on first use of a directory that is there."""
    file = directory / TOKEN_KEY_FILE
    try:
        if not file.exists():
            _create(file, TokenKey.generate().to_text(), 0o600)
        return TokenKey.from_text(_read_private(file))
    except OSError as error:
        raise StateError(f"{error.filename or file}: {error.strerror}") from error
    except IdentityError as error:
        raise StateError(
            f"{file}: {error}. Put the right one there, or remove it to start with a new one, which refuses all tokens that there are"
        ) from error


def replace(path: Path, content: bytes, mode: int) -> None:
    """Put a whole file in the place of another, at once. OSError."""
    with _aside(path, content, mode) as aside:
        aside.replace(path)


def _read_private(path: Path) -> bytes:
    with path.open("rb") as file:
        mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
        if mode & 0o077:
            begin_anew = (
                "it to start with a new one"
                if path.name == TOKEN_KEY_FILE
                else f"it and {CERTIFICATE_FILE} to start with a new root"
            )
            raise StateError(
                f"{path} can be used by others (mode {mode:04o}): run 'chmod 600 {path}', or, if somebody "
                f"may have read it, remove {begin_anew}"
            )
        return file.read()


def _create(path: Path, content: bytes, mode: int) -> None:
    """Put a whole file in place, unless another process was faster: then its file stays."""
    with _aside(path, content, mode) as aside:
        try:
            path.hardlink_to(aside)
        except FileExistsError:
            return
        _sync_directory(path.parent)


@contextmanager
def _aside(path: Path, content: bytes, mode: int) -> Iterator[Path]:
    """Write a file beside where it will be; it is removed if it is still there afterwards."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    aside = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            os.fchmod(handle, mode)
            file.write(content)
            file.flush()
            os.fsync(handle)
        yield aside
    finally:
        aside.unlink(missing_ok=True)


def _sync_directory(directory: Path) -> None:
    """Make the new name in the directory survive a power cut."""
    handle = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
