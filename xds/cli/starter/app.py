"""Serve JSON that names the service and its caller: `app.py NAME HOST PORT [URL PROXY]`.

With URL, each request also calls another service through the sidecar at PROXY, and returns its response.
"""

from __future__ import annotations

import json
import re
import sys
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


def call(url: str, proxy: str) -> Any:
    """Return the JSON of another service, or the error."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({"http": proxy}))
    try:
        with opener.open(url, timeout=5) as response:
            return json.load(response)
    except OSError as error:
        return f"failed: {error}"


class Handler(BaseHTTPRequestHandler):
    """Answers GET requests."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        """Return the name of this service, and the identity of the caller that the sidecar verified."""
        name, _, _, *target = sys.argv[1:]
        identities = re.findall(r"URI=([^;,]+)", self.headers.get("X-Forwarded-Client-Cert", ""))
        answer = {"service": name, "caller": identities[-1] if identities else "unknown (plaintext)"}
        if target:
            answer["calls"] = call(target[0], target[1])
        body = json.dumps(answer, indent=2).encode() + b"\n"
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


if __name__ == "__main__":
    ThreadingHTTPServer((sys.argv[2], int(sys.argv[3])), Handler).serve_forever()
