"""Every golden case loads in the real Envoy: nothing is rejected or warming, everything sent is active."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, contextmanager
from itertools import cycle
from pathlib import Path

import pytest
import pytest_asyncio

from tests.golden.cases import CASES, load, manifests, options
from tests.support.clients import Client
from tests.support.controlplane import ControlPlane
from tests.support.envoy import EnvoyProcess, has_active
from tests.support.manifests import Manifests
from tests.support.places import HERE, Namespace, Place, why_no_namespaces
from tests.support.tcp import Relay
from xds.codec import to_json_dict
from xds.mesh.envoy.bootstrap import bootstrap
from xds.mesh.envoy.translate import translate
from xds.mesh.model.objects import Pod
from xds.snapshot import EXTENSION_CONFIG, LISTENER, Snapshot

pytestmark = [pytest.mark.envoy, pytest.mark.asyncio(loop_scope="module")]

_DOOR = 15010
_FAMILIES = {"cluster_manager", "listener_manager", "http", "cluster", "sds"}
"""Prefixes of subscription statistics: CDS, LDS, RDS, EDS and SDS."""


class Planes:
    """One control plane for each combination of settings. Each case replaces the manifest, to save starts."""

    def __init__(self, directory: Path, exits: AsyncExitStack) -> None:
        self._directory, self._exits = directory, exits
        self._planes: dict[tuple[str, ...], ControlPlane] = {}

    async def serve(self, case: Path) -> ControlPlane:
        file, assignments = options(case)
        settings = [f"--mesh-config={file}"] if file else []
        # Rollouts would wait for the previous case's sidecars, which have just disconnected.
        key = ("--rollout=immediate", *settings, *(f"--set={assignment}" for assignment in assignments))
        if key not in self._planes:
            directory = self._directory / case.name
            folder = Manifests(directory / "manifests").directory
            (folder / "in.yaml").write_text(manifests(case))
            self._planes[key] = await self._exits.enter_async_context(ControlPlane(folder, directory, *key))
            return self._planes[key]
        draft = self._directory / "in.yaml"
        draft.write_text(manifests(case))
        draft.replace(self._planes[key].manifests / "in.yaml")
        return self._planes[key]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def planes(tmp_path_factory):
    async with AsyncExitStack() as exits:
        yield Planes(tmp_path_factory.mktemp("golden"), exits)


@pytest.mark.parametrize("case", CASES)
async def test_golden_configuration_becomes_active(case, planes, tmp_path):
    mesh = load(case)
    apps = {pod.meta.labels["app"]: pod for pod in reversed([*mesh.pods()]) if pod.has_sidecar}
    # The protocol variants alternate between applications, and start differently in the next case.
    sotw = cycle((False, True) if [p.id for p in CASES].index(case.name) % 2 else (True, False))
    plane = await planes.serve(case)
    checks = [
        check(pod, translate(mesh, pod), plane, tmp_path, sotw=in_full)
        for pod, in_full in zip(apps.values(), sotw, strict=False)
    ]
    if why_no_namespaces():  # Ports of sidecars are the same for all, so one after the other.
        for pending in checks:
            await pending
    else:
        await asyncio.gather(*checks)


async def check(pod: Pod, snapshot: Snapshot, plane: ControlPlane, directory: Path, *, sotw: bool) -> None:
    name = f"{pod.namespace}-{pod.name}".replace("/", "-")
    with place_of_its_own(f"xds-golden-{plane.port}-{name}") as place:
        async with sidecar(pod, plane, directory, place, sotw=sotw) as envoy:
            await has_active(envoy, snapshot)
            await refused_nothing(envoy, snapshot)
            await waits_for_nothing(envoy, snapshot)
            (begun,) = await envoy.admin.config("BootstrapConfigDump")
            api = begun["bootstrap"]["dynamic_resources"]["ads_config"]["api_type"]
            assert api == ("GRPC" if sotw else "DELTA_GRPC")


@contextmanager
def place_of_its_own(name: str) -> Iterator[Place]:
    """Return a network namespace if permitted, else this machine."""
    if why_no_namespaces():
        yield HERE
        return
    with ExitStack() as exits:
        made = Namespace(name)
        exits.callback(made.close)
        yield made


@asynccontextmanager
async def sidecar(
    pod: Pod, plane: ControlPlane, directory: Path, place: Place, *, sotw: bool
) -> AsyncIterator[EnvoyProcess]:
    """A pod's Envoy, connected to the control plane through a relay if necessary."""
    begin = to_json_dict(bootstrap(pod, "127.0.0.1", plane.port if place is HERE else _DOOR, sotw=sotw))
    envoy = EnvoyProcess(f"{pod.name}.{pod.namespace}", begin, directory, place=place)
    async with AsyncExitStack() as exits:
        if place is not HERE:
            door = place.listener("127.0.0.1", _DOOR)
            await exits.enter_async_context(Relay(door, lambda: Client().connect("127.0.0.1", plane.port)))
        yield await exits.enter_async_context(envoy)


async def refused_nothing(envoy: EnvoyProcess, snapshot: Snapshot) -> None:
    rejections = await envoy.rejections()
    extensions = {"extension_config_discovery"} if EXTENSION_CONFIG in snapshot.types else set()
    assert {name.split(".")[0] for name in rejections} == _FAMILIES | extensions
    assert not any(rejections.values()), f"{rejections}\n{envoy.tail()}"
    assert await envoy.admin.stat("listener_manager.listener_create_failure") == 0


async def waits_for_nothing(envoy: EnvoyProcess, snapshot: Snapshot) -> None:
    assert await envoy.admin.ready()
    stats = await envoy.admin.stats()
    assert stats["cluster_manager.warming_clusters"] == stats["listener_manager.total_listeners_warming"] == 0
    # One more: the health listener.
    assert stats["listener_manager.total_listeners_active"] == len(snapshot.of(LISTENER)) + 1
    assert stats["control_plane.connected_state"] == 1
    (secrets,) = await envoy.admin.config("SecretsConfigDump")
    assert {secret["name"] for secret in secrets["dynamic_active_secrets"]} == {"default", "ROOTCA"}
    assert not secrets.get("dynamic_warming_secrets")
