"""Checks of streams, requests, ACKs and NACKs: R1 to R15."""

from __future__ import annotations

from xds.conformance import sources
from xds.conformance.rules import ADS, DELTA, PER_TYPE, SOTW, Level, Run, check
from xds.conformance.wire import NotApplicableError, Variant
from xds.conformance.world import FULL, TYPES, CheckError

LOOP = "Envoy and gRPC answer each response at once, so the two exchange messages in a loop without a pause"
UNKNOWN = "type.googleapis.com/xds.conformance.v1.Unknown"


@check("R1", level=Level.ROBUSTNESS, source=sources.SAME_NODE)
async def other_node_is_ignored(run: Run) -> None:
    """A later request with another node does not change what the stream gets."""
    _, stream = await run.start(RDS="alpha=1 beta=1")
    other = await run.world(RDS="alpha=2 beta=2")
    await stream.ask("RDS", "alpha", sees="alpha=1")
    await stream.ask("RDS", "beta", node=other.node, sees="alpha=1 beta=1")


@check("R1")
async def node_is_kept(run: Run) -> None:
    """A later request without a node gets the resources of the first request's node."""
    _, stream = await run.start(RDS="alpha=1 beta=1")
    stream.held.add("RDS")
    await stream.ask("RDS", "alpha", sees="alpha=1")
    await stream.ack("RDS", node="")
    await stream.ask("RDS", "beta", node="", sees="alpha=1 beta=1")


@check("R2", on=(Variant.SOTW,))
@check("R2", on=(Variant.DELTA,), level=Level.ROBUSTNESS)
async def type_is_implied(run: Run) -> None:
    """A request without a type on a per-type stream is for the stream's type."""
    _, stream = await run.start(CDS="alpha=1")
    await stream.ask("CDS", type_url="", sees="alpha=1")


@check("R2", on=PER_TYPE, level=Level.ROBUSTNESS)
async def other_type_is_rejected(run: Run) -> None:
    """A request for another type on a per-type stream is not answered."""
    _, stream = await run.start(CDS="alpha=1", RDS="alpha=1")
    await stream.request("CDS", subscribe=("alpha",), names=("alpha",), type_url=TYPES["RDS"])
    await stream.refused()


@check("R2", on=ADS, level=Level.ROBUSTNESS)
async def ads_requires_a_type(run: Run) -> None:
    """A request without a type on an ADS stream is not answered."""
    _, stream = await run.start(CDS="alpha=1")
    await stream.request("CDS", subscribe=("alpha",), names=("alpha",), type_url="")
    await stream.refused()


@check("R3", on=ADS, level=Level.ROBUSTNESS)
async def unsupported_type_is_ignored(run: Run) -> None:
    """A request for an unsupported type gets no response, and the stream goes on."""
    _, stream = await run.start(CDS="alpha=1")
    await stream.ask(UNKNOWN, "alpha")
    await stream.ask("CDS", sees="alpha=1")
    await stream.nothing(UNKNOWN, probe=False)


@check("R4", on=SOTW, source=sources.SOTW_NONCE)
@check("R4", on=DELTA)
async def nonces_are_unique(run: Run) -> None:
    """No two responses of a type have the same nonce, and no nonce is empty."""
    world, stream = await run.start(CDS="alpha=1")
    await stream.ask("CDS", sees="alpha=1")
    for content in "234":
        await world.set(CDS=f"alpha={content}")
        await stream.sees("CDS", f"alpha={content}")
    nonces = [response.nonce for response in stream.responses]
    if "" in nonces or len(nonces) != len({*nonces}):
        raise CheckError(f"nonces are not unique: {', '.join(map(repr, nonces))}")


