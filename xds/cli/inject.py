"""`xds inject`."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import typer

from xds.cli.manifests import load_settings
from xds.cli.options import (
    Assignments,
    MeshConfigFile,
    fail,
    parse_address,
    parse_pull_policy,
    print_problems,
)
from xds.mesh.inject import (
    DEFAULT_ADDRESS,
    DEFAULT_IMAGE,
    KNATIVE_SERVICE,
    InjectionSettings,
    Template,
    find_namespaces,
    find_templates,
    pod_security_refusal,
)
from xds.mesh.inject import inject as add_sidecar
from xds.mesh.model.objects import Problem
from xds.mesh.parse import Path as FieldPath
from xds.mesh.parse import dotted
from xds.mesh.sources import documents, rewriting
from xds.mesh.sources.documents import Document

EXAMPLES = """
xds inject -f deployment.yaml | kubectl apply -f -
kubectl get deployment httpbin -o yaml | xds inject -f - | kubectl apply -f -
"""

MAX_FILE_BYTES = 64 << 20
"""Maximum size of a file. A file can contain many objects; etcd limits each to a fortieth of this size."""


def inject(
    *,
    filenames: Annotated[
        list[str],
        typer.Option(
            "--filename", "-f", metavar="FILE", help="YAML or JSON file, or - for stdin. Can be repeated."
        ),
    ],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE", help="File to write to. Default: stdout."),
    ] = None,
    image: Annotated[
        str,
        typer.Option("--image", metavar="IMAGE", help="Image of the sidecar, with xds as its entry point."),
    ] = DEFAULT_IMAGE,
    image_pull_policy: Annotated[
        str,
        typer.Option(
            "--image-pull-policy",
            metavar="POLICY",
            help="Image pull policy of the sidecar: Always, IfNotPresent or Never.",
        ),
    ] = "IfNotPresent",
    xds_address: Annotated[
        str,
        typer.Option("--xds-address", metavar="HOST:PORT", help="xDS address of the control plane."),
    ] = DEFAULT_ADDRESS,
    sds: Annotated[
        str,
        typer.Option(
            "--sds",
            metavar="unix:///PATH",
            help="Socket, on the node, of an SDS server that provides certificates and roots instead of the "
            "control plane, such as the SPIRE agent.",
        ),
    ] = "",
    native_sidecar: Annotated[
        bool,
        typer.Option(
            help="Add the sidecar as a native sidecar (Kubernetes 1.29) or as an ordinary container. With a "
            "native sidecar, Jobs complete and init containers can use the mesh."
        ),
    ] = True,
    mesh_config: MeshConfigFile = None,
    assignments: Assignments = None,
) -> None:
    """Add sidecars to the pods in manifests, for `kubectl apply -f -`.

    Changes Pods and the pod templates of Deployments, StatefulSets, DaemonSets, ReplicaSets,
    ReplicationControllers, Jobs, CronJobs, and of custom resources with the same field, such as Rollouts.
    Skips those with the label or annotation `sidecar.istio.io/inject: "false"`. Leaves other objects and
    unrelated text unchanged.
    """
    parse_address("--xds-address", xds_address)
    parse_pull_policy("--image-pull-policy", image_pull_policy)
    if sds and not (sds.startswith("unix:///") and sds.removeprefix("unix://").strip("/").count("/")):
        raise typer.BadParameter(f"{sds!r} is not unix:///DIRECTORY/SOCKET", param_hint="'--sds'")
    _, config = load_settings(mesh_config, assignments)
    settings = InjectionSettings(
        image=image, pull_policy=image_pull_policy, xds_address=xds_address, sds=sds, native=native_sidecar
    ).with_mesh_config(config)
    result, found = "", _Found()
    for name in filenames:
        text = _inject_text(_read(name), "stdin" if name == "-" else name, settings, found)
        if result and not text.startswith("---"):
            result = result if result.endswith("\n") else result + "\n"
            result += "---\n"
        result += text
    problems = [*found.problems, *found.refused_pods()]
    print_problems(problems)
    if any(not problem.notice for problem in problems):
        raise typer.Exit(1)
    _write(output, result)


def _read(name: str) -> str:
    try:
        stream = sys.stdin.buffer if name == "-" else Path(name).open("rb")  # noqa: SIM115 - closed below
        with stream:
            data = stream.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        fail(f"{name}: {error.strerror}")
    if len(data) > MAX_FILE_BYTES:
        fail(f"{name}: larger than {MAX_FILE_BYTES >> 20} MiB; split the file")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        fail(f"{name}: is not UTF-8 text")


def _write(output: Path | None, text: str) -> None:
    try:
        if output:
            output.write_text(text, "utf-8")
        else:
            sys.stdout.write(text)
            sys.stdout.flush()
    except BrokenPipeError:
        raise typer.Exit(1) from None
    except OSError as error:
        fail(f"{output or 'stdout'}: {error.strerror}")


@dataclass(slots=True)
class _Found:
    """What was found in the files."""

    problems: list[Problem] = field(default_factory=list)
    """Problems."""
    namespaces: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    """Labels of Namespaces by name."""
    injected: list[tuple[Template, str, Mapping[str, Any]]] = field(default_factory=list)
    """Pod templates that got a sidecar, with their place and the result."""

    def refused_pods(self) -> Iterator[Problem]:
        """Yield a notice for each injected pod that its namespace does not admit."""
        for template, where, pod in self.injected:
            what, remedy = pod_security_refusal(pod, self.namespaces.get(template.namespace, {}))
            if what:
                yield Problem(where=where, what=f"{template.subject}: {what}", hint=remedy, notice=True)


def _inject_text(text: str, file: str, settings: InjectionSettings, found: _Found) -> str:
    """Return a file's text with sidecars added."""
    if text.lstrip().startswith("{"):
        text = documents.join_surrogates(text)
    result = ""
    for line, chunk in documents.split_documents(text):
        changes: list[tuple[Document, object]] = []
        for document in documents.parse_chunk(chunk, file, line):
            if isinstance(document, Problem):
                found.problems.append(document)
            else:
                changes.append((document, _inject_document(document, settings, found)))
        is_changed = any(document.value is not value for document, value in changes)
        result += rewriting.rewrite(chunk, changes) if is_changed else chunk
    return result


