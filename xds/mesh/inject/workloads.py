"""Pods that the workloads in manifests would create, for predictions from a Git repository. Pure.

A repository contains Deployments and Jobs, but not their pods. Each workload becomes one pod, with a sidecar
if the webhook would inject one. Its name is KIND/NAME, as for kubectl, and its address is not an IP address,
so that it cannot be mistaken for a real pod.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import replace
from itertools import chain
from typing import NamedTuple

from xds.mesh.inject import choice, containers
from xds.mesh.inject.kinds import Template
from xds.mesh.inject.patch import inject
from xds.mesh.inject.settings import InjectionSettings
from xds.mesh.model.injection import INJECT_LABEL, NAMESPACE_LABEL, unused_label
from xds.mesh.model.objects import TLS_MODE_LABEL, MeshConfig, Meta, Problem, Ref
from xds.mesh.parse import Parsed, core, names
from xds.mesh.parse.reading import Field, Flaw, Locate, Log, shown

SHORT_NAMES = {
    "CronJob": "cronjob",
    "DaemonSet": "ds",
    "Deployment": "deploy",
    "Job": "job",
    "ReplicaSet": "rs",
    "ReplicationController": "rc",
    "StatefulSet": "sts",
}
"""kubectl's short names of kinds."""
_HASH_LABEL = "pod-template-hash"
"""Label with the suffix that a Deployment adds to its name to name a ReplicaSet."""


_HELM_HOOK = "helm.sh/hook"
_HELM_TESTS = frozenset({"test", "test-success", "test-failure"})


def short_name(kind: str) -> str:
    """Return kubectl's short name of a kind, or the kind in lower case."""
    return SHORT_NAMES.get(kind, kind.lower())


class FoundTemplate(NamedTuple):
    """A pod template, or a Pod, in a document."""

    template: Template
    """The template."""
    locate: Locate
    """Function that returns the place of a path in the document."""
    flaws: tuple[Flaw, ...] = ()
    """Problems of the object's text."""
    is_in_default: bool = False
    """Whether the object does not specify its namespace."""

    @property
    def ref(self) -> Ref:
        """Reference to the object that contains the template."""
        template = self.template
        return Ref(template.kind, template.namespace, template.name)

    @property
    def is_helm_test(self) -> bool:
        """Whether the object exists only while `helm test` runs, and does not exist now."""
        manifest = Field(self.template.manifest, (), Log(self.locate))
        hooks = manifest["metadata"]["annotations"][_HELM_HOOK].value
        names = {name.strip() for name in hooks.split(",")} if isinstance(hooks, str) else set()
        return bool(names) and names <= _HELM_TESTS and not manifest["status"].value


def expected_pods(
    found: Collection[FoundTemplate],
    namespaces: Mapping[str, Mapping[str, str]],
    config: MeshConfig,
    targets: Collection[Ref] = (),
) -> Iterator[Parsed]:
    """Yield a pod for each workload that would run and has no pod in the manifests, or its problems.

    A Pod without status is such a workload, too: it is not created yet.

    Args:
        found: all Pods and templates in the manifests.
        namespaces: labels of the namespaces in the manifests.
        config: settings of the mesh.
        targets: workloads that other objects run, whatever their own fields say.
    """
    workloads: dict[Ref, FoundTemplate] = {}
    represented = _owners_of_pods(found)
    for item in found:
        if item.template.kind == "Pod":
            continue
        if first := workloads.get(item.ref):
            yield _duplicate(item, first)
            continue
        workloads[item.ref] = item
    new_pods = [item for item in found if item.template.kind == "Pod" and _is_new_pod(item.template.manifest)]
    running: list[FoundTemplate] = []
    for ref, item in workloads.items():
        if ref in represented or _owner(item) in workloads:
            continue
        if ref not in targets and (stopped := _stopped_by(item)):
            yield _left_out(item, stopped)
        else:
            running.append(item)
    for item in (*new_pods, *running):
        yield _expected_pod(item, namespaces.get(item.ref.namespace, {}), config)


def stopped_pods(found: Iterable[FoundTemplate], targets: Collection[Ref] = ()) -> Iterator[Ref]:
    """Yield the pods that `expected_pods` omits because their workloads are scaled to 0 or suspended."""
    for item in found:
        if item.template.kind != "Pod" and item.ref not in targets and _stopped_by(item):
            yield _expected_ref(item.ref)