@check("R5", level=Level.SPEC_SHOULD)
async def equal_content_has_equal_versions(run: Run) -> None:
    """Streams and nodes with equal content get equal versions; other content has another version."""
    world, first = await run.start(RDS="alpha=1")
    for stream in (first, run.stream(world), run.stream(await run.world(RDS="alpha=1"))):
        await stream.ask("RDS", "alpha", sees="alpha=1")
    await world.set(RDS="alpha=2")
    await first.sees("RDS", "alpha=2")

    def version(index: int, position: int) -> str:
        response = run.streams[index].responses[position]
        return response.versions["alpha"] if run.variant in DELTA else response.version

    versions = [version(index, 0) for index in range(3)]
    if version(0, -1) == world.version("RDS"):
        raise NotApplicableError("the server uses the versions that the adapter got")
    if len({*versions}) > 1:
        raise CheckError(f"equal content has the versions {', '.join(versions)}")
    if version(0, -1) == versions[0]:
        raise CheckError(f"changed content has the same version {versions[0]}")


@check("R6", on=SOTW, level=Level.SPEC_SHOULD)
async def stale_request_is_ignored(run: Run) -> None:
    """A request with the nonce of an older response does not change the subscription."""
    world, stream = await run.start(RDS="alpha=1 beta=1 gamma=1")
    await stream.ask("RDS", "alpha", sees="alpha=1")
    stale = stream.responses[-1].nonce
    stream.held.add("RDS")
    await world.set(RDS="alpha=2 beta=1 gamma=1")
    await stream.sees("RDS", "alpha=2")
    await stream.request("RDS", names=("alpha", "beta"), nonce=stale)
    await stream.nothing("RDS", probe=False)
    stream.held.clear()
    await stream.ack("RDS")
    await stream.ask("RDS", "gamma", sees="alpha=2 gamma=1")
    if "beta" in stream.since(0, "RDS"):
        raise CheckError("beta is sent, which only a stale request named")


@check("R7", on=SOTW, types=("CDS", "RDS"), level=Level.ROBUSTNESS)
async def first_request_is_never_stale(run: Run) -> None:
    """The first request of a stream gets a response, even if a client wrongly repeats an old nonce."""
    _, stream = await run.start(**{run.type: "alpha=1"})
    await stream.ask(run.type, "alpha", nonce="nonce-of-an-earlier-stream", sees="alpha=1")


@check("R8", on=DELTA)
async def stale_subscription_applies(run: Run) -> None:
    """A subscription applies, even if its request answers an older response."""
    world, stream = await run.start(RDS="alpha=1 beta=1")
    await stream.ask("RDS", "alpha", sees="alpha=1")
    stale = stream.responses[-1].nonce
    stream.held.add("RDS")
    await world.set(RDS="alpha=2 beta=1")
    await stream.sees("RDS", "alpha=2")
    await stream.ask("RDS", "beta", nonce=stale, sees="alpha=2 beta=1")


@check("R10", on=SOTW, types=("EDS", "RDS"), level=Level.SPEC_SHOULD)
async def version_makes_no_nack(run: Run) -> None:
    """After a NACK, a request with a new name and no error_detail gets a response, whatever its version."""
    _, stream = await run.start(**{run.type: "alpha=1 beta=1"})
    stream.held.add(run.type)
    await stream.ask(run.type, "alpha", sees="alpha=1")
    await stream.nack(run.type)
    await stream.settle(run.type)
    if stream.has_unseen(run.type):
        raise NotApplicableError("the server sends the rejected response again: see R12")
    await stream.ask(run.type, "beta", sees="alpha=1 beta=1")


@check("R11", on=SOTW, types=("CDS", "RDS"))
@check("R11", on=DELTA, types=("CDS", "RDS"), source=sources.ANY_REQUEST)
async def ack_changes_the_subscription(run: Run) -> None:
    """A name that is added in an ACK gets a response."""
    _, stream = await run.start(**{run.type: "alpha=1 beta=1"})
    stream.held.add(run.type)
    await stream.ask(run.type, "alpha", sees="alpha=1")
    await stream.ack(run.type, "beta")
    await stream.sees(run.type, "alpha=1 beta=1")


@check("R11", on=SOTW)
@check("R11", on=DELTA, source=sources.ANY_REQUEST)
async def nack_changes_the_subscription(run: Run) -> None:
    """A name that is added in a NACK gets a response."""
    _, stream = await run.start(RDS="alpha=1 beta=1")
    stream.held.add("RDS")
    await stream.ask("RDS", "alpha", sees="alpha=1")
    await stream.nack("RDS", "beta")
    await stream.sees("RDS", "alpha=1 beta=1")


