"""Discovery without a stream: one request, one response, for gRPC's Fetch methods and for REST."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

import structlog

from xds.protocol.events import Subscribed
from xds.protocol.limits import Budgets, RequestError
from xds.protocol.responses import response
from xds.protocol.subscription import Subscription
from xds.protocol.wire import Request
from xds.server.proxies import Proxies, Refused, StreamInfo, Subscriber, no_snapshot, open_subscriber
from xds.snapshot import Resource, ResourceSet, Snapshot

log = structlog.get_logger(__name__)

FIRST_SNAPSHOT_TIMEOUT = 0.5
"""Seconds that a request is held for the first snapshot of its proxy. Envoy gives up on a poll after one, by default."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FetchResult:
    """What a proxy should have of what it asked for."""

    type_url: str
    version: str
    """Of the resources in here, so that it is another one if other names are asked for."""
    resources: tuple[Resource, ...] = field(repr=False)
    is_current: bool
    """Whether the request came with this version, as the one that the proxy has."""

    def response(self, identifier: str = "") -> bytes:
        """Return it as a DiscoveryResponse. Its nonce is the version: there is no stream for it to be unique on."""
        return response(
            type_url=self.type_url,
            version=self.version,
            nonce=self.version,
            resources=self.resources,
            identifier=identifier,
        )


async def fetch(
    proxies: Proxies,
    request: Request,
    info: StreamInfo,
    budgets: Budgets,
    *,
    first_snapshot_timeout: float = FIRST_SNAPSHOT_TIMEOUT,
) -> FetchResult:
    """Answer a DiscoveryRequest for the resources and collections that it names, or for all of the type if it names none, or `*`.

    The proxy is a subscriber for as long as it takes until it has a snapshot. RequestError: there is something wrong
    with the request. LimitError: the proxy exceeds its budget. Refused: it is not let in, or (UNAVAILABLE) had no snapshot
    after `patience` seconds.
    """
    type_url = info.type_url
    if not request.node or not request.node.id:
        raise RequestError("a request must have node.id")
    if request.type_url not in {"", type_url}:
        raise RequestError(f"this is for {type_url} only, not for {request.type_url}")
    subscription = Subscription(legacy=True)
    subscription.replace(request.names)
    try:
        with open_subscriber(proxies, budgets, request.node, info) as subscriber:
            assert subscriber.lease  # noqa: S101 - it is open in this block
            subscriber.lease.use(len(subscription.names), subscription.size)
            proxies.observe(
                subscriber,
                Subscribed(type_url=type_url, names=subscription.names, wildcard=subscription.wildcard),
            )
            snapshot = await _first_snapshot(subscriber, first_snapshot_timeout)
    except Refused as refused:
        # Not a warning: who polls comes again and again.
        log.info(
            "fetch refused",
            proxy=request.node.id,
            peer=info.peer,
            code=refused.code.name,
            reason=refused.message,
        )
        raise
    resources = snapshot.of(type_url)
    if not subscription.wildcard:
        names = resources if subscription.collections else subscription.names
        present = [name for name in names if name in resources and subscription.covers(name)]
        resources = ResourceSet(resources[name] for name in sorted(present))
    return FetchResult(
        type_url=type_url,
        version=resources.version,
        resources=tuple(resources.values()),
        is_current=request.version == resources.version,
    )


async def _first_snapshot(subscriber: Subscriber, first_snapshot_timeout: float) -> Snapshot:
    try:
        async with asyncio.timeout(first_snapshot_timeout):
            while subscriber.snapshot is None:
                subscriber.changed.clear()
                if subscriber.refused:
                    raise subscriber.refused
                await subscriber.changed.wait()
    except TimeoutError:
        raise no_snapshot(subscriber.node) from None
    return subscriber.snapshot
