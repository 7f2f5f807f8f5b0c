"""A real Kubernetes cluster for the tests. Without its programs, tests skip and say how to get them."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import NoReturn

import pytest

from tests.compose.environment import MissingError
from tests.kubernetes.environment import binaries
from tests.kubernetes.environment.cluster import Cluster
from tests.kubernetes.environment.control_plane import ControlPlane
from tests.kubernetes.environment.images import prepared
from tests.kubernetes.environment.node import NodeCluster, why_no_nodes
from tests.kubernetes.environment.pods import PodCluster
from tests.kubernetes.places import NAMED, Place, fake, named, real
from tests.kubernetes.player import Player
from tests.kubernetes.terminal import Terminal

_REAL = pytest.param("real", marks=pytest.mark.xdist_group("control_plane"))
EXAMPLES = Path(__file__).parents[2] / "examples/envoy/kubernetes"


@pytest.fixture(scope="session")
def control_plane() -> Iterator[ControlPlane]:
    """The processes that all tests of this run share, so tests must not stop them."""
    _skip_without_programs()
    with ControlPlane() as running:
        yield running


@pytest.fixture
async def cluster(control_plane: ControlPlane) -> AsyncIterator[Cluster]:
    """A shared cluster: tests create objects in their own namespaces."""
    async with Cluster(control_plane) as entered:
        yield entered


@pytest.fixture(scope="module")
def bare() -> Iterator[ControlPlane]:
    """An empty control plane for the tests of one file."""
    _skip_without_programs()
    with ControlPlane() as running:
        yield running


@pytest.fixture
async def own_cluster() -> AsyncIterator[Cluster]:
    """A cluster for one test, which may stop parts of it."""
    _skip_without_programs()
    with ControlPlane() as running:
        async with Cluster(running) as entered:
            yield entered
            print(running.logs())  # which pytest shows if the test failed


@pytest.fixture(scope="session")
def skip_without_nodes() -> None:
    """Skip on a machine that cannot run nodes.

    Tests that start a cluster for themselves run in one worker, because nodes need much CPU. Files whose
    tests share one run in a worker each.
    """
    _skip_without_programs()
    if reason := why_no_nodes():
        _lack(reason)
    try:
        prepared()
    except MissingError as missing:
        _lack(str(missing))


@pytest.fixture(scope="session")
def shared_nodes(skip_without_nodes: None) -> Iterator[NodeCluster]:
    """A cluster with a node for all tests of this run, which use their own namespaces and stop nothing."""
    with NodeCluster() as running:
        yield running


@pytest.fixture
async def shared_pods(shared_nodes: NodeCluster) -> AsyncIterator[PodCluster]:
    """The shared cluster with a node."""
    async with PodCluster(shared_nodes) as entered:
        yield entered
        print(entered.control_plane.logs())  # which pytest shows if the test failed


@pytest.fixture
async def pod_cluster(skip_without_nodes: None) -> AsyncIterator[PodCluster]:
    """A cluster with a node for one test, which may break it."""
    with NodeCluster() as running:
        async with PodCluster(running) as entered:
            yield entered
            print(entered.control_plane.logs())


@pytest.fixture
def player(pod_cluster: PodCluster, tmp_path: Path) -> Player:
    """A player of the Istio task on that cluster, before the installation."""
    return Player(pod_cluster, Terminal(pod_cluster, tmp_path / "tools", EXAMPLES))


@pytest.fixture
def controllers() -> None:
    """Skip without a controller manager: Deployments have no pods, Services no EndpointSlices."""
    _skip_without_programs()
    if "kube-controller-manager" not in binaries.find():
        pytest.skip(
            "needs kube-controller-manager, which KUBEBUILDER_ASSETS has not: unset it and `make kubernetes`"
        )


@pytest.fixture(params=["fake", _REAL, *(["named"] if NAMED else [])])
async def place(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Place]:
    """A shared server."""
    match request.param:
        case "fake":
            async with fake(tmp_path) as place:
                yield place
        case "real":
            control_plane = request.getfixturevalue("control_plane")
            async with Cluster(control_plane) as cluster, real(cluster) as place:
                yield place
        case "named":
            async with named(Path(NAMED)) as place:
                yield place


def _skip_without_programs() -> None:
    if reason := binaries.why_none():
        _lack(reason)


def _lack(reason: str) -> NoReturn:
    if os.environ.get(binaries.REQUIRED) and binaries.go():
        pytest.fail(f"{binaries.REQUIRED} is set: {reason}")
    pytest.skip(reason)
