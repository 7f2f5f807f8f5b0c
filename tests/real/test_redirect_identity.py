"""X-Forwarded-Client-Cert: sidecars give applications the client's identity, and clients cannot forge it."""

from __future__ import annotations

import asyncio
import re
import ssl
import subprocess
from datetime import UTC, datetime
from itertools import product
from pathlib import Path

import pytest
import pytest_asyncio

from tests.support.apps import WsgirefHttpbin
from tests.support.cluster import Cluster
from tests.support.manifests import peer_authentication
from tests.support.mesh import Mesh
from tests.support.tcp import Conversation
from xds.mesh.identity.ca import Authority, Leaf
from xds.mesh.identity.keys import PrivateKey
from xds.mesh.identity.state_dir import load_or_create_root

pytestmark = [pytest.mark.netns, pytest.mark.envoy, pytest.mark.asyncio(loop_scope="module")]

PORTS = {"http-web": (80, 8080), "http2-web": (81, 8081), "http-wsgi": (82, 8082), "web": (83, 8083)}
WSGI = 8082
UNNAMED = 7000
CLIENT, OUTSIDER = "client.full", "outsider.outside"
SLEEP = "spiffe://cluster.local/ns/full/sa/sleep"
MEMBER = "spiffe://cluster.local/ns/outside/sa/member"

HEADER = "x-forwarded-client-cert"
FORGED = (
    'By=spiffe://cluster.local/ns/a/sa/b;Hash=00;Subject="";URI=spiffe://cluster.local/ns/forged/sa/admin'
)
FORGERIES = [{HEADER: FORGED}, {"X-Forwarded-Client-Cert": f"{FORGED},{FORGED}"}, {HEADER: f'{FORGED},By="'}]
ALIASES = [
    *(f"x{a}forwarded{b}client{c}cert" for a, b, c in product("-_", repeat=3) if "_" in (a, b, c)),
    *("x.forwarded.client.cert", "x-forwarded~client-cert"),
]
"""Aliases of the header for servers that turn punctuation into "_", as CGI and WSGI servers do."""
LEGITIMATE = {"user_id": "7", "x_forwarded_for": "a", "x_forwarded_client_certificate": "b", "x_cert": "c"}
ALIASED = {**dict.fromkeys(ALIASES, FORGED), "X_Forwarded_Client_Cert": FORGED, **LEGITIMATE}
MESH_ALPN = ("istio", "istio-peer-exchange", "istio-http/1.1", "istio-h2")
METHODS = ["get", "get_http2"]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def mesh(tmp_path_factory):
    """Servers in namespaces that are named after their mode, a client with a sidecar, and one without."""
    with Cluster() as cluster:
        async with Mesh(cluster, tmp_path_factory.mktemp("mesh")) as mesh:
            mesh.pod("client", "full", account="sleep")
            mesh.pod("outsider", "outside", sidecar=False)
            for namespace in ("permissive", "strict", "disable", "legacy"):
                pod = mesh.pod("web", namespace, sidecar=namespace != "legacy", account="web")
                mesh.service("web", namespace, PORTS)
                await mesh.serve(pod, http=(8080, 8081, 8083, UNNAMED), lines=(7100,))
                await mesh.enter(WsgirefHttpbin(WSGI, place=pod.place, address="0.0.0.0"))
            mesh.apply(peer_authentication("strict", "STRICT"), peer_authentication("disable", "DISABLE"))
            await mesh.start()
            yield mesh


@pytest.fixture(scope="module")
def root(mesh) -> Authority:
    """The CA of the sidecars' certificates."""
    return load_or_create_root(mesh.plane.state, "cluster.local", datetime.now(UTC))


@pytest.fixture(scope="module")
def member(root) -> Leaf:
    """A certificate of a mesh member without a sidecar."""
    return root.issue(MEMBER, datetime.now(UTC))


def _own_tls(folder: Path, root: Authority, leaf: Leaf | None, *alpn: str) -> ssl.SSLContext:
    context = ssl.create_default_context(cadata=root.certificate_pem.decode())
    context.check_hostname = False  # a SPIFFE certificate names no host
    if leaf:
        file = folder / "leaf.pem"
        file.touch(0o600)
        file.write_bytes(leaf.chain + leaf.key.to_pem())
        context.load_cert_chain(file)
    if alpn:
        context.set_alpn_protocols(list(alpn))
    return context


