"""How many plaintext connections ended because their server was locked: only its sidecar knows, so it is asked.

Its metrics page is read before the lock can have ended anything, and again when nothing drains there any more (docs/metrics.md). A
sidecar is asked only where its own stream comes from: no address in a manifest makes us connect to anybody.
"""

from __future__ import annotations

import asyncio
import ipaddress
import re
from collections.abc import Iterable
from http import HTTPStatus
from typing import NamedTuple

import aiohttp
import structlog
from prometheus_client.parser import text_string_to_metric_families

from xds.hub import Hub
from xds.model import PortKey, Ref
from xds.sidecar.settings import METRICS_PORT

log = structlog.get_logger(__name__)

BEFORE = 3.0
"""Seconds after a lock in which its sidecar has to answer for the first time: later, connections may have ended already."""
PAUSE = 6.0
"""Seconds until it is asked again, and between questions after that: sidecars drain for five."""
LONGEST = 700.0
"""Seconds after which it is given up: Envoy, unless told otherwise, drains for 600."""
WITHIN = 2.0
"""Seconds in which a sidecar has to answer,"""
MOST_BYTES = 1 << 20
"""and how much it may say."""
AT_ONCE = 32
"""Sidecars that are asked at a time."""
MOST_TOLD = 10
"""Pods that the log names."""
_MOST = 1e9
"""The largest number that is believed."""

_CUT = "envoy_cluster_upstream_cx_destroy_local_with_active_rq"
_CLUSTER = "envoy_cluster_name"
_DRAINING = (
    "envoy_listener_manager_total_filter_chains_draining",
    "envoy_listener_manager_total_listeners_draining",
)
_FILTER = (
    r"^cluster\.inbound\|.*\.upstream_cx_destroy_local_with_active_rq$|^listener_manager\.total_.*_draining$"
)
_INBOUND = re.compile(r"inbound\|(\d+)\|")


class Page(NamedTuple):
    """What a sidecar says."""

    cut: dict[int, int]
    """By port, how many connections to the application it ended before the application was done."""
    draining: int
    """Listeners and filter chains that were replaced, and whose connections have not ended yet."""


def read(text: str) -> Page:
    """Read a metrics page. ValueError: it is none."""
    cut: dict[int, int] = {}
    draining: int | None = None
    for family in text_string_to_metric_families(text):
        for sample in family.samples if family.name in {_CUT, *_DRAINING} else ():
            if not 0 <= sample.value < _MOST:
                raise ValueError(f"{sample.name} cannot be {sample.value}")
            if family.name in _DRAINING:
                draining = (draining or 0) + int(sample.value)
            elif found := _INBOUND.match(sample.labels.get(_CLUSTER, "")):
                cut[int(found[1])] = int(sample.value)
    if draining is None:
        raise ValueError("this is no page of a sidecar")
    return Page(cut, draining)


class Cuts:
    """Counts them while `run` does."""

    def __init__(self, hub: Hub) -> None:
        self._hub = hub
        self.connections = 0
        """Plaintext connections, and responses in plaintext, that ended because their server was locked."""
        self.unknown = 0
        """Ports that were locked and whose sidecar could not be asked."""
        self._counting: dict[Ref, set[int]] = {}
        self._told: set[Ref] = set()
        self._at_once = asyncio.Semaphore(AT_ONCE)

    @property
    def counting(self) -> int:
        """Ports that were locked, and where connections may still end."""
        return sum(map(len, self._counting.values()))

    async def run(self) -> None:
        """Count until cancelled."""
        loop = asyncio.get_running_loop()
        rollout = self._hub.rolling.rollout
        # Those pods are many, and none is asked twice in a row.
        session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(force_close=True), auto_decompress=False
        )
        async with session, asyncio.TaskGroup() as group:

            def begin(key: PortKey) -> None:
                pod, port = key
                if pod in self._counting:
                    self._counting[pod].add(port)
                elif any(self._hub.hosts((pod.namespace, pod.name))):  # Else another replica asks it.
                    self._counting[pod] = {port}
                    group.create_task(self._count(session, pod))

            # It is said in the thread in which the rollout takes its steps.
            rollout.closed = lambda key: loop.call_soon_threadsafe(begin, key)
            try:
                await loop.create_future()
            finally:
                rollout.closed = bool

    async def _count(self, session: aiohttp.ClientSession, ref: Ref) -> None:
        ports, until = self._counting[ref], asyncio.get_running_loop().time() + BEFORE
        url = ""
        try:
            url = self._where(ref)
            before = await self._ask(session, url, until=until)
            async with asyncio.timeout(LONGEST):
                after = await self._once_drained(session, url, ref)
        except Exception as error:  # noqa: BLE001 - whatever a pod may answer ends nothing here
            self.unknown += len(ports)
            self._tell(ref, url, str(error) or type(error).__name__)
        else:
            self.connections += ended(before, after, ports)
        finally:
            del self._counting[ref]

    def _tell(self, ref: Ref, url: str, reason: str) -> None:
        """Say in the log who cannot be asked, each pod once and not all of a mesh: why it is so for one it is for most."""
        if ref not in self._told and len(self._told) < MOST_TOLD:
            self._told.add(ref)
            log.info(
                "it is not known how many plaintext connections a lock ended",
                pod=f"{ref.namespace}/{ref.name}",
                asked=url,
                reason=reason,
            )

    async def _once_drained(self, session: aiohttp.ClientSession, url: str, ref: Ref) -> Page:
        while True:
            await asyncio.sleep(PAUSE)
            page = await self._ask(session, url)
            if not page.draining and self._is_in_force(ref):
                return page

    def _is_in_force(self, ref: Ref) -> bool:
        crossings = self._hub.rolling.rollout.crossings
        found = filter(None, (crossings.get((ref, port)) for port in self._counting[ref]))
        return all(each.may_serve == {each.serves} for each in found)

    def _where(self, ref: Ref) -> str:
        """Return where a pod may be asked: at its own address, if its streams come from there, or both are on this machine."""
        key = (ref.namespace, ref.name)
        if (pod := self._hub.mesh.pod(*key)) and pod.address:
            own = ipaddress.ip_address(pod.address)
            if any(host == own or (host.is_loopback and own.is_loopback) for host in self._hub.hosts(key)):
                return f"http://{f'[{own}]' if own.version == 6 else own}:{METRICS_PORT}/stats/prometheus"
        raise ValueError("its stream does not come from the pod's address")

    async def _ask(self, session: aiohttp.ClientSession, url: str, *, until: float | None = None) -> Page:
        """Read a sidecar's page, before a time if one is given."""
        async with self._at_once:
            if until and asyncio.get_running_loop().time() > until:
                raise ValueError("too many were locked at a time to ask it before connections ended")
            asked = session.get(url, params={"filter": _FILTER}, allow_redirects=False)
            async with asyncio.timeout(WITHIN), asked as response:
                if response.status != HTTPStatus.OK:
                    raise ValueError(f"it answers {response.status}")
                body = b""
                async for some in response.content.iter_any():
                    body += some
                    if len(body) > MOST_BYTES:
                        raise ValueError("its answer does not end")
        return read(body.decode())


def ended(before: Page, after: Page, ports: Iterable[int]) -> int:
    """Return how many connections ended between two looks; a counter that has become smaller began anew."""
    pairs = ((before.cut.get(port, 0), after.cut.get(port, 0)) for port in ports)
    return sum(late - early if late >= early else late for early, late in pairs)
