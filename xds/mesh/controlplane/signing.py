"""Certificates from an external signer, a command that signs requests with a CA key kept elsewhere.

The command reads a certificate signing request (PEM) from its standard input, and writes the certificate and
its intermediates (PEM) to its standard output. If it fails, it writes the reason to its standard error, and
ends with a status other than 0.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import structlog
from cryptography import x509

from xds.mesh.identity import chain
from xds.mesh.identity.ca import Certificate
from xds.mesh.identity.external import read_signed, signing_request
from xds.mesh.identity.keys import IdentityError, PrivateKey, PublicKey
from xds.mesh.identity.secrets import IssuedCertificates, Owner, owner, roots_secret
from xds.mesh.model.objects import Pod, printable
from xds.resources import Resource

log = structlog.get_logger(__name__)

MAX_CONCURRENT = 4
"""Maximum number of commands that run at the same time."""
TIMEOUT = 30.0
"""Seconds after which a command is ended."""
MIN_RETRY_DELAY, MAX_RETRY_DELAY = 1.0, 60.0
"""Seconds between two attempts for a pod. The delay doubles after each failure."""
POLL_INTERVAL = 10.0
"""Seconds between two reads of the file with the roots."""
MAX_OUTPUT = 64 * 2**10
"""Maximum length of a certificate with its chain, in bytes."""


class SignerError(Exception):
    """The signer returned no usable certificate; the text has the reason."""


@dataclass(slots=True)
class _Request:
    pod: Pod
    trust_domain: str
    owner: Owner
    failures: int = 0
    problem: str = ""


class ExternalIssuer(IssuedCertificates):
    """The secrets of pods, signed by a command. Private keys stay in this process."""

    def __init__(self, command: Iterable[str], roots_file: Path, now: Callable[[], datetime]) -> None:
        """Read the roots.

        Args:
            command: the program and its arguments. No shell is involved.
            roots_file: file with the roots that sidecars trust, in PEM form; read again when it changes.
            now: returns the current time.

        Raises:
            OSError: the file cannot be read.
            IdentityError: the file contains no valid certificate.
        """
        super().__init__()
        self._command, self._roots_file, self._now = tuple(command), roots_file, now
        self._trusted: tuple[x509.Certificate, ...] = ()
        self._requests: dict[tuple[str, str], _Request] = {}
        """Requests without a certificate, by namespace and name of the pod."""
        self._queue: asyncio.Queue[_Request] = asyncio.Queue()
        self._slots = asyncio.Semaphore(MAX_CONCURRENT)
        """Limits the commands that run."""
        self._is_failing = False
        """Whether the last attempt failed. Only the first of several failures is logged."""
        self.roots: Resource
        """Secret `ROOTCA`, the same for all pods."""
        self._read_roots()

    def secrets_for(self, pod: Pod, trust_domain: str, now: datetime) -> tuple[Resource, Resource] | None:
        """Return the secrets of a pod; None until its first certificate is signed.

        If the certificate is due for renewal, request a new one. Meanwhile, the old one stays in use.
        """
        issued = self.find(pod, trust_domain, now)
        if issued is None or now >= issued.leaf.renew_at:
            self._request(pod, trust_domain)
        return (issued.secret, self.roots) if issued else None

    def is_requested(self, pod: Pod) -> bool:
        """Return whether a certificate for the pod is being requested."""
        return (pod.namespace, pod.name) in self._requests

    async def certify(self, request: bytes, key: PublicKey, identity: str) -> Certificate:
        """Return a certificate for a sidecar's request in PEM form.

        The request must have this key, and name this identity alone.

        Raises:
            SignerError: the signer returned no usable certificate. The reason is logged.
        """
        try:
            pem = await self._sign(request)
            certificate = read_signed(pem, key, identity, self._trusted, self._now())
        except (SignerError, IdentityError, OSError) as error:
            self._log_failure(identity, str(error))
            raise SignerError("the external signer returned no usable certificate") from error
        self._is_failing = False
        self.issued += 1
        return certificate

    @property
    def roots_pem(self) -> bytes:
        """The roots that sidecars trust, in PEM form."""
        return chain.to_pem(self._trusted)

    @property
    def root_expiry(self) -> datetime:
        """Time when the first of the roots expires."""
        return min(root.not_valid_after_utc for root in self._trusted)

    def problem_of(self, pod: Pod) -> str:
        """Return why the pod has no new certificate; empty if there is no problem."""
        request = self._requests.get((pod.namespace, pod.name))
        return request.problem if request else ""

    def forget(self, pod: Pod) -> None:
        """Forget the certificate, key and request of a deleted pod."""
        super().forget(pod)
        self._requests.pop((pod.namespace, pod.name), None)

    def _request(self, pod: Pod, trust_domain: str) -> None:
        key, request = (pod.namespace, pod.name), _Request(pod, trust_domain, owner(pod, trust_domain))
        current = self._requests.get(key)
        if current is None or current.owner != request.owner:
            self._requests[key] = request
            self._queue.put_nowait(request)

    async def run(self, signed: Callable[[Pod], None], roots_changed: Callable[[], None]) -> None:
        """Run commands, and follow the roots, until cancelled.

        Args:
            signed: called with a pod that has a new certificate.
            roots_changed: called after a change of the roots.
        """
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._follow_roots(roots_changed))
            for _ in range(MAX_CONCURRENT):
                tasks.create_task(self._work(signed))

    async def _work(self, signed: Callable[[Pod], None]) -> None:
        while True:
            request = await self._queue.get()
            key = (request.pod.namespace, request.pod.name)
            if self._requests.get(key) is not request:
                continue  # The pod was deleted or replaced.
            private_key, identity = PrivateKey.generate(), request.pod.identity(request.trust_domain)
            try:
                pem = await self._sign(signing_request(private_key, identity))
                leaf = read_signed(
                    pem, private_key.public_key, identity, self._trusted, self._now()
                ).with_key(private_key)
            except Exception as error:  # noqa: BLE001 - an odd certificate must not end the control plane
                self._failed(request, str(error) or type(error).__name__)
                continue
            if self._requests.get(key) is request:
                del self._requests[key]
                self.store(request.pod, request.trust_domain, leaf)
                self._is_failing = False
                signed(request.pod)

    def _failed(self, request: _Request, reason: str) -> None:
        request.problem = f"the signer returned no usable certificate: {reason}"
        delay = min(MIN_RETRY_DELAY * 2**request.failures, MAX_RETRY_DELAY)
        request.failures = min(request.failures + 1, 10)
        self._log_failure(request.pod.identity(request.trust_domain), reason)
        asyncio.get_running_loop().call_later(delay, self._queue.put_nowait, request)

    def _log_failure(self, identity: str, reason: str) -> None:
        if not self._is_failing:
            self._is_failing = True
            log.error("external signer failed, retrying", identity=identity, problem=reason)

    async def _sign(self, request: bytes) -> bytes:
        """Run the command, once fewer than MAX_CONCURRENT run. Raise SignerError if it fails."""
        async with self._slots:
            return await self._run(request)

    async def _run(self, request: bytes) -> bytes:
        piped = asyncio.subprocess.PIPE
        process = await asyncio.create_subprocess_exec(
            *self._command, stdin=piped, stdout=piped, stderr=piped, start_new_session=True
        )
        assert process.stdin and process.stdout and process.stderr  # noqa: S101, PT018 - they are pipes
        pipes = process.stdout, process.stderr
        readers = [asyncio.create_task(self._read(pipe)) for pipe in pipes]
        try:
            async with asyncio.timeout(TIMEOUT):
                process.stdin.write(request)
                process.stdin.close()
                output, errors = await asyncio.gather(*readers)
                await process.wait()
        except TimeoutError:
            raise SignerError(f"{self._command[0]} did not end within {TIMEOUT:.0f} s") from None
        finally:
            if process.returncode is None:
                # The command may have started others, which keep the pipes open.
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                for reader in readers:
                    reader.cancel()
                await asyncio.wait(readers)
                for pipe in pipes:
                    await pipe.read()  # `wait` waits for the end of both.
                await process.wait()
        if process.returncode:
            reason = printable(errors.decode(errors="replace").strip()[-500:])
            raise SignerError(f"{self._command[0]} ended with status {process.returncode}: {reason}")
        return output

    async def _read(self, stream: asyncio.StreamReader) -> bytes:
        """Read to the end. Raise SignerError if there is too much."""
        data = b""
        while chunk := await stream.read(MAX_OUTPUT):
            data += chunk
            if len(data) > MAX_OUTPUT:
                raise SignerError(f"{self._command[0]} wrote more than {MAX_OUTPUT:,} bytes")
        return data

    async def _follow_roots(self, changed: Callable[[], None]) -> None:
        problem = ""
        while True:
            await asyncio.sleep(POLL_INTERVAL)
            try:
                is_changed = self._read_roots()
            except Exception as error:  # noqa: BLE001 - the next version of the file may be valid
                if str(error) != problem:
                    log.error("cannot read the signer's roots, using the last ones", problem=str(error))  # noqa: TRY400
                problem = str(error)
                continue
            problem = ""
            if is_changed:
                log.info("signer's roots changed", roots=len(self._trusted))
                changed()

    def _read_roots(self) -> bool:
        """Read the file with the roots. Return whether they have changed."""
        trusted = tuple(dict.fromkeys(chain.read(self._roots_file.read_bytes())))
        for root in trusted:
            chain.require_root(root, f"the certificate {chain.subject(root)}")
        if trusted == self._trusted:
            return False
        self._trusted, self.roots = trusted, roots_secret([chain.to_pem(trusted)])
        return True
