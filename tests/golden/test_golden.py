"""Whole meshes in, everything out: `CASE/in.yaml` (`mesh.yaml`, `set.txt`) -> `CASE/out/POD.NAMESPACE/TYPE.yaml` and `reach.txt`.

`make golden` writes what comes out; the difference to what was there is for a person to read.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.golden.cases import CASES, load
from xds.codec import to_dict
from xds.mesh.envoy.translate import translate
from xds.mesh.model.mesh import Mesh
from xds.mesh.policy.reach import predict
from xds.snapshot import CLUSTER, ENDPOINT, LISTENER, ROUTE

FILES = {"clusters": CLUSTER, "endpoints": ENDPOINT, "listeners": LISTENER, "routes": ROUTE}


def results(mesh: Mesh) -> Iterator[tuple[Path, str]]:
    """Every file of a case's `out` folder, and what should be in it."""
    # One pod of each application: the others get the same.
    for pod in {pod.meta.labels["app"]: pod for pod in reversed([*mesh.pods()]) if pod.has_sidecar}.values():
        snapshot = translate(mesh, pod)
        for name, type_url in FILES.items():
            found = [to_dict(type_url, r.body) for r in snapshot.of(type_url).values()]
            found.sort(key=lambda resource: resource.get("name") or resource["cluster_name"])
            text = yaml.safe_dump(found, sort_keys=False, width=120, default_flow_style=None)
            yield Path(f"{pod.name}.{pod.namespace}", f"{name}.yaml"), text
    lines = [
        f"{o.client.name}.{o.client.namespace} -> {o.service.name}.{o.service.namespace}:{o.port.port}"
        f" at {o.endpoint.address if o.endpoint else '-'}: {o.result} ({o.reason})"
        + "".join(f", {ref}" for ref in o.decided_by)
        for o in predict(mesh)
    ]
    yield Path("reach.txt"), "\n".join(lines) + "\n"


@pytest.mark.parametrize("case", CASES)
def test_the_configuration_is_as_it_was(case: Path, request: pytest.FixtureRequest) -> None:
    out = case / "out"
    found = dict(results(load(case)))
    if request.config.getoption("--golden"):
        shutil.rmtree(out, ignore_errors=True)
        for path, text in found.items():
            (out / path).parent.mkdir(parents=True, exist_ok=True)
            (out / path).write_text(text)
    assert {path.relative_to(out) for path in out.rglob("*") if path.is_file()} == set(found)
    for path, text in found.items():
        assert (out / path).read_text() == text, f"{out / path}: run `make golden` and read the difference"
