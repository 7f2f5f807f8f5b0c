"""Sets of resources: versions depend on the content alone, and changes cost only what changes."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from xds.snapshot import CLUSTER, Resource, ResourceSet, difference

names = st.sampled_from("abcdef")
contents = st.dictionaries(names, st.sampled_from([b"1", b"2"]))
layers = st.lists(contents, min_size=1, max_size=4)


def resources(content):
    return [Resource.of(CLUSTER, name, body) for name, body in content.items()]


def layered(contents) -> ResourceSet:
    found = None
    for content in contents:
        found = ResourceSet(resources(content), base=found)
    assert found is not None
    return found


def flat(contents) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    for content in contents:
        found |= content
    return found


@given(layers)
def test_layered_set_equals_the_flat_set(contents):
    together = flat(contents)
    one, many = ResourceSet(resources(together)), layered(contents)
    assert {name: resource.body for name, resource in many.items()} == together
    assert len(many) == len(together)
    assert (many, many.version, hash(many)) == (one, one.version, hash(one))
    assert all((name in many) == (name in together) for name in "abcdefg")


@given(contents, contents)
def test_versions_are_equal_exactly_when_the_content_is(one, other):
    assert (ResourceSet(resources(one)) == ResourceSet(resources(other))) == (one == other)


@given(contents, st.sets(names), contents)
def test_updated_set_equals_a_new_set(before, removed, changed):
    updated = ResourceSet(resources(before)).updated(resources(changed), removed)
    after = {name: body for name, body in before.items() if name not in removed} | changed
    assert updated == ResourceSet(resources(after))
    assert (len(updated), {*updated}) == (len(after), {*after})


@given(layers, layers)
def test_difference_has_exactly_the_changed_names(one, other):
    before, after = flat(one), flat(other)
    found = difference(layered(one), layered(other))
    assert sorted(found) == sorted(name for name in before | after if before.get(name) != after.get(name))
    present = [name in after for name in found]
    assert present == sorted(present, reverse=True)


@given(layers, contents)
def test_difference_on_a_common_base_skips_the_base(below, own):
    base = layered(below)
    after = ResourceSet(resources(own), base=base)
    assert {*difference(base, after)} == {name for name, body in own.items() if flat(below).get(name) != body}


def test_a_name_cannot_pass_for_a_name_and_a_version():
    one = Resource.of(CLUSTER, "a", b"", version="b=c")
    other = Resource.of(CLUSTER, "a=b", b"", version="c")
    assert ResourceSet([one]) != ResourceSet([other])
