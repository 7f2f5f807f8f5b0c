"""A program that runs a control plane without the command line."""

from __future__ import annotations

import asyncio
import socket
from functools import partial
from pathlib import Path

import pytest

from tests.support.clients import Client
from tests.support.loopback import free_port
from xds.mesh.controlplane import standalone
from xds.mesh.controlplane.app import CannotListenError, ControlPlane
from xds.mesh.controlplane.parts import Settings
from xds.mesh.sources.files import Folder
from xds.mesh.sources.settings import SettingsLoader


def control_plane(folder: Path, settings: Settings) -> ControlPlane:
    build = partial(standalone.build_components, settings, None)
    return ControlPlane(Folder([folder], SettingsLoader()), build, settings)


async def test_program_runs_and_stops_a_control_plane(tmp_path: Path) -> None:
    admin = free_port()
    plane = control_plane(tmp_path, Settings(xds=("127.0.0.1", 0), admin=("127.0.0.1", admin)))
    running = asyncio.create_task(plane.run())
    async with asyncio.timeout(60):
        await plane.ready.wait()
    assert (await Client().get(f"http://127.0.0.1:{admin}/ready")).ok
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running


@pytest.mark.parametrize("listener", ["admin", "rest", "xds"])
async def test_address_in_use_names_its_listener(tmp_path: Path, listener: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        addresses = {"xds": ("127.0.0.1", 0), "admin": ("127.0.0.1", 0), listener: server.getsockname()}
        with pytest.raises(CannotListenError) as error:
            await control_plane(tmp_path, Settings(**addresses)).run()
    assert error.value.listeners == (listener,)


@pytest.mark.parametrize(
    ("addresses", "exposed", "is_loopback"),
    [
        ({}, [], True),
        ({"xds": ("::", 1)}, ["xds"], False),
        ({"rest": ("10.0.0.1", 1)}, ["rest"], False),
        ({"xds_mtls": ("0.0.0.0", 1)}, [], False),
        ({"xds_tls": ("::1", 1), "rest": ("localhost", 1)}, [], True),
    ],
)
def test_keys_are_served_only_if_nothing_is_exposed(
    addresses: dict[str, tuple[str, int]], exposed: list[str], is_loopback: bool
) -> None:
    settings = Settings(**{"xds": ("127.0.0.1", 1), "admin": ("0.0.0.0", 1)} | addresses)
    assert (list(settings.exposed), settings.is_loopback) == (exposed, is_loopback)


def test_settings_hide_the_token() -> None:
    assert "hunter2" not in repr(Settings(xds=("", 1), admin=("", 2), admin_token="hunter2"))
