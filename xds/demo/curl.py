"""Requests like the Istio task's `curl http://SERVICE.NAMESPACE:8000/headers`, from a pod's address."""

from __future__ import annotations

import http.client
import json
import re
from urllib.parse import urlsplit

from xds.demo.play import Answer

_IDENTITY = re.compile(r"URI=(spiffe://[^\s;,\"]+)")


def curl(
    url: str, *, source: str, to: tuple[str, int], through_proxy: bool = False, timeout: float = 20.0
) -> Answer:
    """Send a request to httpbin's /headers, on a new connection, and return the result.

    Args:
        url: the URL to get.
        source: the local address to connect from.
        to: the address of the server, or of an HTTP proxy.
        through_proxy: whether `to` is an HTTP proxy.
        timeout: the timeout of each operation on the connection, in seconds.
    """
    target = urlsplit(url)
    connection = http.client.HTTPConnection(*to, timeout=timeout, source_address=(source, 0))
    try:
        connection.request("GET", url if through_proxy else target.path, headers={"Host": target.netloc})
        response = connection.getresponse()
        body = response.read()
    except (OSError, http.client.HTTPException):
        return Answer("000")
    finally:
        connection.close()
    return Answer(str(response.status), identity(body) if response.status == http.client.OK else "")


def identity(headers: bytes) -> str:
    """Return the client's SPIFFE ID in httpbin's response; empty for a plaintext request."""
    header = json.loads(headers)["headers"].get("X-Forwarded-Client-Cert", "")
    match = _IDENTITY.search(header)
    return match[1] if match else ""
