"""Commands whose help texts and errors are in plain words, without the type names of libraries."""

from __future__ import annotations

import re
from typing import Any

from typer.core import TyperCommand

_NUMBERS = r"(?:int|float)(?: range)?"
_TYPES = (
    (rf"<{_NUMBERS}>", "NUMBER"),
    (r"<list\[(.*)\]>", r"\1"),
    (r"<(\S+)>", r"\1"),
)
_RANGES = ((r"\bx>=(\S+?)([;\]])", r"at least \1\2"), (r"(\S+)<=x<=(\S+?)([;\]])", r"\1 to \2\3"))
_MESSAGES = (
    (r"^Value error, ", ""),
    (r"^Input should be greater than or equal to ", "must be at least "),
    (r"^Input should be less than or equal to ", "must be at most "),
    (r"^Input should be (a valid \w+), unable to parse .*", r"must be \1"),
    (r"^Input should be ", "must be "),
    (r"^dir '", "folder '"),
)


class Command(TyperCommand):
    """A subcommand whose help shows no type names of Python, and which exits if a name is unknown."""

    def invoke(self, ctx: Any) -> Any:
        """Run the subcommand."""
        # Every subcommand has imported them; completion and help need not.
        from xds.cli.options import fail  # noqa: PLC0415
        from xds.mesh.model.names import UnknownNameError  # noqa: PLC0415

        try:
            return super().invoke(ctx)
        except UnknownNameError as error:
            fail(str(error))

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """Return the parts of the usage line: a required argument has no braces."""
        return [re.sub(r"^\{(.*)\}", r"\1", piece) for piece in super().collect_usage_pieces(ctx)]

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write the sections of arguments and options."""
        for title, kind in (("Arguments", "argument"), ("Options", "option")):
            params = [param for param in self.get_params(ctx) if param.param_type_name == kind]
            records = [record for param in params if (record := param.get_help_record(ctx))]
            if records:
                with formatter.section(title):
                    formatter.write_dl([_plain_record(*record, kind) for record in records])


def _plain_record(name: str, text: str, kind: str) -> tuple[str, str]:
    if kind == "argument":  # which its metavar describes
        name = re.sub(r" <.*>(\.\.\.)?$", r"\1", name)
    return _replace(name, _TYPES), _replace(text, _RANGES)


def plain_error(message: str) -> str:
    """Return an error of typer or pydantic in plain words."""
    return _replace(message, _MESSAGES)


def _replace(text: str, patterns: tuple[tuple[str, str], ...]) -> str:
    for pattern, replacement in patterns:
        text = re.sub(pattern, replacement, text)
    return text
