"""A proposed change: objects that are not applied yet, as manifests, and objects to delete."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from typing import NamedTuple

from xds.mesh.inject.workloads import SHORT_NAMES, short_name
from xds.mesh.model.applied import as_applied, running_pod
from xds.mesh.model.injection import NAMESPACE_LABEL
from xds.mesh.model.mesh import Mesh
from xds.mesh.model.names import UnknownNameError, join_names, ref_named, unknown_name
from xds.mesh.model.objects import Change, Namespace, Pod, Problem, Ref, entry_ref
from xds.mesh.parse import KINDS
from xds.mesh.sources.files import Folder

_MAX_NAMES = 3
"""Maximum number of objects that a sentence names."""


class Objects(NamedTuple):
    """The objects of manifests."""

    change: Change | None
    """The objects, with a pod for each workload, and the settings; None if they are not usable."""
    problems: tuple[Problem, ...] = ()
    """Problems of the manifests."""
    not_considered: tuple[str, ...] = ()
    """What the objects do not contain, and could change an answer: noun phrases."""


def read_objects(folder: Folder, namespaces: Iterable[Namespace] = (), before: Mesh | None = None) -> Objects:
    """Return all objects of manifests, with a pod for each workload.

    There is no change if a document is unreadable. Raises OSError if a folder cannot be read.

    Args:
        folder: the manifests; it must be loaded for the first time.
        namespaces: Namespaces that are not in the manifests. Their labels decide which workloads get a
            sidecar.
        before: a mesh with Pods that exist already, and are not injected again; None for none.
    """
    report = folder.load()
    if not report.complete:
        return Objects(None, report.problems)
    pods = folder.expected_pods(namespaces)
    expected = {
        parsed.fact.ref: parsed.fact
        for parsed in pods
        if parsed.fact and not (before and _is_created(before, parsed.fact.ref))
    }
    facts = (*(fact for fact in report.change.applied if fact.ref not in expected), *expected.values())
    pod_problems = (problem for parsed in pods for problem in parsed.problems)
    problems = (*folder.skipped, *report.problems, *pod_problems)
    rejected = dict.fromkeys((*folder.rejected, *(str(parsed.ref) for parsed in pods if parsed.refused)))
    return Objects(
        Change(applied=facts, config=report.change.config),
        problems,
        (*_unknown(folder), *invalid_objects(rejected)),
    )


def _unknown(folder: Folder) -> Iterator[str]:
    if kinds := folder.unknown_kinds:
        yield (
            f"{kinds}, which may create pods or call Services (add their pods to the manifests, or name "
            "kinds that do neither with --ignore-kind)"
        )


def invalid_objects(names: Collection[str]) -> Iterator[str]:
    """Yield a noun phrase for invalid objects, if there are any: they could change an answer."""
    if names:
        yield f"invalid objects ({len(names)}): {join_names(names, _MAX_NAMES)}"


def read_change(
    folder: Folder, before: Mesh, base: Folder | None = None, deleted: Collection[Ref] = ()
) -> Objects:
    """Return the change that applying manifests makes.

    There is no change if a document or an object is invalid, because its effect is then unknown. The change
    removes the pods of workloads that it stops. Raises OSError if a folder cannot be read.

    Args:
        folder: the manifests; it must be loaded for the first time, and read workloads.
        before: the mesh without the change.
        base: manifests that contain this mesh, if any. A changed Namespace injects their workloads anew.
        deleted: objects that the change deletes as well.
    """
    namespaces = [fact for fact in before.facts() if isinstance(fact, Namespace)]
    change, problems, not_considered = read_objects(folder, namespaces, before)
    if change is None or folder.has_unusable_objects(namespaces):
        return Objects(None, problems)
    relabelled = [fact for fact in change.applied if isinstance(fact, Namespace) and _changes(before, fact)]
    names = {namespace.name for namespace in relabelled}
    replaced = {*deleted, *folder.stopped_pods, *(fact.ref for fact in change.applied)}
    pods = [
        parsed
        for parsed in (base.expected_pods(changed=relabelled) if base and relabelled else ())
        if parsed.ref and parsed.ref.namespace in names and parsed.ref not in replaced
    ]
    rejected = [str(parsed.ref) for parsed in pods if parsed.refused]
    facts = (*change.applied, *(parsed.fact for parsed in pods if parsed.fact))
    refs = (*(fact.ref for fact in change.applied), *folder.stopped_pods)
    return Objects(
        Change(applied=tuple(as_applied(before, fact) for fact in facts), removed=folder.stopped_pods),
        (
            *problems,
            *(problem for parsed in pods for problem in parsed.problems),
            *_not_compared(before, refs),
        ),
        (*not_considered, *invalid_objects(rejected), *_not_injected(before, relabelled)),
    )


def _changes(before: Mesh, namespace: Namespace) -> bool:
    """Whether a Namespace has other labels than before."""
    old = before.get(namespace.ref)
    return (old.meta.labels if old else {}) != namespace.meta.labels


def _not_injected(before: Mesh, namespaces: Iterable[Namespace]) -> Iterator[str]:
    """Yield a phrase for each Namespace whose changed label does not affect its running pods."""
    for namespace in namespaces:
        old = before.get(namespace.ref)
        label = old.meta.labels.get(NAMESPACE_LABEL) if old else None
        pods = before.in_namespace(namespace.name).pods.values()
        if label != namespace.meta.labels.get(NAMESPACE_LABEL) and not all(pod.is_template for pod in pods):
            yield (
                f"the label {NAMESPACE_LABEL} of Namespace {namespace.name} for its running pods, which keep "
                "what they have until they are created again"
            )


def _is_created(mesh: Mesh, ref: Ref) -> bool:
    """Whether the Pod itself is in a mesh, and not only the template of a workload."""
    pod = mesh.get(ref)
    return isinstance(pod, Pod) and not pod.is_template


def _not_compared(before: Mesh, refs: Iterable[Ref]) -> Iterator[Problem]:
    """Yield a notice for each workload in the change whose running pods stay as they are."""
    for ref in refs:
        if ref.kind == "Pod" and not before.get(ref) and running_pod(before, ref):
            yield Problem(
                where=str(ref),
                what="the workload's own change is not compared, because its pods are running",
                hint="compare manifests with --manifests to plan it",
                notice=True,
            )


def find_deleted(mesh: Mesh, text: str) -> Ref:
    """Return the object to delete that KIND/NAMESPACE/NAME or KIND/NAME names.

    A workload stands for its expected pod. Raises UnknownNameError if there is no such object, or if it is a
    Namespace, whose deletion deletes more than is known.
    """
    kind, _, rest = text.partition("/")
    namespace, _, name = rest.partition("/")
    custom = Ref("Pod", namespace, f"{short_name(kind)}/{name}")
    if kind not in SHORT_NAMES and mesh.get(custom):
        return custom
    kinds = {item.name: item.namespaced for item in KINDS if not item.consequence}
    ref = ref_named(text, kinds | dict.fromkeys(SHORT_NAMES, True))
    if ref.kind == "Namespace":
        raise UnknownNameError(
            f"{text}: cannot plan the deletion of a Namespace: delete the objects in it instead"
        )
    if ref.kind == "WorkloadEntry":
        ref = entry_ref(ref)
    if ref.kind in SHORT_NAMES:
        ref = Ref("Pod", ref.namespace, f"{SHORT_NAMES[ref.kind]}/{ref.name}")
    known = {fact.ref for fact in mesh.facts(with_defaults=False)}
    if ref not in known:
        similar = ["/".join(filter(None, other)) for other in known if other.kind == ref.kind]
        if not similar:
            raise UnknownNameError(f"{text} not found: there is no {ref.kind}")
        raise UnknownNameError(unknown_name("object", text, similar, "KIND/NS/NAME"))
    return ref
