"""Plot the results of `bench.py --growth` as SVG."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import cycle
from math import ceil, floor, log10
from operator import itemgetter
from statistics import median, mode

from report import Report
from rounds import Measurement

_WIDTH, _HEIGHT, _LEFT, _TOP, _GAP = 270, 190, 50, 30, 60
_COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#c98a00", "#4aa3df")
_STYLE = (
    "text{font:12px sans-serif;fill:#333}line{stroke:#8886}polyline{fill:none;stroke-width:2}"
    "@media(prefers-color-scheme:dark){text{fill:#ddd}}"
)
_VALUES: dict[str, Callable[[Measurement], float]] = {
    "last client, s": lambda m: m.seconds,
    "CPU, s": lambda m: m.cpu,
    "peak, MiB": lambda m: m.peak,
}


def as_svg(report: Report) -> str:
    """Return a plot of each value by the number of services, and by the number of streams, on log scales."""
    services = mode(run.size.services for run in report.runs)
    streams = mode(run.size.streams for run in report.runs)
    axes = {
        f"services ({streams:,} streams)": [
            (r.size.services, r) for r in report.runs if r.size.streams == streams
        ],
        f"streams ({services:,} services)": [
            (r.size.streams, r) for r in report.runs if r.size.services == services
        ],
    }
    titles = list(report.runs[0].results)
    parts = []
    for row, (name, value) in enumerate(_VALUES.items()):
        for column, (axis, runs) in enumerate(axes.items()):
            runs.sort(key=itemgetter(0))
            lines = [[(x, median(map(value, run.results[title]))) for x, run in runs] for title in titles]
            left, top = _LEFT + column * (_WIDTH + _GAP), _TOP + row * (_HEIGHT + _GAP)
            parts += _panel(left, top, f"{name}, by {axis}", lines)
    bottom = _TOP + len(_VALUES) * (_HEIGHT + _GAP)
    for number, (title, color) in enumerate(zip(titles, cycle(_COLORS))):
        x, y = _LEFT + number % 3 * 210, bottom + number // 3 * 20
        parts.append(f'<circle cx="{x}" cy="{y - 4}" r="4" fill="{color}"/>')
        parts.append(f'<text x="{x + 10}" y="{y}">{title}</text>')
    size = f"{_LEFT + 2 * (_WIDTH + _GAP)} {bottom + 20 * ceil(len(titles) / 3)}"
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {size}">\n<style>{_STYLE}</style>'
    return "\n".join((head, *parts, "</svg>\n"))


def _panel(left: float, top: float, title: str, lines: list[list[tuple[int, float]]]) -> Iterator[str]:
    """Yield the elements of a plot of lines, each with the same values of x."""
    values = [max(y, 0.001) for line in lines for _, y in line]
    low, high = floor(log10(min(values))), ceil(log10(max(values)))
    first, last = lines[0][0][0], lines[0][-1][0]

    def at(x: float, y: float) -> tuple[int, int]:
        right = (log10(x / first) / log10(last / first)) if last > first else 0.5
        up = (log10(max(y, 0.001)) - low) / max(1, high - low)
        return round(left + _WIDTH * right), round(top + _HEIGHT * (1 - up))

    yield f'<text x="{left}" y="{top - 10}">{title}</text>'
    for power in range(low, high + 1):
        _, y = at(first, 10**power)
        yield f'<line x1="{left}" x2="{left + _WIDTH}" y1="{y}" y2="{y}"/>'
        yield f'<text x="{left - 6}" y="{y + 4}" text-anchor="end">{10**power:,g}</text>'
    for x, _ in lines[0]:
        yield f'<text x="{at(x, 1)[0]}" y="{top + _HEIGHT + 18}" text-anchor="middle">{x:,}</text>'
    for line, color in zip(lines, cycle(_COLORS)):
        points = [at(x, y) for x, y in line]
        yield f'<polyline points="{" ".join(f"{x},{y}" for x, y in points)}" stroke="{color}"/>'
        yield from (f'<circle cx="{x}" cy="{y}" r="3" fill="{color}"/>' for x, y in points)
