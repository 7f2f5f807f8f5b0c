"""MkDocs hooks: generate reference pages, list directories in the navigation, check links that leave docs/.

A line `<!-- generate: NAME -->` in a page is replaced by the result of the function NAME in `GENERATORS`.
"""

from __future__ import annotations

import ast
import logging
import re
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from google.protobuf.descriptor_pb2 import FileDescriptorProto, FileDescriptorSet

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
log = logging.getLogger("mkdocs.hooks.xds")

_LINK = re.compile(r"\[((?:[^\[\]]|\[[^\]]*\])*)\]\((?!https?:|mailto:|#)([^)#\s]+)(#[^)\s]*)?\)")
_MARK = re.compile(r"^<!-- generate: (\w+) -->$", re.MULTILINE)


def on_config(config: Any) -> Any:
    """Replace directories in the navigation by their pages, in the order of their names."""
    for entry in config.nav:
        for title, path in entry.items():
            if path.endswith("/"):
                pages = sorted(
                    (DOCS / path).glob("*.md"), key=lambda page: (page.name != "index.md", page.name)
                )
                entry[title] = [str(page.relative_to(DOCS)) for page in pages]
    return config


def on_pre_build(config: Any) -> None:  # noqa: ARG001
    """Check the links of Markdown files outside of docs/."""
    for file in (*ROOT.glob("*.md"), *ROOT.glob("examples/**/*.md"), *ROOT.glob("protos/**/*.md")):
        for _, link, _ in _LINK.findall(file.read_text()):
            if not (file.parent / link).exists():
                log.warning("%s contains a link to %s, which does not exist", file.relative_to(ROOT), link)


def on_page_markdown(markdown: str, page: Any, config: Any, **_: Any) -> str:
    """Insert generated parts. Turn links to files outside docs/ into text or links to the repository."""
    file = DOCS / page.file.src_uri

    def outside(match: re.Match[str]) -> str:
        text, link, anchor = match.groups()
        target = (file.parent / link).resolve()
        if target.is_relative_to(DOCS):
            return match[0]
        if not target.exists():
            log.warning("%s contains a link to %s, which does not exist", page.file.src_uri, link)
        if not config.repo_url:
            return text
        return f"[{text}]({config.repo_url.rstrip('/')}/blob/HEAD/{target.relative_to(ROOT)}{anchor or ''})"

    return _MARK.sub(lambda match: GENERATORS[match[1]](), _LINK.sub(outside, markdown))


def commands() -> str:
    """Return the help of every command."""
    import typer

    from xds.cli import app

    root = typer.main.get_command(app)
    context: Any = root.make_context("xds", [], resilient_parsing=True)
    parts = []
    for name in root.list_commands(context):  # type: ignore[attr-defined]
        with warnings.catch_warnings(
            action="ignore"
        ):  # MkDocs would print those of packages that commands import
            command = root.get_command(context, name)  # type: ignore[attr-defined]
        options: dict[str, Any] = {"terminal_width": 100, "help_option_names": ["-h", "--help"]}
        help_text = command.get_help(type(context)(command, info_name=name, parent=context, **options))
        parts.append(f"## xds {name}\n\n```text\n{help_text.strip()}\n```\n")
    return "\n".join(parts)


def variables() -> str:
    """Return the environment variables of `xds proxy`."""
    from xds.mesh.sidecar.settings import variables

    rows = ["| Variable | Default | Description |", "|---|---|---|"]
    for variable in variables():
        default = (
            "required" if variable.default is None else f"`{variable.default}`" if variable.default else ""
        )
        rows.append(f"| `{variable.name}` | {default} | {_cell(variable.description)} |")
    return "\n".join(rows)


class Metric(NamedTuple):
    """A metric as the code defines it."""

    name: str
    kind: str
    labels: tuple[str, ...]
    description: str


_KINDS = {
    "Counter": "counter",
    "CounterMetricFamily": "counter",
    "counter": "counter",
    "Gauge": "gauge",
    "GaugeMetricFamily": "gauge",
    "gauge": "gauge",
    "Histogram": "histogram",
    "HistogramMetricFamily": "histogram",
}


def metrics() -> list[Metric]:
    """Find the definitions of all metrics in the code."""
    return [metric for file in sorted((ROOT / "xds").rglob("*.py")) for metric in _metrics_of(file)]


def _metrics_of(file: Path) -> Iterator[Metric]:
    text = file.read_text()
    if '"xds_' not in text:
        return
    tree = ast.parse(text)
    makers = {
        node.name: node.body[0].value  # a function that only returns a metric
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef) and isinstance(node.body[0], ast.Return)
    }
    for node in ast.walk(tree):
        match node:
            case ast.Call(
                func=ast.Name(id=made_by), args=[ast.Constant(str(name)), ast.Constant(str(description)), *_]
            ) if name.startswith("xds_"):
                call = made if isinstance(made := makers.get(made_by), ast.Call) else node
                kind = _KINDS[call.func.id]  # type: ignore[attr-defined]
                labels = next((word.value for word in call.keywords if word.arg == "labels"), None)
                if labels is None and kind != "gauge" and len(call.args) > 2:
                    labels = call.args[2]
                names = ast.literal_eval(labels) if isinstance(labels, ast.Tuple) else ()
                if call is node and made_by in {"counter", "gauge"}:  # xds.mesh.controlplane.metrics.families
                    names = tuple(map(ast.literal_eval, node.args[3:]))
                suffix = "_total" if kind == "counter" else ""
                yield Metric(name + suffix, kind, tuple(sorted(names)), description)


