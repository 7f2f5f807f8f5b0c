"""Finding and building the control plane's programs, and error messages."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.kubernetes.environment import binaries
from tests.kubernetes.environment.cluster import Cluster
from tests.kubernetes.environment.control_plane import ControlPlane


async def test_envtest_assets_have_no_controllers(
    control_plane: ControlPlane, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, program in binaries.find().items():
        if name not in binaries.OPTIONAL:
            (tmp_path / name).symlink_to(program)
    monkeypatch.setenv("KUBEBUILDER_ASSETS", str(tmp_path))
    with ControlPlane() as other:
        assert not other.has_controllers
        assert other.server != control_plane.server
        async with Cluster(other) as cluster, cluster.namespace() as namespace:
            pod = {"metadata": {"name": "a"}, "spec": {"containers": [{"name": "a", "image": "a"}]}}
            await cluster.api.create(f"/api/v1/namespaces/{namespace}/pods", pod)


def test_missing_asset_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "etcd").symlink_to("/bin/true")
    monkeypatch.setenv("KUBEBUILDER_ASSETS", str(tmp_path))
    assert not binaries.find()
    assert binaries.why_none() == f"KUBEBUILDER_ASSETS={tmp_path} has no kube-apiserver, kubectl"
    assert binaries.main() == 1


def test_build_requires_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _nothing_built(tmp_path, monkeypatch)
    monkeypatch.setattr(binaries, "go", lambda: None)
    assert binaries.main() == 0
    assert "make kubernetes" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(binaries.go() is None, reason="needs Go (https://go.dev/dl)")
def test_failed_build_reports_output_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _nothing_built(tmp_path, monkeypatch)
    monkeypatch.setenv("GOPROXY", "off")
    monkeypatch.setenv("GOMODCACHE", str(tmp_path / "modules"))
    assert binaries.main() == 1
    assert "could not be built" in (message := capsys.readouterr().err)
    assert "GOPROXY=off" in message
    assert not [path for path in tmp_path.iterdir() if path.name.startswith("kubernetes-")]


def _nothing_built(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KUBEBUILDER_ASSETS", raising=False)
    monkeypatch.setattr(binaries, "_CACHE", folder)
