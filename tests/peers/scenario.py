"""How the scenarios of the CNCF xds-test-harness are told: variants, rows, and worlds in shorthand."""

from __future__ import annotations

import pytest

from tests.peers.adapter import TYPES
from tests.peers.client import Variant

SOTW = (Variant(incremental=False, aggregated=False), Variant(incremental=False, aggregated=True))
DELTA = (Variant(incremental=True, aggregated=False), Variant(incremental=True, aggregated=True))


def over(*variants: Variant) -> pytest.MarkDecorator:
    """Run a scenario with each of these."""
    return pytest.mark.parametrize("variant", variants, ids=str)


def rows(names: str, *values: tuple[str, ...]) -> pytest.MarkDecorator:
    """Run a scenario with each of these rows, known by the types in it."""
    ids = ["-".join(value for value in row if value in TYPES) for row in values]
    return pytest.mark.parametrize(names.split(), values, ids=ids)


def at(version: str, names: str) -> dict[str, str]:
    """Return these resources at a version."""
    return dict.fromkeys(names.split(","), version)
