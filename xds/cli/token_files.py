"""The files of `xds token --out-dir`: a folder per pod, with a token and the root certificates."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import NamedTuple, TypeAlias

import structlog

from xds.mesh.identity import state_dir
from xds.mesh.identity.claims import Caller, CredentialKind
from xds.mesh.identity.tokens import TokenKey
from xds.mesh.kube.log_once import OnceLogger
from xds.mesh.model.mesh import Mesh
from xds.mesh.model.names import UnknownNameError, pod_named
from xds.mesh.model.objects import Pod, Problem
from xds.mesh.sources.files import Folder
from xds.mesh.sources.scan import RESCAN_INTERVAL

log = structlog.get_logger("xds.cli.token")

TOKEN, ROOTS = "token", "root-cert.pem"

CallerLookup: TypeAlias = Callable[[], Mapping[str, Caller | None]]
"""Returns the current identity of each POD.NAMESPACE; None for a pod that does not exist."""


class ManifestPods:
    """The pods in folders of manifests."""

    def __init__(self, manifests: Sequence[Path]) -> None:
        self._folder = Folder(manifests)
        self.mesh = Mesh()

    def load(self) -> Iterable[Problem]:
        """Read the changed files, and return the new problems.

        Raises OSError if the first read of a folder fails.
        """
        update = self._folder.load()
        self.mesh = self.mesh.apply(update.change)
        return update.problems

    @property
    def complete(self) -> bool:
        """Whether all manifests have been read. Until then, `mesh` is empty."""
        return not self._folder.pending_reason()

    def callers(self, names: Iterable[str]) -> Mapping[str, Caller | None]:
        """Read the manifests, and return the identity of each POD.NAMESPACE."""
        self.load()
        callers: dict[str, Caller | None] = {}
        for name in names:
            try:
                callers[name] = caller_of_pod(pod_named(self.mesh, name))
            except UnknownNameError:
                callers[name] = None
        return callers


def caller_of_pod(pod: Pod) -> Caller:
    """Return the identity that a pod's token proves."""
    return Caller(
        namespace=pod.namespace,
        service_account=pod.service_account,
        pod=pod.name,
        pod_uid=pod.meta.uid,
        credential=CredentialKind.TOKEN,
    )


class _Written(NamedTuple):
    """The inputs of a pod's current files, and when the files were written."""

    caller: Caller
    key: TokenKey
    roots: bytes
    time: datetime


class WriteResult(NamedTuple):
    """The result of writing a pod's files."""

    problem: str = ""
    """Why the files could not be written; empty if they were written or are still valid."""
    written: Caller | None = None
    """The identity in the new token; None if no token was written."""
    expires: datetime | None = None
    """When the new token expires."""


class TokenFiles:
    """The files of a set of pods, one folder per pod."""

    def __init__(
        self,
        lookup: CallerLookup,
        state_dir: Path,
        out_dir: Path,
        lifetime: timedelta,
        *,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._lookup = lookup
        self._state_dir = state_dir
        self._out_dir = out_dir
        self._lifetime = lifetime
        self._now = now
        self._written: dict[str, _Written] = {}

    def write(self) -> dict[str, WriteResult]:
        """Write the files that are due for renewal. A problem with one pod does not affect the others."""
        callers = self._lookup()
        try:
            key, roots = state_dir.load_or_create_token_key(self._state_dir), state_dir.roots(self._state_dir)
        except state_dir.StateError as error:
            return dict.fromkeys(callers, WriteResult(str(error)))
        return {name: self._try_write(name, caller, key, roots) for name, caller in callers.items()}

    def _try_write(self, name: str, caller: Caller | None, key: TokenKey, roots: bytes) -> WriteResult:
        if caller is None:
            return WriteResult("the pod is no longer in the manifests")
        try:
            return self._write(name, caller, key, roots)
        except OSError as error:
            return WriteResult(f"{error.filename or self._out_dir}: {error.strerror}")

    def _write(self, name: str, caller: Caller, key: TokenKey, roots: bytes) -> WriteResult:
        now = self._now()
        last = self._written.get(name)
        # If the clock was set back, renew at once.
        if (
            last
            and last == (caller, key, roots, last.time)
            and last.time <= now < last.time + self._lifetime / 2
        ):
            return WriteResult()
        folder = self._out_dir / name
        folder.mkdir(parents=True, exist_ok=True)
        state_dir.write_atomically(folder / ROOTS, roots, 0o644)
        state_dir.write_atomically(folder / TOKEN, key.issue(caller, now, self._lifetime).encode(), 0o600)
        self._written[name] = _Written(caller, key, roots, now)
        return WriteResult(written=caller, expires=now + self._lifetime)


def renew(files: TokenFiles) -> None:
    """Renew files until SIGTERM or SIGINT. Problems are logged and retried."""
    stop_signals = {signal.SIGTERM, signal.SIGINT}
    signal.pthread_sigmask(signal.SIG_BLOCK, stop_signals)  # A signal must not interrupt a write.
    log_problem = OnceLogger(log, "token not written")
    while True:
        for name, result in files.write().items():
            log_problem(result.problem, pod=name)
            if caller := result.written:
                account = f"{caller.namespace}/{caller.service_account}"
                log.info(
                    "token written", pod=name, account=account, expires=f"{result.expires:%Y-%m-%dT%H:%M:%SZ}"
                )
        if signal.sigtimedwait(stop_signals, RESCAN_INTERVAL):
            log.info("token renewal stopped")
            return
