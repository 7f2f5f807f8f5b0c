"""TLS to API servers with certificates that are valid, but lack extensions that Python 3.13 requires.

Certificates of EKS lack the authority key identifier, and CAs of older MicroK8s clusters the key usage.
"""

from __future__ import annotations

import asyncio
import base64
import gc
import hashlib
import ipaddress
import re
import socket
import ssl
import threading
import warnings
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TypeAlias

import aiohttp
import pytest
from aiohttp import web
from aiohttp.http import WS_KEY
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from kubernetes.aio import client

from xds.mesh.kube.api import KubeApi, KubeError
from xds.mesh.kube.port_forward import PROTOCOL

DAY = timedelta(days=1)
CLOSE_FRAME = b"\x88\x02\x03\xe8"
"""WebSocket frame that closes normally (status 1000)."""
CA_NAME = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "kubernetes")])


def certificate(
    name: x509.Name,
    key: ec.EllipticCurvePrivateKey,
    extension: x509.ExtensionType,
    ca_key: ec.EllipticCurvePrivateKey,
    lifetime: timedelta = DAY,
) -> bytes:
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder(CA_NAME, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - 2 * DAY)
        .not_valid_after(now + lifetime)
        .add_extension(extension, critical=False)
        .sign(ca_key, hashes.SHA256())
    )
    return made.public_bytes(serialization.Encoding.PEM)


def write_certificates(folder: Path, lifetime: timedelta = DAY) -> tuple[Path, ssl.SSLContext]:
    """Return the file with the CA's certificate, and the TLS settings of a server at 127.0.0.1."""
    folder.mkdir(exist_ok=True)
    ca_key, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    root, chain, private_key = folder / "ca.crt", folder / "server.crt", folder / "server.key"
    root.write_bytes(certificate(CA_NAME, ca_key, x509.BasicConstraints(ca=True, path_length=None), ca_key))
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "kube-apiserver")])
    alternatives = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    chain.write_bytes(certificate(name, key, alternatives, ca_key, lifetime))
    private_key.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(chain, private_key)
    return root, context


@pytest.fixture(autouse=True)
def _strict(monkeypatch):
    """Make TLS contexts as strict as those of Python 3.13."""
    create = ssl.create_default_context

    def create_strict(*args, **settings) -> ssl.SSLContext:
        context = create(*args, **settings)
        context.verify_flags |= ssl.VERIFY_X509_STRICT
        return context

    monkeypatch.setattr(ssl, "create_default_context", create_strict)


@asynccontextmanager
async def serving(context: ssl.SSLContext) -> AsyncIterator[int]:
    """Run an API server at 127.0.0.1, and yield its port."""

    async def version(_: web.Request) -> web.Response:
        return web.json_response({"gitVersion": "v1.37.2"})

    app = web.Application()
    app.router.add_get("/version", version)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context).start()
    yield runner.addresses[0][1]
    await runner.cleanup()


async def read_version(root: Path, port: int, host: str = "127.0.0.1") -> str:
    configuration = client.Configuration(host=f"https://{host}:{port}", ssl_ca_cert=str(root))
    async with KubeApi(configuration, "default") as api:
        return (await api.get("/version"))["gitVersion"]


async def test_certificates_with_few_extensions_are_accepted(tmp_path):
    root, context = write_certificates(tmp_path)
    async with serving(context) as port:
        assert await read_version(root, port) == "v1.37.2"


async def test_another_name_is_refused(tmp_path):
    root, context = write_certificates(tmp_path)
    async with serving(context) as port:
        with pytest.raises(KubeError, match="certificate verify failed: Hostname mismatch"):
            await read_version(root, port, host="localhost")


async def test_another_ca_is_refused(tmp_path):
    root, _ = write_certificates(tmp_path / "other")
    _, context = write_certificates(tmp_path / "own")
    async with serving(context) as port:
        with pytest.raises(KubeError, match="certificate verify failed"):
            await read_version(root, port)


async def test_expired_certificate_is_refused(tmp_path):
    root, context = write_certificates(tmp_path, lifetime=-DAY)
    async with serving(context) as port:
        with pytest.raises(KubeError, match="certificate verify failed: certificate has expired"):
            await read_version(root, port)


Answer: TypeAlias = Callable[[ssl.SSLSocket], object]
Use: TypeAlias = Callable[[KubeApi], Awaitable[object]]


async def read_line(api: KubeApi) -> None:
    async with api.stream("/", idle=10) as content:
        line = await content.readline()
    assert line == b"{}\n"


def send_line(stream: ssl.SSLSocket) -> None:
    stream.recv(65536)
    stream.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\n{}\n\r\n")


async def open_and_close(api: KubeApi) -> None:
    await (await api.websocket("/", PROTOCOL)).close()


async def wait_for_close(api: KubeApi) -> None:
    socket = await api.websocket("/", PROTOCOL)
    assert (await socket.receive()).type is aiohttp.WSMsgType.CLOSE


def accept(stream: ssl.SSLSocket) -> None:
    request = stream.recv(65536)
    key = re.search(rb"sec-websocket-key: (\S+)", request, re.IGNORECASE)
    digest = hashlib.sha1(key[1] + WS_KEY).digest()
    stream.sendall(
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Protocol: %b\r\nSec-WebSocket-Accept: %b\r\n\r\n"
        % (PROTOCOL.encode(), base64.b64encode(digest))
    )


def accept_and_close(stream: ssl.SSLSocket) -> None:
    accept(stream)
    stream.sendall(CLOSE_FRAME)


@pytest.mark.parametrize(
    ("answer", "use"),
    [(send_line, read_line), (accept_and_close, open_and_close), (accept_and_close, wait_for_close)],
)
def test_connections_are_closed_at_once(tmp_path: Path, answer: Answer, use: Use) -> None:
    """A server that is slow to end TLS keeps no connection open."""
    root, context = write_certificates(tmp_path)
    done = threading.Event()

    def serve(listener: socket.socket) -> None:
        connection, _ = listener.accept()
        with context.wrap_socket(connection, server_side=True) as stream:
            answer(stream)
            done.wait(30)

    async def connect(port: int) -> None:
        configuration = client.Configuration(host=f"https://127.0.0.1:{port}", ssl_ca_cert=str(root))
        async with KubeApi(configuration, "default") as api:
            await use(api)

    with socket.create_server(("127.0.0.1", 0)) as listener, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        server = threading.Thread(target=serve, args=[listener])
        server.start()
        try:
            asyncio.run(connect(listener.getsockname()[1]))
            gc.collect()
        finally:
            done.set()
            server.join()
    assert not [str(warning.message) for warning in caught]
