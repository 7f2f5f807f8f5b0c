"""One demo at a time on this machine: its addresses are always the same."""

from __future__ import annotations

import fcntl
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture
def alone() -> Iterator[None]:
    """Wait for other runs of these tests. The kernel unlocks what a run that was killed has locked."""
    with Path(tempfile.gettempdir(), f"xds-test-demo-{os.getuid()}").open("wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
