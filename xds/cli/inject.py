"""`xds inject`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from xds.cli import options
from xds.mesh.inject import DEFAULT_ADDRESS, DEFAULT_IMAGE, InjectionSettings, find_templates
from xds.mesh.inject import inject as with_sidecar
from xds.mesh.model.objects import Problem
from xds.mesh.parse import Path as Steps
from xds.mesh.parse import dotted

if TYPE_CHECKING:
    from xds.mesh.sources.documents import Document

MOST_BYTES = 64 << 20
"""Of a file; etcd takes objects of a fortieth of that, but many may be in one file."""


def inject(
    *,
    filenames: Annotated[
        list[str],
        typer.Option(
            "--filename", "-f", metavar="FILE", help="YAML or JSON; - reads stdin. Can be repeated."
        ),
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", metavar="FILE", help="Write here instead of to stdout.", show_default=False
        ),
    ] = None,
    image: Annotated[
        str, typer.Option("--image", metavar="IMAGE", help="Of the sidecar; its entry point is xds.")
    ] = DEFAULT_IMAGE,
    image_pull_policy: Annotated[
        str,
        typer.Option(
            "--image-pull-policy",
            metavar="POLICY",
            help="Always, IfNotPresent or Never; without it, Kubernetes goes by the image's tag.",
            show_default=False,
        ),
    ] = "",
    xds_address: Annotated[
        str,
        typer.Option("--xds-address", metavar="HOST:PORT", help="Where the sidecar finds the control plane."),
    ] = DEFAULT_ADDRESS,
    sds: Annotated[
        str,
        typer.Option(
            "--sds",
            metavar="unix:///PATH",
            help="Take certificates from this socket of the node (SPIRE's agent) instead of from the control plane.",
            show_default=False,
        ),
    ] = "",
    native_sidecar: Annotated[
        bool,
        typer.Option(
            help="Make the sidecar a restartable init container (Kubernetes 1.29), so that Jobs end and init "
            "containers have the mesh; or one of the pod's ordinary containers."
        ),
    ] = True,
    mesh_config: options.MeshConfigFile = None,
    assignments: options.Assignments = None,
) -> None:
    """Add the sidecar to the pods of manifests, for `kubectl apply -f -`.

    Pods and templates of Deployments, StatefulSets, DaemonSets, ReplicaSets, ReplicationControllers, Jobs and CronJobs
    get one, unless they say `sidecar.istio.io/inject: "false"`; other objects pass through. Text that does not have to
    change does not.
    """
    options.address("--xds-address", xds_address)
    if image_pull_policy not in ("", "Always", "IfNotPresent", "Never"):
        raise typer.BadParameter(
            f"{image_pull_policy!r} is none of Always, IfNotPresent, Never",
            param_hint="'--image-pull-policy'",
        )
    if sds and not (sds.startswith("unix:///") and sds.removeprefix("unix://").strip("/").count("/")):
        raise typer.BadParameter(f"{sds!r} is not unix:///DIRECTORY/SOCKET", param_hint="'--sds'")
    _, config = options.settings(mesh_config, assignments)
    settings = InjectionSettings(
        image=image, pull_policy=image_pull_policy, xds_address=xds_address, sds=sds, native=native_sidecar
    ).with_mesh_config(config)
    result, problems = "", list[Problem]()
    for name in filenames:
        text, found = _injected(_read(name), "stdin" if name == "-" else name, settings)
        if result and not text.startswith("---"):
            result = result if result.endswith("\n") else result + "\n"
            result += "---\n"
        result += text
        problems += found
    options.show(problems)
    if any(not problem.notice for problem in problems):
        raise typer.Exit(1)
    _write(output, result)


def _read(name: str) -> str:
    try:
        stream = sys.stdin.buffer if name == "-" else Path(name).open("rb")  # noqa: SIM115 - closed below
        with stream:
            data = stream.read(MOST_BYTES + 1)
    except OSError as error:
        options.fail(f"{name}: {error.strerror}")
    if len(data) > MOST_BYTES:
        options.fail(f"{name}: has more than {MOST_BYTES >> 20} MiB; split it")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        options.fail(f"{name}: is not UTF-8 text")


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
        options.fail(f"{output or 'stdout'}: {error.strerror}")


def _injected(text: str, file: str, settings: InjectionSettings) -> tuple[str, list[Problem]]:
    """Return a file's text with sidecars, and what is to be said about it."""
    from xds.mesh.sources import documents, rewriting  # noqa: PLC0415

    if text.lstrip().startswith("{"):
        text = documents.joined(text)
    result, problems = "", list[Problem]()
    for line, chunk in documents.chunks(text):
        changes: list[tuple[Document, object]] = []
        for document in documents.parsed(chunk, file, line):
            if isinstance(document, Problem):
                problems.append(document)
            else:
                value, found = _document(document, settings)
                changes.append((document, value))
                problems += found
        changed = any(document.value is not value for document, value in changes)
        result += rewriting.rewritten(chunk, changes) if changed else chunk
    return result, problems


def _document(document: Document, settings: InjectionSettings) -> tuple[object, list[Problem]]:
    """Return a document's value with sidecars: the same object if there are none to add."""
    value, problems = document.value, list[Problem]()
    found = list(find_templates(value))
    for path, what in document.flaws if found else ():
        problems.append(Problem(where=document.locate(path), what=f"{dotted(path)} {what}"))
    for template in found:
        done = with_sidecar(
            template.value,
            settings,
            namespace=template.namespace,
            locate=document.locate,
            path=template.path,
            subject=template.subject,
        )
        problems += done.problems
        if done.skip_reason:
            what = f"{template.subject} is left as it is: {done.skip_reason}"
            problems.append(Problem(where=document.locate(template.path), what=what, notice=True))
        value = _replaced(value, template.path, done.pod)
    return value, problems


def _replaced(value: Any, path: Steps, new: Any) -> Any:
    """Return a value with another at a path; what is beside it is shared."""
    if not path:
        return new
    step, *rest = path
    inner = _replaced(value[step], tuple(rest), new)
    if inner is value[step]:
        return value
    if isinstance(value, list):
        return [inner if index == step else item for index, item in enumerate(value)]
    return {**value, step: inner}
