"""Unary discovery, for gRPC's Fetch methods and for REST."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

import structlog

from xds.protocol.events import Subscribed
from xds.protocol.limits import Budgets, RequestError
from xds.protocol.responses import encode_response
from xds.protocol.subscription import Subscription
from xds.protocol.wire import SotwRequest
from xds.server.proxies import Proxies, Refused, StreamInfo, Subscriber, no_snapshot, open_subscriber
from xds.snapshot import Resource, ResourceSet, Snapshot

log = structlog.get_logger(__name__)

FIRST_SNAPSHOT_TIMEOUT = 0.5
"""Time that a request waits for the first snapshot, in seconds. Envoy's polls time out after 1 s."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FetchResult:
    """The requested resources of a proxy."""

    type_url: str
    """Type URL of the resources."""
    version: str
    """Version of these resources. It depends on the requested names."""
    resources: tuple[Resource, ...] = field(repr=False)
    """The selected resources."""
    is_current: bool
    """Whether the request has this version, so that the proxy already has the resources."""

    def response(self, identifier: str = "") -> bytes:
        """Encode a DiscoveryResponse. The nonce is the version, because there is no stream."""
        return encode_response(
            type_url=self.type_url,
            version=self.version,
            nonce=self.version,
            resources=self.resources,
            identifier=identifier,
        )


async def fetch(
    proxies: Proxies,
    request: SotwRequest,
    info: StreamInfo,
    budgets: Budgets,
    *,
    first_snapshot_timeout: float = FIRST_SNAPSHOT_TIMEOUT,
) -> FetchResult:
    """Return the resources that a DiscoveryRequest selects.

    The request may name resources and collections. Without names, or with `*`, it selects all resources of
    its type. The proxy is a subscriber until it has a snapshot.

    Args:
        proxies: Decides what the proxy gets.
        request: Parsed request. It must have `node.id`.
        info: Caller and type of the call.
        budgets: Limits that the call counts against.
        first_snapshot_timeout: Seconds to wait for the first snapshot of the proxy.

    Raises:
        RequestError: the request is invalid.
        LimitError: the client exceeds a limit.
        Refused: the proxy is refused, or has no snapshot after the timeout (UNAVAILABLE).
    """
    type_url = info.type_url
    if not request.node or not request.node.id:
        raise RequestError("a request must have node.id")
    if request.type_url not in {"", type_url}:
        raise RequestError(f"this method serves {type_url}, not {request.type_url}")
    subscription = Subscription(legacy=True)
    subscription.replace(request.names)
    try:
        with open_subscriber(proxies, budgets, request.node, info) as subscriber:
            assert subscriber.reservation  # noqa: S101 - it is open in this block
            subscriber.reservation.use(len(subscription.names), subscription.size)
            proxies.observe(
                subscriber,
                Subscribed(type_url=type_url, names=subscription.names, wildcard=subscription.wildcard),
            )
            snapshot = await _first_snapshot(subscriber, first_snapshot_timeout)
    except Refused as refused:
        # Not a warning, because a polling client repeats the request.
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
        resources = ResourceSet((resources[name] for name in sorted(present)), label=resources.label)
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
