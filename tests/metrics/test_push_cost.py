"""What a push to one more sidecar costs, in calls of Python functions: they do not depend on the machine."""

from __future__ import annotations

import asyncio
import itertools
import sys
from pathlib import Path
from types import FrameType

import grpc.aio

import xds
from tests.metrics.plane import NAME, WITHIN, Plane, pod
from tests.server.proxies import Client
from xds.mesh.model.objects import Change, Meta, Pod, Ref
from xds.protocol.session import Variant
from xds.snapshot import CLUSTER, ENDPOINT

MAX_CALLS = 225
"""Calls of this project's functions for one more sidecar, until its ACK: 216 to 219 with Python 3.11."""
FEW, MANY = 5, 25
ROUNDS = 4
"""Changes. The first one also processes what connecting has left, and others what is due now and then."""
PACKAGE = str(Path(xds.__file__).parent)


def client_pod(number: int) -> Pod:
    return Pod(meta=Meta(ref=Ref("Pod", "shop", f"client-{number}")), address=f"127.9.1.{number + 1}")


async def connect(channel: grpc.aio.Channel, number: int) -> Client:
    node = f"sidecar~127.9.1.{number + 1}~client-{number}.shop~shop.svc.cluster.local"
    client = Client(channel, Variant.DELTA, node=node)
    for type_url, names in ((CLUSTER, ()), (ENDPOINT, (NAME,))):
        await client.ask(type_url, *names)
        await client.ask(type_url, nonce=(await client.get()).nonce)
    return client


async def calls_of_change(plane: Plane, clients: list[Client], added: Pod) -> int:
    """Add an endpoint, and count the calls until all clients have ACKed it."""
    calls = 0

    def count(frame: FrameType, event: str, _: object) -> None:
        nonlocal calls
        calls += event == "call" and frame.f_code.co_filename.startswith(PACKAGE)

    metrics = plane.metrics.streams._by_type["eds"]
    expected = metrics.acks + len(clients)
    sys.setprofile(count)
    try:
        plane.controller.change(Change(applied=(added,)))
        for client in clients:
            await client.ask(ENDPOINT, nonce=(await client.get()).nonce)
        async with asyncio.timeout(WITHIN):
            while metrics.acks < expected:
                await asyncio.sleep(0)
    finally:
        sys.setprofile(None)
    return calls


async def test_calls_for_one_more_sidecar(plane: Plane, channel: grpc.aio.Channel) -> None:
    plane.controller.change(Change(applied=tuple(map(client_pod, range(MANY)))))
    new = itertools.count(10)
    counts = []
    clients: list[Client] = []
    for size in (FEW, MANY):
        clients += [await connect(channel, number) for number in range(len(clients), size)]
        await plane.until("xds_acks_total", len(clients) + len(counts) * FEW * ROUNDS, type="eds")
        added = [pod(f"web-{number}", f"127.9.0.{number}") for number in itertools.islice(new, ROUNDS)]
        counts.append(min([await calls_of_change(plane, clients, each) for each in added]))
    assert (counts[1] - counts[0]) / (MANY - FEW) < MAX_CALLS, counts
