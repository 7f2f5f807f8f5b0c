"""Black-box checks of the rules of the xDS protocol, for any xDS server.

`run` opens streams to a server, sets the server's resources through the adapter protocol of
`protos/xds/conformance/v1/adapter.proto`, and returns a report. `store_adapter` adds the adapter to an
`xds.server.XdsServer`. The command is `xds conformance`.
"""

from xds.conformance.adapter import store_adapter
from xds.conformance.report import collapse, explanation, to_dict, to_github, to_junit
from xds.conformance.rules import RULES_VERSION, TITLES, Level
from xds.conformance.runner import (
    CONCURRENCY,
    KEYS,
    Outcome,
    Report,
    Result,
    UnreachableError,
    parse_keys,
    run,
)
from xds.conformance.sources import SOURCES, Citation, Document
from xds.conformance.wire import Variant

__all__ = [
    "CONCURRENCY",
    "KEYS",
    "RULES_VERSION",
    "SOURCES",
    "TITLES",
    "Citation",
    "Document",
    "Level",
    "Outcome",
    "Report",
    "Result",
    "UnreachableError",
    "Variant",
    "collapse",
    "explanation",
    "parse_keys",
    "run",
    "store_adapter",
    "to_dict",
    "to_github",
    "to_junit",
]
