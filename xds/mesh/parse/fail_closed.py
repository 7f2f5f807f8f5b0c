"""Replacements for refused objects that have no earlier valid version.

A STRICT policy with a typo must not leave its pods open: a refused policy is STRICT for the scope that could
be parsed. ADR 0017 gives the reasons.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from typing import NamedTuple

from xds.mesh.model.objects import Fact, Meta
from xds.mesh.parse.reading import Log


class FailClosed(NamedTuple):
    """A fact that replaces a refused object."""

    fact: Fact
    """The fact."""
    effect: str
    """Effect on traffic, as part of the problem's text."""


def oldest(meta: Meta, log: Log) -> Meta:
    """Return an object's metadata, as the oldest object if its creation time is invalid."""
    if log.is_readable("metadata", "creationTimestamp"):
        return meta
    return replace(meta, created=datetime.min.replace(tzinfo=UTC))
