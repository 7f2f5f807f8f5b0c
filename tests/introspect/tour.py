"""The commands in docs/how-to/debug-with-grpcurl.md and their documented output."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
TOUR = ROOT / "docs/how-to/debug-with-grpcurl.md"
FOLDER = ROOT / "examples/envoy/grpcurl"
MESH = ROOT / "examples/envoy/auto-mtls/workloads"
ADDRESS = "127.0.0.1:15010"

_ELIDED = "..."
_VOLATILE = {
    r"\b[0-9a-f]{16}\b": "VERSION",
    r"\b\d{4}-\d\d-\d\dT[\d:.]+Z": "TIME",
    r"\b\d+(\.\d+)?s ago": "SECONDS ago",
    r"\bnot connected \(\d\w*\)": "not connected (SECONDS)",
    r"(127\.0\.0\.1:)\d{4,5}\b": r"\1PORT",
    r"\bxds \d+\.\d+\.\d+[^\"]*": "xds RELEASE",
    r"((?:Id|Started|Succeeded)\": \")\d+": r"\1NUMBER",
}
"""Variable parts of the output, and their replacements in comparisons."""


@dataclass(frozen=True)
class Step:
    """A command and its output."""

    line: int
    command: str
    output: str

    def fits(self, output: str) -> bool:
        """Whether an output matches the documented one, in which `...` matches anything."""
        return re.fullmatch(_pattern(self.output), normalised(output)) is not None


def steps(text: str) -> Iterator[Step]:
    """Yield the commands of all console blocks. A backslash continues a command on the next line."""
    inside, line, command, output = False, 0, "", []
    for number, row in enumerate((*text.splitlines(), "```"), 1):
        if not inside:
            inside = row == "```console"
            continue
        if row.startswith("$ ") or row == "```":
            if command:
                yield Step(line, command, "".join(output))
            command, output, line = row[2:], [], number
            if row == "```":
                inside, command = False, ""
        elif command.endswith("\\"):
            command = command[:-1] + row.strip()
        else:
            output.append(f"{row}\n")


def normalised(output: str) -> str:
    for pattern, name in _VOLATILE.items():
        output = re.sub(pattern, name, output)
    return "".join(f"{line.rstrip()}\n" for line in output.rstrip().splitlines())


def _pattern(output: str) -> str:
    lines = []
    for line in normalised(output).splitlines():
        if line.strip() == _ELIDED:
            lines.append(r"(?:.*\n)*?")
        else:
            lines.append(".*?".join(map(re.escape, line.split(_ELIDED))) + r"\n")
    return "".join(lines)
