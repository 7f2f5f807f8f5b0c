"""A user-provided CA: intermediates, kinds of keys, and the errors that reject it."""

from __future__ import annotations

import shutil
import ssl
import subprocess
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID
from cryptography.x509.verification import PolicyBuilder, Store

from tests.identity.companies import Company, key_pem, pem
from xds.mesh.identity import chain
from xds.mesh.identity.ca import Authority
from xds.mesh.identity.keys import IdentityError, PrivateKey

NOW = datetime(2030, 1, 1, 12, tzinfo=UTC)
SLEEP = "spiffe://cluster.local/ns/full/sa/sleep"
NAMES = ["xds.istio-system.svc", "xds.istio-system.svc.cluster.local", "localhost", "127.0.0.1", "::1"]

ROOT = Company.root("Root", NOW)
ISSUING = ROOT.subsidiary("Issuing", pathlen=0)


def load(
    ca: Company, *between: Company, roots: tuple[Company, ...] = (ROOT,), now: datetime = NOW
) -> Authority:
    return Authority.load(
        pem(ca), key_pem(ca), now, root=b"".join(map(pem, roots)), chain=b"".join(map(pem, between))
    )


def verified(authority: Authority, chain_pem: bytes) -> list[str]:
    leaf, *between = x509.load_pem_x509_certificates(chain_pem)
    store = Store(x509.load_pem_x509_certificates(authority.root_pem))
    verifier = PolicyBuilder().store(store).time(NOW).build_client_verifier()
    return [name.value for name in verifier.verify(leaf, between).subjects or ()]


def test_leaf_chain_has_intermediates_but_not_the_root() -> None:
    authority = load(ISSUING, ISSUING, ROOT)
    leaf = authority.issue(SLEEP, NOW)
    assert x509.load_pem_x509_certificates(leaf.chain)[1:] == [ISSUING.certificate]
    assert authority.root_pem == pem(ROOT)
    assert authority.trust_domain == ""
    assert authority.certificate_pem == pem(ISSUING)
    assert verified(authority, leaf.chain) == [SLEEP]


def test_chain_is_sorted() -> None:
    policy = ROOT.subsidiary("Policy")
    regional = policy.subsidiary("Regional")
    issuing = regional.subsidiary("Issuing", pathlen=0)
    authority = load(issuing, ROOT, policy, ISSUING, regional)
    leaf = authority.issue(SLEEP, NOW)
    issuers = [company.certificate for company in (issuing, regional, policy)]
    assert x509.load_pem_x509_certificates(leaf.chain)[1:] == issuers
    assert verified(authority, leaf.chain) == [SLEEP]


def test_root_needs_no_chain() -> None:
    authority = load(ROOT)
    assert authority.root_pem == pem(ROOT)
    assert len(x509.load_pem_x509_certificates(authority.issue(SLEEP, NOW).chain)) == 1


def test_root_is_selected_by_signature() -> None:
    assert load(ISSUING, roots=(Company.root("Other", NOW), ROOT)).root_pem == pem(ROOT)


def test_text_around_pem_certificates_is_ignored() -> None:
    chain_pem = b"Certificate:\n    Data:\n        Version: 3\n" + pem(ISSUING)
    assert Authority.load(chain_pem, key_pem(ISSUING), NOW, root=b"# comment\n" + pem(ROOT)).issuers == (
        ROOT.certificate,
    )


@pytest.mark.parametrize(
    "generate",
    [lambda: ec.generate_private_key(ec.SECP384R1()), lambda: rsa.generate_private_key(65537, 4096)],
    ids=["EC P-384", "RSA 4096"],
)
def test_ca_key_may_differ_while_leaves_use_ec_p256(generate: Callable[[], object]) -> None:
    key = generate()
    root = Company.root("Root", NOW, key=key)
    authority = load(root.subsidiary("Issuing", key=key), roots=(root,))
    leaf = authority.issue(SLEEP, NOW)
    assert isinstance(leaf.key.public_key.curve, ec.SECP256R1)
    assert verified(authority, leaf.chain) == [SLEEP]
    assert repr(authority.key) == "<PrivateKey: hidden>"


def test_leaf_expires_with_its_shortest_lived_issuer() -> None:
    root = Company.root("Root", NOW, lifetime=timedelta(hours=3))
    authority = load(root.subsidiary("Issuing"), roots=(root,))
    leaf = authority.issue(SLEEP, NOW, timedelta(hours=5))
    assert leaf.not_after == leaf.renew_at + timedelta(minutes=30) == authority.expires
    with pytest.raises(IdentityError, match="the root certificate expired at 2030-01-01 15:00 UTC"):
        authority.issue(SLEEP, authority.expires)
    short = load(ROOT.subsidiary("Issuing", lifetime=timedelta(hours=1)))
    with pytest.raises(IdentityError, match="the CA's certificate expired at 2030-01-01 13:00 UTC"):
        short.issue(SLEEP, short.expires)


BOUNDED = Company.root("Bounded", NOW, pathlen=0)
STRANGER = Company.root("Stranger", NOW)
EXPIRED = ROOT.subsidiary("Expired", lifetime=timedelta(seconds=1))
LEAF = ROOT.subsidiary("Leaf", ca=False)


