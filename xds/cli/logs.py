"""Logs on stderr: colored columns on a terminal, logfmt elsewhere."""

from __future__ import annotations

import logging
import os
import sys
from typing import Any

import structlog

_MAX_VALUE_LENGTH = 1000
"""Maximum characters of a logged value. Proxies can send values of any length."""


def configure() -> None:
    """Configure structlog, and the standard library's logging with the same format."""
    is_terminal = sys.stderr.isatty()
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="%H:%M:%S" if is_terminal else "iso", utc=not is_terminal),
        _escape_values,
    ]
    renderers: list[Any] = (
        # Tracebacks without local variables, which may contain keys.
        [
            structlog.dev.ConsoleRenderer(
                colors=not os.environ.get("NO_COLOR"), exception_formatter=structlog.dev.plain_traceback
            )
        ]
        if is_terminal
        else [
            structlog.processors.format_exc_info,
            structlog.processors.LogfmtRenderer(
                key_order=["timestamp", "level", "event"], drop_missing=True, bool_as_flag=False
            ),
        ]
    )
    structlog.configure(
        processors=[*shared, *renderers],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=structlog.WriteLoggerFactory(sys.stderr),
    )
    handler = logging.StreamHandler(sys.stderr)
    remove_meta = structlog.stdlib.ProcessorFormatter.remove_processors_meta
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(foreign_pre_chain=shared, processors=[remove_meta, *renderers])
    )
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)


def _escape_values(
    _logger: object, _method: str, event: structlog.typing.EventDict
) -> structlog.typing.EventDict:
    """Replace control characters, to prevent log and terminal injection, and truncate long values."""
    for key, value in event.items():
        text = ", ".join(map(str, value)) if isinstance(value, list | tuple) else value
        if isinstance(text, str) and key == "stack":
            text = "\n".join(_replace_control_characters(line) for line in text.splitlines())
        elif isinstance(text, str):
            truncated = text if len(text) <= _MAX_VALUE_LENGTH else f"{text[:_MAX_VALUE_LENGTH]}..."
            text = _replace_control_characters(truncated).strip()
        if key != "exc_info":
            event[key] = text
    return event


def _replace_control_characters(text: str) -> str:
    return text if text.isprintable() else "".join(c if c.isprintable() else " " for c in text)
