"""Which workload a pod belongs to."""

from __future__ import annotations

import pytest

from tests.policy.world import meta
from xds.mesh.model.objects import TLS_MODE_LABEL, Pod
from xds.mesh.model.workload import workload_key, workloads_of


@pytest.mark.parametrize(
    ("name", "labels", "workload"),
    [
        ("web-7d9c5b8f6d-x2x8z", {}, "web"),
        ("web-x2x8z", {}, "web"),
        ("db-0", {}, "db"),
        ("db-12", {}, "db"),
        ("web", {}, "web"),
        ("my-first-job", {}, "my-first-job"),
        ("deploy/web", {}, "web"),
        ("web-7d9c5b8f6d-x2x8z", {"app": "shop"}, "shop"),
        ("x", {"app": "shop", "app.kubernetes.io/name": "store"}, "store"),
        ("x", {"app.kubernetes.io/name": "store", "service.istio.io/canonical-name": "till"}, "till"),
    ],
)
def test_workload_has_the_name_of_its_application(name, labels, workload):
    assert workload_key(_pod(name, labels)) == ("a", workload)


def test_workloads_are_in_natural_order_and_count_sidecars():
    pods = [_pod("w10-1", {}), _pod("w2-10", {}, sidecar=True), _pod("w2-9", {})]
    found = workloads_of(pods)
    assert list(found) == [("a", "w2"), ("a", "w10")]
    assert [each.name for each in found["a", "w2"].pods] == ["w2-9", "w2-10"]
    assert found["a", "w2"].sidecars == 1
    assert found["a", "w2"].key == ("a", "w2")


def _pod(name, labels, *, sidecar=False):
    return Pod(meta=meta("Pod", "a", name, **labels, **({TLS_MODE_LABEL: "istio"} if sidecar else {})))
