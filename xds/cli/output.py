"""Output formats of commands that query a running control plane."""

from __future__ import annotations

import json
from enum import StrEnum
from typing import Any

import typer
import yaml
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message


class Format(StrEnum):
    """An output format."""

    TABLE = "table"
    JSON = "json"
    YAML = "yaml"


class DocumentFormat(StrEnum):
    """An output format of a document."""

    JSON = "json"
    YAML = "yaml"


class WideFormat(StrEnum):
    """An output format, including a table with more columns."""

    TABLE = "table"
    WIDE = "wide"
    JSON = "json"
    YAML = "yaml"

    @property
    def is_table(self) -> bool:
        """Whether the output is for people."""
        return self in (WideFormat.TABLE, WideFormat.WIDE)


def print_document(value: Any, output: str, *, is_stream: bool = False) -> None:
    """Print a value as JSON or YAML.

    Args:
        value: a message, or plain values.
        output: `json` or `yaml`.
        is_stream: whether more documents follow: print JSON on one line, and separate YAML documents.
    """
    if isinstance(value, Message):
        value = MessageToDict(value, always_print_fields_with_no_presence=True)
    if output == Format.JSON:
        typer.echo(json.dumps(value, indent=None if is_stream else 2))
    else:
        separator = "---\n" if is_stream else ""
        text = yaml.dump(value, Dumper=yaml.CSafeDumper, sort_keys=False, width=120)
        typer.echo(f"{separator}{text}", nl=False)
