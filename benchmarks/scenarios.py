"""The scenarios: each changes something, and measures how the change reaches the sidecars."""

from __future__ import annotations

import itertools
import time
from bisect import bisect_left
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from math import gcd
from statistics import mean

from clients import MOVING
from rounds import Measurement, Round

STALLED = 0.1
"""Share of the clients that do not read in the scenario `slow`."""
STEPS = 10
"""Number of steps of a rolling restart."""
_WRITERS = 4
"""Maximum number of threads that make the changes of `churn`."""
_moves = itertools.count(MOVING)


@dataclass(frozen=True, slots=True)
class Scenario:
    """A row of the result."""

    name: str
    """Name for `--scenario`."""
    title: str
    """Name in the result."""
    measure: Callable[[Round], Measurement]
    """Runs the scenario once."""
    is_default: bool = False
    """Whether it is one of the default set."""
    sources: tuple[str, ...] = ("files", "kubernetes")
    """Sources that it can run with."""


def start(run: Round) -> Measurement:
    """Start the server, and wait until it is ready."""
    return run.start()


def connect(run: Round) -> Measurement:
    """Connect all sidecars, a limited number at a time."""
    at_once = run.bench.size.at_once
    return run.measure(
        lambda: run.connect(run.pods, at_once=at_once),
        done=run.bench.all_complete,
        floors=lambda state: run.bench.floors_of_connect(state, at_once),
    )


def endpoint(run: Round) -> Measurement:
    """Change one endpoint of one service."""
    return run.measure(lambda: run.source.move(next(_moves)), floors=run.bench.floors_of_push)


def flip(old: str, new: str, run: Round) -> Measurement:
    """Change the mode of the whole mesh."""
    if run.mode != old:
        set_mode(run, old)
    run.mode = new
    return run.measure(lambda: run.source.set_mode(new), floors=run.bench.floors_of_push)


def set_mode(run: Round, mode: str, *, streams: int | None = None) -> None:
    """Change the mode of the whole mesh, and wait for `streams` sidecars, by default all."""
    if run.mode != mode:
        run.mode = mode
        run.measure(
            lambda: run.source.set_mode(mode), done=streams and (lambda state: state["done"] >= streams)
        )


def slow(run: Round) -> Measurement:
    """Change the mode while some clients have not read the last two changes. Then let them read."""
    set_mode(run, "STRICT")
    reading = len(run.pods) - run.bench.fleet.call("stall", share=STALLED)["stalled"]
    for mode in ("DISABLE", "STRICT"):
        set_mode(run, mode, streams=reading)
    run.mode = "DISABLE"
    result = run.measure(
        lambda: run.source.set_mode("DISABLE"), done=lambda state: bool(state["done"] == reading)
    )

    def resume() -> float:
        started = time.monotonic()
        run.bench.fleet.call("stall", share=0)
        return started

    stalled = len(run.pods) - reading
    resumed = run.measure(resume, done=lambda state: state["done"] >= stalled)
    result.more |= {
        "s until the slow clients had everything": resumed.seconds,
        "MB that they then received": resumed.megabytes,
    }
    return result


def reconnect(run: Round) -> Measurement:
    """Let all sidecars reconnect at once, with the versions that they have, as Envoy does."""
    nodes = [str(run.source.mesh.node(*pod)) for pod in run.pods]
    run.bench.fleet.call("close", nodes=nodes)
    return run.measure(
        lambda: run.connect(run.pods, at_once=len(run.pods), resumes=True),
        done=run.bench.all_complete,
        floors=lambda state: run.bench.floors_of_connect(state, len(run.pods)),
    )


def restart(run: Round) -> Measurement:
    """Replace all pods in steps: streams end, pods with other names and addresses appear and connect."""
    fleet = run.bench.fleet

    def replace_all() -> float:
        started = time.monotonic()
        for step in range(STEPS):
            pods = run.pods[step::STEPS]
            fleet.call("close", nodes=[str(run.source.mesh.node(*pod)) for pod in pods])
            run.source.restart(pods)
            run.connect(pods, at_once=len(pods))
            expected = sum(len(run.pods[earlier::STEPS]) for earlier in range(step + 1))
            run.bench.wait(lambda state, expected=expected: state["complete"] == expected, quiet=0)
        return started

    result = run.measure(replace_all, done=run.bench.all_complete)
    result.detect = 0.0
    durations = fleet.call("durations")["durations"]
    result.more |= {
        "s until a new sidecar had everything (median)": _percentile(durations, 0.5),
        "s until a new sidecar had everything (99 %)": _percentile(durations, 0.99),
    }
    return result


