"""A mesh whose mTLS mode changes, and what its rollout waits for."""

from __future__ import annotations

from contextlib import AsyncExitStack, asynccontextmanager

from tests.controlplane.hubs import running
from tests.controlplane.sidecar import WITHIN, Sidecar
from tests.policy.world import HTTP, peer, pod, service
from tests.support.waiting import eventually
from xds.mesh.model.objects import Change, Ref
from xds.snapshot import ENDPOINT, LISTENER

WEB = "outbound|80||web.ns.svc.cluster.local"
FACTS = (
    pod("web", "ns"),
    pod("client", "ns"),
    pod("other", "ns"),
    service("web", "ns", HTTP),
)
PORT = HTTP.target


@asynccontextmanager
async def world(*facts, timeout: float | None = 30, names: tuple[str, ...] = ("web", "client")):
    """A hub with a server and a client that have all they should."""
    async with running(*FACTS, *facts, rollout_timeout=timeout) as hub, AsyncExitStack() as stack:
        sidecars = [await stack.enter_async_context(Sidecar(hub, name, "ns")) for name in names]
        for each in sidecars:
            await each.until(lambda each=each: LISTENER in each.has and WEB in each.has.get(ENDPOINT, {}))
        yield hub, *sidecars


def say(hub, mode: str | None, **more) -> None:
    if mode is None:
        hub.change(Change(removed=(Ref("PeerAuthentication", "ns", "default"),)))
    else:
        hub.change(Change(applied=(peer("ns", mode, **more),)))


async def waits_for(hub, stage: str) -> None:
    def is_waiting() -> bool:
        crossings = hub.rolling.rollout.crossings.values()
        return bool(crossings) and all(each.stage == stage for each in crossings)

    await eventually(is_waiting, timeout=WITHIN, every=0.01)


async def looked_twice(hub) -> None:
    """Wait until the hub has looked twice more how far everybody is."""
    for _ in range(2):
        before = hub.rolling._looked
        await eventually(lambda before=before: hub.rolling._looked > before, timeout=WITHIN, every=0.01)
