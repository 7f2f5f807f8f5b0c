"""`xds lock` and `xds unlock` with a control plane that reads a folder."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import grpc.aio
import pytest
import yaml

from tests.cli.commands import WEB, write_folder, xds
from tests.cli.serve_process import ServeProcess, serving
from tests.controlplane.rollouts import Plane, Sidecar, running
from tests.policy.world import peer
from tests.support.controlplane import run_xds
from tests.support.manifests import peer_authentication

NAMES = ("web-1", "web-2", "web-10")
FILE = "peerauthentication-shop-default.yaml"
# Sidecars of these tests report no traffic, which is not known to be safe.
FORCED = ("--yes", "--force")


@pytest.fixture(autouse=True)
def no_cluster(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "absent"))
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_folder(tmp_path, web=WEB)


@asynccontextmanager
async def connected(process: ServeProcess) -> AsyncIterator[str]:
    """Connect the sidecars of all pods; yield the option with the address of the control plane."""
    address = f"127.0.0.1:{process.xds}"
    async with grpc.aio.insecure_channel(address) as channel, AsyncExitStack() as stack:
        for name in NAMES:
            await stack.enter_async_context(Sidecar(channel, name))
        yield f"--xds-address={address}"


async def test_policy_is_written_to_the_folder_and_waited_for(folder: Path) -> None:
    with serving(folder) as process:
        async with connected(process) as address:
            words = ("shop", address, "--manifests", folder)
            status, out, err = await run_xds("lock", *words)
            assert (status, (folder / FILE).exists()) == (1, False)
            assert "refused to lock namespace shop; --force locks it anyway" in err

            status, out, err = await run_xds("lock", *words, *FORCED, "--dry-run")
            assert (status, (folder / FILE).exists()) == (0, False), err
            assert out.endswith("dry run: PeerAuthentication shop/default was not changed\n")

            status, out, err = await run_xds("lock", *words, "--force")
            assert (status, (folder / FILE).exists()) == (2, False)
            assert "stdin is not a terminal, so the change cannot be confirmed: add --yes" in err

            status, out, err = await run_xds("lock", *words, *FORCED)
            assert status == 0, err
            assert out.endswith(
                "PeerAuthentication shop/default: in force, acked by 3 of 3 sidecars\n"
                "namespace shop is locked\n"
            )
            assert yaml.safe_load((folder / FILE).read_text()) == peer_authentication("shop", "STRICT")

            status, out, err = await run_xds("lock", *words, *FORCED)
            assert status == 0, err
            assert out.splitlines()[-3] == "PeerAuthentication shop/default is STRICT already"

            status, out, err = await run_xds("unlock", *words, "--yes")
            assert status == 0, err
            assert out.splitlines()[-1] == "namespace shop is unlocked"
            assert "port 8080 of web (shop/default): PERMISSIVE (PeerAuthentication shop/default)" in out
            assert yaml.safe_load((folder / FILE).read_text()) == peer_authentication("shop", "PERMISSIVE")


def test_without_a_folder_the_manifest_is_printed(folder: Path) -> None:
    with serving(folder) as process:
        address = f"--xds-address=127.0.0.1:{process.xds}"
        result = xds("lock", "shop", address, *FORCED)
        assert result.exit_code == 1
        assert yaml.safe_load(result.stdout.rpartition("\n\n")[2]) == peer_authentication("shop", "STRICT")
        assert (
            "namespace shop is not locked: the control plane reads files. Add the manifest" in result.stderr
        )
        assert xds("lock", "shop", address, *FORCED, "--dry-run").exit_code == 0


def test_policies_of_the_user_are_not_changed(folder: Path) -> None:
    policy = yaml.safe_dump(peer_authentication("shop", "PERMISSIVE"))
    (folder / "mine.yaml").write_text(policy)
    with serving(folder) as process:
        words = ("shop", f"--xds-address=127.0.0.1:{process.xds}", *FORCED)
        for options in ((), ("--manifests", folder)):
            result = xds("lock", *words, *options)
            assert (result.exit_code, result.stdout) == (1, "")
            assert result.stderr == (
                "xds: PeerAuthentication shop/default is in the files that the control plane reads: change "
                "its mode there\n"
            )
        (folder / "mine.yaml").rename(folder / FILE)
        (folder / FILE).write_text(f"# Mine\n{policy}")
        result = xds("lock", *words, "--manifests", folder)
        assert result.stderr == f"xds: {folder / FILE} was edited: change the mode there\n"
        assert (folder / FILE).read_text() == f"# Mine\n{policy}"


def test_folder_that_the_control_plane_does_not_read(folder: Path, tmp_path: Path) -> None:
    (other := tmp_path / "other").mkdir()
    with serving(folder) as process:
        address = f"--xds-address=127.0.0.1:{process.xds}"
        result = xds("lock", "shop", address, *FORCED, "--manifests", other)
    assert result.exit_code == 2
    assert result.stderr.endswith(
        f"xds: the control plane does not read {other}: name the folder of xds serve --manifests\n"
    )
    assert not list(other.iterdir())


@pytest.fixture
async def plane() -> AsyncIterator[Plane]:
    async with running("PERMISSIVE") as plane:
        yield plane


async def test_control_plane_of_an_api_server_needs_a_kubeconfig(plane: Plane, tmp_path: Path) -> None:
    address = f"--xds-address=127.0.0.1:{plane.server.port}"
    await plane.applied(peer("shop", "PERMISSIVE"))
    for options, remedy in (
        ((), "set --kubeconfig or KUBECONFIG"),
        (("--manifests", tmp_path), "leave out --manifests"),
    ):
        status, _, err = await run_xds("lock", "shop", address, *FORCED, *options)
        assert (status, err) == (2, f"xds: the control plane reads an API server: {remedy}\n")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("shop/web", "--manifests", "."), "only the API server knows the labels of a workload"),
        (("shop", "--manifests", ".", "--context", "x"), "--manifests cannot be combined with options for a"),
        (
            ("shop", "--manifests", ".", "--force-conflicts"),
            "--manifests cannot be combined with options for",
        ),
        (("shop", "--manifests", "none"), "folder 'none' does not exist"),
    ],
)
def test_wrong_usage_exits_with_2(words: tuple[str, ...], message: str) -> None:
    result = xds("lock", *words)
    assert (result.exit_code, result.stdout) == (2, "")
    assert message in result.stderr
