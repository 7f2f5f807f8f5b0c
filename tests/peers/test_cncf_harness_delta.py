"""The delta scenarios of the CNCF xds-test-harness; see test_cncf_harness.py."""

from __future__ import annotations

from tests.peers.adapter import TYPES
from tests.peers.client import NODE
from tests.peers.scenario import DELTA, at, over, rows

FOUR = ("CDS", "LDS", "RDS", "EDS")


@over(*DELTA)
@rows("xds resources r1 r2", ("CDS", "A,B,C", "A", "B"), *((xds, "D,E,F", "D", "E") for xds in FOUR[1:]))
async def test_d1_client_subscribes_one_by_one(client, adapter, xds, resources, r1, r2):
    adapter.set_state(NODE, "1", **{xds: resources})
    await client.subscribe(xds, r1)
    await client.gets(xds, **{r1: "1"})
    await client.subscribe(xds, r2)
    await client.gets(xds, **{r2: "1"})
    await client.finish()


@over(*DELTA)
@rows("xds resources r1", *((xds, "A,B,C", "A") for xds in FOUR))
async def test_d2_update_sends_only_changes(client, adapter, xds, resources, r1):
    adapter.set_state(NODE, "1", **{xds: resources})
    await client.subscribe(xds, *resources.split(","))
    before = await client.gets(xds, **at("1", resources))
    adapter.update(NODE, TYPES[xds], r1, "2")
    after = await client.gets(xds, **{r1: "2"})
    assert before.version != after.version
    assert after.versions[r1] not in before.versions.values()
    await client.finish()


@over(*DELTA)
@rows("xds r1 r2", ("CDS", "A", "B"), *((xds, "D", "E") for xds in FOUR[1:]))
async def test_d3_missing_resource_is_reported_and_sent_once_created(client, adapter, xds, r1, r2):
    adapter.set_state(NODE, "1", **{xds: r1})
    await client.subscribe(xds, r1, r2)
    await client.gets(xds, r2, **{r1: "1"})
    adapter.add(NODE, TYPES[xds], r2, "1")
    await client.gets(xds, **{r2: "1"})
    await client.finish()


@over(*DELTA)
@rows("xds resources r1", ("CDS", "A,B", "B"), *((xds, "D,E", "E") for xds in FOUR[1:]))
async def test_d4_removed_resource_is_reported_and_may_return(client, adapter, xds, resources, r1):
    adapter.set_state(NODE, "1", **{xds: resources})
    await client.subscribe(xds, *resources.split(","))
    before = await client.gets(xds, **at("1", resources))
    adapter.remove(NODE, TYPES[xds], r1)
    await client.gets(xds, r1)
    adapter.add(NODE, TYPES[xds], r1, "2")
    after = await client.gets(xds, **{r1: "2"})
    assert before.version != after.version
    assert after.versions[r1] not in before.versions.values()
    await client.finish()


@over(*DELTA)
@rows("xds resources r1 r2", ("CDS", "A,B", "B", "A"), *((xds, "D,E", "E", "D") for xds in FOUR[1:]))
async def test_d5_client_unsubscribes_one_by_one(client, adapter, xds, resources, r1, r2):
    adapter.set_state(NODE, "1", **{xds: resources})
    await client.subscribe(xds, *resources.split(","))
    await client.gets(xds, **at("1", resources))
    for name in (r1, r2):
        await client.unsubscribe(xds, name)
        adapter.update(NODE, TYPES[xds], name, "2")
        await client.gets_nothing(xds)
    await client.finish()


@over(DELTA[1])
@rows(
    "xds xds2 resources r1",
    *((*pair, "A,B,C", "B") for pair in (("CDS", "LDS"), ("LDS", "CDS"), ("RDS", "EDS"), ("EDS", "RDS"))),
)
async def test_d6_one_stream_serves_two_types(client, adapter, xds, xds2, resources, r1):
    adapter.set_state(NODE, "1", **{xds: resources, xds2: resources})
    await client.subscribe(xds, r1)
    await client.subscribe(xds2, r1)
    responses = [await client.receive(), await client.receive()]
    assert {response.type: response.said for response in responses} == {
        service: (service, {r1: "1"}, frozenset()) for service in (xds, xds2)
    }
    adapter.update(NODE, TYPES[xds], r1, "2")
    await client.gets(xds, **{r1: "2"})
    adapter.update(NODE, TYPES[xds2], r1, "2")
    await client.gets(xds2, **{r1: "2"})
    await client.finish()
