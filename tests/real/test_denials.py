"""Denied requests of real sidecars: `xds observe --denied` names who was denied what, and by which rule."""

from __future__ import annotations

import itertools
import json
import random
import sys
from collections import Counter
from pathlib import Path

import pytest
import pytest_asyncio
import yaml

from tests.support.apps import EchoApp
from tests.support.authorization import authorization_policy, operation, random_policies, source
from tests.support.cluster import Cluster
from tests.support.controlplane import xds
from tests.support.exchange import HTTP1, MTLS, PLAINTEXT, TCP
from tests.support.manifests import Manifest
from tests.support.mesh import Mesh
from tests.support.rows import read_table
from tests.support.tcp import LineApp
from tests.support.waiting import eventually
from xds.mesh.model.objects import DRY_RUN, INTERCEPTION_MODE, TRY
from xds.mesh.policy.authorization import Access, Request, decide, rules_of

pytestmark = [
    pytest.mark.netns,
    pytest.mark.envoy,
    pytest.mark.timeout(300),
    pytest.mark.asyncio(loop_scope="module"),
]

PORTS = {"http": (80, 8080), "tcp": (90, 9000)}
CLIENT, OUTSIDER = "client.apps", "outsider.outside"
WITHIN = 60.0
FLUSHED = "access_logs.grpc_access_log.grpc_entries_flushed"

Row = tuple[str, str, str, str, str, str]
"""Client, mode, service, rule, request and result of a row."""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def mesh(tmp_path_factory):
    """Servers with policies of their own, a client with a sidecar, and one without."""
    with Cluster() as cluster:
        async with Mesh(cluster, tmp_path_factory.mktemp("mesh")) as mesh:
            mesh.pod("client", "apps", account="client")
            mesh.pod("outsider", "outside", sidecar=False, account="cron")
            for namespace in ("deny", "allow", "dry", "deletion", "least", "open", "full"):
                pod = mesh.pod("web", namespace, sotw=namespace == "allow")
                mesh.service("web", namespace, PORTS)
                await mesh.serve(pod, http=(8080,), lines=(9000,))
            none = mesh.pod("web", "none")
            none.place.run(sys.executable, "-m", "xds", "init", "--undo")
            mesh.write_pod(none, annotations={INTERCEPTION_MODE: "NONE"})
            mesh.service("web", "none", PORTS)
            await mesh.enter(EchoApp("web.none", 8080, place=none.place, address="127.0.0.1"))
            await mesh.enter(LineApp("web.none", 9000, place=none.place, address="127.0.0.1"))
            await mesh.start()
            yield mesh


async def under(mesh: Mesh, *objects: Manifest) -> None:
    """Apply exactly these policies."""
    mesh.manifests.write("policies", *objects)
    await mesh.settled()


async def send(mesh: Mesh, namespace: str, *paths: str) -> list[list[str]]:
    """Send requests and a TCP connection from both clients; return the status codes of each.

    The requests claim to come from the other client, and to have another path.
    """
    codes = []
    for client, other in ((CLIENT, OUTSIDER), (OUTSIDER, CLIENT)):
        headers = {"X-Forwarded-For": mesh[other].address, "X-Envoy-Original-Path": "/harmless"}
        urls = [f"http://web.{namespace}{path}" for path in paths]
        codes.append([(await mesh[client].client.get(url, headers=headers)).code for url in urls])
        await mesh.exchange(TCP, client, f"web.{namespace}", 90)
    return codes


async def denied(mesh: Mesh, namespace: str) -> dict[Row, int]:
    """Return the numbers of requests that `xds observe --denied` prints."""
    options = (f"--xds-address={mesh.plane.address}", "--denied", "-n", namespace, "-o", "json")
    answer = json.loads(await xds("observe", *options))
    return {
        (
            f"{edge['client']}.{edge['clientNamespace']}",
            edge["mode"],
            f"{edge['service']}.{edge['namespace']}:{edge['port']}",
            denial["rule"],
            f"{denial['method']} {denial['path']}".strip(),
            "would be denied" if denial["dryRun"] else "denied",
        ): int(edge["requestsPerDay"])
        for edge in answer["edges"]
        for denial in [edge["denial"]]
    }


async def reports(mesh: Mesh, namespace: str, expected: dict[Row, int]) -> None:
    """Wait until exactly these rows are reported."""
    found: dict[Row, int] = {}

    async def are_reported() -> bool:
        nonlocal found
        found = await denied(mesh, namespace)
        return found == expected

    try:
        await eventually(are_reported, timeout=WITHIN, every=0.5)
    except AssertionError:
        assert found == expected
        raise


def rows(service: str, *each: tuple[str, str, str]) -> dict[Row, int]:
    """Return one row of each client for each (rule, request, result)."""
    return {
        (client, mode, f"{service}:{80 if request else 90}", rule, request, result): 1
        for rule, request, result in each
        for client, mode in (("client.apps", "MTLS"), ("cron.outside", "PLAINTEXT"))
    }


