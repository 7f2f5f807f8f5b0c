"""Fixtures of the tests of what runs in a pod."""

from __future__ import annotations

from tests.real.conftest import cluster

__all__ = ["cluster"]