def _element(server: str, client: str, fingerprint: str = "[0-9a-f]{64}") -> re.Pattern[str]:
    return re.compile(f'By={server};Hash={fingerprint};Subject="";URI={client}')


class TestClientWithSidecar:
    @pytest.mark.parametrize("port", [80, 81, 83])
    @pytest.mark.parametrize("method", METHODS)
    @pytest.mark.parametrize("namespace", ["permissive", "strict"])
    async def test_client_has_exactly_one_header_element(self, mesh, namespace, method, port):
        for headers in ({}, *FORGERIES):
            answer = await getattr(mesh[CLIENT].client, method)(
                f"http://web.{namespace}:{port}/headers", headers=headers
            )
            server = f"spiffe://cluster.local/ns/{namespace}/sa/web"
            assert _element(server, SLEEP).fullmatch(answer.certificate), answer.certificate

    async def test_grep_of_the_istio_task_finds_the_identity(self, mesh):
        answer = await mesh[CLIENT].client.get("http://web.strict/headers", headers=FORGERIES[1])

        grep = ["grep", "-Eo", "URI=spiffe.*sa/[a-z]*"]
        grepped = subprocess.run(grep, input=answer.text, capture_output=True, text=True, check=True)

        assert grepped.stdout == f"URI={SLEEP}\n"

    @pytest.mark.parametrize("method", METHODS)
    @pytest.mark.parametrize(
        ("namespace", "port"),
        [("disable", 80), ("disable", 81), ("disable", 83), ("legacy", 80), ("legacy", 83)],
    )
    async def test_plaintext_request_has_no_identity(self, mesh, namespace, port, method):
        for headers in ({}, *FORGERIES):
            answer = await getattr(mesh[CLIENT].client, method)(
                f"http://web.{namespace}:{port}/headers", headers=headers
            )
            assert (answer.pod, answer.certificate) == (f"web.{namespace}", "")


class TestPlaintextClient:
    @pytest.mark.parametrize("port", [8080, 8081, 8083, UNNAMED])
    @pytest.mark.parametrize("method", METHODS)
    @pytest.mark.parametrize("namespace", ["permissive", "disable"])
    async def test_forged_header_of_a_plaintext_client_is_removed(self, mesh, namespace, method, port):
        address = mesh[f"web.{namespace}"].address
        for headers in FORGERIES:
            answer = await getattr(mesh[OUTSIDER].client, method)(
                f"http://{address}:{port}/headers", headers=headers
            )
            assert (answer.pod, answer.certificate) == (f"web.{namespace}", "")


class TestClientWithOwnTls:
    @pytest.mark.parametrize(
        ("port", "alpn"),
        [
            *((port, alpn) for port in (8080, 8081) for alpn in MESH_ALPN),
            *((port, alpn) for port in (8083, UNNAMED) for alpn in ("istio-http/1.1", "istio-h2")),
        ],
    )
    @pytest.mark.parametrize("method", METHODS)
    @pytest.mark.parametrize("namespace", ["permissive", "strict"])
    async def test_forged_header_of_a_tls_client_is_replaced(
        self, mesh, root, member, tmp_path, namespace, method, port, alpn
    ):
        tls = _own_tls(tmp_path, root, member, alpn)
        get = getattr(mesh[OUTSIDER].client, method)
        url = f"https://{mesh[f'web.{namespace}'].address}:{port}/headers"

        for headers in FORGERIES:
            answer = await get(url, headers=headers, tls=tls)
            server = f"spiffe://cluster.local/ns/{namespace}/sa/web"
            assert _element(server, MEMBER, member.fingerprint).fullmatch(answer.certificate), answer

    @pytest.mark.parametrize(
        ("port", "alpn"),
        [(8080, ()), (8081, ()), (8080, ("http/1.1",)), (8083, ("http/1.1",)), (8083, ("h2",))],
    )
    async def test_strict_server_accepts_clients_without_istio_alpn(
        self, mesh, root, member, tmp_path, port, alpn
    ):
        tls = _own_tls(tmp_path, root, member, *alpn)
        client = mesh[OUTSIDER].client
        get = client.get_http2 if alpn == ("h2",) else client.get

        answer = await get(
            f"https://{mesh['web.strict'].address}:{port}/headers", headers=FORGERIES[0], tls=tls
        )

        assert _element("spiffe://cluster.local/ns/strict/sa/web", MEMBER).fullmatch(answer.certificate)

    async def test_tls_client_reaches_tcp_ports_outside_services(self, mesh, root, member, tmp_path):
        tls = _own_tls(tmp_path, root, member, "istio")
        for pod in (mesh["web.permissive"], mesh["web.strict"]):
            connected = await mesh[OUTSIDER].client.connect(pod.address, 7100)
            streams = await asyncio.open_connection(sock=connected, ssl=tls, server_hostname=pod.address)
            conversation = Conversation(*streams, timeout=30)
            assert await conversation.ask("hello") == f"web.{pod.namespace}: hello"
            await conversation.close()


