"""The real Prometheus, from Debian's package of that name."""

from __future__ import annotations

import asyncio
import json
import shutil
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlencode

import pytest

from tests.support.clients import Client
from tests.support.places import HERE, Place
from tests.support.waiting import eventually

requires_prometheus = pytest.mark.skipif(
    not (shutil.which("prometheus") and shutil.which("promtool")),
    reason="needs prometheus and promtool (Debian: apt-get install prometheus)",
)


class Prometheus:
    """A Prometheus server with these scrape jobs, which starts in an `async with` block.

    Args:
        jobs: the list `scrape_configs`.
        directory: where it stores its configuration, data and log.
        place: network that it runs in.
        address: address to listen on.
    """

    def __init__(
        self,
        jobs: list[dict[str, Any]],
        directory: Path,
        *,
        place: Place = HERE,
        address: str = "127.0.0.1:9090",
    ) -> None:
        self._directory, self._place, self._address = directory, place, address
        settings = {"scrape_interval": "1s", "scrape_timeout": "1s"}
        self._config = directory / "prometheus.yml"
        self._config.write_text(json.dumps({"global": settings, "scrape_configs": jobs}))

    async def __aenter__(self) -> Self:
        argv = self._place.command(
            "prometheus",
            f"--config.file={self._config}",
            f"--storage.tsdb.path={self._directory / 'data'}",
            f"--web.listen-address={self._address}",
        )
        with (self._directory / "prometheus.log").open("wb") as log:
            self._process = await asyncio.create_subprocess_exec(*argv, stdout=log, stderr=log)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._process.terminate()
        await asyncio.wait_for(self._process.wait(), 60)

    async def query(self, expression: str) -> dict[str, float]:
        """Return the values of an instant query by their label `job`."""
        answer = await Client(self._place).get(
            f"http://{self._address}/api/v1/query?{urlencode({'query': expression})}"
        )
        assert answer.ok, answer
        result = json.loads(answer.text)["data"]["result"]
        return {sample["metric"].get("job", ""): float(sample["value"][1]) for sample in result}

    async def becomes(self, expression: str, **expected: float) -> None:
        """Wait until a query has these values."""

        async def has() -> bool:
            found = await self.query(expression)
            assert found == expected, found
            return True

        await eventually(has, timeout=60, every=0.2, what=f"{expression} is {expected}")

    async def targets(self) -> list[dict[str, Any]]:
        """Return the active targets."""
        answer = await Client(self._place).get(f"http://{self._address}/api/v1/targets?state=active")
        assert answer.ok, answer
        return json.loads(answer.text)["data"]["activeTargets"]  # type: ignore[no-any-return]
