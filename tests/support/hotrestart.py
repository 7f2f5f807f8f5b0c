"""Envoys that take over from each other: hot restart, with two processes and one node at once."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, Self

from tests.support.envoy import OPTIONS, EnvoyProcess

DRAIN, SHUTDOWN = 1, 20
"""Seconds after which an Envoy that was relieved has no listeners any more, and ends.

Tests look at both Envoys until then, also on a slow machine.
"""

_ALONE = "--disable-hot-restart"


class Epoch(EnvoyProcess):
    """One of the processes. It may exit before the block ends: its successor tells it to."""

    def __init__(self, number: int, bootstrap: Mapping[str, Any], directory: Path, *options: str) -> None:
        common = [option for option in OPTIONS[:-1] if option != _ALONE]
        shutdown = ("--parent-shutdown-time-s", str(SHUTDOWN), "--restart-epoch", str(number))
        options = (*common, str(DRAIN), *shutdown, *options)
        super().__init__(f"envoy-{number}", bootstrap, directory, options=options)
        self.number = number

    async def _is_live(self) -> bool:
        # Until the new process has taken over, the old one answers at their common address.
        about = await self.admin.json("/server_info")
        return about["command_line_options"]["restart_epoch"] == self.number and await super()._is_live()

    async def __aexit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        if self._process.returncode is None:
            await super().__aexit__(kind, *rest)
        elif kind is None:
            assert self._process.returncode == 0, self.tail()


class HotRestart:
    """Starts one Envoy after the other from one bootstrap, inside an `async with` block."""

    def __init__(self, bootstrap: Mapping[str, Any], directory: Path) -> None:
        self._bootstrap, self._directory = bootstrap, directory
        self._id = directory / "base-id"
        self._numbers = itertools.count()
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *failure: object) -> None:
        try:
            await self._stack.__aexit__(*failure)
        finally:
            # Envoy leaves what it shared with its successors.
            Path(f"/dev/shm/envoy_shared_memory_{self._id.read_text()}0").unlink(missing_ok=True)

    async def start(self) -> Epoch:
        """Start an Envoy, which takes over from the one before if there is one."""
        number = next(self._numbers)
        first = ("--use-dynamic-base-id", "--base-id-path", str(self._id))
        options = ("--base-id", self._id.read_text()) if number else first
        return await self._stack.enter_async_context(
            Epoch(number, self._bootstrap, self._directory, *options)
        )
