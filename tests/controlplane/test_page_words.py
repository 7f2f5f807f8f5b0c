"""Words for the codes of the API."""

from __future__ import annotations

import pytest

from xds.mesh.controlplane.page.words import reason_words, traffic_words
from xds.mesh.model.objects import OutsideTraffic, Ref
from xds.mesh.observe.edges import OTHER_ADDRESSES, address_words
from xds.mesh.policy.mtls import Reason
from xds.mesh.policy.reach import Failure


def test_every_code_has_words():
    traffic = [traffic_words(each, None) for each in OutsideTraffic]
    words = [*map(reason_words, (*Reason, *Failure)), *traffic]
    assert all(0 < len(text) <= 40 for text in words)
    assert not {str(code) for code in (*Reason, *Failure, *OutsideTraffic)} & set(words)
    source = Ref("Service", "shop", "web")
    assert (
        traffic_words(OutsideTraffic.OUTSIDE_CLIENT, source)
        == "clients outside the cluster (Service shop/web)"
    )


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("127.0.0.1", "a process in the server's own pod"),
        ("::1", "a process in the server's own pod"),
        ("192.0.2.7", "a node, or a client outside the mesh"),
        ("not-an-address", "a node, or a client outside the mesh"),
        (OTHER_ADDRESSES.name, "more addresses"),
    ],
)
def test_addresses_that_belong_to_no_pod_are_explained(name, text):
    assert text in address_words(name)
