"""The reasons to skip tests with real components."""

from tests.real.conftest import pytest_runtest_setup

__all__ = ["pytest_runtest_setup"]