def metric_table() -> str:
    """Return a table of all metrics."""
    rows = ["| Metric | Type | Labels | Description |", "|---|---|---|---|"]
    for metric in sorted(metrics()):
        labels = ", ".join(f"`{label}`" for label in metric.labels)
        rows.append(f"| `{metric.name}` | {metric.kind} | {labels} | {_cell(metric.description)} |")
    return "\n".join(rows)


def services() -> str:
    """Return our gRPC services and messages, with the comments of their definitions."""
    (file,) = (ROOT / "xds").rglob("descriptors.binpb")
    files = FileDescriptorSet.FromString(file.read_bytes()).file
    return "\n\n".join(
        part for file in sorted(files, key=lambda file: file.name) for part in _services_of(file)
    )


def _services_of(file: FileDescriptorProto) -> Iterator[str]:
    comments = {
        tuple(location.path): location.leading_comments.strip() for location in file.source_code_info.location
    }
    for number, service in enumerate(file.service):
        yield f"## {file.package}.{service.name}"
        yield _prose(comments.get((6, number), ""))
        rows = ["| Method | Request | Response | Description |", "|---|---|---|---|"]
        for index, method in enumerate(service.method):
            response = ("stream " if method.server_streaming else "") + _short(method.output_type)
            about = _cell(comments.get((6, number, 2, index), ""))
            rows.append(f"| `{method.name}` | `{_short(method.input_type)}` | `{response}` | {about} |")
        yield "\n".join(rows)
    for number, message in enumerate(file.message_type):
        yield from _message(message, (4, number), comments)


def _message(message: Any, path: tuple[int, ...], comments: dict[tuple[int, ...], str]) -> Iterator[str]:
    yield f"### {message.name}"
    yield _prose(comments.get(path, ""))
    if message.field:
        rows = ["| Field | Type | Description |", "|---|---|---|"]
        for index, field in enumerate(message.field):
            kind = _short(field.type_name) or field.Type.Name(field.type).removeprefix("TYPE_").lower()
            repeated = "repeated " if field.label == field.LABEL_REPEATED else ""
            about = _cell(comments.get((*path, 2, index), ""))
            rows.append(f"| `{field.name}` | `{repeated}{kind}` | {about} |")
        yield "\n".join(rows)
    for index, nested in enumerate(message.nested_type):
        yield from _message(nested, (*path, 3, index), comments)
    for index, enum in enumerate(message.enum_type):
        yield f"Values of `{enum.name}`:"
        yield "\n".join(
            f"- `{value.name}`: {_cell(comments.get((*path, 4, index, 2, each), ''))}".rstrip(": ")
            for each, value in enumerate(enum.value)
            if value.number
        )


def _short(type_name: str) -> str:
    return type_name.rpartition(".")[2]


def _prose(comment: str) -> str:
    """Return a comment as Markdown: lines that are indented further are code."""
    return re.sub(r"(?m)^ ", "", re.sub(r"(?m)^   +", "      ", comment)).strip()


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")


def chart_values() -> str:
    """Return the values of the Helm chart, with their comments."""
    return f"```yaml\n{(ROOT / 'charts/xds/values.yaml').read_text().strip()}\n```\n"


def rule_sources() -> str:
    """Return a table of the checks of `xds conformance`, each with its level and its source."""
    from xds.conformance import TITLES, Citation, Variant
    from xds.conformance.rules import CHECKS

    rows = ["| Rule | Variants | A check requires | Level | Source |", "|---|---|---|---|---|"]
    for check in sorted(CHECKS, key=lambda check: [*TITLES].index(check.rule)):
        variants = "all" if len(check.variants) == len(Variant) else ", ".join(check.variants)
        text = f"None. {check.source}"
        if isinstance(check.source, Citation):
            citation = check.source
            text = f"[{citation.document.title}]({citation.url}), {citation.section}: “{citation.sentence}”"
        text += f" *Breaks*: {check.breaks}." if check.breaks else ""
        rows.append(
            f"| {check.rule} | {variants} | {_cell(check.requires)} | {check.level} | {_cell(text)} |"
        )
    return "\n".join(rows)


GENERATORS: dict[str, Callable[[], str]] = {
    "chart_values": chart_values,
    "commands": commands,
    "metrics": metric_table,
    "rule_sources": rule_sources,
    "services": services,
    "variables": variables,
}
