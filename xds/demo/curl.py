"""Requests as the page's `curl http://SERVICE.NAMESPACE:8000/headers` sends them, from a pod's own address."""

from __future__ import annotations

import http.client
import json
import re
from urllib.parse import urlsplit

from xds.demo.play import Answer

_IDENTITY = re.compile(r"URI=(spiffe://[^\s;,\"]+)")


def curl(
    url: str, *, source: str, to: tuple[str, int], through_proxy: bool = False, timeout: float = 5.0
) -> Answer:
    """Ask an httpbin for the headers that reached it: GET `url` from the address `source`.

    Sent to `to`, the server, or the HTTP proxy that finds it. One connection for each request, as curl does.
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
    """Return the SPIFFE id that a sidecar told httpbin of; empty when the request came in plaintext."""
    told = json.loads(headers)["headers"].get("X-Forwarded-Client-Cert", "")
    found = _IDENTITY.search(told)
    return found[1] if found else ""