def _left_out(item: FoundTemplate, field: str) -> Parsed:
    """Return a notice that a workload has no pods because of a field of its spec."""
    log = Log(item.locate, str(item.ref))
    value = "0" if field == "replicas" else "true"
    log.add(
        (*item.template.root, "spec", field),
        f"is {value}, so no pod of the workload is considered",
        notice=True,
    )
    return Parsed(problems=tuple(log.problems))


def _duplicate(item: FoundTemplate, first: FoundTemplate) -> Parsed:
    log = Log(item.locate, str(item.ref))
    origin = first.locate(first.template.root)
    what = f"is also defined at {origin}; that definition is used"
    log.add(item.template.root, what, "delete or rename one of them", warning=True)
    return Parsed(problems=tuple(log.problems))


def _stopped_by(item: FoundTemplate) -> str:
    """Return the field of its spec because of which a workload has no pods; empty if it has pods."""
    spec = item.template.manifest.get("spec")
    if not isinstance(spec, Mapping):
        return ""
    return "replicas" if spec.get("replicas") == 0 else "suspend" if spec.get("suspend") is True else ""


def _is_new_pod(manifest: Mapping[str, object]) -> bool:
    """Whether a Pod is not created yet: it has containers and no status, and nothing has injected it."""
    pod = Field(manifest, (), Log(lambda _: ""))
    labels = pod["metadata"]["labels"].value
    is_injected = isinstance(labels, Mapping) and TLS_MODE_LABEL in labels
    return bool(pod["spec"]["containers"].value) and not manifest.get("status") and not is_injected


def _owner(item: FoundTemplate) -> Ref | None:
    """Return the workload that created an object (its controller), or None."""
    meta = Field(item.template.manifest, (), Log(item.locate))["metadata"]
    references = meta["ownerReferences"].value
    for reference in references if isinstance(references, list) else ():
        if isinstance(reference, Mapping) and reference.get("controller") is True:
            return Ref(str(reference.get("kind")), item.ref.namespace, str(reference.get("name")))
    return None


def _owners_of_pods(found: Iterable[FoundTemplate]) -> set[Ref]:
    """Return the workloads whose pods are in the manifests, directly or through a ReplicaSet or Job."""
    owners = {item.ref: owner for item in found if (owner := _owner(item))}
    represented: set[Ref] = set()
    for item in found:
        owner = owners.get(item.ref) if item.template.kind == "Pod" else None
        while owner and owner not in represented:
            represented.add(owner)
            represented.update(_deployment(item, owner))
            owner = owners.get(owner)
    return represented


def _deployment(pod: FoundTemplate, owner: Ref) -> Iterator[Ref]:
    """Yield the Deployment of a pod's ReplicaSet, which need not be in the manifests."""
    meta = Field(pod.template.value, (), Log(pod.locate))["metadata"]
    suffix = f"-{meta['labels'][_HASH_LABEL].value}"
    if owner.kind == "ReplicaSet" and owner.name.endswith(suffix):
        yield Ref("Deployment", owner.namespace, owner.name.removesuffix(suffix))


def _expected_ref(workload: Ref) -> Ref:
    """Return the name of the pod that stands for the pods of a workload, or of a Pod itself."""
    if workload.kind == "Pod":
        return workload
    return Ref("Pod", workload.namespace, f"{short_name(workload.kind)}/{workload.name}")


