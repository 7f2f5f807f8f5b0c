"""Black-box checks of the rules of the xDS protocol, for any xDS server.

`run` opens streams to a server, sets the server's resources through the adapter protocol of
`protos/xds/conformance/v1/adapter.proto`, and returns a report. `store_adapter` adds the adapter to an
`xds.server.XdsServer`. The command is `xds conformance`.
"""

from xds.conformance.adapter import store_adapter
from xds.conformance.report import to_dict, to_github, to_junit
from xds.conformance.rules import TITLES, Level
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
from xds.conformance.wire import Variant

__all__ = [
    "CONCURRENCY",
    "KEYS",
    "TITLES",
    "Level",
    "Outcome",
    "Report",
    "Result",
    "UnreachableError",
    "Variant",
    "parse_keys",
    "run",
    "store_adapter",
    "to_dict",
    "to_github",
    "to_junit",
]
