"""Options of the whole suite."""

from __future__ import annotations


def pytest_addoption(parser) -> None:
    parser.addoption("--golden", action="store_true", help="write what the golden cases give, not compare it")
