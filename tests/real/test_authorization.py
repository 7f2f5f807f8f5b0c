"""AuthorizationPolicies in real sidecars: who may call, on HTTP and TCP ports, in each mode."""

from __future__ import annotations

import itertools
import random
import sys

import pytest
import pytest_asyncio

from tests.support.apps import EchoApp
from tests.support.authorization import (
    Call,
    authorization_policy,
    is_allowed,
    operation,
    random_policies,
    source,
    when,
)
from tests.support.clients import ask
from tests.support.cluster import Cluster, ClusterPod
from tests.support.exchange import FAILS, HTTP1, HTTP2, MTLS, PLAINTEXT, TCP
from tests.support.load import Load
from tests.support.manifests import Manifest, peer_authentication, policy
from tests.support.mesh import Mesh
from tests.support.predictions import predict
from tests.support.tcp import LineApp
from tests.support.waiting import eventually
from xds.mesh.model.objects import INTERCEPTION_MODE
from xds.mesh.policy.authorization import Access, Request, decide, rules_of
from xds.mesh.policy.reach import Result

pytestmark = [pytest.mark.netns, pytest.mark.envoy, pytest.mark.asyncio(loop_scope="module")]

PORTS = {"http-web": (80, 8080), "tcp-lines": (90, 9000), "web": (83, 8083), "lines": (93, 9003)}
WAYS = [(HTTP1, 80), (HTTP2, 80), (HTTP1, 83), (TCP, 90), (TCP, 93)]
WEB, CLIENT, OTHER, SA, OUTSIDER = "web.full", "client.apps", "other.apps", "c.sa", "outsider.outside"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def mesh(tmp_path_factory):
    """A server, two clients of different service accounts and one without a sidecar. Tests add policies."""
    with Cluster() as cluster:
        async with Mesh(cluster, tmp_path_factory.mktemp("mesh")) as mesh:
            mesh.pod("client", "apps", account="client")
            mesh.pod("other", "apps", account="other", sotw=True)
            mesh.pod("c", "sa", account="ns")
            mesh.pod("outsider", "outside", sidecar=False)
            mesh.pod("dual", "apps", account="client", families=(4, 6))
            pod = mesh.pod("web", "full")
            mesh.service("web", "full", PORTS)
            await mesh.serve(pod, http=(8080, 8083, 7000), lines=(9000, 9003))
            for name, namespace, families in (("web", "apart", (4,)), ("six", "ipv6", (6,))):
                pod = mesh.pod(name, namespace, sotw=True, families=families)
                mesh.service(name, namespace, PORTS, families=families)
                await mesh.serve(pod, http=(8080,), lines=(9000,))
            none = mesh.pod("none", "none")
            none.place.run(sys.executable, "-m", "xds", "init", "--undo")
            mesh.write_pod(none, annotations={INTERCEPTION_MODE: "NONE"})
            mesh.service("none", "none", PORTS)
            await mesh.enter(EchoApp("none.none", 8080, place=none.place, address="127.0.0.1"))
            await mesh.enter(LineApp("none.none", 9000, place=none.place, address="127.0.0.1"))
            await mesh.start()
            yield mesh


async def under(mesh: Mesh, *objects: Manifest) -> None:
    """Apply exactly these policies."""
    mesh.manifests.write("policies", *objects)
    await mesh.settled()


async def calls(mesh: Mesh, client: str) -> dict[tuple[str, int], str]:
    return {(what, port): (await mesh.exchange(what, client, WEB, port)).how for what, port in WAYS}


def every(how: str) -> dict[tuple[str, int], str]:
    return dict.fromkeys(WAYS, how)


async def test_only_an_identity_is_allowed(mesh):
    await under(mesh, authorization_policy("full", source(principals=["cluster.local/ns/apps/sa/client"])))

    assert await calls(mesh, CLIENT) == every(MTLS)
    assert await calls(mesh, OTHER) == every(FAILS)
    assert await calls(mesh, OUTSIDER) == every(FAILS)


