"""The configuration that a proxy is served: its resources, and their redacted contents."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any

from google.protobuf.message import DecodeError

from xds.codec.jsonform import to_dict
from xds.introspect.redaction import redact
from xds.mesh.controlplane.proxy_messages import served_resources
from xds.mesh.controlplane.status import resource_word
from xds.protocol.types import short_name
from xds.server import Stream
from xds.snapshot import Resource

MAX_RESOURCES = 5000
"""Maximum number of resources that a response lists. The rest are only counted."""


async def resources(streams: Iterable[Stream]) -> dict[str, Any]:
    """Return the resources of a proxy as JSON values: type, name, version and state."""
    listed: list[dict[str, Any]] = []
    more = 0
    async for resource in served_resources(streams):
        if len(listed) >= MAX_RESOURCES:
            more += 1
            continue
        listed.append(
            {
                "type": short_name(resource.type_url),
                "name": resource.name,
                "version": resource.version,
                "state": resource_word(resource.state),
                "sources": list(resource.sources),
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
