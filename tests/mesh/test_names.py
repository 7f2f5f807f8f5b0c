"""Names that users enter, and suggestions for mistyped ones, which are bounded in a large mesh."""

from __future__ import annotations

import pytest

from xds.mesh.model.names import (
    MAX_CANDIDATES,
    MAX_SUGGESTION_LENGTH,
    UnknownNameError,
    join_names,
    ref_named,
    unknown_name,
)
from xds.mesh.model.objects import Ref

FORM = "POD.NAMESPACE"
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


def test_suggestions_compare_names_in_the_same_namespace_first() -> None:
    known = [*(f"job-{number}.batch" for number in range(MAX_CANDIDATES)), "zebra.zoo"]
    assert unknown_name("pod", "zebar.zoo", known, FORM).endswith("did you mean zebra.zoo?")
    # In any other namespace, it is not among the first names.
    assert "; known: job-0.batch, " in unknown_name("pod", "zebar.zo", known, FORM)


def test_suggestions_compare_only_the_start_of_long_names() -> None:
    start = "a" * MAX_SUGGESTION_LENGTH
    known = f"{start}{'b' * 200}.shop"
    assert unknown_name("pod", f"{start}{'c' * 200}.shop", [known], FORM).endswith(f"did you mean {known}?")


def test_suggestions_name_each_completion_once() -> None:
    message = unknown_name("service", "web", ["web.shop", "web-admin.shop", "web.zoo"], FORM)
    assert message.endswith("did you mean web.shop, web.zoo?")


@pytest.mark.parametrize(
    ("names", "text"),
    [
        ([], ""),
        (["a", "b"], "a, b"),
        (["a", "b", "c"], "a, b and 1 more"),
        (["a", "b", "c", "d"], "a, b and 2 more"),
    ],
)
def test_joined_names_are_limited(names: list[str], text: str) -> None:
    assert join_names(names, 2) == text
    assert join_names(names, 2, "clients") == (f"{text} clients" if "more" in text else text)
