"""What Services and EndpointSlices say in vain, and why."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from tests.policy.world import HTTP, TCP, mesh, meta, pod, service
from xds.mesh.model.objects import (
    EndpointAddress,
    EndpointGroup,
    EndpointPort,
    Endpoints,
    Interception,
    Pod,
    Service,
)
from xds.mesh.policy.disregarded import disregarded

WEB, CACHE = pod("web", "shop"), pod("cache", "shop")
OWNER = service("web", "shop", HTTP, age=9)
VIRTUAL = OWNER.addresses[0]


def taker(*entries: EndpointAddress, **what: Any) -> tuple[Service, Endpoints]:
    made = replace(service("taker", "aaa", HTTP, TCP), **({"addresses": (), "headless": True} | what))
    ports = tuple(EndpointPort(name=port.name, port=port.port) for port in made.ports)
    listed = Endpoints(
        meta=meta("EndpointSlice", "aaa", "taker-1"),
        service="taker",
        groups=(EndpointGroup(addresses=entries, ports=ports),),
    )
    return made, listed


def at(address: str, of: Pod | None = None) -> EndpointAddress:
    return EndpointAddress(address=address, pod=of.ref if of else None)


CASES = {
    "nothing": ([WEB, OWNER], []),
    "a virtual address that an older Service has": (
        [OWNER, replace(OWNER, meta=meta("Service", "aaa", "taker", age=1))],
        ["Service aaa/taker AddressNotOwned"],
    ),
    "a virtual address that a pod has": (
        [WEB, replace(OWNER, meta=meta("Service", "aaa", "taker"), addresses=(WEB.address,))],
        ["Service aaa/taker AddressNotOwned"],
    ),
    "a virtual address that a headless Service lists": (
        [OWNER, *taker(at(VIRTUAL))],
        ["EndpointSlice aaa/taker-1 AddressNotOwned"],
    ),
    "a pod that a headless Service lists": (
        [WEB, *taker(at(WEB.address))],
        ["EndpointSlice aaa/taker-1 AddressNotOwned"],
    ),
    "a pod that a Service with an address of its own lists": (
        [WEB, *taker(at(WEB.address), addresses=("10.96.0.9",), headless=False)],
        [],
    ),
    "a pod that is not the one that is named": (
        [WEB, CACHE, *taker(at(WEB.address, CACHE), addresses=("10.96.0.9",), headless=False)],
        ["EndpointSlice aaa/taker-1 AddressNotOwned"],
    ),
    "a Pod that is not known": ([*taker(at(WEB.address, WEB))], ["EndpointSlice aaa/taker-1 PodUnknown"]),
    "an address that is nobody's": ([*taker(at("192.0.2.1"))], []),
    "the port of a sidecar": (
        [WEB, replace(OWNER, ports=(replace(HTTP, target=15000),))],
        ["Service shop/web PortOfSidecar"],
    ),
    "the port of the HTTP proxy": (
        [replace(WEB, interception=Interception.NONE), replace(OWNER, ports=(replace(HTTP, target=15002),))],
        ["Service shop/web PortOfSidecar"],
    ),
    "the same port where there is no such proxy": (
        [WEB, replace(OWNER, ports=(replace(HTTP, target=15002),))],
        [],
    ),
    "the same port of a pod without a sidecar": (
        [pod("bare", "shop", sidecar=False), service("bare", "shop", replace(HTTP, target=15000))],
        [],
    ),
    "a page that a sidecar has for others": (
        [WEB, replace(OWNER, ports=(replace(HTTP, target=15090),))],
        [],
    ),
}


@pytest.mark.parametrize(("facts", "wanted"), CASES.values(), ids=CASES)
def test_ignored_entry_is_reported_once(facts, wanted) -> None:
    assert [f"{each.ref} {each.reason}" for each in disregarded(mesh(*facts))] == wanted
