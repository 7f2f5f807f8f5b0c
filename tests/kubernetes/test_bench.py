"""A small run of the benchmark with a real API server."""

from __future__ import annotations

import pytest

from tests.kubernetes.environment import binaries
from tests.support.bench import check_every_scenario, measure


@pytest.mark.skipif(bool(binaries.why_none()), reason=binaries.why_none())
def test_every_scenario():
    # Without TLS, there are no private keys.
    check_every_scenario(measure("--scenario", "every", "--source", "kubernetes"), secrets=0)
