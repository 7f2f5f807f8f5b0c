"""What `xds token --out-dir` keeps: a folder for each pod, with its token and the mesh's roots."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import NamedTuple, TypeAlias

import structlog

from xds.mesh.identity import state_dir
from xds.mesh.identity.claims import Caller, Credential
from xds.mesh.identity.tokens import TokenKey
from xds.mesh.kube.log_once import Complaint
from xds.mesh.model.mesh import Mesh
from xds.mesh.model.objects import Pod, Problem
from xds.mesh.sources.files import RESCAN, Folder

log = structlog.get_logger("xds.cli.token")

TOKEN, ROOTS = "token", "root-cert.pem"

Whom: TypeAlias = Callable[[], Mapping[str, Caller | None]]
"""Says whom the token of each POD.NAMESPACE is for now; None: there is no such pod."""


class Known:
    """What manifests say of pods now."""

    def __init__(self, manifests: Path) -> None:
        self._folder = Folder(manifests)
        self.mesh = Mesh()

    def load(self) -> Iterable[Problem]:
        """Read what changed; return what is newly wrong with it. OSError: the folder is not there, the first time."""
        report = self._folder.load()
        self.mesh = self.mesh.apply(report.change)
        return report.problems

    @property
    def complete(self) -> bool:
        """Whether the manifests could be read once; before that no pod is known."""
        return not self._folder.lacking()

    def callers(self, names: Iterable[str]) -> Mapping[str, Caller | None]:
        """Return whom the pods' tokens are for, by what is there now."""
        self.load()
        found: dict[str, Caller | None] = {}
        for name in names:
            pod, _, namespace = name.rpartition(".")
            known = self.mesh.pod(namespace, pod)
            found[name] = of_pod(known) if known else None
        return found


def of_pod(pod: Pod) -> Caller:
    """Return who a pod is."""
    return Caller(
        namespace=pod.namespace,
        service_account=pod.service_account,
        pod=pod.name,
        pod_uid=pod.meta.uid,
        credential=Credential.TOKEN,
    )


class _Written(NamedTuple):
    caller: Caller
    key: TokenKey
    roots: bytes
    at: datetime


class Outcome(NamedTuple):
    """What became of a pod's files: they were written, were not to be, or cannot be."""

    problem: str = ""
    written: Caller | None = None
    expires: datetime | None = None


class Files:
    """The files of some pods, in a folder for each."""

    def __init__(
        self,
        whom: Whom,
        state_dir: Path,
        out_dir: Path,
        lifetime: timedelta,
        *,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._whom = whom
        self._state_dir = state_dir
        self._out_dir = out_dir
        self._lifetime = lifetime
        self._now = now
        self._written: dict[str, _Written] = {}

    def write(self) -> dict[str, Outcome]:
        """Write what is not good for long enough, as far as that is possible."""
        whom = self._whom()
        try:
            key, roots = state_dir.load_or_create_token_key(self._state_dir), state_dir.roots(self._state_dir)
        except state_dir.StateError as error:
            return dict.fromkeys(whom, Outcome(str(error)))
        return {name: self._keep(name, caller, key, roots) for name, caller in whom.items()}

    def _keep(self, name: str, caller: Caller | None, key: TokenKey, roots: bytes) -> Outcome:
        if caller is None:
            return Outcome("there is no such pod in the manifests any more")
        try:
            return self._write(name, caller, key, roots)
        except OSError as error:
            return Outcome(f"{error.filename or self._out_dir}: {error.strerror}")

    def _write(self, name: str, caller: Caller, key: TokenKey, roots: bytes) -> Outcome:
        now = self._now()
        last = self._written.get(name)
        if last and last == (caller, key, roots, last.at) and last.at <= now < last.at + self._lifetime / 2:
            return Outcome()
        folder = self._out_dir / name
        folder.mkdir(parents=True, exist_ok=True)
        state_dir.write_atomically(folder / ROOTS, roots, 0o644)
        state_dir.write_atomically(folder / TOKEN, key.issue(caller, now, self._lifetime).encode(), 0o600)
        self._written[name] = _Written(caller, key, roots, now)
        return Outcome(written=caller, expires=now + self._lifetime)


def renew(files: Files) -> None:
    """Keep files good until SIGTERM or SIGINT; the log is told what cannot be done, which is tried again."""
    ends = {signal.SIGTERM, signal.SIGINT}
    signal.pthread_sigmask(signal.SIG_BLOCK, ends)  # so that no file is left half made
    complain = Complaint(log, "no token written")
    while True:
        for name, outcome in files.write().items():
            complain(outcome.problem, pod=name)
            if who := outcome.written:
                expires = f"{outcome.expires:%Y-%m-%dT%H:%M:%SZ}"
                log.info("token", pod=name, account=f"{who.namespace}/{who.service_account}", expires=expires)
        if signal.sigtimedwait(ends, RESCAN):
            log.info("stopped")
            return
