"""Checks of TTLs, fields, services and streams: R44 to R60."""

from __future__ import annotations

import asyncio

import grpc
import grpc.aio

from xds.conformance import sources
from xds.conformance.rules import ADS, DELTA, PER_TYPE, SOTW, Level, Run, check
from xds.conformance.wire import NotApplicableError, Variant, connect, decode, path_of
from xds.conformance.world import TYPES, AdapterError, CheckError
from xds.server.services import SERVICES
from xds.testing import Request

ALL = ("CDS", "EDS", "LDS", "RDS")
MIB = 1024 * 1024
GRPC_LIMIT = 4 * MIB
"""Largest message that gRPC accepts by default, in bytes."""
NAME_LENGTH = 200
CHANGES = 8
"""Number of large changes while a client does not read, which exceed the buffers of its connection."""
TTL = 1.0
WITH_TTL = ("xds.config.supports-resource-ttl",)
"""Features of a client that understands TTLs."""
UNKNOWN_FIELD = b"\xca\x3e\x01x"
"""Field 1001 with the text "x"."""


@check("R44", on=DELTA, level=Level.ROBUSTNESS)
async def ttl_is_sent_and_renewed(run: Run) -> None:
    """A client that supports TTLs gets the TTL of a resource, and it is renewed before it ends."""
    world = await run.world()
    world.ttl["alpha"] = TTL
    await world.set(CDS="alpha=1")
    stream = run.stream(world, features=WITH_TTL)
    await stream.ask("CDS", "alpha", sees="alpha=1")
    if (ttl := stream.responses[-1].ttls.get("alpha")) != TTL:
        raise CheckError(f"alpha is sent with the TTL {ttl} instead of {TTL}" if ttl else "alpha has no TTL")
    version = stream.responses[-1].versions["alpha"]
    renewal = await stream.gets("CDS", "alpha is not renewed", lambda response: "alpha" in response.ttls)
    if renewal.versions["alpha"] != version:
        raise CheckError(f"alpha is renewed with another version: {renewal.versions['alpha']}")


@check("R44", on=DELTA, source=sources.REMOVED_TTL)
async def removed_ttl_is_reported(run: Run) -> None:
    """When the TTL of a resource is removed, the resource is sent again without it."""
    world = await run.world()
    world.ttl["alpha"] = TTL
    await world.set(CDS="alpha=1")
    stream = run.stream(world, features=WITH_TTL)
    await stream.ask("CDS", "alpha", sees="alpha=1")
    if "alpha" not in stream.responses[-1].ttls:
        raise NotApplicableError("the server sends no TTL")
    del world.ttl["alpha"]
    await world.set(CDS="alpha=1")
    await stream.gets(
        "CDS", "alpha is not sent without a TTL", lambda got: "alpha" in {*got.versions} - {*got.ttls}
    )


@check("R44", on=SOTW, level=Level.SPEC_SHOULD, source=sources.WRAPPER)
async def ttl_is_not_sent_to_other_clients(run: Run) -> None:
    """A client without the feature xds.config.supports-resource-in-sotw gets no wrapped resources."""
    world = await run.world()
    world.ttl["alpha"] = TTL
    await world.set(CDS="alpha=1")
    stream = run.stream(world)
    await stream.ask("CDS", "alpha", sees="alpha=1")
    if stream.responses[-1].wrapped:
        raise CheckError("alpha is sent inside envoy.service.discovery.v3.Resource")


@check("R46", level=Level.ROBUSTNESS)
async def control_plane_is_set(run: Run) -> None:
    """Responses contain the version of the type and the identifier of the control plane."""
    _, stream = await run.start(CDS="alpha=1")
    await stream.ask("CDS", sees="alpha=1")
    response = stream.responses[-1]
    if not response.version:
        raise CheckError("the version is empty")
    if not response.identifier:
        raise CheckError("control_plane.identifier is empty")


