"""Write each pod's resources as differences from another pod's resources.

A pod is `like` its reference: an earlier pod of the same case, or `CASE/POD` of another case. `encode`
chooses the pod that differs least. Lists whose elements have names are written as mappings. Compared with a
reference:

- A key that is not listed has the value of the reference.
- `without` lists the keys that only the reference has.
- `order` lists all keys, if new elements do not follow those of the reference.
- `a > b: value` is short for `a: {b: value}`. In a list whose elements have no names, the index is the key.
- A new element is `like NAME` if a list of the same field has a similar element before it. In a copy of that
  element, the new name replaces NAME, and each part of the new name (port, address, host, and the service
  account of the same name) replaces that part of NAME. What differs from the copy is listed.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeAlias

import yaml

Tree: TypeAlias = Any
"""A mapping, a list or a scalar of YAML."""
Pods: TypeAlias = dict[str, dict[str, list[Tree]]]
"""The resources of pods, by the pod's name and the type."""

RESOURCES = {
    "clusters": "name",
    "load_assignments": "cluster_name",
    "listeners": "name",
    "routes": "name",
    "extensions": "name",
}
"""The types of resources, and the field of the name. Resources are sorted by name."""
NAMED = RESOURCES | {
    "access_log": "name",
    "endpoints": "",
    "filter_chains": "name",
    "filters": "name",
    "http_filters": "name",
    "lb_endpoints": "",
    "listener_filters": "name",
    "transport_socket_matches": "name",
    "virtual_hosts": "name",
}
"""Lists whose elements have names, and the name's field; empty if `_name` combines other fields."""
NEVER_LIKE = {"endpoints", "filters", "http_filters", "listener_filters"}
"""Lists whose new elements are written in full."""
KEYWORDS = {"like", "order", "without"}
SEPARATOR = " > "
MAX_PATH = 100
"""Length of the longest path that is written in one line."""


def encode(pods: Pods, references: Mapping[str, Pods]) -> str:
    """Return the YAML of pods, given those of the cases to compare with, by name."""
    codec, known = _start(references)
    written = {}
    for name, resources in pods.items():
        tree = _named(resources)
        like = min(known, key=lambda other: _distance(tree, known[other]), default=None)
        reference = {"like": like} if like else {}
        written[name] = {**reference, **codec.encode(tree, known.get(like))}
        known[name] = tree
    return yaml.dump(written, Dumper=_Dumper, sort_keys=False, width=140, default_flow_style=None)


def decode(text: str, references: Mapping[str, Pods]) -> Pods:
    """Return the pods of which `encode` has written YAML."""
    codec, known = _start(references)
    pods = {}
    for name, written in yaml.safe_load(text).items():
        known[name] = codec.decode(written, known.get(written.pop("like", None)))
        pods[name] = _unnamed(known[name])
    return pods


def _start(references: Mapping[str, Pods]) -> tuple[_Codec, dict[str | None, Tree]]:
    codec, known = _Codec(), {}
    for case, pods in references.items():
        for name, resources in pods.items():
            known[f"{case}/{name}"] = _named(resources)
            codec.encode(known[f"{case}/{name}"], None)
    return codec, known


class _Codec:
    """Keeps the elements so far, by field and name. Both directions visit elements in the same order."""

    def __init__(self) -> None:
        self._elements: defaultdict[str, dict[str, Tree]] = defaultdict(dict)

    def encode(self, tree: Tree, reference: Tree, field: str = "") -> Tree:
        """Return what `decode` needs to make a tree from its reference. `field` is the key of the tree."""
        if _is_positional(tree) and _is_positional(reference) and len(tree) == len(reference):
            tree, reference = _indexed(tree), _indexed(reference)
        if not isinstance(tree, dict):
            return tree
        reference = reference if isinstance(reference, dict) else {}
        written: dict[str, Tree] = {}
        if absent := [key for key in reference if key not in tree]:
            written["without"] = absent
        for key, value in tree.items():
            if key not in reference:
                written[key] = self._encode_new(value, field, key)
            elif not _is_equal(value, reference[key], key):
                written |= _joined(key, self.encode(value, reference[key], key))
            else:
                continue
            self._add(field, key, value)
        if field in NAMED and list(tree) != _default_order(reference, tree, field):
            written["order"] = list(tree)
        return written

    def decode(self, written: Tree, reference: Tree, field: str = "", name: str = "") -> Tree:
        """Return the tree that `encode` was given. `name` is its key, and `field` the key of its parent."""
        if isinstance(written, str) and written.startswith("like "):
            return self._like(field, written.removeprefix("like "), name)
        if not isinstance(written, dict):
            return written
        written = dict(written)
        if like := written.pop("like", None):
            reference = self._like(field, like, name)
        is_positional = _is_positional(reference)
        if is_positional:
            reference = _indexed(reference)
        tree = dict(reference) if isinstance(reference, dict) else {}
        for key in written.pop("without", ()):
            del tree[key]
        order = written.pop("order", None)
        for path, value in written.items():
            key, _, rest = path.partition(SEPARATOR)
            tree[key] = self.decode({rest: value} if rest else value, tree.get(key), name, key)
            self._add(name, key, tree[key])
        if is_positional:
            return [*tree.values()]
        return {key: tree[key] for key in order or _default_order({}, tree, name)}

    def _add(self, field: str, name: str, tree: Tree) -> None:
        if field in NAMED and field not in NEVER_LIKE:
            self._elements[field].setdefault(name, tree)

    def _like(self, field: str, like: str, name: str) -> Tree:
        return _renamed(self._elements[field][like], _replacement(like, name))

    def _encode_new(self, tree: Tree, field: str, name: str) -> Tree:
        like = self._nearest(tree, field, name)
        if like is None:
            return self.encode(tree, None, name)
        written = self.encode(tree, self._like(field, like, name), name)
        return {"like": like, **written} if written else f"like {like}"

    def _nearest(self, tree: Tree, field: str, name: str) -> str | None:
        """Return the name of the element that differs least, or None if all differ in at least half."""
        distances = {
            like: _distance(tree, self._like(field, like, name)) for like in self._elements[field]
        } | {None: _distance(tree, {}) / 2}
        return min(distances, key=lambda like: distances[like])


