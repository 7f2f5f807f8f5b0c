"""A controller with a server and clients whose mode changes, and waiting for its rollouts."""

from __future__ import annotations

from contextlib import AsyncExitStack, asynccontextmanager

from tests.controlplane.sidecar import WITHIN, Sidecar
from tests.controlplane.world import running
from tests.policy.world import HTTP, peer, pod, service
from tests.support.waiting import eventually
from xds.mesh.model.objects import Change, Ref
from xds.mesh.rollout.plan import Transition
from xds.mesh.rollout.progress import port_waits
from xds.mesh.rollout.waits import Wait

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
    """Run a controller with a server and a client that have ACKed everything."""
    async with running(*FACTS, *facts, rollout_timeout=timeout) as controller, AsyncExitStack() as stack:
        sidecars = [await stack.enter_async_context(Sidecar(controller, name, "ns")) for name in names]
        for each in sidecars:
            await each.wait_for(lambda each=each: each.listeners and WEB in each.endpoints)
        yield controller, *sidecars


def set_mode(controller, mode: str | None, **more) -> None:
    if mode is None:
        controller.change(Change(removed=(Ref("PeerAuthentication", "ns", "default"),)))
    else:
        controller.change(Change(applied=(peer("ns", mode, **more),)))


async def until_finished(controller) -> None:
    rollout = controller.rollouts.rollout
    await eventually(lambda: not rollout.is_in_progress and not controller.batcher, timeout=WITHIN)


def transitions(controller) -> list[Transition]:
    """Return the transitions in the plan."""
    return list(controller.rollouts.rollout.plan.ports.values())


def waits(controller) -> list[Wait]:
    """Return what the transitions wait for."""
    return [wait for _, _, wait in port_waits(controller.rollouts)]


async def until_waiting_for(controller, stage: str) -> None:
    def is_waiting() -> bool:
        found = waits(controller)
        return bool(found) and all(each.waiting_for == stage for each in found)

    await eventually(is_waiting, timeout=WITHIN, every=0.01)


async def until_skipped(controller) -> None:
    """Let the timeout of what a rollout waits for pass, and wait until it is skipped.

    Whatever it waits for next has its time, on a busy machine too.
    """
    rollout = controller.rollouts.rollout
    timeout, skips = rollout.timeout, rollout.stats.skips
    rollout.timeout = 0.5
    await eventually(lambda: rollout.stats.skips > skips, timeout=WITHIN, every=0.01)
    rollout.timeout = timeout


async def until_checked_twice(controller) -> None:
    """Wait until the controller has checked the progress of proxies twice more."""
    for _ in range(2):
        before = controller.rollouts.checked_at
        await eventually(
            lambda before=before: controller.rollouts.checked_at > before, timeout=WITHIN, every=0.01
        )
