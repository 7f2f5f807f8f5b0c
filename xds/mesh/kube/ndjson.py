"""Reader for the lines of a streamed response."""

from __future__ import annotations

from collections.abc import AsyncIterator

import aiohttp

from xds.mesh.kube.api import KubeError

MAX_LINE_LENGTH = 32 * 2**20
"""Maximum length of a line, in bytes. Objects of the API server have at most 3 MiB."""


async def read_lines(stream: aiohttp.StreamReader) -> AsyncIterator[list[bytes]]:
    """Yield batches of complete lines as they arrive, until the server ends the response.

    Raises KubeError if the response ends early, the read times out, or a line is too long.
    """
    parts: list[bytes] = []
    size = 0
    while True:
        try:
            data = await stream.readany()
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise KubeError(0, f"the response ended early: {str(error) or type(error).__name__}") from error
        if not data:
            break
        *complete, partial = data.split(b"\n")
        if complete:
            complete[0] = b"".join((*parts, complete[0]))
            parts, size = [], 0
            yield [line for line in complete if line.strip()]
        parts.append(partial)
        size += len(partial)
        if size > MAX_LINE_LENGTH:
            raise KubeError(0, f"the response has a line of more than {MAX_LINE_LENGTH >> 20} MiB")
    if size:
        raise KubeError(0, "the response ended in the middle of a line")
