"""The chart renders what `xds install` installs, and each of its values has its effect."""

from __future__ import annotations

import re
import tomllib
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.main import get_command

from tests.kubernetes.chart_values import CIDRS, DEPLOYMENT, JOB, VALUES
from tests.kubernetes.helm import CHART, Helm, HelmError, by_title, differences, helm
from tests.kubernetes.installing import SYSTEM, run
from xds.cli import app
from xds.mesh.kube import crds
from xds.mesh.kube.api import Json
from xds.mesh.kube.packaged import load_packaged

__all__ = ["helm"]

ROOT = CHART.parents[1]
IMAGE = {"image": {"repository": "registry.example/mesh/xds", "tag": "1.0"}}
MESH = {"trustDomain": "example.com", "outboundTrafficPolicy": {"mode": "REGISTRY_ONLY"}}

OPTIONS: dict[str, tuple[list[str], Json]] = {
    "defaults": ([], {}),
    "--image": (["--image=registry.example/mesh/xds:1.0"], IMAGE),
    "--no-network-policy": (["--no-network-policy"], {"networkPolicy": {"enabled": False}}),
    "--api-server-cidr": (
        [f"--api-server-cidr={cidr}" for cidr in CIDRS],
        {"networkPolicy": {"apiServerCidrs": CIDRS}},
    ),
    "--enforce-plan": (["--enforce-plan"], {"policyWebhook": {"enforce": True}}),
    "--mesh-config": (["--mesh-config=mesh.yaml"], {"meshConfig": MESH}),
    "--set": (
        ["--set=values.global.mtls.auto=false", "--set=meshConfig.trustDomain=example.com"],
        {"meshConfig": {"enableAutoMtls": False, "trustDomain": "example.com"}},
    ),
}
"""Option of `xds install` -> arguments, and the values of the chart with the same result."""
OTHERS = {"--kubeconfig", "--context", "--dry-run", "--output", "--only", "--help"}
"""Options that do not change the objects."""

RESOURCES = {"requests": {"cpu": "1"}, "limits": {"memory": "1Gi"}}
DIGEST = f"sha256:{'0' * 64}"
MOUNT = {"name": "signer", "mountPath": "/opt/signer", "readOnly": True}

CONTAINER: list[tuple[Json, dict[str, Any]]] = [
    (
        {"image": {"digest": DIGEST, "pullPolicy": "Always"}},
        {"imagePullPolicy": "Always", "image": f"xds@{DIGEST}"},
    ),
    ({"resources": RESOURCES}, {"resources.requests.cpu": "1", "resources.limits.memory": "1Gi"}),
    ({"securityContext": {"privileged": None}}, {"securityContext.privileged": None}),
    ({"extraVolumeMounts": [MOUNT]}, {"volumeMounts": [{"name": "tmp", "mountPath": "/tmp"}, MOUNT]}),
]
"""Values -> the fields that they change in the control plane's container, apart from its arguments."""

ARGUMENTS: list[tuple[Json, set[str]]] = [
    ({"observe": False}, {"--observe=false"}),
    ({"rollout": {"mode": "immediate"}}, {"--rollout=immediate"}),
    ({"rollout": {"timeoutSeconds": 0}}, {"--rollout-timeout=0"}),
    ({"ca": {"sds": "unix:///run/spire/agent.sock"}}, {"--sds=unix:///run/spire/agent.sock"}),
    ({"extraArgs": ["--max-connection-age=600"]}, {"--max-connection-age=600"}),
    ({"policyWebhook": {"enforce": True}}, {"--enforce-plan"}),
    (
        {"injection": {"enabled": False}, "policyWebhook": {"enabled": False}},
        {"--webhook-address=[::]:15017"},
    ),
]
"""Values -> the arguments of `xds serve` that they add or remove."""

REQUIRED = (
    *("image", "replicas", "initialPolicies", "ca", "injection", "policyWebhook", "networkPolicy", "rollout"),
    *("observe", "serviceAccount"),
)
"""Values that cannot be removed with null."""

INVALID: list[tuple[Json, str]] = [
    ({"replcias": 3}, "replcias"),
    ({"replicas": 0}, "replicas"),
    ({"rollout": {"mode": "fast"}}, "rollout/mode|rollout.mode"),
    *(
        ({"networkPolicy": {"apiServerCidrs": [cidr]}}, "apiServerCidrs")
        for cidr in ("any", "999.1/99", "10.0.0.256/8", "10.0.0.0/33", "fd00::/129", "fd00/8")
    ),
    ({"image": {"tag": "1 #"}}, "tag"),
    ({"image": {"repository": "xds "}}, "repository"),
    ({"ca": {"sds": "unix:///a # b"}}, "sds"),
    *(({name: None}, name) for name in REQUIRED),
    ({"policyWebhook": {"enforce": None}}, "enforce"),
    ({"image": {"digest": "latest"}}, "digest"),
    ({"ca": {"sds": "/run/agent.sock"}}, "sds"),
    ({"policyWebhook": {"enabled": False, "enforce": True}}, "policyWebhook"),
]


def control_plane(objects: list[Json]) -> list[Json]:
    return [item for item in objects if item["metadata"]["name"] != JOB and item["kind"] != "Namespace"]


async def container(helm: Helm, values: Json | None = None) -> Json:
    objects = by_title(await helm.template(values))
    [only] = objects[DEPLOYMENT]["spec"]["template"]["spec"]["containers"]
    return dict(only)


# --- one source ---------------------------------------------------------------------------------------------