async def test_denial_says_which_rule(mesh):
    await under(mesh, authorization_policy("full", source(namespaces=["apps"]), action="DENY", name="no"))

    seen = await mesh.exchange(HTTP1, CLIENT, WEB, 80)
    assert (seen.how, seen.why) == (FAILS, "403 RBAC: access denied")
    assert await calls(mesh, OUTSIDER) == every(PLAINTEXT)


async def test_methods_are_of_http_only(mesh):
    await under(mesh, authorization_policy("full", operation(methods=["GET"])))
    allowed = {(what, port): FAILS if what == TCP else MTLS for what, port in WAYS}
    assert await calls(mesh, CLIENT) == allowed


async def test_policy_without_rules_denies_everything(mesh):
    await under(mesh, authorization_policy("full"))
    for client in (CLIENT, OUTSIDER):
        assert await calls(mesh, client) == every(FAILS)


# --- modes and places ---------------------------------------------------------------------------------------

BY_MODE = {
    # How the client that is allowed by its identity gets through, and the one that is allowed by its address.
    "PERMISSIVE": (MTLS, PLAINTEXT),
    "STRICT": (MTLS, FAILS),
    "DISABLE": (FAILS, PLAINTEXT),
}


@pytest.mark.parametrize("mode", BY_MODE)
async def test_identities_are_those_of_mutual_tls(mesh, mode):
    address = mesh[OUTSIDER].address
    rules = (source(principals=["*/ns/apps/sa/client"]), source(ipBlocks=[address]))
    await under(mesh, peer_authentication("full", mode), authorization_policy("full", *rules))

    by_identity, by_address = BY_MODE[mode]
    assert await calls(mesh, CLIENT) == every(by_identity)
    assert await calls(mesh, OUTSIDER) == every(by_address)
    assert await calls(mesh, OTHER) == every(FAILS)


async def test_port_outside_all_services(mesh):
    await under(mesh, authorization_policy("full", operation(ports=["7000"], methods=["GET"])))
    server = mesh[WEB].address
    for client in (CLIENT, OUTSIDER):
        assert (await mesh.exchange(HTTP1, client, server, 7000)).how == PLAINTEXT
        seen = await mesh.exchange(HTTP1, client, server, 8080)
        assert (seen.how, seen.why) == (FAILS, "403 RBAC: access denied")
        assert (await mesh.exchange(TCP, client, server, 9000)).how == FAILS


@pytest.mark.parametrize("name", ["none.none", "six.ipv6", "web.apart"])
async def test_pods_without_interception_with_ipv6_and_with_the_state_of_the_world(mesh, name):
    _, namespace = name.split(".")

    async def seen(client: str) -> list[str]:
        return [
            (await mesh.exchange(what, client, name, port)).how for what, port in ((HTTP1, 80), (TCP, 90))
        ]

    await under(mesh, authorization_policy(namespace, source(serviceAccounts=["apps/client"])))
    assert await seen("dual.apps") == [MTLS, MTLS]
    if name != "six.ipv6":
        assert await seen(OTHER) == [FAILS, FAILS]

    blocks = [*mesh["dual.apps"].addresses]
    await under(mesh, authorization_policy(namespace, source(ipBlocks=blocks), action="DENY"))
    assert await seen("dual.apps") == [FAILS, FAILS]
    if name != "six.ipv6":
        assert await seen(OTHER) == [MTLS, MTLS]


async def test_other_namespaces_are_not_affected(mesh):
    await under(mesh)
    listeners = mesh.sidecar(mesh["web.apart"]).admin
    before = await listeners.stats(r"^listener_manager\.listener_(added|modified|removed)$")
    await under(mesh, authorization_policy("full"))
    assert (await mesh.exchange(HTTP1, CLIENT, WEB, 80)).how == FAILS
    for what, port in ((HTTP1, 80), (TCP, 90)):
        assert (await mesh.exchange(what, CLIENT, "web.apart", port)).how == MTLS
    assert await listeners.stats(r"^listener_manager\.listener_(added|modified|removed)$") == before


