"""The real Envoy as a child process, and its admin interface."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from tests.support.clients import Client
from tests.support.places import HERE, Place
from tests.support.waiting import eventually
from xds.codec import to_dict
from xds.mesh.envoy.dump import COMPARED_TYPES, active_config, comparable, difference
from xds.mesh.sidecar.settings import PROXY_ID
from xds.snapshot import Snapshot
from xds.testing import EnvoyAdmin
from xds.testing import EnvoyProcess as PublicEnvoyProcess


def run_options(drain_seconds: int = 5) -> tuple[str, ...]:
    """Return how sidecars are run: a listener that was replaced lets go of its connections in seconds."""
    return (
        "--disable-hot-restart",
        "--concurrency", "1",
        "--drain-strategy", "immediate",
        "--drain-time-s", str(drain_seconds),
    )  # fmt: skip


OPTIONS = run_options()


class Admin(EnvoyAdmin):
    """An Envoy's admin interface, as a client in a place reaches it."""

    def __init__(self, client: Client, address: str, port: int) -> None:
        super().__init__(f"{address}:{port}")
        self._client = client

    async def request(self, path: str, method: str = "GET") -> str:
        answer = await self._client.get(f"http://{self.address}{path}", method=method)
        assert answer.code == "200", f"admin {path}: {answer}"
        return answer.text


class EnvoyProcess(PublicEnvoyProcess):
    """An Envoy in a place, such as a network namespace, and perhaps run by the sidecar's user."""

    def __init__(
        self,
        name: str,
        bootstrap: Mapping[str, Any],
        directory: Path,
        *,
        place: Place = HERE,
        options: Sequence[str] = OPTIONS,
        as_sidecar: bool = False,
        may_reject: bool = False,
    ) -> None:
        self._place = place
        self._as_sidecar = as_sidecar
        super().__init__(name, bootstrap, directory, options=options, may_reject=may_reject)

    def _make_admin(self, host: str, port: int) -> Admin:
        return Admin(Client(self._place), host, port)

    def _argv(self, binary: str) -> list[str]:
        return self._place.command(*self._command(binary))

    def _command(self, binary: str) -> list[str]:
        argv = super()._argv(binary)
        if self._as_sidecar:
            argv = ["setpriv", f"--reuid={PROXY_ID}", f"--regid={PROXY_ID}", "--clear-groups", *argv]
        return argv


async def has_active(envoy: EnvoyProcess, snapshot: Snapshot, timeout: float = 60) -> None:
    """Wait until an Envoy has exactly the resources of a snapshot active."""
    expected = {
        (type_url, name): _expected(type_url, resource.body)
        for type_url in COMPARED_TYPES
        for name, resource in snapshot.of(type_url).items()
    }

    async def lacks_nothing() -> bool:
        missing = difference(expected, active_config(await envoy.admin.json("/config_dump?include_eds")))
        assert not missing, missing
        return True

    try:
        # A dump costs 15 ms of CPU, which the change needs: do not poll more often.
        await eventually(
            lacks_nothing, timeout=timeout, every=0.2, what=f"{envoy.name} has its configuration"
        )
    except AssertionError as error:
        error.add_note(f"rejections: {await envoy.rejections()}\n{envoy.tail()}")
        raise


@lru_cache(maxsize=4_000)
def _expected(type_url: str, body: bytes) -> Any:
    """Decode a resource, which several Envoys have, or one Envoy over many changes."""
    return comparable(type_url, to_dict(type_url, body))


async def drained(envoys: Iterable[EnvoyProcess], timeout: float = 60) -> None:
    """Wait until none serves connections of listeners, or filter chains, that it has replaced."""

    async def are_gone() -> bool:
        left = [await envoy.admin.total(r"total_.*_draining$") for envoy in envoys]
        return not any(left)

    await eventually(are_gone, timeout=timeout, every=0.1, what="old connections are gone")