async def test_requests_that_a_rule_denies_are_reported(mesh):
    """The application's own 403, and what is allowed, are not."""
    admin = operation(paths=["/admin*"])
    await under(
        mesh,
        authorization_policy("deny", admin, name="no-admin", action="DENY"),
        authorization_policy("deny", operation(ports=["9000"]), name="no-tcp", action="DENY"),
    )
    paths = ("/", "/forbidden", "/admin/users/42?token=secret")
    assert await send(mesh, "deny", *paths) == [["200", "403", "403"]] * 2
    # On a port that is not HTTP, the rule with paths denies everything.
    await reports(
        mesh,
        "deny",
        rows(
            "web.deny",
            ("ns[deny]-policy[no-admin]-rule[0]", "GET /admin/users/*", "denied"),
            ("ns[deny]-policy[no-admin]-rule[0]", "", "denied"),
        ),
    )
    explained = await xds("explain", f"--xds-address={mesh.plane.address}", CLIENT, "web.deny:80")
    assert (
        "denied GET /admin/users/*, by ns[deny]-policy[no-admin]-rule[0]: 1/day from apps/client" in explained
    )
    observe = ("observe", f"--xds-address={mesh.plane.address}", "--denied", "-n")
    assert "no denied traffic was reported in the last " in await xds(*observe, "nowhere")
    found, _ = read_table(await xds(*observe, "deny", "-o", "wide"))
    assert {(row["CLIENT"], row["MODE"], row["REQUEST"]) for row in found} == {
        (client, mode, request)
        for client, mode in (("apps/client", "mtls"), ("outside/cron", "plaintext"))
        for request in ("GET /admin/users/*", "-")
    }
    text = await xds(*observe, "deny")
    assert "apps/client   web.deny:80  mtls       denied  GET /admin/users/*  1" in text
    assert "secret" not in text
    metric = 'xds_denied_requests_total{dry_run="false",namespace="deny"} 4.0'
    assert metric in await mesh.plane.metrics()


@pytest.mark.parametrize("namespace", ["allow", "none"])
async def test_requests_that_no_rule_allows_are_reported(mesh, namespace):
    await under(mesh, authorization_policy(namespace, source(namespaces=["nobody"])))
    assert await send(mesh, namespace, "/info") == [["403"]] * 2
    denied_rows = rows(f"web.{namespace}", ("", "GET /info", "denied"), ("", "", "denied"))
    await reports(mesh, namespace, denied_rows)


async def test_dry_run_is_judged_together_with_the_other_policies(mesh):
    """Each of the two ALLOW policies alone would deny what the other one allows."""
    await under(
        mesh,
        authorization_policy("dry", operation(paths=["/another"]), name="another"),
        authorization_policy("dry", operation(paths=["/allow"]), name="allow", dry_run=True),
        authorization_policy("dry", operation(ports=["9000"]), name="tcp"),
        authorization_policy(
            "dry",
            operation(paths=["/another"], methods=["POST"]),
            name="no-post",
            action="DENY",
            dry_run=True,
        ),
    )
    assert await send(mesh, "dry", "/another", "/allow") == [["200", "403"]] * 2
    for client in (CLIENT, OUTSIDER):
        assert (await mesh[client].client.get("http://web.dry/another", method="POST")).ok
    rule = "ns[dry]-policy[no-post]-rule[0]"
    await reports(
        mesh,
        "dry",
        rows(
            "web.dry",
            ("", "GET /allow", "denied"),
            (rule, "POST /another", "would be denied"),
            (rule, "", "would be denied"),
        ),
    )
    text = await xds("observe", f"--xds-address={mesh.plane.address}", "--denied", "-n", "dry")
    assert "would be denied" in text


async def test_deletion_of_a_policy_is_tried(mesh):
    await under(
        mesh,
        authorization_policy("deletion", operation(paths=["/another"]), name="another"),
        authorization_policy("deletion", operation(paths=["/allow"]), name="allow", tries_deletion=True),
        authorization_policy("deletion", operation(ports=["9000"]), name="tcp"),
    )
    assert await send(mesh, "deletion", "/another", "/allow") == [["200", "200"]] * 2
    await reports(mesh, "deletion", rows("web.deletion", ("", "GET /allow", "would be denied")))


async def test_allowed_mutual_tls_sends_nothing(mesh):
    await under(mesh, authorization_policy("allow", source(namespaces=["apps"])))
    admin = mesh.sidecar(mesh["web.allow"]).admin
    before = await admin.stat(FLUSHED)
    expected = await denied(mesh, "allow")
    for _ in range(5):
        assert (await mesh[CLIENT].client.get("http://web.allow/")).ok
    assert (await mesh[OUTSIDER].client.get("http://web.allow/last")).code == "403"
    await reports(
        mesh,
        "allow",
        expected | {("cron.outside", "PLAINTEXT", "web.allow:80", "", "GET /last", "denied"): 1},
    )
    # The denied plaintext request is in the log of plaintext as well, which does not count it.
    assert await admin.stat(FLUSHED) <= before + 2
    options = (f"--xds-address={mesh.plane.address}", "-n", "allow", "--plaintext", "-o", "json")
    edges = json.loads(await xds("observe", *options))["edges"]
    # A TCP connection is plaintext traffic before its first bytes are denied.
    assert [(edge["client"], edge["port"], edge["requestsPerDay"]) for edge in edges] == [("cron", 90, "1")]