def test_every_option_of_install_is_compared() -> None:
    command = get_command(app)
    context = command.make_context("xds", [], resilient_parsing=True)
    install = command.get_command(context, "install")  # type: ignore[attr-defined]
    names = {
        name
        for parameter in install.params
        for name in (parameter.secondary_opts or parameter.opts)
        if name.startswith("--")
    }
    assert names - OTHERS == OPTIONS.keys() - {"defaults"}


@pytest.mark.parametrize("option", [*OPTIONS, "all options"])
async def test_chart_renders_what_install_installs(
    helm: Helm, option: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mesh.yaml").write_text(yaml.safe_dump(MESH))
    arguments, values = OPTIONS.get(option) or _all_options()
    monkeypatch.chdir(tmp_path)
    status, text, error = await run("install", "-o", "yaml", "--only=control-plane", *arguments)
    assert status == 0, error
    installed = by_title(control_plane(list(yaml.safe_load_all(text))))
    assert differences(installed, by_title(control_plane(await helm.template(values)))) == {}


def _all_options() -> tuple[list[str], Json]:
    arguments: list[str] = []
    merged: Json = {}
    for given, values in OPTIONS.values():
        if given != ["--no-network-policy"]:
            arguments += given
            for name, value in deepcopy(values).items():
                merged.setdefault(name, {}).update(value)
    return arguments, merged


async def test_job_is_the_kustomization_s(helm: Helm) -> None:
    packaged = by_title([item for name, item in load_packaged("install") if name == "job.yaml"])
    rendered = by_title([item for item in await helm.template() if item["metadata"]["name"] == JOB])
    changed = differences(packaged, rendered)
    assert changed.keys() == {f"{title}.metadata.annotations" for title in packaged}
    for hook in changed.values():
        assert hook["helm.sh/hook"] == "post-install,post-upgrade"
        # The account may create any CRD, and is deleted with the Job.
        assert hook["helm.sh/hook-delete-policy"] == "before-hook-creation,hook-succeeded"


async def test_job_creates_the_policies_that_install_creates(helm: Helm) -> None:
    for strict in (False, True):
        rendered = by_title(await helm.template({"initialPolicies": {"strict": strict}}))
        [only] = rendered[f"Job {SYSTEM}/{JOB}"]["spec"]["template"]["spec"]["containers"]
        ours = await run(*only["args"], "-o", "yaml")
        theirs = await run(
            *("install", "-o", "yaml", "--only=crds", "--only=mesh"),
            f"--set=values.global.mtls.enabled={str(strict).lower()}",
        )
        assert ours == theirs
        assert ours[0] == 0
    rendered = by_title(await helm.template({"initialPolicies": {"create": False}}))
    assert not [title for title in rendered if JOB in title]


async def test_chart_has_the_packaged_kinds(helm: Helm) -> None:
    shown = list(yaml.safe_load_all(await helm.run("show", "crds", str(CHART))))
    assert by_title(shown) == by_title(list(crds.definitions()))


def test_versions_of_chart_and_package_are_equal() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert (chart["version"], chart["appVersion"]) == (version, version)


# --- values -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("values", "expected"), VALUES, ids=["-".join(values) for values, _ in VALUES])
async def test_value_changes_only_its_fields(helm: Helm, values: Json, expected: dict[str, Any]) -> None:
    default, rendered = by_title(await helm.template()), by_title(await helm.template(values))
    changed = differences(default, rendered)
    assert changed.keys() == expected.keys()
    assert {place: value for place, value in changed.items() if expected[place] is not ...} == {
        place: value for place, value in expected.items() if value is not ...
    }


@pytest.mark.parametrize(("values", "expected"), CONTAINER, ids=["-".join(values) for values, _ in CONTAINER])
async def test_value_changes_the_container(helm: Helm, values: Json, expected: dict[str, Any]) -> None:
    changed = differences(await container(helm), await container(helm, values))
    changed.pop("args", None)
    assert changed == expected


@pytest.mark.parametrize(("values", "expected"), ARGUMENTS, ids=["-".join(values) for values, _ in ARGUMENTS])
async def test_value_changes_the_arguments(helm: Helm, values: Json, expected: set[str]) -> None:
    before, after = (await container(helm))["args"], (await container(helm, values))["args"]
    assert {*before} ^ {*after} == expected


def test_every_value_is_used() -> None:
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    templates = "".join(path.read_text() for path in (CHART / "templates").iterdir())
    assert set(re.findall(r"\.Values\.(\w+)", templates)) == values.keys()


@pytest.mark.parametrize(("values", "message"), INVALID, ids=["-".join(values) for values, _ in INVALID])
async def test_invalid_value_is_named(helm: Helm, values: Json, message: str) -> None:
    with pytest.raises(HelmError, match=message):
        await helm.template(values)


async def test_chart_passes_lint(helm: Helm) -> None:
    output = await helm.run("lint", "--strict", str(CHART))
    assert "0 chart(s) failed" in output
    assert not re.findall(r"\[(?:WARNING|ERROR)\].*", output)


async def test_other_namespace_is_used_everywhere(helm: Helm) -> None:
    """The system's namespace stays only in the Job, which names the namespace for policies."""
    default = await helm.template()
    rendered = await helm.template(namespace="mesh")
    expected = yaml.safe_load(yaml.safe_dump(default).replace(SYSTEM, "mesh"))
    changed = differences(by_title(expected), by_title(rendered))
    assert changed.pop("ConfigMap mesh/xds.data.mesh.rootNamespace") == "mesh"
    [only] = changed.pop(f"Job mesh/{JOB}.spec.template.spec.containers")
    assert only["args"][-1] == "--set=meshConfig.rootNamespace=mesh"
    assert changed == {}
