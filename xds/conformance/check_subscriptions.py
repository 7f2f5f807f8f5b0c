"""Checks of subscriptions: R16 to R34."""

from __future__ import annotations

from xds.conformance import sources
from xds.conformance.rules import DELTA, SOTW, Level, Run, check
from xds.conformance.stream import Stream
from xds.conformance.wire import NotApplicableError
from xds.conformance.world import FULL, TYPES, CheckError, World

ALL = ("CDS", "EDS", "LDS", "RDS")
NAMED = ("EDS", "RDS")
HOST, ALIAS, UNKNOWN_ALIAS = "routes/alpha", "routes/alpha.example", "routes/omega.example"


async def enter_wildcard(stream: Stream, short: str, *names: str) -> None:
    """Subscribe to `*`, which must work for the check to apply, and see alpha and beta."""
    await stream.ask(short, "*", *names)
    try:
        await stream.sees(short, "alpha=1 beta=1")
    except CheckError:
        raise NotApplicableError("needs the wildcard `*`, which fails: see R22") from None


def require_unique(stream: Stream) -> None:
    """Require that no response so far contains a name twice."""
    for response in stream.responses:
        if response.repeated:
            names = ", ".join(sorted(response.repeated))
            raise CheckError(f"{response.type}: response {response.nonce!r} contains twice: {names}")


@check("R16", on=SOTW, types=ALL)
async def new_name_gets_a_response(run: Run) -> None:
    """A request with a new name gets a response, although no resource changed."""
    _, stream = await run.start(**{run.type: "alpha=1 beta=1"})
    await stream.ask(run.type, "alpha", sees="alpha=1")
    await stream.ask(run.type, "beta", sees="alpha=1 beta=1")


@check("R17", on=SOTW, types=ALL, level=Level.SPEC_SHOULD)
async def fewer_names_get_no_response(run: Run) -> None:
    """A request with fewer names gets no response."""
    _, stream = await run.start(**{run.type: "alpha=1 beta=1 gamma=1"})
    await stream.ask(run.type, "alpha", "beta", sees="alpha=1 beta=1")
    await stream.leave(run.type, "beta")
    await stream.nothing(run.type)


@check("R18", types=ALL)
async def resource_is_sent_again(run: Run) -> None:
    """A client that unsubscribes from a name and subscribes again gets the resource again."""
    _, stream = await run.start(**{run.type: "alpha=1 beta=1"})
    await stream.ask(run.type, "alpha", "beta", sees="alpha=1 beta=1")
    await stream.leave(run.type, "beta")
    await stream.ask(run.type, "beta", sees="alpha=1 beta=1")


@check("R19", on=DELTA, types=ALL)
async def repeated_subscription_gets_a_response(run: Run) -> None:
    """A repeated subscription gets the resource again."""
    _, stream = await run.start(**{run.type: "alpha=1"})
    await stream.ask(run.type, "alpha", sees="alpha=1")
    stream.forget(run.type)
    await stream.ask(run.type, "alpha", sees="alpha=1")


@check("R20", on=DELTA)
async def unknown_unsubscription_does_no_harm(run: Run) -> None:
    """A client that unsubscribes from a name it never subscribed to can go on with its subscriptions."""
    world, stream = await run.start(RDS="alpha=1 beta=1")
    await stream.ask("RDS", "alpha", sees="alpha=1")
    await stream.leave("RDS", "omega")
    await stream.ask("RDS", "beta", sees="alpha=1 beta=1")
    if world.is_fixed:
        return
    await world.set(RDS="alpha=2 beta=1")
    await stream.sees("RDS", "alpha=2 beta=1")


@check("R21", on=DELTA, types=FULL)
async def unsubscription_inside_a_wildcard(run: Run) -> None:
    """A client with a wildcard that unsubscribes from a name gets the resource."""
    _, stream = await run.start(**{run.type: "alpha=1 beta=1"})
    await enter_wildcard(stream, run.type, "alpha")
    await stream.leave(run.type, "alpha")
    await stream.sees(run.type, "alpha=1 beta=1")


