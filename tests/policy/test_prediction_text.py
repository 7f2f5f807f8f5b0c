"""The effects of a change in sentences."""

from __future__ import annotations

from dataclasses import replace

from tests.policy.world import HTTP, mesh, peer, pod, service
from xds.mesh.model.mesh import Mesh
from xds.mesh.model.objects import Change, ContainerPort, Fact
from xds.mesh.policy.prediction import Prediction, predict_change
from xds.mesh.policy.prediction_text import breaking_sentences, summary

WEB = service("web", "shop", HTTP)


def strict(*facts: Fact) -> Prediction:
    before = mesh(WEB, *facts)
    return predict_change(before, before.apply(Change(applied=(peer("shop", "STRICT"),))))


def server(name: str, **changes: object) -> Fact:
    return replace(pod(name, "shop", app="web"), **changes)


def test_broken_hop_names_clients_target_reason_and_remedy() -> None:
    found = strict(server("web-1"), pod("client", "zoo", sidecar=False))
    assert [*breaking_sentences(found)] == [
        (
            "zoo/client -> web.shop:80 would fail: server-requires-mtls (PeerAuthentication shop/default); "
            "add a sidecar to zoo/client, or use PERMISSIVE in PeerAuthentication shop/default until then"
        )
    ]
    assert summary(found) == "breaks: 1"


def test_hop_that_breaks_in_part_names_the_number_of_endpoints() -> None:
    plain = pod("web-2", "shop", sidecar=False, app="web")
    found = strict(server("web-1"), plain, pod("client", "zoo", sidecar=False))
    [sentence] = breaking_sentences(found)
    assert "shop/web-2, zoo/client -> web.shop:80 would fail at 1 of 2 endpoints: server" in sentence


def test_reason_without_deciding_object_is_named_alone() -> None:
    before = mesh(WEB, server("web-1"), pod("client", "zoo"))
    found = predict_change(before, before.apply(Change(removed=(WEB.ref,))))
    assert [*breaking_sentences(found)] == [
        (
            "shop/web-1, zoo/client -> web.shop:80 would fail: service-deleted; "
            "keep the Service and its port while clients call it"
        )
    ]


def test_refused_probe_follows_the_hops() -> None:
    ports = (ContainerPort(port=9090, name="metrics"),)
    found = strict(server("web-1", probe_ports=(8080,), ports=ports), pod("client", "zoo", sidecar=False))
    assert [*breaking_sentences(found)][1:] == [
        (
            "kubelet-probe -> port 8080 of shop/web-1 would fail: server-requires-mtls "
            "(PeerAuthentication shop/default); inject the sidecar with rewritten probes, or exempt port "
            "8080 (PeerAuthentication with a selector, mtls STRICT and portLevelMtls 8080 PERMISSIVE), "
            "or use PERMISSIVE in PeerAuthentication shop/default"
        )
    ]
    assert summary(found) == "breaks: 2, may break: 1"


def test_change_without_effect_has_no_sentence() -> None:
    found = predict_change(Mesh(), Mesh())
    assert ([*breaking_sentences(found)], summary(found)) == ([], "no connection changes")
