"""Checks of reconnects, warming and order: R35 to R43."""

from __future__ import annotations

from xds.conformance import sources
from xds.conformance.rules import ADS, DELTA, SOTW, Level, Run, check
from xds.conformance.world import FULL, CheckError

ALL = ("CDS", "EDS", "LDS", "RDS")
ROUNDS = 10
"""Number of changes whose order is checked. A server that sends types in random order fails one of them."""


@check("R35", on=SOTW, types=ALL, level=Level.SPEC_SHOULD)
async def reconnecting_client_gets_a_response(run: Run) -> None:
    """A client that reports the current version on a new stream gets the resources that it names again."""
    world, first = await run.start(**{run.type: "alpha=1"})
    await first.ask(run.type, "alpha", sees="alpha=1")
    await first.close()
    stream = run.stream(world)
    await stream.ask(run.type, "alpha", version=first.responses[-1].version, sees="alpha=1")


@check(
    "R36",
    on=DELTA,
    types=("CDS", "LDS", "RDS"),
    level=Level.CLIENT_DEPENDENT,
    breaks="a client that reconnects keeps what was deleted or changed in the meantime",
)
async def reconnecting_client_gets_what_changed(run: Run) -> None:
    """A client that reports its versions on a new stream gets changed and removed resources."""
    world, first = await run.start(**{run.type: "alpha=1 beta=1 gamma=1"})
    names = () if run.type in FULL else ("alpha", "beta", "gamma")
    await first.ask(run.type, *names, sees="alpha=1 beta=1 gamma=1")
    await first.close()
    await world.set(**{run.type: "alpha=1 beta=2"})
    stream = run.stream(world)
    stream.view[run.type] = first.view[run.type]
    await stream.ask(run.type, *names, initial=first.versions[run.type])
    await stream.sees(run.type, "alpha=1 beta=2", gone="gamma")


@check("R36", on=DELTA, types=FULL, level=Level.SPEC_SHOULD, source=sources.KNOWN_VERSIONS)
async def current_client_gets_no_resources(run: Run) -> None:
    """A client that reports the current versions of all resources gets none of them."""
    world, first = await run.start(**{run.type: "alpha=1"})
    await first.ask(run.type, sees="alpha=1")
    await first.close()
    stream = run.stream(world)
    await stream.ask(run.type, initial=first.versions[run.type])
    await stream.settle(run.type)
    if not world.is_fixed:
        await world.set(**{run.type: "alpha=1 beta=1"})
        await stream.sees(run.type, "beta=1")
    if "alpha" in stream.since(0, run.type):
        raise CheckError("alpha is sent again, although the client reported its version")


@check("R37", on=DELTA, level=Level.ROBUSTNESS)
async def unrequested_versions_are_ignored(run: Run) -> None:
    """Reported resources that the client does not subscribe to are neither sent nor removed."""
    _, stream = await run.start(RDS="alpha=1 beta=1")
    await stream.ask("RDS", "alpha", initial={"beta": "old", "omega": "old"}, sees="alpha=1")
    if "beta" in stream.view["RDS"]:
        raise CheckError("beta is sent")
    if stream.gone["RDS"]:
        raise CheckError(f"reported as removed: {', '.join(sorted(stream.gone['RDS']))}")


@check("R38", on=ADS, level=Level.SPEC_SHOULD)
async def assignment_is_sent_with_its_cluster(run: Run) -> None:
    """When a cluster changes, its assignment is sent again, because Envoy warms the cluster anew."""
    world, stream = await run.start(CDS="alpha=1>alpha", EDS="alpha=1")
    await stream.ask("CDS", sees="alpha=1")
    await stream.ask("EDS", "alpha", sees="alpha=1")
    stream.forget("EDS")
    await world.set(CDS="alpha=2>alpha")
    await stream.sees("CDS", "alpha=2")
    if run.variant in SOTW and not stream.has_unseen("EDS"):
        await stream.request("EDS")  # As Envoy does. A delta client sends no request.
    await stream.sees("EDS", "alpha=1")


@check("R39", on=ADS, level=Level.SPEC_SHOULD)
async def routes_are_not_sent_with_their_listener(run: Run) -> None:
    """When a listener changes, its routes are not sent again."""
    world, stream = await run.start(LDS="alpha=1>alpha", RDS="alpha=1 beta=1")
    await stream.ask("LDS", sees="alpha=1")
    await stream.ask("RDS", "alpha", sees="alpha=1")
    await world.set(LDS="alpha=2>alpha")
    await stream.sees("LDS", "alpha=2")
    await stream.nothing("RDS")