@check("R21", on=DELTA, types=FULL, level=Level.SPEC_SHOULD)
async def unsubscription_outside_a_wildcard(run: Run) -> None:
    """A client with a wildcard that unsubscribes from a deleted name gets it in removed_resources."""
    world, stream = await run.start(**{run.type: "alpha=1 beta=1"})
    await enter_wildcard(stream, run.type, "alpha")
    await world.set(**{run.type: "beta=1"})
    await stream.sees(run.type, "beta=1", gone="alpha")
    await stream.leave(run.type, "alpha")
    await stream.gets(run.type, "alpha is not removed", lambda response: "alpha" in response.removed)


@check("R22", on=SOTW, types=FULL)
@check("R22", on=DELTA, types=FULL, source=sources.DELTA_WILDCARD)
async def legacy_wildcard(run: Run) -> None:
    """A first request without names gets all resources, and later ones as well."""
    world, stream = await run.start(**{run.type: "alpha=1 beta=1"})
    await stream.ask(run.type, sees="alpha=1 beta=1")
    if world.is_fixed:
        return
    await world.set(**{run.type: "alpha=1 beta=2 gamma=1"})
    await stream.sees(run.type, "alpha=1 beta=2 gamma=1")


@check("R22", types=FULL, source=sources.EXPLICIT_WILDCARD)
async def explicit_wildcard(run: Run) -> None:
    """A request for `*` gets all resources, and later ones as well."""
    world, stream = await run.start(**{run.type: "alpha=1 beta=1"})
    await stream.ask(run.type, "*", sees="alpha=1 beta=1")
    if world.is_fixed:
        return
    await world.set(**{run.type: "alpha=1 beta=2 gamma=1"})
    await stream.sees(run.type, "alpha=1 beta=2 gamma=1")


@check("R22", types=FULL, level=Level.ROBUSTNESS, source=sources.LEFT_WILDCARD)
async def wildcard_can_be_left(run: Run) -> None:
    """A client that has left the wildcard gets only the resources that it names."""
    world, stream = await run.start(**{run.type: "alpha=1 beta=1"})
    try:
        await stream.ask(run.type, "*", "alpha", sees="alpha=1 beta=1")
    except CheckError:
        raise NotApplicableError("the server does not send all resources: see explicit_wildcard") from None
    await stream.leave(run.type, "*")
    await _require_left(world, stream, run.type)


@check("R22", on=SOTW, types=FULL, level=Level.ROBUSTNESS, source=sources.LEFT_WILDCARD)
async def names_end_the_legacy_wildcard(run: Run) -> None:
    """SotW: a client with a legacy wildcard that names resources gets only those from then on."""
    world, stream = await run.start(**{run.type: "alpha=1 beta=1"})
    await stream.ask(run.type, sees="alpha=1 beta=1")
    await stream.ask(run.type, "alpha")
    await _require_left(world, stream, run.type)


@check("R22", on=DELTA, types=FULL, source=sources.KEPT_WILDCARD)
async def names_keep_the_legacy_wildcard(run: Run) -> None:
    """Delta: a client with a legacy wildcard that names a resource keeps the wildcard."""
    world, stream = await run.start(**{run.type: "alpha=1 beta=1"})
    await stream.ask(run.type, sees="alpha=1 beta=1")
    await stream.ask(run.type, "alpha")
    await stream.settle(run.type)
    await world.set(**{run.type: "alpha=1 beta=2 gamma=1"})
    await stream.sees(run.type, "alpha=1 beta=2 gamma=1")


@check("R22", on=DELTA, types=FULL, level=Level.ROBUSTNESS, source=sources.LEFT_WILDCARD)
async def legacy_wildcard_can_be_left(run: Run) -> None:
    """Delta: a client that has left a legacy wildcard gets only the resources that it names."""
    world, stream = await run.start(**{run.type: "alpha=1 beta=1"})
    await stream.ask(run.type, sees="alpha=1 beta=1")
    await stream.ask(run.type, "alpha")
    await stream.settle(run.type)
    await stream.end_wildcard(run.type)
    await _require_left(world, stream, run.type)


async def _require_left(world: World, stream: Stream, short: str) -> None:
    """Require that changes of beta are not sent to a client that has left the wildcard and names alpha."""
    await stream.settle(short)
    await stream.ask(short, "gamma")
    await world.set(**{short: "alpha=1 beta=1 gamma=1"})
    await stream.sees(short, "alpha=1 gamma=1")  # The server has handled this request and the earlier ones.
    before = len(stream.responses)
    await world.set(**{short: "alpha=2 beta=2 gamma=1"})
    await stream.sees(short, "alpha=2 gamma=1")
    if "beta" in stream.since(before, short):
        raise CheckError("beta is sent, although the client has left the wildcard")


