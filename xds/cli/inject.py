"""`xds inject`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from xds.cli.manifests import load_settings
from xds.cli.options import Assignments, MeshConfigFile, fail, parse_address, print_problems
from xds.mesh.inject import DEFAULT_ADDRESS, DEFAULT_IMAGE, InjectionSettings, find_templates
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
"""Maximum size of a file. etcd limits an object to a fortieth of that, but a file can hold many objects."""


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
        typer.Option(
            "--output", "-o", metavar="FILE", help="File to write instead of stdout.", show_default=False
        ),
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
            help="Always, IfNotPresent or Never. Default: Kubernetes chooses by the image's tag.",
            show_default=False,
        ),
    ] = "",
    xds_address: Annotated[
        str,
        typer.Option("--xds-address", metavar="HOST:PORT", help="xDS address of the control plane."),
    ] = DEFAULT_ADDRESS,
    sds: Annotated[
        str,
        typer.Option(
            "--sds",
            metavar="unix:///PATH",
            help="Socket on the node that serves certificates (SPIRE's agent), instead of the control plane.",
            show_default=False,
        ),
    ] = "",
    native_sidecar: Annotated[
        bool,
        typer.Option(
            help="Add the sidecar as a restartable init container (Kubernetes 1.29), so that Jobs "
            "complete and init "
            "containers can use the mesh; otherwise as an ordinary container."
        ),
    ] = True,
    mesh_config: MeshConfigFile = None,
    assignments: Assignments = None,
) -> None:
    """Add sidecars to the pods in manifests, for `kubectl apply -f -`.

    Changes Pods and the templates of Deployments, StatefulSets, DaemonSets, ReplicaSets,
    ReplicationControllers, Jobs and CronJobs, except those with the label or annotation
    `sidecar.istio.io/inject: "false"`. Other objects and unrelated text are not changed.
    """
    parse_address("--xds-address", xds_address)
    if image_pull_policy not in ("", "Always", "IfNotPresent", "Never"):
        raise typer.BadParameter(
            f"{image_pull_policy!r} is none of Always, IfNotPresent, Never",
            param_hint="'--image-pull-policy'",
        )
    if sds and not (sds.startswith("unix:///") and sds.removeprefix("unix://").strip("/").count("/")):
        raise typer.BadParameter(f"{sds!r} is not unix:///DIRECTORY/SOCKET", param_hint="'--sds'")
    _, config = load_settings(mesh_config, assignments)
    settings = InjectionSettings(
        image=image, pull_policy=image_pull_policy, xds_address=xds_address, sds=sds, native=native_sidecar
    ).with_mesh_config(config)
    result, problems = "", list[Problem]()
    for name in filenames:
        text, found = _inject_text(_read(name), "stdin" if name == "-" else name, settings)
        if result and not text.startswith("---"):
            result = result if result.endswith("\n") else result + "\n"
            result += "---\n"
        result += text
        problems += found
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


def _inject_text(text: str, file: str, settings: InjectionSettings) -> tuple[str, list[Problem]]:
    """Return a file's text with sidecars added, and the problems found."""
    if text.lstrip().startswith("{"):
        text = documents.join_surrogates(text)
    result, problems = "", list[Problem]()
    for line, chunk in documents.split_documents(text):
        changes: list[tuple[Document, object]] = []
        for document in documents.parse_chunk(chunk, file, line):
            if isinstance(document, Problem):
                problems.append(document)
            else:
                value, found = _inject_document(document, settings)
                changes.append((document, value))
                problems += found
        changed = any(document.value is not value for document, value in changes)
        result += rewriting.rewrite(chunk, changes) if changed else chunk
    return result, problems


def _inject_document(document: Document, settings: InjectionSettings) -> tuple[object, list[Problem]]:
    """Return a document's value with sidecars added, the same object if unchanged, and the problems."""
    value, problems = document.value, list[Problem]()
    pod_templates = list(find_templates(value))
    for path, flaw in document.flaws if pod_templates else ():
        problems.append(Problem(where=document.locate(path), what=f"{dotted(path)} {flaw}"))
    for template in pod_templates:
        injection = add_sidecar(
            template.value,
            settings,
            namespace=template.namespace,
            locate=document.locate,
            path=template.path,
            subject=template.subject,
        )
        problems += injection.problems
        if injection.skip_reason:
            what = f"{template.subject} is left as it is: {injection.skip_reason}"
            problems.append(Problem(where=document.locate(template.path), what=what, notice=True))
        value = _replace(value, template.path, injection.pod)
    return value, problems


def _replace(value: Any, path: FieldPath, new: Any) -> Any:
    """Return a value with another one at a path; the siblings are shared."""
    if not path:
        return new
    step, *rest = path
    inner = _replace(value[step], tuple(rest), new)
    if inner is value[step]:
        return value
    if isinstance(value, list):
        return [inner if index == step else item for index, item in enumerate(value)]
    return {**value, step: inner}
