"""Names of objects that users enter: KIND/NS/NAME."""

from __future__ import annotations

import pytest

from xds.mesh.model.names import UnknownNameError, ref_named
from xds.mesh.model.objects import Ref

KINDS = {"PeerAuthentication": True, "MeshPolicy": False, "Pod": True}


@pytest.mark.parametrize(
    ("text", "ref"),
    [
        ("PeerAuthentication/shop/default", Ref("PeerAuthentication", "shop", "default")),
        ("peerauthentication/shop/default", Ref("PeerAuthentication", "shop", "default")),
        ("meshpolicy/default", Ref("MeshPolicy", "", "default")),
        ("Pod/shop/deploy/web", Ref("Pod", "shop", "deploy/web")),
    ],
)
def test_kind_can_be_in_any_case(text: str, ref: Ref) -> None:
    assert ref_named(text, KINDS) == ref


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("PeerAuthentication/shop", "is not the name of an object: write PeerAuthentication/NS/NAME"),
        ("pod/", "is not the name of an object: write Pod/NS/NAME"),
        ("pod//web", "is not the name of an object: write Pod/NS/NAME"),
        ("MeshPolicy/shop/default", "is not the name of an object: write MeshPolicy/NAME"),
        ("MeshPolicy", "is not the name of an object: write MeshPolicy/NAME"),
        ("PeerAuthentications/shop/default", "not found .*did you mean PeerAuthentication"),
        ("Gateway/shop/web", "kind Gateway not found .*known: PeerAuthentication, MeshPolicy, Pod"),
    ],
)
def test_wrong_name_says_what_to_write(text: str, message: str) -> None:
    with pytest.raises(UnknownNameError, match=message):
        ref_named(text, KINDS)