@check("R22", on=SOTW, types=ALL, level=Level.SPEC_SHOULD, source=sources.EMPTY_LIST)
async def empty_list_after_names_is_no_wildcard(run: Run) -> None:
    """A request without names after one with names subscribes to nothing."""
    world, stream = await run.start(**{run.type: "alpha=1 beta=1"})
    await stream.ask(run.type, "alpha", sees="alpha=1")
    await stream.leave(run.type, "alpha")
    await stream.settle(run.type)
    await world.set(**{run.type: "alpha=2 beta=2 gamma=1"})
    await stream.settle(run.type)
    await stream.ask(run.type, "gamma", sees="gamma=1")
    if extra := {*stream.since(1, run.type)} - {"gamma"}:
        raise CheckError(f"sent, although not requested: {', '.join(sorted(extra))}")


@check("R23", types=NAMED, level=Level.ROBUSTNESS)
async def other_types_have_no_legacy_wildcard(run: Run) -> None:
    """An empty first request for assignments or routes gets no resources."""
    _, stream = await run.start(**{run.type: "alpha=1"})
    await stream.request(run.type)
    await stream.nothing(run.type)


@check("R24", types=FULL, level=Level.ROBUSTNESS, source=sources.SILENT_UNSUBSCRIPTION)
async def leaving_the_wildcard_gets_no_response(run: Run) -> None:
    """A client that leaves the wildcard gets no response."""
    world, stream = await run.start(**{run.type: "alpha=1 beta=1"})
    await enter_wildcard(stream, run.type, "alpha")
    await stream.leave(run.type, "*")
    await stream.nothing(run.type, probe=False)
    await world.add(run.type, "gamma")
    await stream.nothing(run.type)


@check("R24", types=FULL)
async def entering_the_wildcard_gets_all(run: Run) -> None:
    """A client that enters the wildcard again gets all resources that it does not name."""
    _, stream = await run.start(**{run.type: "alpha=1 beta=1"})
    await enter_wildcard(stream, run.type, "alpha")
    await stream.leave(run.type, "*")
    await stream.ask(run.type, "*", sees="alpha=1 beta=1")


@check("R25", types=ALL)
async def missing_resource_is_sent_when_it_appears(run: Run) -> None:
    """A client gets a missing resource when it appears."""
    world, stream = await run.start(**{run.type: "alpha=1"})
    await stream.ask(run.type, "alpha", "omega")
    await stream.settle(run.type)
    await world.set(**{run.type: "alpha=1 omega=1"})
    await stream.sees(run.type, "alpha=1 omega=1")


@check("R25", types=ALL, level=Level.SPEC_SHOULD, source=sources.MAY_WAIT)
async def missing_resource_delays_no_other(run: Run) -> None:
    """A client that names an existing and a missing resource gets the existing one at once."""
    _, stream = await run.start(**{run.type: "alpha=1"})
    await stream.ask(run.type, "alpha", "omega", sees="alpha=1")


@check("R25", on=SOTW, types=FULL, level=Level.ROBUSTNESS, source=sources.MAY_WAIT)
async def missing_resource_gets_a_response(run: Run) -> None:
    """A request for a missing cluster or listener gets an empty response."""
    _, stream = await run.start(**{run.type: "alpha=1"})
    await stream.ask(run.type, "omega", sees="")


@check("R26", on=DELTA, types=ALL)
async def missing_resource_is_reported(run: Run) -> None:
    """A missing resource is reported as removed."""
    _, stream = await run.start(**{run.type: "alpha=1"})
    await stream.ask(run.type, "alpha", "omega")
    await stream.sees(run.type, "alpha=1", gone="omega")


@check("R27", on=DELTA, types=ALL)
async def deleted_resource_is_reported(run: Run) -> None:
    """A deleted resource is reported as removed."""
    world, stream = await run.start(**{run.type: "alpha=1 beta=1"})
    await stream.ask(run.type, "alpha", "beta", sees="alpha=1 beta=1")
    await world.set(**{run.type: "alpha=1"})
    await stream.sees(run.type, "alpha=1", gone="beta")


