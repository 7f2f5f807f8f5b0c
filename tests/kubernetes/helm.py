"""The real helm, and what the chart renders."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.kubernetes.environment.binaries import REQUIRED, BuildError
from tests.kubernetes.environment.go_programs import HELM
from tests.kubernetes.installing import SYSTEM
from tests.support.processes import run
from xds.mesh.kube.api import Json

CHART = Path(__file__).parents[2] / "charts/xds"
RELEASE = "xds"


class HelmError(Exception):
    """Helm failed. The message is its error output."""


class Helm:
    """Runs helm with a home of its own, and with the user's configuration out of reach."""

    def __init__(self, folder: Path, kubeconfig: Path | None = None) -> None:
        self._folder = folder
        # Without a kubeconfig, helm would use the user's.
        config = kubeconfig or folder / "no-kubeconfig"
        self._environment = {**os.environ, "HOME": str(folder), "KUBECONFIG": str(config)}

    async def run(self, *arguments: str, timeout: float = 60) -> str:
        """Run helm and return its output. Raises HelmError."""
        status, output, error = await run(HELM.path, *arguments, timeout=timeout, env=self._environment)
        if status:
            raise HelmError(f"helm {' '.join(arguments)}: {output}{error}")
        return output

    async def template(
        self, values: Json | None = None, *arguments: str, namespace: str = SYSTEM
    ) -> list[Json]:
        """Render the chart with values; return the objects."""
        options = ["--namespace", namespace, *self.values(values or {}), *arguments]
        text = await self.run("template", RELEASE, str(CHART), *options)
        return [item for item in yaml.safe_load_all(text) if item]

    def values(self, values: Json) -> list[str]:
        """Return the option that sets values."""
        file = self._folder / "values.json"
        file.write_text(json.dumps(values))
        return ["--values", str(file)]


@pytest.fixture
def helm(tmp_path: Path) -> Helm:
    """Helm without a cluster."""
    require_helm()
    return Helm(tmp_path)


def require_helm() -> None:
    """Build helm. If it cannot be built, skip the test, or fail it in CI."""
    try:
        HELM.build()
    except BuildError as error:
        if os.environ.get(REQUIRED):
            pytest.fail(f"{REQUIRED} is set: {error}")
        pytest.skip(str(error))


def by_title(objects: list[Json]) -> dict[str, Json]:
    """Return objects by kind and name. YAML in a ConfigMap is parsed, because its format may differ."""
    titled: dict[str, Json] = {}
    for item in objects:
        title = f"{item['kind']} {item['metadata'].get('namespace', '')}/{item['metadata']['name']}"
        assert title not in titled
        titled[title] = item
        if item["kind"] == "ConfigMap":
            data = {name: yaml.safe_load(text) for name, text in item["data"].items()}
            titled[title] = {**item, "data": data}
    return titled


def differences(one: Any, other: Any, path: str = "") -> dict[str, Any]:
    """Return the values of `other` that `one` has not or has otherwise, by path; None if `other` lacks it."""
    if isinstance(one, dict) and isinstance(other, dict):
        parts = {
            name: differences(one.get(name), other.get(name), f"{path}.{name}".lstrip("."))
            for name in one.keys() | other.keys()
        }
        return {place: value for part in parts.values() for place, value in part.items()}
    return {} if one == other else {path: other}
