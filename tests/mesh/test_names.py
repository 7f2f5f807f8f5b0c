"""Suggestions for mistyped names: bounded, so that a large mesh does not block the control plane."""

from __future__ import annotations

from xds.mesh.model.names import MAX_CANDIDATES, MAX_SUGGESTION_LENGTH, unknown_name

FORM = "POD.NAMESPACE"


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
