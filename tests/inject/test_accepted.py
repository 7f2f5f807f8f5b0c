"""`xds init` and `xds proxy` accept the arguments and environment that injection writes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from xds.cli import app
from xds.mesh.inject import find_templates
from xds.mesh.sidecar import environment, probes
from xds.mesh.sidecar.settings import variables

DOWNWARD = {
    "metadata.name": "web-1",
    "metadata.namespace": "shop",
    "status.podIP": "10.0.0.1",
    "status.podIPs": "10.0.0.1,fd00::1",
    "spec.serviceAccountName": "default",
}


def containers(name: str) -> Iterator[Any]:
    for case in sorted((Path(__file__).parent / "cases").glob("*.yaml.out")):
        for document in yaml.safe_load_all(case.read_text()):
            for template in find_templates(document):
                spec = template.value["spec"]
                for container in [*spec.get("initContainers", ()), *spec["containers"]]:
                    if container["name"] == name:
                        yield pytest.param(container, id=f"{case.name}-{template.subject}")


@pytest.mark.parametrize("container", [*containers("xds-init")])
def test_init_accepts_injected_arguments(container: dict[str, Any]) -> None:
    result = CliRunner().invoke(app, [*container["args"], "--dry-run"])
    assert result.exit_code == 0, result.output
    assert "-A PREROUTING -p tcp -j ISTIO_INBOUND" in result.stdout


@pytest.mark.parametrize("container", [*containers("xds-proxy")])
def test_proxy_accepts_the_injected_environment(container: dict[str, Any]) -> None:
    env = {
        entry["name"]: entry["value"].replace("$$(", "$(")
        if "value" in entry
        else DOWNWARD[entry["valueFrom"]["fieldRef"]["fieldPath"]]
        for entry in container["env"]
    }
    assert env.keys() <= {variable.name for variable in variables()}
    sidecar, problems = environment.read(env)
    assert not problems
    assert sidecar.bootstrap()
    expected, _ = probes.read(env.get("XDS_APP_PROBES", ""))
    assert len(sidecar.probes) == len(expected)


def test_cases_cover_all_kinds_of_probes() -> None:
    values = str([container.values for container in containers("xds-proxy")])
    for text in (
        '"tcpSocket"',
        '"grpc"',
        '"scheme":"HTTPS"',
        "/app-lifecycle/web/prestopz",
        "/app-health/logs/readyz",
    ):
        assert text in values
