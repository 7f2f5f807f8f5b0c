"""Replacements for rejected objects that have no earlier valid version.

A typo in a STRICT policy must not open its pods to plaintext: a rejected policy is STRICT for the scope that
could be parsed. ADR 0017 explains why.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from typing import NamedTuple

from xds.mesh.model.objects import Fact, Meta
from xds.mesh.parse.reading import Log


class FailClosed(NamedTuple):
    """Replacement for a rejected object."""

    fact: Fact
    """Fact that replaces the object."""
    effect: str
    """Effect on traffic, as part of the problem's text."""


def oldest(meta: Meta, log: Log) -> Meta:
    """Return an object's metadata. If its creation time is invalid, the object counts as the oldest."""
    return meta if log.is_readable("metadata", "creationTimestamp") else as_oldest(meta)


def as_oldest(meta: Meta) -> Meta:
    """Return an object's metadata as if it were the oldest object, which overrides others of its level."""
    return replace(meta, created=datetime.min.replace(tzinfo=UTC))
