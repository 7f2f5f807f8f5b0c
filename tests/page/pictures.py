"""Draw the pictures of docs/how-to/open-the-page.md from the real page: `make pictures`.

Runs the Istio task's workloads with Envoys, sends requests until the page shows them, and writes WebP files.
Needs Linux, Chromium and the dependency groups `demo` and `test`.
"""

from __future__ import annotations

import base64
import itertools
import json
import tempfile
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from playwright.sync_api import sync_playwright

from tests.page.browser import launch
from xds.demo.play import INITIAL_STATE, Pair
from xds.demo.pods import select_clients
from xds.demo.processes import Processes
from xds.demo.stage import Stage

ASSETS = Path(__file__).parents[2] / "docs" / "assets"
PICTURES = {"page-map": "map", "page-migration": "migration?namespace=partial"}
"""Name of each picture, and the view that it shows."""
MAX_SIZE = 60_000
"""Maximum size of a picture, in bytes."""
MIN_REQUESTS = 5
"""Requests per minute of each pair from which on the traffic is drawn."""
INTERVAL = 0.2
"""Seconds between two requests."""

_PAIRS = [
    Pair(client, server)
    for client in ("sleep.full", "sleep.legacy")
    for server in ("httpbin.full", "httpbin.partial", "httpbin.legacy")
]
_TO_WEBP = """async (png) => {
  const image = new Image();
  image.src = `data:image/png;base64,${png}`;
  await image.decode();
  const canvas = document.createElement("canvas");
  Object.assign(canvas, { width: image.width, height: image.height });
  canvas.getContext("2d").drawImage(image, 0, 0);
  return canvas.toDataURL("image/webp", 0.75).split(",")[1];
}"""


def main() -> None:
    """Write the pictures."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "logs").mkdir()
        with Processes(folder / "logs") as processes:
            stage = Stage(folder, processes, sotw=False)
            stage.start()
            stage.perform(INITIAL_STATE)
            with traffic(stage):
                processes.wait_for(
                    "the traffic", lambda: "" if is_observed(stage) else "not observed", timeout=120
                )
                draw(f"http://{stage.admin}/")


@contextmanager
def traffic(stage: Stage) -> Iterator[None]:
    """Send requests between all pairs in turn."""
    stop, clients = threading.Event(), select_clients(stage.mesh(), iter(_PAIRS))

    def send() -> None:
        for pair in itertools.cycle(_PAIRS):
            if stop.wait(INTERVAL):
                return
            clients[pair.client].request(pair.server)

    thread = threading.Thread(target=send)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def is_observed(stage: Stage) -> bool:
    """Whether the map shows the traffic of all pairs with a sidecar."""
    with urllib.request.urlopen(f"http://{stage.admin}/api/v1/map") as response:
        edges = json.load(response)["edges"]
    busy = [
        edge for edge in edges
        if edge["observed"] and sum(edge["observed"]["requestsPerMinute"].values()) >= MIN_REQUESTS
    ]  # fmt: skip
    return len(busy) >= len(_PAIRS) - 1  # No sidecar sees what sleep.legacy sends to httpbin.legacy.


def draw(url: str) -> None:
    """Write the pictures of a page."""
    with sync_playwright() as driver:
        browser = launch(driver)
        page = browser.new_page(viewport={"width": 1100, "height": 590}, color_scheme="light")
        converter = browser.new_page()
        for name, route in PICTURES.items():
            page.goto("about:blank")
            page.goto(f"{url}#/{route}")
            page.wait_for_selector("main:not([aria-busy])")
            page.wait_for_selector("#connection.live")
            page.wait_for_selector("td .badge.wait", state="detached")
            picture = to_webp(converter, page.screenshot())
            assert len(picture) <= MAX_SIZE, f"{name} has {len(picture)} bytes"
            (ASSETS / f"{name}.webp").write_bytes(picture)
        browser.close()


def to_webp(page: Any, png: bytes) -> bytes:
    return base64.b64decode(page.evaluate(_TO_WEBP, base64.b64encode(png).decode()))


if __name__ == "__main__":
    main()