async def test_root_namespace_is_the_whole_mesh(mesh):
    await under(mesh, authorization_policy("istio-system", source(notNamespaces=["apps"]), action="DENY"))
    for server in (WEB, "web.apart"):
        assert (await mesh.exchange(HTTP1, CLIENT, server, 80)).how == MTLS
        assert (await mesh.exchange(HTTP1, OUTSIDER, server, 80)).how == FAILS
        assert (await mesh.exchange(TCP, OUTSIDER, server, 90)).how == FAILS


@pytest.mark.parametrize("action", ["ALLOW", "DENY"])
async def test_resumed_tls_sessions_have_their_identity(mesh, action):
    await under(mesh, authorization_policy("full", source(principals=["*/sa/client"]), action=action))
    admin = mesh.sidecar(mesh[WEB]).admin
    before = await admin.total(r"\.ssl\.session_reused$")
    for _ in range(3):
        seen = await mesh.exchange(TCP, CLIENT, WEB, 90)
        assert seen.how == (MTLS if action == "ALLOW" else FAILS)
    assert await admin.total(r"\.ssl\.session_reused$") > before


# --- changes ------------------------------------------------------------------------------------------------

_CHANGES = r"^listener_manager\.listener_(modified|in_place_updated)$"


@pytest.mark.parametrize("client", [CLIENT, OUTSIDER])
async def test_open_http_connection_obeys_the_next_rules(mesh, client):
    """On the same connection, from the next request on; the listener stays as it is."""
    get, put = (authorization_policy("full", operation(methods=[method])) for method in ("GET", "PUT"))
    await under(mesh, get)
    admin = mesh.sidecar(mesh[WEB]).admin
    async with mesh[client].client.session(keep_alive=True) as session:
        assert (await ask(session, "http://web.full/")).ok
        listeners, connections = await admin.stats(_CHANGES), await admin.stat(_CONNECTIONS)
        for policy, code in ((put, "403"), (get, "200")):
            await under(mesh, policy)
            assert (await ask(session, "http://web.full/")).code == code
        assert await admin.stats(_CHANGES) == listeners
        # The first policy, and the last one. Only the filter chains of other ports change.
        for policies, code in (((), "200"), ((put,), "403"), ((), "200")):
            await under(mesh, *policies)
            assert (await ask(session, "http://web.full/")).code == code
        assert await admin.stat(_CONNECTIONS) == connections
    assert await admin.stat("http.inbound_0.0.0.0_8080.downstream_cx_drain_close") == 0


_CONNECTIONS = "http.inbound_0.0.0.0_8080.downstream_cx_total"


async def test_open_tcp_connection_ends_once_it_is_denied(mesh):
    allowed = authorization_policy("full", operation(ports=["9000"]), name="tcp")
    await under(mesh, allowed, authorization_policy("full", operation(methods=["GET"]), name="http"))
    async with mesh[CLIENT].client.tcp(WEB, 90, timeout=60) as conversation:
        assert await conversation.ask("one") == "web.full: one"
        await under(mesh, allowed, authorization_policy("full", operation(methods=["PUT"]), name="http"))
        assert await conversation.ask("two") == "web.full: two"
        await under(mesh, authorization_policy("full", operation(ports=["9003"]), name="tcp"))
        assert await conversation.closed()
    assert (await mesh.exchange(TCP, CLIENT, WEB, 90)).how == FAILS
    assert (await mesh.exchange(TCP, CLIENT, WEB, 93)).how == MTLS


@pytest.mark.parametrize("server", [WEB, "web.apart"])
async def test_first_and_last_policy_lose_no_request(mesh, server):
    """They add and remove filters. `web.apart` asks for the state of the world."""
    namespace = server.split(".")[1]
    await under(mesh)
    async with Load(client=mesh[CLIENT].client, url=f"http://{server}/") as load:
        for _ in range(2):
            await load.more(20)
            await under(mesh, authorization_policy(namespace, operation(methods=["GET"])))
            await load.more(20)
            await under(mesh)
    load.check()


