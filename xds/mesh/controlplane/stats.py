"""What a hub did and has, for whoever counts."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple


@dataclass(slots=True)
class Work:
    """What was done since the start."""

    changes: int = 0
    """Changes that sources told of."""
    applied: int = 0
    """Meshes made of them; those that came close together are one."""
    apply_seconds: float = 0.0
    made: int = 0
    """Configurations of proxies: made,"""
    overtaken: int = 0
    """given up because newer facts came,"""
    failed: int = 0
    """and not possible."""
    translate_seconds: float = 0.0
    """Spent on them, without the event loop's turns in between."""


class Certificates(NamedTuple):
    """Which certificates there are."""

    issued: int
    """Since the start."""
    held: int
    """By pods that there are."""
    soonest_expiry: datetime | None
    """Of those held."""
    root_expiry: datetime
