"""Docker for the tests: an engine, Compose v2, and a base image where no registry can be reached."""

from __future__ import annotations

import os
from pathlib import Path

REQUIRED = "XDS_REQUIRE_COMPOSE"
"""Environment variable: tests that lack something fail, not skip."""

CACHE = Path(__file__).parents[3] / ".cache"


class MissingError(Exception):
    """Something is not here that the tests need: the text says what, and how to get it."""


def tail(log: Path, lines: int = 30) -> str:
    """Return the end of a log."""
    return "\n".join(log.read_text(errors="replace").splitlines()[-lines:])


def is_root() -> bool:
    """Whether we may start an engine."""
    return os.geteuid() == 0