class TestHeaderAlias:
    """WSGI merges `X_Forwarded_Client_Cert` and `X-Forwarded-Client-Cert`: clients must not set either."""

    @pytest.fixture(params=["plaintext", "sidecar", "member of permissive", "member of strict"])
    def caller(self, request, mesh, root, member, tmp_path):
        """Return a function that sends all aliases to a port, and the identity that the server may see."""
        how, _, namespace = request.param.partition(" of ")
        pod = mesh[CLIENT if how == "sidecar" else OUTSIDER]
        tls = {}
        identity = {"plaintext": "", "sidecar": SLEEP}.get(how, MEMBER)

        async def ask(port: int, method: str):
            server = mesh[f"web.{namespace or 'permissive'}"]
            headers = {name.lower(): value for name, value in ALIASED.items()} if "2" in method else ALIASED
            if how == "sidecar":
                url = f"http://web.permissive:{port - 8000}/headers"
            else:
                url = f"http{'s' if tls else ''}://{server.address}:{port}/headers"
            return await getattr(pod.client, method)(url, headers=headers, **tls)

        if how == "member":
            tls["tls"] = _own_tls(tmp_path, root, member, "istio-http/1.1")
        return ask, identity

    @pytest.mark.parametrize("port", [8080, 8081, 8083])
    @pytest.mark.parametrize("method", METHODS)
    async def test_header_alias_is_removed(self, caller, port, method):
        ask, identity = caller
        answer = await ask(port, method)
        forged = [name for name, value in answer.echo["headers"].items() if "forged" in value]
        assert not forged
        assert answer.identity == identity

    @pytest.mark.parametrize("port", [8080, 8081, 8083])
    @pytest.mark.parametrize("method", METHODS)
    async def test_other_headers_with_underscores_are_kept(self, caller, port, method):
        ask, _ = caller
        seen = {name.lower(): value for name, value in (await ask(port, method)).echo["headers"].items()}
        assert LEGITIMATE.items() <= seen.items()

    async def test_wsgi_application_sees_only_the_peer(self, caller):
        ask, identity = caller
        answer = await ask(WSGI, "get")
        assert answer.ok, answer
        assert "forged" not in answer.certificate
        assert answer.identity == identity
        assert answer.echo["headers"]["User-Id"] == "7"


class TestInvalidCertificate:
    @pytest.mark.parametrize("port", [8080, 8083, UNNAMED])
    @pytest.mark.parametrize("namespace", ["permissive", "strict"])
    async def test_invalid_certificate_is_refused(self, mesh, root, tmp_path, namespace, port):
        now = datetime.now(UTC)
        other_root = Authority.create(PrivateKey.generate(), "cluster.local", now)
        proofs = {
            "fail_verify_no_cert": None,
            "fail_verify_error": other_root.issue(MEMBER, now),
            "fail_verify_san": root.issue("spiffe://elsewhere/ns/outside/sa/member", now),
        }
        pod = mesh[f"web.{namespace}"]
        for reason, leaf in proofs.items():
            counter = f"listener.0.0.0.0_15006.ssl.{reason}"
            before = await mesh.sidecar(pod).admin.stat(counter)

            tls = _own_tls(tmp_path, root, leaf, "istio-http/1.1")
            answer = await mesh[OUTSIDER].client.get(f"https://{pod.address}:{port}/headers", tls=tls)

            assert answer.code == "000", reason
            assert await mesh.sidecar(pod).admin.stat(counter) == before + 1
