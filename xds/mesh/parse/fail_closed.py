"""What applies instead of a refused object that has no earlier good version: what is unknown about it counts as a no.

A policy that says STRICT with a typo must not leave its pods open, so a refused policy is STRICT over the
scope that could be read. ADR 0017 gives the reasons.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from typing import NamedTuple

from xds.mesh.model.objects import Fact, Meta
from xds.mesh.parse.reading import Log


class FailClosed(NamedTuple):
    """A fact that applies instead of an object that was refused."""

    fact: Fact
    effect: str
    """What that means for traffic, for the problem's text."""


def oldest(meta: Meta, log: Log) -> Meta:
    """Return an object's metadata; if its age cannot be read, it counts as the oldest, so that no other object decides."""
    if log.is_readable("metadata", "creationTimestamp"):
        return meta
    return replace(meta, created=datetime.min.replace(tzinfo=UTC))
