"""Computations in small steps, so that the caller can do other work in between."""

from __future__ import annotations

from collections.abc import Generator
from typing import TypeAlias, TypeVar

T = TypeVar("T")

Steps: TypeAlias = Generator[None, None, T]
"""A computation. Each `next` does a small part of the work; the generator returns the result."""


def finish(steps: Steps[T]) -> T:
    """Do all remaining steps at once, and return the result."""
    while True:
        try:
            next(steps)
        except StopIteration as stop:
            result: T = stop.value
            return result
