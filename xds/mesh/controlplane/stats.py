"""Counters of a controller, for metrics."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple


@dataclass(slots=True)
class Stats:
    """Counters since the start of the process."""

    changes: int = 0
    """Changes that sources reported."""
    batches: int = 0
    """Batches of changes that were applied."""
    apply_seconds: float = 0.0
    """Seconds spent on applying changes."""
    translated: int = 0
    """Translations of a pod that completed."""
    superseded: int = 0
    """Translations that newer changes cancelled."""
    failed: int = 0
    """Translations that failed with an error."""
    translate_seconds: float = 0.0
    """Seconds that the event loop spent on translations."""


class CertificateStats(NamedTuple):
    """The certificates that the controller has issued."""

    issued: int
    """Certificates issued since the start of the process."""
    current: int
    """Current certificates of existing pods."""
    soonest_expiry: datetime | None
    """When the first of the current certificates expires. None: there is none."""
    root_expiry: datetime
    """When the root certificate expires."""