class _Dumper(yaml.SafeDumper):
    """Writes the shortest mappings and lists in one line, but a line for each difference."""

    def represent_dict(self, tree: dict[str, Tree]) -> yaml.Node:
        node = self.represent_mapping("tag:yaml.org,2002:map", tree.items())
        for key, value in tree.items():
            if key in KEYWORDS or SEPARATOR in key or str(value).startswith("like "):
                node.flow_style = False
        return node


_Dumper.add_representer(dict, _Dumper.represent_dict)


def _named(tree: Tree, field: str = "") -> Tree:
    """Return a tree with mappings for the lists whose elements have names."""
    if isinstance(tree, dict):
        return {key: _named(value, key) for key, value in tree.items()}
    if not isinstance(tree, list):
        return tree
    elements = [_named(element) for element in tree]
    if field not in NAMED:
        return elements
    names = [_name(element, NAMED[field]) for element in elements]
    if None in names or len(set(names)) < len(names):
        return elements
    return {
        name: {key: value for key, value in element.items() if key != NAMED[field]}
        for name, element in zip(names, elements, strict=True)
    }


def _unnamed(tree: Tree, field: str = "") -> Tree:
    """Return the tree that `_named` was given."""
    if isinstance(tree, list):
        return [_unnamed(value) for value in tree]
    if not isinstance(tree, dict):
        return tree
    if field not in NAMED:
        return {key: _unnamed(value, key) for key, value in tree.items()}
    key = NAMED[field]
    return [{**({key: name} if key else {}), **_unnamed(element)} for name, element in tree.items()]


def _name(element: Tree, field: str) -> str | None:
    match element:
        case {"endpoint": {"address": {"socket_address": {"address": address, "port_value": port}}}}:
            return f"{address}:{port}"
        case {"locality": dict(locality)}:
            return "/".join(locality.values()) or "none"
        case dict():
            return element.get(field)
    return None


def _is_positional(tree: Tree) -> bool:
    return isinstance(tree, list) and all(isinstance(element, dict) for element in tree)


def _indexed(elements: list[Tree]) -> dict[str, Tree]:
    return {str(index): element for index, element in enumerate(elements)}


def _is_equal(one: Tree, other: Tree, field: str) -> bool:
    """Compare trees: order matters in lists, and fields of a message have none."""
    return bool(_unnamed(one, field) == _unnamed(other, field))


def _default_order(reference: Tree, tree: Tree, field: str) -> list[str]:
    keys = [key for key in reference if key in tree] + [key for key in tree if key not in reference]
    return sorted(keys) if field in RESOURCES else keys


def _joined(key: str, written: Tree) -> dict[str, Tree]:
    if isinstance(written, dict) and len(written) == 1:
        ((inner, value),) = written.items()
        if inner not in KEYWORDS and len(key) + len(inner) < MAX_PATH:
            return {f"{key}{SEPARATOR}{inner}": value}
    return {key: written}


def _distance(tree: Tree, reference: Tree) -> float:
    leaves, others = set(_leaves(tree)), set(_leaves(reference))
    # `without` takes few lines, also for large elements.
    return len(leaves - others) + len(others - leaves) / 4


def _leaves(tree: Tree, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], str]]:
    if _is_positional(tree):
        tree = _indexed(tree)
    if isinstance(tree, dict) and tree:
        for key, value in tree.items():
            yield from _leaves(value, (*path, key))
    else:
        yield path, repr(tree)


def _phrases(name: str) -> list[str]:
    """Return a name, its form in SNI, and its parts."""
    phrases = [name, name.replace("|", "_.")]
    for part in re.split("[|;:_]", name):
        service, _, namespace = part.removesuffix(".svc.cluster.local").partition(".")
        phrases += [part, f"{service}.{namespace}", f"ns/{namespace}/sa/{service}"]
    return phrases


def _replacement(old: str, new: str) -> Callable[[str], str]:
    pairs: dict[str, str] = {}
    for phrase, other in zip(_phrases(old), _phrases(new), strict=False):
        if phrase and other and phrase != other:
            pairs.setdefault(phrase, other)
    if not pairs:
        return lambda text: text
    alternatives = "|".join(map(re.escape, sorted(pairs, key=len, reverse=True)))
    pattern = re.compile(f"(?<![A-Za-z0-9])({alternatives})(?![A-Za-z0-9])")
    return lambda text: pattern.sub(lambda match: pairs[match[0]], text)


def _renamed(tree: Tree, replace: Callable[[str], str]) -> Tree:
    if isinstance(tree, dict):
        return {replace(key): _renamed(value, replace) for key, value in tree.items()}
    if isinstance(tree, list):
        return [_renamed(value, replace) for value in tree]
    if isinstance(tree, int) and not isinstance(tree, bool):
        text = replace(str(tree))
        return int(text) if text.isdecimal() else tree
    return replace(tree) if isinstance(tree, str) else tree
