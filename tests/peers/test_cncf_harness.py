"""State-of-the-world scenarios of the CNCF xds-test-harness, with a client whose codec is not ours.

This file and test_cncf_harness_delta.py have the harness's 18 outlines with their 50 rows, numbered S1 to S9,
U1 to U3 and D1 to D6. Both protocol variants and both services make 98 runs. Scenarios that the harness has
commented out are included: rows of S4, and in D3, that a client learns of missing resources. These tests are
stricter than the harness: no response may contain resources that the client did not request or already has.
The next response proves that; no test waits for silence.
"""

from __future__ import annotations

from tests.peers.adapter import TYPES
from tests.peers.client import NODE
from tests.peers.scenario import DELTA, SOTW, at, over, rows


@over(*SOTW)
@rows("xds resources", ("CDS", "A,B,C"), ("LDS", "D,E,F"))
async def test_s1_wildcard_request_gets_all_in_one_response(client, adapter, xds, resources):
    adapter.set_state(NODE, "1", **{xds: resources})
    await client.subscribe(xds)
    await client.gets(xds, **at("1", resources))
    await client.finish()


@over(*SOTW)
@rows("xds resources r1", ("CDS", "A,B,C", "A"), ("LDS", "D,E,F", "D"))
async def test_s2_update_sends_a_wildcard_client_all(client, adapter, xds, resources, r1):
    adapter.set_state(NODE, "1", **{xds: resources})
    await client.subscribe(xds)
    before = await client.gets(xds, **at("1", resources))
    adapter.update(NODE, TYPES[xds], r1, "2")
    after = await client.gets(xds, **at("1", resources) | {r1: "2"})
    assert before.version != after.version
    await client.finish()


@over(*SOTW)
@rows("xds resources r1", ("CDS", "A,B,C", "D"), ("LDS", "D,E,F", "G"))
async def test_s3_new_resource_reaches_a_wildcard_client(client, adapter, xds, resources, r1):
    adapter.set_state(NODE, "1", **{xds: resources})
    await client.subscribe(xds)
    before = await client.gets(xds, **at("1", resources))
    adapter.add(NODE, TYPES[xds], r1, "2")
    after = await client.gets(xds, **at("1", resources) | {r1: "2"})
    assert before.version != after.version
    await client.finish()


async def s4(client, adapter, xds, resources, subset):
    adapter.set_state(NODE, "1", **{xds: resources})
    await client.subscribe(xds, *subset.split(","))
    await client.gets(xds, **at("1", subset))
    await client.finish()


@over(*SOTW, *DELTA)
@rows("xds resources subset", ("LDS", "G,B,L,D", "L,G"), ("RDS", "B,A", "B,A"))
async def test_s4_client_gets_named_resources(client, adapter, xds, resources, subset):
    await s4(client, adapter, xds, resources, subset)


@over(*SOTW, *DELTA)
@rows("xds resources subset", ("CDS", "A,B,C,D", "B,D"), ("EDS", "A,B", "A,B"))
async def test_s4_with_commented_out_rows(client, adapter, xds, resources, subset):
    await s4(client, adapter, xds, resources, subset)


@over(*SOTW)
@rows("xds resources subset r1", ("CDS", "A,B,C,D", "B,D", "B"), ("LDS", "G,B,L,D", "L,G", "G"))
async def test_s5_update_sends_the_subset_in_one_response(client, adapter, xds, resources, subset, r1):
    adapter.set_state(NODE, "1", **{xds: resources})
    await client.subscribe(xds, *subset.split(","))
    before = await client.gets(xds, **at("1", subset))
    adapter.update(NODE, TYPES[xds], r1, "2")
    after = await client.gets(xds, **at("1", subset) | {r1: "2"})
    assert before.version != after.version
    await client.finish()


@over(*SOTW)
@rows("xds resources subset r1", ("RDS", "A,B,C,D", "B,D", "B"), ("EDS", "A,B,C,D", "B,D", "B"))
async def test_s6_update_sends_the_changed_resource(client, adapter, xds, resources, subset, r1):
    adapter.set_state(NODE, "1", **{xds: resources})
    await client.subscribe(xds, *subset.split(","))
    before = await client.gets(xds, **at("1", subset))
    adapter.update(NODE, TYPES[xds], r1, "2")
    after = await client.gets(xds, **{r1: "2"})
    assert before.version != after.version
    await client.finish()