def churn(run: Round) -> Measurement:
    """Change endpoints at a constant rate. `seconds` is until the last client has the last change."""
    rate, seconds = run.bench.churn
    moving = len(run.source.mesh.moving)
    size = run.measure(lambda: run.source.move(next(_moves))).megabytes
    *numbers, last = itertools.islice(_moves, round(rate * seconds) + 1)
    made: dict[int, float] = {}

    def make(writer: int, writers: int, started: float) -> None:
        for index, number in enumerate(numbers):
            if number % writers == writer:
                if (now := time.monotonic()) > started + seconds:
                    return
                time.sleep(max(0.0, started + index / rate - now))
                made[number] = run.source.move(number)

    def make_all() -> float:
        writers = gcd(
            moving, _WRITERS
        )  # All changes of a service have the same writer, which keeps their order.
        started = time.monotonic()
        with ThreadPoolExecutor(writers) as pool:
            for writer in [pool.submit(make, number, writers, started) for number in range(writers)]:
                writer.result()
        made[last] = run.source.move(last)  # Sources and server keep the order.
        return started

    result = run.measure(make_all, done=lambda state: bool(state["newest_move"] == last))
    result.detect = 0.0
    moves = run.bench.fleet.call("moves")["moves"]
    latencies = sorted(latency for received in moves for latency in _latencies(made, received, moving))
    updates = mean(len(received) for received in moves)
    result.more |= {
        "changes a second": len(made) / seconds,
        "s from a change to a client (median)": _percentile(latencies, 0.5),
        "s from a change to a client (99 %)": _percentile(latencies, 0.99),
        "s from a change to a client (maximum)": latencies[-1],
        "% of the changes were sent, and newer ones instead of the others": 100 * updates / len(made),
        "times the bytes of the sent changes": result.megabytes / (size * updates),
    }
    return result


def _latencies(made: dict[int, float], received: list[tuple[int, float]], moving: int) -> Iterator[float]:
    """Yield, for each change, the time until a client had it or a newer one of the same pod."""
    by_service: dict[int, list[tuple[int, float]]] = {}
    for number, seconds in received:
        by_service.setdefault(number % moving, []).append((number, seconds))
    for number, seconds in made.items():
        arrivals = by_service.get(number % moving, [])
        position = bisect_left(arrivals, (number, 0.0))
        if position == len(arrivals):
            raise SystemExit(f"a client did not receive change {number} of an endpoint, or a newer one")
        yield max(0.0, arrivals[position][1] - seconds)


def _percentile(values: list[float], share: float) -> float:
    """Return a percentile of sorted values."""
    return values[min(len(values) - 1, int(len(values) * share))]


_EVERY = ("files", "kubernetes", "library")
SCENARIOS = (
    Scenario("start", "start until ready", start, is_default=True, sources=_EVERY),
    Scenario("connect", "connect", connect, is_default=True, sources=_EVERY),
    Scenario("endpoint", "one endpoint", endpoint, is_default=True, sources=_EVERY),
    Scenario(
        "all", "all endpoints", partial(flip, "PERMISSIVE", "STRICT"), is_default=True, sources=("library",)
    ),
    Scenario("strict", "PERMISSIVE to STRICT", partial(flip, "PERMISSIVE", "STRICT"), is_default=True),
    Scenario("disable", "STRICT to DISABLE", partial(flip, "STRICT", "DISABLE"), is_default=True),
    Scenario("permissive", "DISABLE to PERMISSIVE", partial(flip, "DISABLE", "PERMISSIVE"), is_default=True),
    Scenario("slow", "STRICT to DISABLE, 10 % of clients do not read", slow),
    Scenario("churn", "endpoint changes at a constant rate", churn),
    Scenario("reconnect", "everybody reconnects at once", reconnect),
    Scenario("restart", "rolling restart of all pods", restart),
)
