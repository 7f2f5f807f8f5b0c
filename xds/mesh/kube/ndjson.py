"""Lines of an answer that goes on, however long they are and however they come."""

from __future__ import annotations

from collections.abc import AsyncIterator

import aiohttp

from xds.mesh.kube.api import KubeError

MAX_LINE_LENGTH = 32 * 2**20
"""Bytes of a line that is still read; objects of the API server have no more than 3 MiB."""


async def read_lines(
    stream: aiohttp.StreamReader, max_length: int = MAX_LINE_LENGTH
) -> AsyncIterator[list[bytes]]:
    """Yield whole lines, those together that came together, until the server ends the answer.

    KubeError: the answer broke off, nothing came for too long, or a line has no end.
    """
    parts: list[bytes] = []
    size = 0
    while True:
        try:
            data = await stream.readany()
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise KubeError(0, f"the answer broke off: {str(error) or type(error).__name__}") from error
        if not data:
            break
        *whole, rest = data.split(b"\n")
        if whole:
            whole[0] = b"".join((*parts, whole[0]))
            parts, size = [], 0
            yield [line for line in whole if line.strip()]
        parts.append(rest)
        size += len(rest)
        if size > max_length:
            raise KubeError(0, f"the answer has a line of more than {max_length >> 20} MiB")
    if size:
        raise KubeError(0, "the answer broke off in the middle of a line")
