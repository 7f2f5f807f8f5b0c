"""Docker for the tests: an engine, Compose v2, and a base image where no registry can be reached."""

from __future__ import annotations

import os
from pathlib import Path

REQUIRED = "XDS_REQUIRE_COMPOSE"
"""Environment variable: tests fail instead of skipping if something is missing."""

CACHE = Path(__file__).parents[3] / ".cache"


class MissingError(Exception):
    """A requirement of the tests is missing. The message says how to get it."""


def tail(log: Path, lines: int = 30) -> str:
    """Return the end of a log."""
    return "\n".join(log.read_text(errors="replace").splitlines()[-lines:])


def is_root() -> bool:
    """Whether this process may start an engine."""
    return os.geteuid() == 0
