"""What a computation costs, in steps of the interpreter: the same on a busy machine as on an idle one."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from itertools import pairwise
from types import FrameType
from typing import Any

GENEROUS = 10.0
"""Limit of CPU time in seconds. Linear work needs well under one, quadratic work far more."""


def steps(work: Callable[[], object]) -> int:
    """Return how many lines of Python a computation executes, without regular expressions and builtins."""
    count = 0

    def trace(_frame: FrameType, event: str, _arg: Any) -> Any:
        nonlocal count
        count += event == "line"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        work()
    finally:
        sys.settrace(before)
    return count


def assert_linear(work: Callable[[int], object], size: int, slack: int = 5000) -> None:
    """Fail if twice the size takes much more than twice the steps, and twice that size again.

    One comparison is no proof: a small input may be rejected early for another mistake.

    Args:
        work: computes with an input of `size`, 2 `size` or 4 `size`. Build the input outside it.
        size: the smallest size.
        slack: steps that do not count, for one-time work.
    """
    counts = [steps(lambda size=size: work(size)) for size in (size, 2 * size, 4 * size)]  # type: ignore[misc]
    growing = [large > 2.3 * small + slack for small, large in pairwise(counts)]
    assert not all(growing), f"steps for sizes {size}, {2 * size}, {4 * size}: {counts}"


def assert_quick(work: Callable[[], object], seconds: float = GENEROUS) -> None:
    """Fail if a computation needs more CPU time than something linear does."""
    began = time.thread_time()
    work()
    taken = time.thread_time() - began
    assert taken < seconds, f"{taken:.1f} s of CPU time"