@over(*SOTW)
@rows(
    "xds resources subset existing r1",
    ("CDS", "A,B,C", "A,Z", "A", "Z"),
    ("LDS", "G,B,D", "B,D,X", "B,D", "X"),
)
async def test_s7_created_resource_sends_the_subset_in_one_response(
    client, adapter, xds, resources, subset, existing, r1
):
    adapter.set_state(NODE, "1", **{xds: resources})
    await client.subscribe(xds, *subset.split(","))
    before = await client.gets(xds, **at("1", existing))
    adapter.add(NODE, TYPES[xds], r1, "2")
    after = await client.gets(xds, **at("1", existing) | {r1: "2"})
    assert before.version != after.version
    await client.finish()


@over(*SOTW)
@rows("xds resources subset existing r1", *((xds, "A,B,C,D", "A,Z", "A", "Z") for xds in ("RDS", "EDS")))
async def test_s8_created_resource_is_sent(client, adapter, xds, resources, subset, existing, r1):
    adapter.set_state(NODE, "1", **{xds: resources})
    await client.subscribe(xds, *subset.split(","))
    before = await client.gets(xds, **at("1", existing))
    adapter.add(NODE, TYPES[xds], r1, "2")
    after = await client.gets(xds, **{r1: "2"})
    assert before.version != after.version
    await client.finish()


@over(SOTW[1])
@rows("xds xds2 resources r1", ("CDS", "LDS", "A,B,C", "B"), ("RDS", "EDS", "A,B,C", "B"))
async def test_s9_one_stream_serves_two_types(client, adapter, xds, xds2, resources, r1):
    adapter.set_state(NODE, "1", **{xds: resources, xds2: resources})
    await client.subscribe(xds, r1)
    before = await client.gets(xds, **{r1: "1"})
    await client.subscribe(xds2, r1)
    await client.gets(xds2, **{r1: "1"})
    adapter.update(NODE, TYPES[xds], r1, "2")
    after = await client.gets(xds, **{r1: "2"})
    assert before.version != after.version
    await client.finish()


async def shrink(client, adapter, xds, resources, subset, r1):
    """Both U1 and U2: U1 would let more pass than what is still subscribed to."""
    adapter.set_state(NODE, "1", **{xds: resources})
    await client.subscribe(xds, *subset.split(","))
    before = await client.gets(xds, **at("1", subset))
    await client.subscribe(xds, r1)
    adapter.update(NODE, TYPES[xds], r1, "2")
    after = await client.gets(xds, **{r1: "2"})
    assert before.version != after.version
    for dropped in set(subset.split(",")) - {r1}:
        adapter.update(NODE, TYPES[xds], dropped, "2")
    await client.finish()


@over(*SOTW)
@rows("xds resources subset r1", ("CDS", "F,A,B,C,D", "C,A,B", "A"), ("LDS", "G,B,L,D", "B,D,L", "B"))
async def test_u1_client_unsubscribes_from_some_resources(client, adapter, xds, resources, subset, r1):
    await shrink(client, adapter, xds, resources, subset, r1)


@over(*SOTW)
@rows("xds resources subset r1", ("RDS", "A,B,C,D", "B,D", "B"), ("EDS", "A,B,C,D", "B,D", "B"))
async def test_u2_unsubscribed_resources_are_not_sent(client, adapter, xds, resources, subset, r1):
    await shrink(client, adapter, xds, resources, subset, r1)


FOUR = rows(
    "xds resources subset r1", *((xds, "A,B,C,D", "A,B", "B") for xds in ("CDS", "RDS", "LDS", "EDS"))
)


@over(*SOTW)
@FOUR
async def test_u3_client_unsubscribes_from_all_resources(client, adapter, xds, resources, subset, r1):
    """It does so with one empty name, which stands for a resource that there is not."""
    adapter.set_state(NODE, "1", **{xds: resources})
    await client.subscribe(xds, *subset.split(","))
    await client.gets(xds, **at("1", subset))
    await client.subscribe(xds, "")
    if xds in {"CDS", "LDS"}:
        await client.gets(xds)  # All that there is of what it names.
    adapter.update(NODE, TYPES[xds], r1, "2")
    await client.finish()


@over(*SOTW)
@FOUR
async def test_u3_with_an_empty_list(client, adapter, xds, resources, subset, r1):
    adapter.set_state(NODE, "1", **{xds: resources})
    await client.subscribe(xds, *subset.split(","))
    await client.gets(xds, **at("1", subset))
    await client.subscribe(xds)
    adapter.update(NODE, TYPES[xds], r1, "2")
    await client.subscribe(xds, "C")
    await client.gets(xds, C="1")
    await client.finish()
