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

from xds.mesh.controlplane.controller import Hub
from xds.mesh.model.objects import METRICS_PORT, Pod, PortKey, Ref

log = structlog.get_logger(__name__)

BEFORE = 3.0
"""Seconds after a lock in which its sidecar has to answer for the first time: later, connections may have ended already."""
PAUSE = 6.0
"""Seconds until it is asked again, and between questions after that: sidecars drain for five."""
LONGEST = 700.0
"""Seconds after which it is given up: Envoy, unless told otherwise, drains for 600."""
WITHIN = 2.0
"""Seconds in which a sidecar has to answer."""
CONNECTS = 0.5
"""Seconds in which it has to accept the connection: where it may not be reached, many may not."""
MOST_BYTES = 1 << 16
"""The longest answer: there is one number for each of its ports."""
AT_ONCE = 128
"""Sidecars that are asked at a time."""
MOST_TOLD = 10
"""Pods that the log names."""

_FILTER = (
    r"^cluster\.inbound\|.*\.upstream_cx_destroy_local_with_active_rq$|^listener_manager\.total_.*_draining$"
)
_NUMBER = r"(\d{1,9})(?:\s|$)"
_CUT = re.compile(
    r'envoy_cluster_upstream_cx_destroy_local_with_active_rq\{envoy_cluster_name="inbound\|(\d{1,5})\|[^"]{0,500}"\} '
    + _NUMBER
)
_DRAINING = re.compile(
    r"envoy_listener_manager_total_(?:filter_chains|listeners)_draining(?:\{\})? " + _NUMBER
)


class Page(NamedTuple):
    """What a sidecar says."""

    cut: dict[int, int]
    """By port, how many connections to the application it ended before the application was done."""
    draining: int
    """Listeners and filter chains that were replaced, and whose connections have not ended yet."""


def read(text: str) -> Page:
    """Read a metrics page. ValueError: it is none.

    Not by a library: they take seconds for some lines that somebody may write to that end.
    """
    lines = text.splitlines()
    draining = [int(found[1]) for line in lines if (found := _DRAINING.match(line))]
    if not draining:
        raise ValueError("this is no page of a sidecar")
    cut = {int(found[1]): int(found[2]) for line in lines if (found := _CUT.match(line))}
    return Page(cut, sum(draining))


class Lock(NamedTuple):
    """A port that was closed to plaintext."""

    port: int
    generation: int
    """The snapshots since which it is closed."""


class Cuts:
    """Counts them while `run` does."""

    def __init__(self, hub: Hub) -> None:
        self._hub = hub
        self.connections = 0
        """Plaintext connections, and responses in plaintext, that ended because their server was locked."""
        self.unknown = 0
        """Locks of which that is not known, because the sidecar could not be asked."""
        self._counting: dict[Ref, list[Lock]] = {}
        self._told: set[Ref] = set()
        self._at_once = asyncio.Semaphore(AT_ONCE)

    @property
    def counting(self) -> int:
        """Locks after which connections may still end."""
        return sum(map(len, self._counting.values()))

    async def run(self) -> None:
        """Count until cancelled."""
        loop = asyncio.get_running_loop()
        rollout = self._hub.rolling.rollout
        session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(force_close=True, limit=AT_ONCE),
            timeout=aiohttp.ClientTimeout(sock_connect=CONNECTS),
            auto_decompress=False,
        )
        async with session, asyncio.TaskGroup() as group:

            def begin(key: PortKey, generation: int) -> None:
                pod, port = key
                lock = Lock(port, generation)
                if pod in self._counting:
                    self._counting[pod].append(lock)
                elif not self._hub.rolling.is_elsewhere((pod.namespace, pod.name)):
                    self._counting[pod] = [lock]
                    group.create_task(self._count(session, pod))

            nobody = rollout.closed
            # It is said in the thread in which the rollout takes its steps.
            rollout.closed = lambda key, generation: loop.call_soon_threadsafe(begin, key, generation)
            try:
                await loop.create_future()
            finally:
                rollout.closed = nobody

    async def _count(self, session: aiohttp.ClientSession, ref: Ref) -> None:
        locks, until = self._counting[ref], asyncio.get_running_loop().time() + BEFORE
        url = ""
        try:
            pod = self._pod(ref)
            url = f"http://{self._host(ref, pod)}:{METRICS_PORT}/stats/prometheus"
            async with asyncio.timeout_at(until):
                before = await self._ask(session, url)
            async with asyncio.timeout(LONGEST):
                after = await self._once_drained(session, url, ref, pod)
            ended = _ended(before, after, {lock.port for lock in locks})
        except Exception as error:  # noqa: BLE001 - whatever a pod may answer ends nothing here
            self.unknown += len(locks)
            self._tell(ref, url, str(error) or "no answer in time")
        else:
            self.connections += ended
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

    async def _once_drained(self, session: aiohttp.ClientSession, url: str, ref: Ref, pod: Pod) -> Page:
        while True:
            await asyncio.sleep(PAUSE)
            locks = tuple(self._counting[ref])
            in_force = self._hub.rolling.in_force((ref.namespace, ref.name))
            if (now := self._pod(ref)).address != pod.address or now.meta.uid != pod.meta.uid:
                raise ValueError("it is another pod now")
            page = await self._ask(session, url)
            known = max(lock.generation for lock in locks) <= in_force
            if known and not page.draining and len(locks) == len(self._counting[ref]):
                return page

    def _pod(self, ref: Ref) -> Pod:
        if (pod := self._hub.mesh.pod(ref.namespace, ref.name)) and pod.address:
            return pod
        raise ValueError("there is no such pod any more")

    def _host(self, ref: Ref, pod: Pod) -> str:
        """Return where a pod may be asked: at its own address, if its streams come from there, or both are on this machine."""
        own = ipaddress.ip_address(pod.address)
        for host in self._hub.hosts((ref.namespace, ref.name)):
            if host == own or (host.is_loopback and own.is_loopback):
                return f"[{own}]" if own.version == 6 else str(own)
        raise ValueError("no stream of its own comes from the pod's address")

    async def _ask(self, session: aiohttp.ClientSession, url: str) -> Page:
        async with (
            self._at_once,
            asyncio.timeout(WITHIN),
            session.get(url, params={"filter": _FILTER}, allow_redirects=False) as response,
        ):
            if response.status != HTTPStatus.OK:
                raise ValueError(f"it answers {response.status}")
            body = b""
            async for some in response.content.iter_any():
                body += some
                if len(body) > MOST_BYTES:
                    raise ValueError("its answer does not end")
        return read(body.decode())


def _ended(before: Page, after: Page, ports: Iterable[int]) -> int:
    """Return how many connections ended between two looks. ValueError: it cannot be told, as the counters began anew."""
    found = [after.cut.get(port, 0) - before.cut.get(port, 0) for port in ports]
    if min(found) < 0:
        raise ValueError("it has started anew meanwhile")
    return sum(found)