@check("R27", on=SOTW, types=FULL, source=sources.OMISSION)
async def deleted_resource_is_omitted(run: Run) -> None:
    """The response after a deletion omits the cluster or listener."""
    world, stream = await run.start(**{run.type: "alpha=1 beta=1"})
    await stream.ask(run.type, sees="alpha=1 beta=1")
    await world.set(**{run.type: "alpha=1"})
    await stream.sees(run.type, "alpha=1")


@check("R27", on=SOTW, types=FULL, source=sources.EMPTY_RESPONSE)
async def last_deleted_resource_gets_an_empty_response(run: Run) -> None:
    """The response after the deletion of the last cluster or listener is empty."""
    world, stream = await run.start(**{run.type: "alpha=1", "RDS": "alpha=1"})
    await stream.ask(run.type, sees="alpha=1")
    await world.set(**{run.type: ""})
    await stream.sees(run.type, "")


@check("R27", on=SOTW, level=Level.ROBUSTNESS, source=sources.NO_OP)
async def deleted_route_gets_no_response(run: Run) -> None:
    """The deletion of a route gets no response, because none can express it."""
    world, stream = await run.start(RDS="alpha=1 beta=1 gamma=1")
    await stream.ask("RDS", "alpha", "beta", sees="alpha=1 beta=1")
    await world.set(RDS="alpha=1 gamma=1")
    await stream.nothing("RDS")


@check("R28", on=SOTW, types=ALL, source=sources.SUPPLIED)
async def part_of_the_resources_is_sent(run: Run) -> None:
    """A client that names one of two resources gets it."""
    _, stream = await run.start(**{run.type: "alpha=1 beta=1"})
    await stream.ask(run.type, "alpha", sees="alpha=1")


@check("R28", types=ALL, level=Level.ROBUSTNESS, source=sources.IGNORED)
async def only_requested_resources_are_sent(run: Run) -> None:
    """A client that names a resource gets no others."""
    world, stream = await run.start(**{run.type: "alpha=1 beta=1"})
    await stream.ask(run.type, "alpha", sees="alpha=1")
    await world.set(**{run.type: "alpha=2 beta=2"})
    await stream.sees(run.type, "alpha=2")
    if unasked := {*stream.since(0, run.type)} - {"alpha"}:
        raise CheckError(f"not requested, but sent: {', '.join(sorted(unasked))}")


@check("R28", on=DELTA, types=FULL)
async def named_resource_inside_a_wildcard_is_sent_again(run: Run) -> None:
    """A client with a wildcard that names a resource gets it again."""
    _, stream = await run.start(**{run.type: "alpha=1 beta=1"})
    await stream.ask(run.type, sees="alpha=1 beta=1")
    stream.forget(run.type, "alpha")
    await stream.ask(run.type, "alpha", sees="alpha=1 beta=1")


@check("R29", types=("CDS", "RDS"), level=Level.ROBUSTNESS)
async def repeated_name_counts_once(run: Run) -> None:
    """A name that is repeated in a request counts once."""
    world, stream = await run.start(**{run.type: "alpha=1 beta=1 gamma=1"})
    await stream.ask(run.type, "beta", "alpha", "alpha", sees="alpha=1 beta=1")
    await stream.leave(run.type, "alpha")
    await stream.ask(run.type, "gamma", sees="beta=1 gamma=1")
    await world.set(**{run.type: "alpha=2 beta=2 gamma=1"})
    await stream.sees(run.type, "beta=2 gamma=1")
    if stream.received(run.type, "alpha=2"):
        raise CheckError("alpha is sent after the client has unsubscribed")


@check("R29", on=DELTA, level=Level.ROBUSTNESS)
async def unsubscription_wins(run: Run) -> None:
    """A name that a request both subscribes to and unsubscribes from is unsubscribed."""
    world, stream = await run.start(RDS="alpha=1 beta=1 gamma=1")
    await stream.ask("RDS", "alpha", sees="alpha=1")
    await stream.request("RDS", subscribe=("beta",), unsubscribe=("beta",))
    await stream.ask("RDS", "gamma", sees="alpha=1 gamma=1")
    await world.set(RDS="alpha=2 beta=2 gamma=1")
    await stream.sees("RDS", "alpha=2 gamma=1")
    if stream.received("RDS", "beta=2"):
        raise CheckError("beta is sent, although the request unsubscribed from it")


