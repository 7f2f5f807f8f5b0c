"""Durations in options, such as `90s` or `7d`."""

from __future__ import annotations

import re

import typer

_DURATION = re.compile(r"(\d{1,6}(?:\.\d{1,3})?)(ms|s|m|h|d)?")
_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def parse_duration(option: str, text: str, example: str = "90s or 2m") -> float:
    """Return the seconds of an option's duration. A number without a unit is seconds.

    Raises typer.BadParameter if the text is not a duration.
    """
    match = _DURATION.fullmatch(text)
    if match is None:
        raise typer.BadParameter(f"{text!r} is not a duration such as {example}", param_hint=f"'{option}'")
    return float(match[1]) * _UNITS[match[2] or "s"]


def is_duration(text: str) -> bool:
    """Whether a text is a duration with a unit."""
    match = _DURATION.fullmatch(text)
    return match is not None and match[2] is not None


def parse_period(option: str, text: str) -> float:
    """Return the seconds of an option's period of observation, which is at least one second."""
    seconds = parse_duration(option, text, "24h or 7d")
    if seconds < 1:
        raise typer.BadParameter(f"{text!r} is less than one second", param_hint=f"'{option}'")
    return seconds