async def recorded(mesh: Mesh, file: Path) -> Path:
    """Record that the client calls a workload with mutual TLS, and the outsider another one in plaintext."""

    async def is_recorded() -> bool:
        # Envoy counts the requests of a new cluster from its next report on.
        assert (await mesh[CLIENT].client.get("http://web.least/")).ok
        assert (await mesh[OUTSIDER].client.get("http://web.open/")).ok
        file.write_text(await xds("observe", f"--xds-address={mesh.plane.address}", "-o", "json"))
        edges = json.loads(file.read_text())["edges"]
        return {("least", "MTLS"), ("open", "PLAINTEXT")} <= {
            (edge["namespace"], edge["mode"]) for edge in edges if edge["port"] == 80
        }

    await eventually(is_recorded, timeout=WITHIN, every=0.5)
    return file


async def test_generated_policies_allow_what_was_recorded_and_nothing_else(mesh, tmp_path):
    await under(mesh)
    record = await recorded(mesh, tmp_path / "traffic.json")
    text = await xds(
        "generate", "--manifests", mesh.manifests.directory, "--record", record, "-n", "least", "-n", "open"
    )
    await under(mesh, *yaml.safe_load_all(text))
    assert await send(mesh, "least", "/") == [["200"], ["403"]]
    assert await send(mesh, "open", "/") == [["200"], ["200"]]
    for namespace in ("least", "open"):
        assert (await mesh.exchange(TCP, CLIENT, f"web.{namespace}", 90)).how == "fails"


async def test_generated_sidecar_shows_what_was_recorded_and_nothing_else(mesh, tmp_path):
    """The client has not called the workload in the namespace `full` yet."""
    await under(mesh)
    record = await recorded(mesh, tmp_path / "traffic.json")
    text = await xds(
        "generate", "--manifests", mesh.manifests.directory, "--record", record, "--kind", "Sidecar"
    )
    (sidecar,) = (each for each in yaml.safe_load_all(text) if each["metadata"]["namespace"] == "apps")
    await under(mesh, sidecar)
    assert (await mesh.exchange(HTTP1, CLIENT, "web.least", 80)).how == MTLS
    assert (await mesh.exchange(HTTP1, CLIENT, "web.full", 80)).how == PLAINTEXT


# --- random policies ----------------------------------------------------------------------------------------

PATHS = {"/": "/", "/info/x": "/info/x", "/admin/a": "/admin/a", "/admin/b/a": "/admin/b/*", "": ""}
"""Paths of requests, and what is reported of them. The empty one is a TCP connection."""
SETS, PER_SET = 12, 4


async def test_random_policies_deny_as_decided(mesh):
    """Enforced and tried policies: what sidecars report is what is decided."""
    chance = random.Random(7)
    clients = [mesh[CLIENT], mesh[OUTSIDER]]
    server = mesh["web.full"]
    expected: Counter[Row] = Counter()
    for _ in range(SETS):
        policies = random_policies(chance, [pod.address for pod in (*clients, server)])
        for policy in policies:
            if policy["spec"]["action"] in ("ALLOW", "DENY") and chance.random() < 0.7:
                annotation = chance.choice([(DRY_RUN, "true"), (DRY_RUN, "true"), (TRY, "delete")])
                policy["metadata"]["annotations"] = dict([annotation])
        await under(mesh, *policies)
        facts = mesh.facts()
        pod = facts.pod_at(server.address)
        for method, path in chance.sample([*itertools.product(("GET", "POST"), PATHS)], PER_SET):
            for client in clients:
                who = facts.pod_at(client.address)
                request = Request(
                    identity=who.identity("cluster.local") if who.has_sidecar else "",
                    source_ip=client.address,
                    remote_ip=client.address,
                    destination_ip=server.address,
                    port=8080 if path else 9000,
                    host="web.full" if path else "",
                    method=method if path else "",
                    path=path,
                    headers={},
                )
                rules = rules_of(facts, pod, http=bool(path))
                for judged, result in ((rules, "denied"), (rules.proposed, "would be denied")):
                    verdict = judged and decide(facts.config, judged, request)
                    if verdict and verdict.access is Access.DENIED:
                        expected[
                            f"{who.service_account}.{who.namespace}",
                            "MTLS" if who.has_sidecar else "PLAINTEXT",
                            f"web.full:{80 if path else 90}",
                            verdict.rules[0].name if verdict.rules else "",
                            f"{method} {PATHS[path]}" if path else "",
                            result,
                        ] += 1
                        break
                if path:
                    await client.client.get(f"http://web.full{path}", method=method)
                else:
                    await mesh.exchange(TCP, client, "web.full", 90)
    assert {row[-1] for row in expected} == {"denied", "would be denied"}
    await reports(mesh, "full", dict(expected))
