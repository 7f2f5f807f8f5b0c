"""Process beside a sidecar's Envoy that keeps its certificate current. `xds proxy` becomes it.

It runs as long as Envoy, forwards signals to it, and exits with its status. If the control plane cannot be
reached, Envoy keeps its certificate, and the request is retried.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
import signal
import sys
from datetime import UTC, datetime
from pathlib import Path

import structlog

from xds.mesh.identity.ca import Leaf
from xds.mesh.sidecar import FORWARDED_SIGNALS
from xds.mesh.sidecar.own_certificate import CertificateClient, IssueError, OwnCertificate
from xds.server import XdsServer

MIN_RETRY_DELAY, FIRST_MAX_RETRY_DELAY, MAX_RETRY_DELAY = 0.5, 5.0, 60.0
"""Seconds between two requests. The delay doubles up to the second number until there is a certificate, and
up to the third one after that."""
CLOCK_CHECK_INTERVAL = 60.0
"""Seconds after which the time is checked again, in case the clock was set or the machine was suspended."""


class Renewal:
    """Requests a certificate, and a new one before half of its lifetime has passed."""

    def __init__(self, client: CertificateClient, own: OwnCertificate) -> None:
        self._client, self._own = client, own
        self._leaf: Leaf | None = None
        self._problem = ""

    async def run(self) -> None:
        """Run until cancelled."""
        failures = 0
        while True:
            try:
                leaf = await self._client.request()
                self._own.set(leaf)
            except Exception as error:  # noqa: BLE001 - Envoy must keep its certificate
                reason = str(error) if isinstance(error, IssueError) else f"{type(error).__name__}: {error}"
                self._report(reason)
                longest = MAX_RETRY_DELAY if self._leaf else FIRST_MAX_RETRY_DELAY
                delay = min(MIN_RETRY_DELAY * 2**failures, longest)
                await asyncio.sleep(delay * random.uniform(0.8, 1.2))  # noqa: S311 - not a secret
                failures = min(failures + 1, 10)
                continue
            if failures:
                _print("received a certificate")
            failures, self._problem, self._leaf = 0, "", leaf
            await _sleep_until_due(leaf)

    def _report(self, reason: str) -> None:
        """Print a failure, unless it repeats."""
        if not self._leaf:
            problem = "no certificate yet, Envoy is not ready, retrying"
        elif datetime.now(UTC) < self._leaf.not_after:
            end = f"{self._leaf.not_after:%Y-%m-%d %H:%M} UTC"
            problem = f"cannot renew the certificate, which is valid until {end}, retrying"
        else:
            problem = "the certificate has expired, peers refuse it, retrying"
        if (text := f"{problem}: {reason}") != self._problem:
            self._problem = text
            _print(text)


async def _sleep_until_due(leaf: Leaf) -> None:
    """Sleep for 80 to 100 % of the time to renewal. Sidecars that start together then differ."""
    start = datetime.now(UTC)
    due_at = start + (leaf.renew_at - start) * random.uniform(0.8, 1)  # noqa: S311 - not a secret
    while leaf.not_before <= (now := datetime.now(UTC)) < due_at:  # noqa: ASYNC110 - time is no event
        await asyncio.sleep(min((due_at - now).total_seconds(), CLOCK_CHECK_INTERVAL))


def _print(message: str) -> None:
    sys.stderr.write(f"xds: {message}\n")
    sys.stderr.flush()


async def run(envoy: int, client: CertificateClient, socket: str) -> int:
    """Serve certificates until Envoy exits; return its exit status.

    Args:
        envoy: process ID of Envoy, a child of this process.
        client: requests certificates.
        socket: path of the Unix socket, in a directory that only this user can use.
    """
    for number in FORWARDED_SIGNALS:
        asyncio.get_running_loop().add_signal_handler(number, os.kill, envoy, number)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, FORWARDED_SIGNALS)
    own = OwnCertificate()
    os.umask(0o177)
    async with XdsServer(own, f"unix:{socket}", max_connection_age=None, grace=0, health=False):
        renewal = asyncio.create_task(Renewal(client, own).run())
        _, status = await asyncio.to_thread(os.waitpid, envoy, 0)
        renewal.cancel()
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code


def main() -> None:
    """Run the agent. The arguments are those of `xds.mesh.sidecar.running.run_beside_agent`."""
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
    envoy, address, token, roots, socket, identity = sys.argv[1:]
    client = CertificateClient(address=address, token=Path(token), roots=Path(roots), identity=identity)
    sys.exit(asyncio.run(run(int(envoy), client, socket)))


if __name__ == "__main__":
    main()
