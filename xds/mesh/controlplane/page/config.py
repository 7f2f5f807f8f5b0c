"""The configuration that a proxy is served: its resources, and their redacted contents."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any

from google.protobuf.message import DecodeError

from xds.checkpoint import Checkpoint
from xds.codec.jsonform import to_dict
from xds.introspect.cooperative import batches
from xds.introspect.redaction import redact
from xds.protocol.status import State
from xds.protocol.types import short_name
from xds.server import Stream
from xds.snapshot import Resource

MAX_RESOURCES = 5000
"""Maximum number of resources that a response lists. The rest are only counted."""

_STATES = {State.SYNCED: "synced", State.STALE: "stale", State.NOT_SENT: "not sent", State.ERROR: "rejected"}


async def resources(streams: Iterable[Stream]) -> dict[str, Any]:
    """Return the resources of a proxy as JSON values: type, name, version and state."""
    checkpoint = Checkpoint()
    listed: list[dict[str, Any]] = []
    more = 0
    for stream in streams:
        for kind in stream.session.status():
            async for batch in batches(kind, checkpoint):
                for status in batch:
                    if len(listed) >= MAX_RESOURCES:
                        more += 1
                        continue
                    listed.append(
                        {
                            "type": short_name(kind.type_url),
                            "name": status.name,
                            "version": status.version,
                            "state": _STATES[status.state],
                            "sources": [str(source) for source in status.resource.sources]
                            if status.resource
                            else [],
                        }
                    )
    return {"resources": listed, "moreResources": more}


async def content(streams: Iterable[Stream], type_name: str, name: str) -> Any:
    """Return the redacted content of a resource as JSON values.

    Args:
        streams: the streams of the proxy.
        type_name: short name of the type, such as `CDS`.
        name: name of the resource.

    Raises:
        LookupError: the proxy is not served this resource, or the resource cannot be shown.
    """
    for stream in streams:
        for kind in stream.session.status():
            if short_name(kind.type_url) == type_name:
                status = next(kind.resource_statuses([name]))
                if status.resource:
                    return await asyncio.to_thread(_decode, status.resource)
    raise LookupError(f"the proxy is not served a resource {type_name} {name}")


def _decode(resource: Resource) -> dict[str, Any]:
    body = redact(resource.type_url, resource.body)
    if body is None:
        raise LookupError("the resource cannot be shown, because its secrets are not known")
    try:
        return to_dict(resource.type_url, body)
    except (KeyError, DecodeError) as error:
        raise LookupError(f"the resource cannot be decoded: {error}") from error