@check("R47", level=Level.ROBUSTNESS)
async def unknown_field_is_ignored(run: Run) -> None:
    """A request with a field that no version of the protocol has gets its resources."""
    _, stream = await run.start(RDS="alpha=1")
    await stream.ask("RDS", "alpha", more=UNKNOWN_FIELD, sees="alpha=1")


@check("R49", on=(Variant.SOTW,), types=ALL, level=Level.ROBUSTNESS)
async def fetch_is_supported(run: Run) -> None:
    """The unary method of a type's service returns the named resources."""
    world = await run.world(**{run.type: "alpha=1"})
    name = world.real(run.type, "alpha")
    request = Request(type_url=TYPES[run.type], names=(name,))
    path = path_of(run.type, run.variant).replace("/Stream", "/Fetch")
    run.conversation.append(f"->   {path} names={name} node={world.node}")
    try:
        message = request.encode(run.variant.protocol, {"id": world.node})
        data = await run.channel.unary_unary(path)(message, timeout=run.timeout)
    except grpc.aio.AioRpcError as error:
        if error.code() is grpc.StatusCode.UNIMPLEMENTED:
            raise NotApplicableError("the server does not implement Fetch") from None
        raise CheckError(f"{error.code().name}: {error.details()}") from None
    response = decode(data, delta=False)
    run.conversation.append(f"<-   {len(response.resources)} resources")
    if len(response.resources) != 1:
        raise CheckError(f"{len(response.resources)} resources instead of one")


@check("R50", level=Level.ROBUSTNESS)
async def services_are_served(run: Run) -> None:
    """The method of each discovery service is implemented."""
    missing = []
    for name, service in SERVICES.items():
        method = service.delta if run.variant in DELTA else service.stream
        if not method or bool(service.type_url) == (run.variant in ADS):
            continue
        call = run.channel.stream_stream(f"/{name}/{method}")()
        await call.done_writing()
        code = await asyncio.wait_for(call.code(), run.timeout)
        run.conversation.append(f"<-   {name}/{method}: {code.name}")
        if code is grpc.StatusCode.UNIMPLEMENTED:
            missing.append(name.rpartition(".")[2])
    if missing:
        raise CheckError(f"not implemented: {', '.join(missing)}")


@check(
    "R51",
    on=PER_TYPE,
    level=Level.CLIENT_DEPENDENT,
    source=sources.OWN_STREAMS,
    breaks="without ADS, Envoy can open a stream for each assignment and route, and gets only some of them",
)
@check("R51", on=ADS, level=Level.ROBUSTNESS)
async def streams_are_independent(run: Run) -> None:
    """Two streams of a node have their own subscriptions, and one goes on when the other rejects and ends."""
    world, first = await run.start(RDS="alpha=1 beta=1")
    second = run.stream(world)
    await first.ask("RDS", "alpha", sees="alpha=1")
    second.held.add("RDS")
    await second.ask("RDS", "beta", sees="beta=1")
    await second.nack("RDS")
    second.held.clear()
    await world.set(RDS="alpha=2 beta=2")
    await first.sees("RDS", "alpha=2")
    await second.sees("RDS", "beta=2")
    await second.close()
    await world.set(RDS="alpha=3 beta=3")
    await first.sees("RDS", "alpha=3")


@check("R52", level=Level.ROBUSTNESS)
async def slow_client_delays_no_other(run: Run) -> None:
    """While a client does not read, another one gets each change. Then the first gets the last state."""
    world = await run.world()
    world.padding = MIB
    await world.set(CDS="alpha=0")
    fast = run.stream(world)
    await fast.ask("CDS", "alpha", sees="alpha=0")
    async with connect(run.target, run.credentials) as own_connection:
        slow = run.stream(world, own_connection)
        await slow.ask("CDS", "alpha", sees="alpha=0")
        slow.reading.clear()
        for content in range(1, CHANGES + 1):
            await world.set(CDS=f"alpha={content}")
            await fast.sees("CDS", f"alpha={content}")
        slow.reading.set()
        await slow.sees("CDS", f"alpha={CHANGES}")
        await slow.close()


