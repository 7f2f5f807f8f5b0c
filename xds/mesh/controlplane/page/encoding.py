"""The JSON text of large responses, encoded in slices of a few milliseconds."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from xds.checkpoint import Checkpoint


async def encode(response: Mapping[str, Any]) -> str:
    """Return a response as JSON. Encode the items of its lists one by one, and yield to the event loop."""
    checkpoint, members = Checkpoint(), []
    for name, member in response.items():
        if isinstance(member, list):
            items = []
            for item in member:
                items.append(json.dumps(item))
                await checkpoint()
            text = f"[{','.join(items)}]"
        else:
            text = json.dumps(member)
        members.append(f"{json.dumps(name)}:{text}")
    return f"{{{','.join(members)}}}"
