"""The pytest plugin: fixtures for tests of xDS servers, and explanations of failed tests.

To use it, write `pytest_plugins = ["xds.pytest_plugin"]` in the top-level `conftest.py`, or run
`pytest -p xds.pytest_plugin`. Until a fixture is used, it imports only pytest and, if it is installed,
pytest-asyncio.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Generator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import pytest

if TYPE_CHECKING:
    from xds.store import Store
    from xds.testing import EnvoyClient, EnvoyProcess, RecordingServer

REQUIRE_ENVOY = "XDS_REQUIRE_ENVOY"
"""Environment variable: if it is set, tests fail instead of being skipped if the real Envoy is missing."""

_CONVERSATIONS: pytest.StashKey[dict[str, Callable[[], str]]] = pytest.StashKey()
"""Functions that return the conversations of a test, by title."""

F = TypeVar("F", bound=Callable[..., Any])


def pytest_configure(config: pytest.Config) -> None:
    """Ignore the deprecation warnings that imports of `envoy_data_plane` cause; a test shows over 50."""
    config.addinivalue_line(
        "filterwarnings", "ignore:Using `@model_validator`:DeprecationWarning:envoy_data_plane"
    )


def _async_fixture(function: F) -> F:
    """Make an asynchronous fixture. Without pytest-asyncio, it fails the tests that use it."""
    if importlib.util.find_spec("pytest_asyncio"):
        import pytest_asyncio  # noqa: PLC0415  # an extra

        return cast("F", pytest_asyncio.fixture(function))

    def fixture() -> None:
        problem = f"the fixture {function.__name__} needs pytest-asyncio: pip install 'xds-mesh[testing]'"
        pytest.fail(problem, pytrace=False)

    return cast("F", pytest.fixture(name=function.__name__)(fixture))


@pytest.fixture
def xds_store() -> Store:
    """Return the store that `xds_server` serves. Override the fixture to use another one."""
    from xds.store import Store  # noqa: PLC0415

    return Store()


@_async_fixture
async def xds_server(xds_store: Store, request: pytest.FixtureRequest) -> AsyncIterator[RecordingServer]:
    """Run a server on a free port of the loopback address. Its `store` is `xds_store`."""
    from xds.testing import RecordingServer  # noqa: PLC0415

    async with RecordingServer(xds_store) as server:
        _show(request, "xDS server", lambda: "\n".join(map(str, server.conversations.values())))
        yield server


@_async_fixture
async def envoy_client(
    xds_server: RecordingServer, request: pytest.FixtureRequest
) -> AsyncIterator[Callable[..., Awaitable[EnvoyClient]]]:
    """Return a function that connects an `EnvoyClient` to `xds_server`. It takes the client's arguments."""
    from xds.testing import EnvoyClient  # noqa: PLC0415

    async with AsyncExitStack() as clients:

        async def connect(target: Any = None, **options: Any) -> EnvoyClient:
            client = EnvoyClient(xds_server.address if target is None else target, **options)
            _show(request, f"EnvoyClient {client.node}", client.describe)
            return await clients.enter_async_context(client)

        yield connect


@_async_fixture
async def real_envoy(
    xds_server: RecordingServer, tmp_path: Path
) -> AsyncIterator[Callable[..., Awaitable[EnvoyProcess]]]:
    """Return a function that starts a real Envoy, which uses `xds_server`.

    It takes the arguments of `xds.testing.bootstrap`, except for ports, and `may_reject` of `EnvoyProcess`.
    If Envoy is not installed, the test is skipped, or fails if XDS_REQUIRE_ENVOY is set.
    """
    from xds.testing import EnvoyProcess, bootstrap  # noqa: PLC0415
    from xds.validation import EnvoyNotFoundError, find_envoy  # noqa: PLC0415

    try:
        find_envoy()
    except EnvoyNotFoundError as error:
        reason = f"{error}; the extra xds-mesh[testing] contains it"
        if os.environ.get(REQUIRE_ENVOY):
            pytest.fail(reason, pytrace=False)
        pytest.skip(reason)
    async with AsyncExitStack() as envoys:

        async def start(node: str = "envoy", *, may_reject: bool = False, **options: Any) -> EnvoyProcess:
            config = bootstrap(node, xds_server.port, **options)
            return await envoys.enter_async_context(
                EnvoyProcess(node, config, tmp_path, may_reject=may_reject)
            )

        yield start


def pytest_assertrepr_compare(op: str, left: Any, right: Any) -> list[str] | None:
    """Explain why two snapshots, resource sets or resources are not equal: by resource, without secrets."""
    snapshots = sys.modules.get("xds.snapshot")
    if op != "==" or snapshots is None or type(left) is not type(right):
        return None
    kinds = snapshots.Snapshot, snapshots.ResourceSet, snapshots.Resource
    if not isinstance(left, kinds):
        return None
    from xds.introspect.diff import explain_difference  # noqa: PLC0415

    return [f"{type(left).__name__} == {type(left).__name__}", *explain_difference(left, right)]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Add the conversations to the report of a failed test."""
    report = yield
    if report.failed and call.when != "setup":
        for title, describe in item.stash.get(_CONVERSATIONS, {}).items():
            if text := describe():
                report.sections.append((f"Conversation of {title}", text))
    return report


def _show(request: pytest.FixtureRequest, title: str, describe: Callable[[], str]) -> None:
    """Print a conversation if the test fails."""
    request.node.stash.setdefault(_CONVERSATIONS, {})[title] = describe