@check("R53", types=("CDS", "RDS"), level=Level.ROBUSTNESS)
async def late_ack_gets_the_last_state(run: Run) -> None:
    """A client that sends its ACKs late gets the last state."""
    world, stream = await run.start(**{run.type: "alpha=1"})
    stream.held.add(run.type)
    await stream.ask(run.type, "alpha", sees="alpha=1")
    await world.set(**{run.type: "alpha=2"})
    await world.set(**{run.type: "alpha=3"})
    await stream.settle(run.type)
    stream.held.clear()
    await stream.ack(run.type)
    if stream.view[run.type] != {"alpha": "3"}:
        await stream.sees(run.type, "alpha=3")


@check("R56", level=Level.ROBUSTNESS, alone=True)
async def many_streams_share_a_connection(run: Run) -> None:
    """Sixteen streams on one connection all get responses."""
    world = await run.world(RDS="alpha=1")
    streams = [run.stream(world) for _ in range(16)]
    for stream in streams:
        await stream.ask("RDS", "alpha")
    for stream in streams:
        await stream.sees("RDS", "alpha=1")


@check("R57", level=Level.ROBUSTNESS, alone=True)
async def large_request_is_accepted(run: Run) -> None:
    """A request of 5 MiB is accepted: clients report every resource when they reconnect."""
    _, stream = await run.start(RDS="alpha=1")
    many = {f"{number:0{NAME_LENGTH}}": "1" for number in range(5 * MIB // NAME_LENGTH)}
    if run.variant in DELTA:
        await stream.ask("RDS", "alpha", initial=many)
    else:
        await stream.request("RDS", names=("alpha", *many))
        stream.names["RDS"] = ["alpha"]
    await stream.sees("RDS", "alpha=1")


@check("R58", on=DELTA, types=("CDS", "RDS"), level=Level.ROBUSTNESS)
@check("R58", on=SOTW, types=("EDS", "RDS"), level=Level.ROBUSTNESS)
async def large_response_is_split(run: Run) -> None:
    """Resources of 5 MiB are sent in responses below 4 MiB, the limit of gRPC clients."""
    world = await run.world()
    world.padding = MIB
    names = ("alpha", "beta", "gamma", "delta", "epsilon")
    try:
        await world.set(**{run.type: " ".join(f"{name}=1" for name in names)})
    except AdapterError as error:
        if "RESOURCE_EXHAUSTED" in str(error):
            raise NotApplicableError("the adapter does not accept a message of 5 MiB") from None
        raise
    stream = run.stream(world)
    await stream.ask(run.type, *names)
    await stream.sees(run.type, " ".join(f"{name}=1" for name in names))
    if (size := max(response.size for response in stream.responses)) > GRPC_LIMIT:
        raise CheckError(f"a response has {size / MIB:.1f} MiB")


@check("R59", types=("CDS", "RDS"), level=Level.ROBUSTNESS)
async def unknown_client_stays_connected(run: Run) -> None:
    """A client that the server does not know yet gets its resources once the server knows it."""
    world = await run.world()
    stream = run.stream(world)
    await stream.ask(run.type, "alpha")
    await stream.settle(run.type)
    if stream.view[run.type]:
        raise CheckError("an unknown node gets resources")
    await world.set(**{run.type: "alpha=1"})
    await stream.sees(run.type, "alpha=1")


@check("R60", level=Level.ROBUSTNESS)
async def malformed_request_ends_its_own_stream(run: Run) -> None:
    """A request that is no message ends its stream with an error. Other streams of the connection go on."""
    world, good = await run.start(RDS="alpha=1 beta=1")
    await good.ask("RDS", "alpha", sees="alpha=1")
    bad = run.stream(world)
    await bad.send("RDS", b"\xff\xff\xff\xff", "bytes that are no message: ff ff ff ff")
    if await bad.ends() is grpc.StatusCode.OK:
        raise CheckError("the stream ended with OK")
    await good.ask("RDS", "beta", sees="alpha=1 beta=1")
