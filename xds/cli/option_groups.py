"""Commands that share groups of options, or have too many options for one parameter each."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import MISSING, fields, is_dataclass
from inspect import Parameter, Signature, signature
from typing import Any, get_type_hints


def grouped_options(function: Callable[..., None]) -> Callable[..., None]:
    """Make a typer command of a function, some of whose parameters are dataclasses of options.

    Each field of such a dataclass is an option or argument, annotated as typer expects of a parameter, or a
    nested dataclass of them. They are listed in the order of the parameters and fields.
    """
    groups = {name: hint for name, hint in get_type_hints(function).items() if is_dataclass(hint)}
    parameters = list(_expand(function))

    def command(**values: Any) -> None:
        built = {name: _build(group, values) for name, group in groups.items()}
        own = {name: values[name] for name in signature(function).parameters if name not in groups}
        function(**own, **built)

    command.__doc__ = function.__doc__
    command.__name__ = function.__name__
    command.__annotations__ = {}
    command.__signature__ = Signature(parameters)  # type: ignore[attr-defined]
    return command


def _expand(function: Callable[..., None]) -> Iterator[Parameter]:
    hints: dict[str, Any] = get_type_hints(function, include_extras=True)
    for parameter in signature(function).parameters.values():
        if is_dataclass(hint := hints[parameter.name]):
            yield from _parameters(hint)
        else:
            yield parameter.replace(kind=Parameter.KEYWORD_ONLY, annotation=hint)


def _parameters(options: Any) -> Iterator[Parameter]:
    hints: dict[str, Any] = get_type_hints(options, include_extras=True)
    for field in fields(options):
        if is_dataclass(hints[field.name]):
            yield from _parameters(hints[field.name])
        else:
            default = Parameter.empty if field.default is MISSING else field.default
            yield Parameter(field.name, Parameter.KEYWORD_ONLY, default=default, annotation=hints[field.name])


def _build(options: Any, values: Mapping[str, Any]) -> Any:
    hints: dict[str, Any] = get_type_hints(options)
    return options(
        **{
            field.name: _build(hints[field.name], values)
            if is_dataclass(hints[field.name])
            else values[field.name]
            for field in fields(options)
        }
    )