@check("R12", types=("CDS", "RDS"), level=Level.CLIENT_DEPENDENT, breaks=LOOP)
async def rejected_resource_is_not_sent_again(run: Run) -> None:
    """A rejected response is not sent again."""
    _, stream = await run.subscribed(hold=True)
    await stream.nack(run.type)
    await stream.nothing(run.type)


@check("R12", types=("CDS", "RDS"), level=Level.CLIENT_DEPENDENT, breaks=LOOP)
async def rejected_change_is_not_sent_again(run: Run) -> None:
    """A response that is rejected after an earlier one was accepted is not sent again."""
    world, stream = await run.subscribed()
    stream.held.add(run.type)
    await world.add(run.type, "alpha", "2")
    await stream.sees(run.type, "alpha=2")
    await stream.nack(run.type)
    await stream.nothing(run.type)


@check("R12", types=("CDS", "RDS"), source=sources.ALL_UPDATES)
async def changed_resource_is_sent_after_a_nack(run: Run) -> None:
    """A rejected resource is sent when it changes."""
    world, stream = await run.start(**{run.type: "alpha=1"})
    stream.held.add(run.type)
    await stream.ask(run.type, "alpha", sees="alpha=1")
    await stream.nack(run.type)
    stream.held.clear()  # A server that sends it again waits for an answer.
    await world.set(**{run.type: "alpha=2"})
    await stream.sees(run.type, "alpha=2")


@check("R13", on=DELTA, types=("CDS", "RDS"), level=Level.ROBUSTNESS)
async def nack_of_an_older_response_gets_none(run: Run) -> None:
    """A client that rejects a response after it got the next one, and ACKs that, gets no response."""
    world, stream = await run.start(**{run.type: "alpha=1 beta=1"})
    stream.held.add(run.type)
    await stream.ask(run.type, "alpha", sees="alpha=1")
    first = stream.responses[-1].nonce
    await world.set(**{run.type: "alpha=2 beta=1"})
    await stream.settle(run.type)
    if stream.view[run.type]["alpha"] != "2":
        raise NotApplicableError("the server waits for the ACK before it sends the next response")
    await stream.sees(run.type, "alpha=2")
    await stream.request(run.type, nonce=first, error="rejected by a test")
    await stream.ack(run.type)
    await stream.nothing(run.type)


@check("R14", types=("EDS", "RDS"), level=Level.SPEC_SHOULD)
async def change_of_another_resource_is_not_sent(run: Run) -> None:
    """A change of a resource that the client did not request gets no response."""
    world, stream = await run.start(**{run.type: "alpha=1 beta=1 gamma=1"})
    await stream.ask(run.type, "alpha", sees="alpha=1")
    await world.set(**{run.type: "alpha=1 beta=2 gamma=1"})
    await stream.nothing(run.type)


@check("R14", types=("CDS", "RDS"), level=Level.SPEC_SHOULD)
async def equal_state_is_not_sent(run: Run) -> None:
    """Setting the same resources again gets no response."""
    world, stream = await run.subscribed()
    await world.add(run.type, "alpha", "1")
    await stream.nothing(run.type)


@check("R15", types=("CDS", "EDS", "LDS", "RDS"), level=Level.CLIENT_DEPENDENT, breaks=LOOP)
async def ack_gets_no_response(run: Run) -> None:
    """An ACK gets no response."""
    _, stream = await run.subscribed()
    await stream.nothing(run.type)


@check("R15", types=FULL, level=Level.SPEC_SHOULD)
async def ack_of_an_explicit_wildcard_gets_no_response(run: Run) -> None:
    """An ACK gets no response, if the client subscribes to `*`."""
    _, stream = await run.start(**{run.type: "alpha=1 beta=1"})
    await stream.ask(run.type, "*")
    try:
        await stream.gets(run.type, "no response", lambda _: True)
    except CheckError:
        raise NotApplicableError("the server does not answer a request for *: see R22") from None
    await stream.nothing(run.type, probe=False)
