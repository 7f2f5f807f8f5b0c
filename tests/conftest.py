"""Options of the whole suite, and what many of its tests are for each of."""

from __future__ import annotations

import pytest

from xds.protocol.session import Variant


def pytest_addoption(parser) -> None:
    parser.addoption("--golden", action="store_true", help="write what the golden cases give, not compare it")


@pytest.fixture(params=Variant, ids=lambda variant: variant.value)
def variant(request) -> Variant:
    return request.param