@check("R30", types=("CDS", "EDS", "LDS", "RDS"))
async def response_contains_a_name_once(run: Run) -> None:
    """No response contains a name twice, even if the request does."""
    world, stream = await run.start(**{run.type: "alpha=1"})
    await stream.ask(run.type, "alpha", "alpha", sees="alpha=1")
    require_unique(stream)
    if world.is_fixed:
        return
    await world.set(**{run.type: "alpha=2"})
    await stream.sees(run.type, "alpha=2")
    require_unique(stream)


@check("R30", on=SOTW, types=FULL)
async def wildcard_and_name_overlap(run: Run) -> None:
    """A client with a wildcard that also names a resource gets it once in each response."""
    world, stream = await run.start(**{run.type: "alpha=1 beta=1"})
    await enter_wildcard(stream, run.type)
    await stream.ask(run.type, "alpha")
    await stream.settle(run.type)
    require_unique(stream)
    if world.is_fixed:
        return
    await world.set(**{run.type: "alpha=2 beta=1"})
    await stream.sees(run.type, "alpha=2 beta=1")
    require_unique(stream)


async def _with_alias(run: Run) -> Stream:
    """Return a stream of a node whose virtual host has an alias. Not all servers support aliases."""
    world = await run.world()
    world.aliases[HOST] = (ALIAS,)
    await world.set(VHDS=f"{HOST}=alpha.example")
    return run.stream(world)


@check("R31", on=DELTA, level=Level.SPEC_SHOULD)
async def alias_gets_its_virtual_host(run: Run) -> None:
    """A client that requests an alias gets the virtual host under its own name, and the alias with it."""
    stream = await _with_alias(run)
    await stream.ask("VHDS", ALIAS)
    response = await stream.gets("VHDS", f"{HOST} is not sent", lambda response: HOST in response.resources)
    if ALIAS not in response.aliases[HOST]:
        raise CheckError(f"the aliases of {HOST} do not contain {ALIAS}")
    if ALIAS in response.without_body:
        raise CheckError(f"{ALIAS} is also sent without a body, as an alias that no virtual host has")


@check("R31", on=DELTA, level=Level.ROBUSTNESS, source=sources.UNKNOWN_ALIAS)
async def unknown_alias_gets_no_body(run: Run) -> None:
    """An alias that no virtual host has is sent as the name of a resource without a body."""
    stream = await _with_alias(run)
    await stream.ask("VHDS", UNKNOWN_ALIAS)
    await stream.gets("VHDS", f"{UNKNOWN_ALIAS} is not sent", lambda got: UNKNOWN_ALIAS in got.without_body)


@check("R32", on=DELTA, level=Level.ROBUSTNESS)
async def virtual_hosts_have_no_wildcard(run: Run) -> None:
    """An empty first request for virtual hosts gets no response."""
    _, stream = await run.start(VHDS="routes/alpha=alpha.example")
    await stream.request("VHDS")
    await stream.nothing("VHDS")


@check("R33", on=DELTA)
async def on_demand_cluster(run: Run) -> None:
    """A client with a wildcard that names a cluster gets it, or learns that it does not exist."""
    _, stream = await run.start(CDS="alpha=1 beta=1")
    await enter_wildcard(stream, "CDS")
    await stream.ask("CDS", "omega")
    await stream.sees("CDS", "alpha=1 beta=1", gone="omega")


@check("R34", on=DELTA, types=("CDS", "RDS"), level=Level.SPEC_SHOULD)
async def collection_gets_its_members(run: Run) -> None:
    """A client that names a collection gets its members, also those that appear later, and nothing else."""
    group = f"xdstp://conformance/{TYPES[run.type].rpartition('/')[2]}/group"
    world, stream = await run.start(**{run.type: f"{group}/alpha=1 {group}/inner/beta=1 beta=1"})
    await stream.ask(run.type, f"{group}/*")
    await stream.gets(run.type, f"{group}/alpha is not sent", lambda got: f"{group}/alpha" in got.resources)
    await world.add(run.type, f"{group}/gamma")
    await stream.gets(run.type, f"{group}/gamma is not sent", lambda got: f"{group}/gamma" in got.resources)
    if extra := {*stream.since(0, run.type)} - {f"{group}/alpha", f"{group}/gamma"}:
        raise CheckError(f"not members, but sent: {', '.join(sorted(extra))}")