def _expected_pod(item: FoundTemplate, namespace_labels: Mapping[str, str], config: MeshConfig) -> Parsed:
    """Return the pod of a workload, or the problems because of which it has none."""
    template, ref = item.template, item.ref
    log = Log(item.locate, str(ref))
    _check_object(item, log)
    field = Field(template.value, template.path, log)
    field["spec"].required()
    meta = Meta(
        ref=_expected_ref(ref),
        labels=names.labels(field["metadata"]["labels"]),
        annotations=_annotations(field),
        origin=item.locate(template.root),
    )
    pod = core.pod(field, meta)
    if log.refused:
        return Parsed(ref=meta.ref, origin=meta.origin, problems=tuple(log.problems), refused=True)
    labels = meta.labels
    problems: list[Problem] = []
    if not _is_selected(field, ref.namespace, namespace_labels, config):
        _report_request(item, field, namespace_labels.get(NAMESPACE_LABEL), config)
    else:
        injection = inject(
            template.value,
            InjectionSettings().with_mesh_config(config),
            namespace=ref.namespace,
            locate=item.locate,
            path=template.path,
            subject=str(ref),
        )
        problems += injection.problems
        if injection.refused:
            return Parsed(
                ref=meta.ref,
                origin=meta.origin,
                problems=_without_duplicates(log.problems, problems),
                refused=True,
            )
        if injection.skip:
            _report_skip(item, log, injection.skip)
        else:
            labels = {TLS_MODE_LABEL: "istio", **labels}
            what, remedy = containers.pod_security_refusal(injection.pod, namespace_labels)
            if what:
                log.add(template.root, f"{what}; results assume that they run", remedy, warning=True)
        # The injected sidecar sends the probes, and serves the metrics.
        injected = Field(injection.pod, template.path, log)
        pod = replace(pod, probe_ports=core.probe_ports(injected["spec"]))
        meta = replace(meta, annotations=_annotations(injected))
    pod = replace(
        pod,
        meta=replace(meta, labels=labels),
        address=f"{meta.ref.name}.{ref.namespace}",
        is_template=True,
    )
    return Parsed(
        ref=pod.ref,
        fact=pod,
        origin=meta.origin,
        problems=_without_duplicates(log.problems, problems),
    )


def _without_duplicates(*problems: Iterable[Problem]) -> tuple[Problem, ...]:
    return tuple(dict.fromkeys(chain(*problems)))


def _report_skip(item: FoundTemplate, log: Log, skip: choice.Skip) -> None:
    """Report why a workload gets no sidecar, unless it opts out or already has one."""
    if not skip.is_expected:
        log.add(item.template.root, f"gets no sidecar: {skip.reason}", skip.remedy, notice=True)


def _report_request(item: FoundTemplate, pod: Field, namespace_label: str | None, config: MeshConfig) -> None:
    """Report a workload that looks as if it had or got a sidecar, but for which the webhook is not called."""
    if found := choice.istio_container(pod):
        _report_skip(item, pod.log, found)
        return
    labels = pod["metadata"]["labels"]
    request = labels[INJECT_LABEL] or pod["metadata"]["annotations"][INJECT_LABEL]
    inject_label = f'set the label {INJECT_LABEL}: "true"'
    if item.ref.namespace == config.root_namespace:
        return
    if choice.is_true(request.text()):
        if namespace_label is None:
            what = f"adds no sidecar, unless the Namespace is labelled {NAMESPACE_LABEL}=enabled"
            request.notice(what, inject_label)
        else:
            what = f"adds no sidecar, because the Namespace is labelled {NAMESPACE_LABEL}={namespace_label}"
            request.notice(what, f"label the Namespace {NAMESPACE_LABEL}=enabled")
    elif label := unused_label(names.labels(labels)):
        labels[label.partition("=")[0]].notice("adds no sidecar, so traffic is plaintext", inject_label)


def _annotations(pod: Field) -> dict[str, str]:
    return {key: entry.text() for key, entry in pod["metadata"]["annotations"].entries()}


def _check_object(item: FoundTemplate, log: Log) -> None:
    """Report problems of the object that contains a template: of its text, name and namespace."""
    ref, meta_path = item.ref, (*item.template.root, "metadata")
    for path, what in item.flaws:
        log.add(path, what)
    if error := names.label(ref.namespace):
        log.add((*meta_path, "namespace"), f"{shown(ref.namespace)} {error}")
    # A generateName may end with a hyphen.
    if error := names.subdomain(ref.name.removesuffix("-")):
        log.add((*meta_path, "name"), f"{shown(ref.name)} {error}" if ref.name else "is required")


def _is_selected(pod: Field, namespace: str, namespace_labels: Mapping[str, str], config: MeshConfig) -> bool:
    """Return whether the webhook is called for a pod. It never is in the control plane's namespace."""
    namespace_label = namespace_labels.get(NAMESPACE_LABEL)
    return namespace != config.root_namespace and choice.webhook_selects(pod, namespace_label)