def _inject_document(document: Document, settings: InjectionSettings, found: _Found) -> object:
    """Return a document's value with sidecars added. An unchanged value is not copied."""
    value = document.value
    found.namespaces.update(find_namespaces(value))
    pod_templates = list(find_templates(value))
    for path, flaw in document.flaws if pod_templates else ():
        found.problems.append(Problem(where=document.locate(path), what=f"{dotted(path)} {flaw}"))
    for template in pod_templates:
        where = document.locate(template.path)
        if template.kind == KNATIVE_SERVICE:
            what = f"{template.subject} stays unchanged: Knative allows no init containers in it"
            hint = "let the webhook inject its pods"
            found.problems.append(Problem(where=where, what=what, hint=hint, notice=True))
            continue
        injection = add_sidecar(
            template.value,
            settings,
            namespace=template.namespace,
            locate=document.locate,
            path=template.path,
            subject=template.subject,
        )
        found.problems += injection.problems
        if skip := injection.skip:
            what = f"{template.subject} gets no sidecar: {skip.reason}"
            found.problems.append(Problem(where=where, what=what, hint=skip.remedy, notice=True))
        elif not injection.refused:
            found.injected.append((template, where, injection.pod))
        value = _replace(value, template.path, injection.pod)
    return value


def _replace(value: Any, path: FieldPath, new: Any) -> Any:
    """Return a copy of a value with `new` at the path. Unaffected parts are not copied."""
    if not path:
        return new
    step, *rest = path
    inner = _replace(value[step], tuple(rest), new)
    if inner is value[step]:
        return value
    if isinstance(value, list):
        return [inner if index == step else item for index, item in enumerate(value)]
    return {**value, step: inner}