@pytest.mark.parametrize(
    ("make", "complaint"),
    [
        (
            lambda: load(ISSUING, roots=(STRANGER,)),
            "chain does not lead to the root.*signed the certificate CN=Issuing",
        ),
        (
            lambda: load(ROOT.subsidiary("Policy").subsidiary("Deep")),
            "chain does not lead to the root.*signed the certificate CN=Deep",
        ),
        (lambda: load(STRANGER), "chain does not lead to the root"),
        (
            lambda: load(ISSUING, roots=(ISSUING,)),
            "the certificate is not a root: it is not signed with its own",
        ),
        (lambda: load(LEAF), "not a CA certificate: its basicConstraints say CA:FALSE"),
        (lambda: load(LEAF.subsidiary("Below"), LEAF), "certificate CN=Leaf is not a CA certificate"),
        (
            lambda: load(EXPIRED, now=NOW + timedelta(hours=1)),
            "the certificate expired at 2030-01-01 12:00 UTC",
        ),
        (
            lambda: load(EXPIRED.subsidiary("Below"), EXPIRED, now=NOW + timedelta(hours=1)),
            "the certificate CN=Expired expired",
        ),
        (lambda: load(BOUNDED.subsidiary("Below"), roots=(BOUNDED,)), "CN=Bounded allows 0 CA.*there are 1"),
        (lambda: load(ISSUING.subsidiary("Below"), ISSUING), "CN=Issuing allows 0 CA certificates below it"),
        (
            lambda: Authority.load(pem(ISSUING), key_pem(ROOT), NOW, root=pem(ROOT)),
            "private key does not match the certificate",
        ),
        (lambda: Authority.load(pem(ISSUING), key_pem(ISSUING), NOW), "not a root"),
        (
            lambda: Authority.load(pem(ISSUING), key_pem(ISSUING), NOW, root=b"x"),
            "not a PEM certificate",
        ),
        (
            lambda: Authority.load(pem(ISSUING), key_pem(ISSUING), NOW, root=pem(ROOT), chain=b"x"),
            "not a PEM certificate",
        ),
        (
            lambda: load(ISSUING, now=NOW - timedelta(days=1)),
            "the certificate is not valid before 2030-01-01 12:00 UTC",
        ),
    ],
)
def test_unusable_ca_chain_is_rejected_with_the_reason(make: object, complaint: str) -> None:
    with pytest.raises(IdentityError, match=complaint) as refusal:
        make()
    assert "PRIVATE" not in str(refusal.value)


def test_subject_falls_back_to_the_serial_number() -> None:
    leaf = load(ROOT).issue(SLEEP, NOW)
    (cert,) = chain.read(leaf.chain)
    assert chain.subject(cert) == f"with serial number {cert.serial_number:x}"


# --- servers ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def live() -> Authority:
    """An intermediate that is valid now, for handshakes."""
    now = datetime.now(UTC)
    root = Company.root("Root", now)
    issuing = root.subsidiary("Issuing", pathlen=0)
    return Authority.load(pem(issuing), key_pem(issuing), now, root=pem(root))


def test_server_certificate_has_names_and_server_usage_only() -> None:
    leaf = load(ISSUING).issue_server(NAMES, NOW)
    cert = x509.load_pem_x509_certificate(leaf.chain)
    names = cert.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == NAMES[:3]
    assert [str(address) for address in names.get_values_for_type(x509.IPAddress)] == NAMES[3:]
    assert not names.get_values_for_type(x509.UniformResourceIdentifier)
    usage = cert.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(usage) == [ExtendedKeyUsageOID.SERVER_AUTH]
    assert leaf.identity == NAMES[0]
    assert leaf.renew_at == NOW + timedelta(hours=12)


@pytest.mark.parametrize(
    "names", [[], [""], ["*.svc"], ["Xds.svc"], ["a..b"], ["a_b"], ["-a"], ["a" * 64], ["a\n"]]
)
def test_server_certificate_needs_valid_names(names: list[str]) -> None:
    with pytest.raises(IdentityError, match=r"needs a name|is neither a lower-case DNS name"):
        load(ISSUING).issue_server(names, NOW)


@pytest.mark.parametrize("name", [NAMES[0], "127.0.0.1", "::1"])
def test_client_that_trusts_the_root_verifies_the_server(live: Authority, name: str, tmp_path: Path) -> None:
    leaf = live.issue_server(NAMES, datetime.now(UTC))
    file = tmp_path / "server"
    file.write_bytes(leaf.chain + leaf.key.to_pem())
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(file)
    client_context = ssl.create_default_context(cadata=live.root_pem.decode())
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = client_context.wrap_bio(to_client, to_server, server_hostname=name)
    server = context.wrap_bio(to_server, to_client, server_side=True)
    for side in (client, server, client, server):
        try:
            side.do_handshake()
        except ssl.SSLWantReadError:
            continue
    assert client.getpeercert()["notAfter"]


@pytest.mark.skipif(not shutil.which("openssl"), reason="needs the openssl command")
@pytest.mark.parametrize("purpose", ["sslclient", "sslserver"])
@pytest.mark.real
def test_openssl_strictly_verifies_a_leaf_of_an_intermediate(
    live: Authority, purpose: str, tmp_path: Path
) -> None:
    leaf = live.issue(SLEEP, datetime.now(UTC))
    (tmp_path / "root.pem").write_bytes(live.root_pem)
    (tmp_path / "leaf.pem").write_bytes(leaf.chain)
    done = subprocess.run(
        [
            *["openssl", "verify", "-x509_strict", "-purpose", purpose, "-CAfile", tmp_path / "root.pem"],
            *["-untrusted", tmp_path / "leaf.pem", tmp_path / "leaf.pem"],
        ],
        check=False,
        capture_output=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_control_plane_certificate_has_both_usages() -> None:
    leaf = Authority.create(PrivateKey.generate(), "cluster.local", NOW).issue(
        "spiffe://cluster.local/ns/istio-system/sa/xds", NOW
    )
    usage = x509.load_pem_x509_certificate(leaf.chain).extensions.get_extension_for_class(
        x509.ExtendedKeyUsage
    )
    assert set(usage.value) == {ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH}