@check("R40", on=ADS, level=Level.ROBUSTNESS, by_chance=True)
async def responses_are_ordered(run: Run) -> None:
    """If all types change at once, clusters are sent first, then endpoints, listeners and routes."""

    def state(content: int) -> dict[str, str]:
        return {short: f"alpha={content}" + (">alpha" if short != "EDS" else "") for short in ALL}

    world, stream = await run.start(**state(1))
    for short in ALL:
        await stream.ask(short, *(() if short in FULL else ("alpha",)), sees="alpha=1")
    for content in range(2, ROUNDS + 2):
        before = len(stream.responses)
        await world.set(**state(content))
        for short in ALL:
            await stream.sees(short, f"alpha={content}")
        order = [got.type for got in stream.responses[before:] if got.resources.get("alpha") == str(content)]
        order = list(dict.fromkeys(order))
        if order != [*ALL]:
            raise CheckError(f"sent in the order {', '.join(order)}")


@check("R41", on=ADS, level=Level.ROBUSTNESS, by_chance=True)
async def cluster_is_removed_after_its_route(run: Run) -> None:
    """A cluster is removed after the route that used it has changed."""
    world, stream = await run.start(CDS="alpha=1", RDS="main=1>alpha")
    await stream.ask("CDS", sees="alpha=1")
    await stream.ask("RDS", "main", sees="main=1")
    old, new = "alpha", "beta"
    for content in range(2, ROUNDS + 2):
        before = len(stream.responses)
        await world.set(CDS=f"{new}=1", RDS=f"main={content}>{new}")
        await stream.sees("RDS", f"main={content}")
        for got in stream.responses[before:]:
            if got.resources.get("main") == str(content):
                break
            omitted = run.variant in SOTW and got.type == "CDS" and old not in got.resources
            if old in got.removed or omitted:
                raise CheckError(f"the cluster {old} is removed before the route that uses it has changed")
        await stream.sees("CDS", f"{new}=1")
        old, new = new, old


@check("R42", on=ADS, level=Level.ROBUSTNESS)
async def listener_waits_for_clusters(run: Run) -> None:
    """A listener that changes together with clusters is sent after the ACK of the clusters."""
    world, stream = await run.start(CDS="alpha=1", LDS="alpha=1")
    for short in FULL:
        await stream.ask(short, sees="alpha=1")
    stream.held.add("CDS")
    await world.set(CDS="alpha=2", LDS="alpha=2")
    await stream.sees("CDS", "alpha=2")
    await stream.nothing("LDS", probe=False)
    await stream.ack("CDS")
    await stream.sees("LDS", "alpha=2")


@check("R43", on=ADS, level=Level.SPEC_SHOULD, by_chance=True)
async def route_is_sent_after_its_cluster(run: Run) -> None:
    """If a cluster and a route to it are added at once, the cluster is sent first."""
    world, stream = await run.start(CDS="alpha=1", RDS="main=1>alpha")
    await stream.ask("CDS", sees="alpha=1")
    await stream.ask("RDS", "main", sees="main=1")
    clusters = "alpha=1"
    for content in range(2, ROUNDS + 2):
        before = len(stream.responses)
        clusters += f" new-{content}=1"
        await world.set(CDS=clusters, RDS=f"main={content}>new-{content}")
        await stream.sees("CDS", clusters)
        await stream.sees("RDS", f"main={content}")
        if stream.responses[before].type == "RDS":
            raise CheckError(f"the route is sent before the cluster new-{content}")


@check("R43", on=ADS, level=Level.ROBUSTNESS, source=sources.ROUTE_WAITS)
async def route_waits_for_its_cluster(run: Run) -> None:
    """A route to a new cluster is sent after the ACK of the cluster."""
    world, stream = await run.start(CDS="alpha=1", RDS="main=1>alpha")
    await stream.ask("CDS", sees="alpha=1")
    await stream.ask("RDS", "main", sees="main=1")
    stream.held.add("CDS")
    await world.set(CDS="alpha=1 beta=1", RDS="main=2>beta")
    await stream.sees("CDS", "alpha=1 beta=1")
    await stream.nothing("RDS", probe=False)
    await stream.ack("CDS")
    await stream.sees("RDS", "main=2")
