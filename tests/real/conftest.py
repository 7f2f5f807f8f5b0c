"""Fixtures of the tests with real components."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.cluster import Cluster
from tests.support.loopback import Loopback


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    """Pods in network namespaces."""
    with Cluster() as made:
        yield made


@pytest.fixture
def loopback() -> Iterator[Loopback]:
    """Addresses for pods on loopback."""
    with Loopback() as block:
        yield block