async def test_rejected_policy_denies_unless_there_was_a_valid_one(mesh):
    valid = authorization_policy("full", operation(ports=["8080"]), selector={"app": "web"})
    rejected = authorization_policy("full", operation(ports=["all"]), selector={"app": "web"})
    elsewhere = authorization_policy("full", selector={"app": "other"}, name="elsewhere", action="DENY")
    elsewhere["spec"]["rules"] = [{"to": [{"operation": {"ports": ["none"]}}]}]
    await under(mesh)
    assert (await mesh.exchange(HTTP1, CLIENT, WEB, 80)).how == MTLS

    async def has(how: str, port: int) -> bool:
        return (await mesh.exchange(HTTP1, CLIENT, WEB, port)).how == how

    mesh.manifests.write("policies", rejected, elsewhere)
    await eventually(lambda: has(FAILS, 80), what="the rejected policy denies")
    assert await has(FAILS, 83)
    await under(mesh, valid)
    assert await has(MTLS, 80)
    # The other change shows that the rejected one has been read.
    shown = authorization_policy("full", operation(paths=["/shown"]), name="shown", action="DENY")
    mesh.manifests.write("policies", rejected, elsewhere, shown)

    async def is_read() -> bool:
        return (await mesh[CLIENT].client.get("http://web.full/shown")).code == "403"

    await eventually(is_read, what="the policies are read")
    assert await has(MTLS, 80)
    assert await has(FAILS, 83)


TEMPLATES = ("/t/{*}", "/r/{**}", "/{*}/x", "/t/{*}/", "/{*}/a$(b)+.c", f"/{'l' * 246}/{{**}}")
PATHS = {
    # Paths, and what they are once they are normalized.
    **{path: path for path in ("/t/a", "/t/", "/t", "/t/a/", "/t/a/b", "/t/a%20b", "/t/a*b", "/t/a[b]")},
    **{path: path for path in ("/t/a;b=c,d:e@f", "/r/", "/r", "/r/a//b", "/r/a[b]", "/a/x", "//x", "/r/*")},
    **{path: path for path in ("/a/a$(b)+.c", "/a/a$(b)+xc", f"/{'l' * 246}/x", f"/{'l' * 247}/x")},
    "/t/a?q=/b/c": "/t/a",
    "/a/x?y": "/a/x",
    "/r/a?[b]": "/r/a",
    "/t/a|b": "/t/a%7Cb",
    "/t/../r/a": "/r/a",
    "/%74/a": "/t/a",
    "/a/../t/a\\b": "/t/a/b",
}


async def test_templates_mean_the_same_to_envoy(mesh):
    """Queries do not count, and a wildcard does not match every character."""
    await under(mesh, authorization_policy("full", operation(paths=[*TEMPLATES]), action="DENY"))
    facts = mesh.facts()
    rules = rules_of(facts, facts.pod_at(mesh[WEB].address), http=True)
    for path, normalized in PATHS.items():
        verdict = decide(facts.config, rules, Request(port=8080, path=normalized))
        assert verdict.access is (Access.ALLOWED if await is_let_in(mesh[CLIENT], path) else Access.DENIED), (
            path
        )


async def is_let_in(pod: ClusterPod, path: str) -> bool:
    """Whether a request for exactly this path is allowed."""
    async with pod.client.tcp("web.full", 80) as conversation:
        await conversation.say(f"GET {path} HTTP/1.1\r\nHost: web.full\r\nConnection: close\r\n\r")
        return " 403 " not in await conversation.hear()


HEADERS = [
    # The condition's header and value, the header that is sent, and whether the condition holds.
    (":method", "GET", {}, True),
    (":authority", "web.*", {}, True),
    (":authority", "WEB.*", {}, False),
    ("host", "web.full", {}, True),
    ("x-a", "*", {"x-a": ""}, True),
    ("x-a", "*", {}, False),
    ("X-A", "b*", {"x-A": "bc"}, True),
    ("x-a", "b", {"x-a": "B"}, False),
    ("x-a", "b,c", {"x-a": "b,c"}, True),
]


