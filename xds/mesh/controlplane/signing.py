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
from datetime import datetime
from pathlib import Path

import structlog
from cryptography import x509

from xds.mesh.identity import chain
from xds.mesh.identity.ca import Certificate
from xds.mesh.identity.external import read_signed
from xds.mesh.identity.keys import IdentityError, PublicKey
from xds.mesh.identity.secrets import roots_secret
from xds.mesh.model.objects import printable
from xds.resources import Resource

log = structlog.get_logger(__name__)

MAX_CONCURRENT = 4
"""Maximum number of commands that run at the same time."""
TIMEOUT = 30.0
"""Seconds after which a command is ended."""
POLL_INTERVAL = 10.0
"""Seconds between two reads of the file with the roots."""
MAX_OUTPUT = 64 * 2**10
"""Maximum length of a certificate with its chain, in bytes."""


class SignerError(Exception):
    """The signer returned no usable certificate; the text has the reason."""


class ExternalIssuer:
    """Certificates for keys that sidecars have made, signed by a command."""

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
        self._command, self._roots_file, self._now = tuple(command), roots_file, now
        self._trusted: tuple[x509.Certificate, ...] = ()
        self._slots = asyncio.Semaphore(MAX_CONCURRENT)
        """Limits the commands that run."""
        self._is_failing = False
        """Whether the last attempt failed. Only the first of several failures is logged."""
        self.issued = 0
        """Number of signed certificates."""
        self.roots: Resource
        """Secret `ROOTCA`, the same for all pods."""
        self._read_roots()

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
            if not self._is_failing:
                self._is_failing = True
                log.error("external signer failed", identity=identity, problem=str(error))  # noqa: TRY400
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

    async def run(self, roots_changed: Callable[[], None]) -> None:
        """Follow the roots until cancelled, and call `roots_changed` after a change."""
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
                roots_changed()

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

    def _read_roots(self) -> bool:
        """Read the file with the roots. Return whether they have changed."""
        trusted = tuple(dict.fromkeys(chain.read(self._roots_file.read_bytes())))
        for root in trusted:
            chain.require_root(root, f"the certificate {chain.subject(root)}")
        if trusted == self._trusted:
            return False
        self._trusted, self.roots = trusted, roots_secret([chain.to_pem(trusted)])
        return True
