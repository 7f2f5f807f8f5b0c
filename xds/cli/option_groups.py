"""Commands that take their options as one dataclass instead of one parameter per option."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import MISSING, fields, is_dataclass
from inspect import Parameter, Signature
from typing import Any, TypeVar, get_type_hints

_Options = TypeVar("_Options")


def grouped_options(options: type[_Options]) -> Callable[[Callable[[_Options], None]], Callable[..., None]]:
    """Turn a function that takes one dataclass of options into a typer command.

    Each field is an option or argument, annotated as typer expects of a parameter, or a nested dataclass of
    them.
    """

    def decorate(function: Callable[[_Options], None]) -> Callable[..., None]:
        def command(**values: Any) -> None:
            function(_build(options, values))

        command.__doc__ = function.__doc__
        command.__name__ = function.__name__
        command.__annotations__ = {}
        command.__signature__ = Signature(list(_parameters(options)))  # type: ignore[attr-defined]
        return command

    return decorate


def _parameters(options: type[Any]) -> Iterator[Parameter]:
    hints: dict[str, Any] = get_type_hints(options, include_extras=True)
    for field in fields(options):
        if is_dataclass(hints[field.name]):
            yield from _parameters(hints[field.name])
        else:
            default = Parameter.empty if field.default is MISSING else field.default
            yield Parameter(field.name, Parameter.KEYWORD_ONLY, default=default, annotation=hints[field.name])


def _build(options: type[Any], values: Mapping[str, Any]) -> Any:
    hints: dict[str, Any] = get_type_hints(options)
    return options(
        **{
            field.name: _build(hints[field.name], values)
            if is_dataclass(hints[field.name])
            else values[field.name]
            for field in fields(options)
        }
    )