async def test_headers_mean_the_same_to_envoy(mesh):
    rules = [when(f"request.headers[{name}]", value) for name, value, _, _ in HEADERS]
    await under(
        mesh,
        *(
            authorization_policy(
                "full", rule | operation(paths=[f"/{number}"]), name=f"h{number}", action="DENY"
            )
            for number, rule in enumerate(rules)
        ),
    )
    facts = mesh.facts()
    found = rules_of(facts, facts.pod_at(mesh[WEB].address), http=True)
    for number, (*_, sent, holds) in enumerate(HEADERS):
        answer = await mesh[CLIENT].client.get(f"http://web.full/{number}", headers=sent)
        request = Request(
            port=8080,
            host="web.full",
            method="GET",
            path=f"/{number}",
            headers={name.lower(): value for name, value in sent.items()},
        )
        verdict = decide(facts.config, found, request)
        assert (answer.code == "403", verdict.access is Access.DENIED) == (holds, holds), HEADERS[number]


# --- everything ---------------------------------------------------------------------------------------------

REQUESTS = [
    *itertools.product(
        (80, 83), ("GET", "POST"), ("/", "/info/x", "/admin/a", "/admin/b/a"), ("", "a", "bb")
    ),
    *itertools.product((90, 93), ("",), ("",), ("",)),
]
SETS, PER_SET = 20, 40


MODES = [
    ("PERMISSIVE", peer_authentication("full", "PERMISSIVE")),
    ("STRICT", peer_authentication("full", "STRICT")),
    ("DISABLE", peer_authentication("full", "DISABLE")),
    ("PERMISSIVE", policy("default", "full", "PERMISSIVE")),
    ("STRICT", policy("default", "full", "STRICT")),
]


@pytest.mark.parametrize("seed", range(4))
async def test_random_policies_mean_the_same_to_all(mesh, seed):
    """Istio's documents, read naively; the decision; `xds reach`; and real sidecars."""
    chance = random.Random(seed)
    clients = [mesh[name] for name in (CLIENT, OTHER, SA, OUTSIDER)]
    server = mesh[WEB]
    addresses = [pod.address for pod in (*clients, server)]
    modes = chance.sample(MODES, 4)
    for number in range(SETS):
        mode, mode_policy = modes[number * len(modes) // SETS]
        policies = random_policies(chance, addresses)
        await under(mesh, mode_policy, *policies)
        facts = mesh.facts()
        outcomes = {
            (outcome.client.ref, outcome.port.port): outcome
            for outcome in predict(facts)
            if outcome.service.ref == ("Service", "full", "web")
        }
        pod = facts.pod_at(server.address)
        rules = {http: rules_of(facts, pod, http=http) for http in (True, False)}
        for port, method, path, token in chance.sample(REQUESTS, PER_SET // len(clients)):
            for client in clients:
                headers = {"x-token": token} if token else {}
                who = facts.pod_at(client.address)
                sends_mtls = who.has_sidecar and mode != "DISABLE"
                identity = who.identity("cluster.local") if sends_mtls else ""
                target = dict(PORTS.values())[port]
                host = "web.full:83" if port == 83 else "web.full"
                call = Call(
                    identity.removeprefix("spiffe://"),
                    client.address,
                    server.address,
                    target,
                    host if method else "",
                    method,
                    path,
                    headers,
                )
                naive = is_allowed(policies, call, "full", {"app": "web"})
                is_accepted = sends_mtls or mode != "STRICT"
                request = Request(
                    identity=identity,
                    source_ip=client.address,
                    remote_ip=client.address,
                    destination_ip=server.address,
                    port=target,
                    host=call.host,
                    method=method,
                    path=path,
                    headers=headers,
                )
                verdict = decide(facts.config, rules[bool(method)], request)
                if method:
                    answer = await client.client.get(
                        f"http://web.full:{port}{path}", method=method, headers=headers
                    )
                    denied = ("403", "RBAC: access denied") if is_accepted else ("000", "")
                    assert answer.ok or (answer.code, answer.text) == denied, answer
                    real = answer.ok
                else:
                    real = (await mesh.exchange(TCP, client, WEB, port)).how != FAILS
                what = mode, policies, call, verdict
                assert real == (naive and is_accepted), what
                assert naive == (verdict.access is Access.ALLOWED), what
                outcome = outcomes[who.ref, port]
                predicted = {True, False} if outcome.conditions else {outcome.result is not Result.FAILS}
                assert real in predicted, (*what, outcome)
