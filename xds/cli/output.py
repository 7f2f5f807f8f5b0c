"""Output formats, and printing of JSON and YAML."""

from __future__ import annotations

import json
from typing import Any, Literal

import typer
import yaml

Format = Literal["table", "json", "yaml"]
"""An output format."""

DocumentFormat = Literal["json", "yaml"]
"""An output format of a document."""

ManifestFormat = Literal["table", "yaml"]
"""An output format of a command that makes objects: what it does, or only the objects."""

WideFormat = Literal["table", "wide", "json", "yaml"]
"""An output format, including a table with more columns."""
TABLES = ("table", "wide")
"""The formats that are rows under column titles."""


def print_document(value: Any, output: str, *, is_stream: bool = False) -> None:
    """Print a value as JSON or YAML.

    Args:
        value: a protobuf message, or a list or dict of plain values.
        output: `json` or `yaml`.
        is_stream: whether more documents follow: print JSON on one line, and separate YAML documents.
    """
    if not isinstance(value, list | dict):
        value = to_value(value)
    if output == "json":
        typer.echo(json.dumps(value, indent=None if is_stream else 2))
    else:
        separator = "---\n" if is_stream else ""
        typer.echo(f"{separator}{to_yaml(value)}", nl=False)


def to_value(message: Any) -> dict[str, Any]:
    """Return a protobuf message as plain values, in the JSON format of protobuf."""
    from google.protobuf.json_format import MessageToDict  # noqa: PLC0415 - few commands need it

    return MessageToDict(message, always_print_fields_with_no_presence=True)


def to_yaml(value: Any) -> str:
    """Return plain values as YAML."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, width=120)


class _Dumper(yaml.CSafeDumper):
    """Writes values that occur repeatedly in full, instead of references to the first occurrence."""

    def ignore_aliases(self, data: object) -> bool:  # noqa: ARG002
        return True
