"""TLS to API servers with certificates that are valid, but have fewer extensions than Python 3.13 requires.

The CA of EKS and that of older MicroK8s clusters have only basic constraints.
"""

from __future__ import annotations

import ipaddress
import ssl
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from aiohttp import web
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from kubernetes.aio import client

from xds.mesh.kube.api import KubeApi, KubeError

CA_NAME = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "kubernetes")])


def certificate(
    name: x509.Name,
    key: ec.EllipticCurvePrivateKey,
    extension: x509.ExtensionType,
    ca_key: ec.EllipticCurvePrivateKey,
) -> bytes:
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder(CA_NAME, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(extension, critical=False)
        .sign(ca_key, hashes.SHA256())
    )
    return made.public_bytes(serialization.Encoding.PEM)


def write_certificates(folder: Path, address: str) -> tuple[Path, ssl.SSLContext]:
    """Return the file with the CA's certificate, and the TLS settings of a server with an address."""
    ca_key, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    root, chain, private_key = folder / "ca.crt", folder / "server.crt", folder / "server.key"
    root.write_bytes(certificate(CA_NAME, ca_key, x509.BasicConstraints(ca=True, path_length=None), ca_key))
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "kube-apiserver")])
    alternatives = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(address))])
    chain.write_bytes(certificate(name, key, alternatives, ca_key))
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


@pytest.fixture
async def served(tmp_path) -> AsyncIterator[tuple[Path, int]]:
    """The file with the CA's certificate, and the port of an API server at 127.0.0.1."""
    root, context = write_certificates(tmp_path, "127.0.0.1")

    async def version(_: web.Request) -> web.Response:
        return web.json_response({"gitVersion": "v1.37.2"})

    app = web.Application()
    app.router.add_get("/version", version)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context).start()
    yield root, runner.addresses[0][1]
    await runner.cleanup()


async def read_version(root: Path, port: int, host: str = "127.0.0.1") -> str:
    configuration = client.Configuration(host=f"https://{host}:{port}", ssl_ca_cert=str(root))
    async with KubeApi(configuration, "default") as api:
        return (await api.get("/version"))["gitVersion"]


async def test_ca_with_few_extensions_is_accepted(served):
    assert await read_version(*served) == "v1.37.2"


async def test_another_name_is_refused(served):
    root, port = served
    with pytest.raises(KubeError, match="certificate verify failed: Hostname mismatch"):
        await read_version(root, port, host="localhost")


async def test_another_ca_is_refused(served, tmp_path):
    _, port = served
    other = tmp_path / "other"
    other.mkdir()
    root, _ = write_certificates(other, "127.0.0.1")
    with pytest.raises(KubeError, match="certificate verify failed"):
        await read_version(root, port)
