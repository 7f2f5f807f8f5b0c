"""Logs on stderr: for people on a terminal, as logfmt elsewhere."""

from __future__ import annotations

import logging
import sys
from typing import Any

import structlog

_MAX_VALUE_LENGTH = 1000
"""Characters that are shown of a value: some are what proxies say, and they may say much."""


def configure() -> None:
    """Set up logging for the process; what libraries log comes out in the same form."""
    terminal = sys.stderr.isatty()
    before: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="%H:%M:%S" if terminal else "iso", utc=not terminal),
        _one_line,
    ]
    shown: list[Any] = (
        # Tracebacks without local variables: there may be keys among them.
        [structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)]
        if terminal
        else [
            structlog.processors.format_exc_info,
            structlog.processors.LogfmtRenderer(
                key_order=["timestamp", "level", "event"], drop_missing=True, bool_as_flag=False
            ),
        ]
    )
    structlog.configure(
        processors=[*before, *shown],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=structlog.WriteLoggerFactory(sys.stderr),
    )
    handler = logging.StreamHandler(sys.stderr)
    remove = structlog.stdlib.ProcessorFormatter.remove_processors_meta
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(foreign_pre_chain=before, processors=[remove, *shown])
    )
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)


def _one_line(_logger: object, _method: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
    """Keep what proxies and files say from forging lines or steering a terminal."""
    for key, value in event.items():
        said = ", ".join(map(str, value)) if isinstance(value, list | tuple) else value
        if isinstance(said, str) and key == "stack":
            said = "\n".join(_printable(line) for line in said.splitlines())
        elif isinstance(said, str):
            said = _printable(
                said if len(said) <= _MAX_VALUE_LENGTH else f"{said[:_MAX_VALUE_LENGTH]}..."
            ).strip()
        if key != "exc_info":
            event[key] = said
    return event


def _printable(text: str) -> str:
    return text if text.isprintable() else "".join(c if c.isprintable() else " " for c in text)
