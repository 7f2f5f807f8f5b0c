"""Whole meshes in, everything out.

`CASE/in.yaml` (`mesh.yaml`, `set.txt`) gives `CASE/reach.txt`, `CASE/explain.txt` and `CASE/out.yaml`: the
resources of one pod of each application, as differences from the case `base` and from the case that
`extends.txt` names (see `differences.py`). `make golden` writes these files. Read their diff before you
commit it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from contextlib import redirect_stdout
from difflib import unified_diff
from functools import cache
from io import StringIO
from itertools import product
from pathlib import Path

import pytest
import yaml

from tests.golden.cases import BASE, CASES, HERE, extended, load
from tests.golden.differences import RESOURCES, Pods, decode, encode
from tests.support.predictions import predict
from xds.cli.explain_output import print_explanation
from xds.codec import to_dict
from xds.mesh.controlplane.explanation import explanation_message
from xds.mesh.envoy.translate import translate
from xds.mesh.model.mesh import Mesh
from xds.mesh.policy.explain import explain
from xds.snapshot import CLUSTER, ENDPOINT, EXTENSION_CONFIG, LISTENER, ROUTE

TYPE_URLS = {
    "clusters": CLUSTER,
    "load_assignments": ENDPOINT,
    "listeners": LISTENER,
    "routes": ROUTE,
    "extensions": EXTENSION_CONFIG,
}
TEXTS = ("reach.txt", "explain.txt")
INPUTS = {"in.yaml", "mesh.yaml", "set.txt", "extends.txt"}
OUTPUTS = {"out.yaml", *TEXTS}


@pytest.fixture(scope="module", autouse=True)
def rewritten(request: pytest.FixtureRequest) -> None:
    """Write all files before any is compared: a file depends on those of other cases."""
    if request.config.getoption("--golden"):
        for case in (param.values[0] for param in CASES):
            mesh = load(case)
            text = encode(translated(mesh), references(case, lambda other: translated(load(other))))
            (case / "out.yaml").write_text(text)
            for name, text in predicted(mesh).items():
                (case / name).write_text(text)


@pytest.mark.parametrize("case", CASES)
def test_output_equals_golden_files(case: Path) -> None:
    mesh = load(case)
    pods = translated(mesh)
    changes = diff(texts(golden(case)), texts(pods))
    changes += diff({name: (case / name).read_text() for name in TEXTS}, predicted(mesh))
    if not changes:
        text = (case / "out.yaml").read_text()
        changes = diff({"out.yaml": text}, {"out.yaml": encode(pods, references(case, golden))})
    if changes:
        pytest.fail(f"{case.name}: run `make golden` and read the diff\n\n{changes}", pytrace=False)


def test_every_file_belongs_to_a_case() -> None:
    cases = {param.values[0] for param in CASES}
    assert {path for path in HERE.iterdir() if path.suffix != ".py" and path.name != "__pycache__"} == cases
    for case in cases:
        names = {path.name for path in case.iterdir()}
        assert OUTPUTS <= names <= OUTPUTS | INPUTS, case


def translated(mesh: Mesh) -> Pods:
    """Return the resources of one pod of each application: other pods get the same."""
    pods = {pod.meta.labels["app"]: pod for pod in reversed([*mesh.pods()]) if pod.has_sidecar}
    snapshots = {f"{pod.name}.{pod.namespace}": translate(mesh, pod) for pod in pods.values()}
    return {
        name: {
            kind: sorted(
                (to_dict(type_url, resource.body) for resource in snapshot.of(type_url).values()),
                key=lambda resource: str(resource[RESOURCES[kind]]),
            )
            for kind, type_url in TYPE_URLS.items()
            if type_url in snapshot.types
        }
        for name, snapshot in sorted(snapshots.items())
    }


def predicted(mesh: Mesh) -> dict[str, str]:
    """Return the contents of `TEXTS`."""
    return dict(zip(TEXTS, (reached(mesh), explained(mesh)), strict=True))


def reached(mesh: Mesh) -> str:
    """Return a line for each client, port and endpoint: whether and how requests arrive."""
    return "".join(
        f"{o.client.name}.{o.client.namespace} -> {o.service.name}.{o.service.namespace}:{o.port.port}"
        f" at {o.endpoint.address if o.endpoint else '-'}: {o.result} ({o.reason})"
        + "".join(f", {ref}" for ref in o.decided_by)
        + "\n"
        for o in predict(mesh)
    )


def explained(mesh: Mesh) -> str:
    """Return what `xds explain` prints for each Service, with all clients for which it prints the same."""
    clients: defaultdict[str, list[str]] = defaultdict(list)
    for service, client in product(mesh.services(), mesh.pods()):
        explanation = explanation_message(
            mesh, client, service, explain(mesh, client, service, service.ports)
        )
        with redirect_stdout(StringIO()) as printed:
            print_explanation(explanation)
        heading, _, text = printed.getvalue().partition("\n")
        assert heading == f"{explanation.client} -> {explanation.service}"
        clients[f" -> {explanation.service}\n{text}"].append(explanation.client)
    return "\n".join(f"{', '.join(names)}{text}" for text, names in clients.items())


@cache
def golden(case: Path) -> Pods:
    """Return the resources in a case's golden file."""
    return decode((case / "out.yaml").read_text(), references(case, golden))


def references(case: Path, pods: Callable[[Path], Pods]) -> dict[str, Pods]:
    """Return the pods of the cases that a case is compared with."""
    if case == BASE:
        return {}
    other = extended(case) or BASE
    return {**references(other, pods), other.name: pods(other)}


def texts(pods: Pods) -> dict[str, str]:
    """Return the YAML of each resource."""
    return {
        f"{pod} {kind} {resource[RESOURCES[kind]]}": yaml.safe_dump(
            resource, width=120, default_flow_style=None
        )
        for pod, resources in pods.items()
        for kind in resources
        for resource in resources[kind]
    }


def diff(expected: dict[str, str], actual: dict[str, str]) -> str:
    """Return the diffs of changed texts. Identical diffs are shown once, under all their names."""
    names: defaultdict[str, list[str]] = defaultdict(list)
    for name in sorted(expected.keys() | actual.keys()):
        before, after = (texts.get(name, "").splitlines(keepends=True) for texts in (expected, actual))
        if lines := [*unified_diff(before, after, n=2)]:
            names["".join(lines[2:])].append(name)
    return "".join("\n".join([*places, lines, ""]) for lines, places in names.items())
