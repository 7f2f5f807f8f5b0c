"""The certificate authority: certificates that it issues, and CA files that it rejects."""

import copy
import pickle
import shutil
import ssl
import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from cryptography.x509.verification import PolicyBuilder, Store, VerificationError

from xds.mesh.identity.ca import Authority, Leaf
from xds.mesh.identity.keys import IdentityError, PrivateKey

NOW = datetime(2030, 1, 1, 12, 0, 0, 123456, tzinfo=UTC)
SLEEP = "spiffe://cluster.local/ns/full/sa/sleep"


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority.create(PrivateKey.generate(), "cluster.local", NOW)


@pytest.fixture(scope="module")
def leaf(authority: Authority) -> Leaf:
    return authority.issue(SLEEP, NOW)


def certificate(leaf: Leaf) -> x509.Certificate:
    return x509.load_pem_x509_certificate(leaf.chain)


def extension(cert: x509.Certificate, kind: type[x509.ExtensionType]) -> x509.Extension:
    return cert.extensions.get_extension_for_class(kind)


def uris(cert: x509.Certificate) -> list[str]:
    return extension(cert, x509.SubjectAlternativeName).value.get_values_for_type(
        x509.UniformResourceIdentifier
    )


def test_root_is_a_spiffe_ca_valid_for_ten_years(authority: Authority) -> None:
    root = authority.certificate
    assert root.issuer == root.subject
    assert root.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    assert uris(root) == ["spiffe://cluster.local"]
    assert authority.trust_domain == "cluster.local"
    constraints = extension(root, x509.BasicConstraints)
    assert constraints.critical
    assert constraints.value.ca
    usage = extension(root, x509.KeyUsage)
    assert usage.critical
    assert usage.value.key_cert_sign
    assert not usage.value.digital_signature
    assert root.not_valid_before_utc == datetime(2030, 1, 1, 11, 55, tzinfo=UTC)
    assert root.not_valid_after_utc.year == 2040
    assert isinstance(root.public_key().curve, ec.SECP256R1)


def test_leaf_is_an_x509_svid(authority: Authority, leaf: Leaf) -> None:
    cert = certificate(leaf)
    assert not cert.subject.rdns
    assert uris(cert) == [SLEEP]
    assert extension(cert, x509.SubjectAlternativeName).critical
    assert not extension(cert, x509.BasicConstraints).value.ca
    usage = extension(cert, x509.KeyUsage)
    assert usage.critical
    assert usage.value.digital_signature
    assert not usage.value.key_cert_sign
    assert not usage.value.crl_sign
    assert set(extension(cert, x509.ExtendedKeyUsage).value) == {
        ExtendedKeyUsageOID.SERVER_AUTH,
        ExtendedKeyUsageOID.CLIENT_AUTH,
    }
    root_id = extension(authority.certificate, x509.SubjectKeyIdentifier).value.digest
    assert extension(cert, x509.AuthorityKeyIdentifier).value.key_identifier == root_id
    assert isinstance(cert.public_key().curve, ec.SECP256R1)
    assert cert.public_key() == leaf.key.public_key


def test_leaf_is_valid_for_a_day_and_renewed_at_half(leaf: Leaf) -> None:
    assert leaf.not_before == datetime(2030, 1, 1, 11, 55, tzinfo=UTC)
    assert leaf.not_after == datetime(2030, 1, 2, 12, 0, tzinfo=UTC)
    assert leaf.renew_at == NOW + timedelta(hours=12)


def test_other_time_zones_are_accepted(authority: Authority) -> None:
    local = NOW.astimezone()
    assert authority.issue(SLEEP, local).not_after == authority.issue(SLEEP, NOW).not_after


def test_naive_time_is_rejected() -> None:
    with pytest.raises(ValueError, match="time zone"):
        Authority.create(PrivateKey.generate(), "cluster.local", NOW.replace(tzinfo=None))


def test_leaf_lifetime_is_configurable(authority: Authority) -> None:
    leaf = authority.issue(SLEEP, NOW, timedelta(hours=1))
    assert leaf.not_after == NOW.replace(microsecond=0) + timedelta(hours=1)
    assert leaf.renew_at == NOW + timedelta(minutes=30)


def test_each_leaf_has_its_own_key_and_serial_number(authority: Authority) -> None:
    leaves = [authority.issue(SLEEP, NOW) for _ in range(20)]
    assert len({leaf.key.to_pem() for leaf in leaves}) == 20
    assert len({certificate(leaf).serial_number for leaf in leaves}) == 20
    assert len({leaf.fingerprint for leaf in leaves}) == 20


def verify(leaf: Leaf, root: x509.Certificate, at: datetime = NOW) -> list[str]:
    verifier = PolicyBuilder().store(Store([root])).time(at).build_client_verifier()
    return [name.value for name in verifier.verify(certificate(leaf), []).subjects or ()]


def test_leaf_verifies_with_its_root(authority: Authority, leaf: Leaf) -> None:
    assert verify(leaf, authority.certificate) == [SLEEP]


@pytest.mark.parametrize("at", [NOW - timedelta(minutes=6), NOW + timedelta(hours=24, seconds=1)])
def test_leaf_does_not_verify_outside_its_validity(authority: Authority, leaf: Leaf, at: datetime) -> None:
    with pytest.raises(VerificationError):
        verify(leaf, authority.certificate, at)


def test_leaf_does_not_verify_with_another_root(leaf: Leaf) -> None:
    other = Authority.create(PrivateKey.generate(), "cluster.local", NOW)
    with pytest.raises(VerificationError):
        verify(leaf, other.certificate)


@pytest.mark.skipif(not shutil.which("openssl"), reason="needs the openssl command")
@pytest.mark.parametrize("purpose", ["sslclient", "sslserver"])
@pytest.mark.real
def test_openssl_strictly_verifies_a_leaf(
    authority: Authority, leaf: Leaf, purpose: str, tmp_path: Path
) -> None:
    (tmp_path / "root.pem").write_bytes(authority.certificate_pem)
    (tmp_path / "leaf.pem").write_bytes(leaf.chain)
    command = ["openssl", "verify", "-x509_strict", "-purpose", purpose, "-attime", str(int(NOW.timestamp()))]
    done = subprocess.run(
        [*command, "-CAfile", tmp_path / "root.pem", tmp_path / "leaf.pem"], check=False, capture_output=True
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_leaves_of_one_root_complete_a_mutual_tls_handshake(tmp_path: Path) -> None:
    authority = Authority.create(PrivateKey.generate(), "cluster.local", datetime.now(UTC))

    def context(side: ssl._SSLMethod, name: str) -> ssl.SSLContext:
        leaf = authority.issue(f"spiffe://cluster.local/ns/full/sa/{name}", datetime.now(UTC))
        file = tmp_path / name
        file.write_bytes(leaf.chain + leaf.key.to_pem())
        tls_context = ssl.SSLContext(side)
        tls_context.check_hostname = False
        tls_context.verify_mode = ssl.CERT_REQUIRED
        tls_context.load_verify_locations(cadata=authority.certificate_pem.decode())
        tls_context.load_cert_chain(file)
        return tls_context

    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = context(ssl.PROTOCOL_TLS_CLIENT, "sleep").wrap_bio(to_client, to_server)
    server = context(ssl.PROTOCOL_TLS_SERVER, "httpbin").wrap_bio(to_server, to_client, server_side=True)
    for side in (client, server, client, server):
        try:
            side.do_handshake()
        except ssl.SSLWantReadError:
            continue
    assert server.getpeercert()["subjectAltName"] == (("URI", SLEEP),)
    assert client.getpeercert()["subjectAltName"] == (("URI", "spiffe://cluster.local/ns/full/sa/httpbin"),)


@pytest.mark.parametrize(
    "identity",
    [
        "",
        "cluster.local/ns/full/sa/sleep",
        "https://cluster.local/ns/full/sa/sleep",
        "spiffe://cluster.local",
        "spiffe://Cluster.Local/ns/full/sa/sleep",
        "spiffe://cluster.local/ns//sa/sleep",
        "spiffe://cluster.local/ns/full/sa/",
        "spiffe://cluster.local/ns/../sa/sleep",
        "spiffe://cluster.local/ns/full/sa/..",
        "spiffe://cluster.local/ns/full/sa/sleep/more",
        "spiffe://cluster.local/ns/full/sa/sleep\n",
        "spiffe://cluster.local/ns/fu%6Cl/sa/sleep",
        "spiffe://cluster.local/ns/full/sa/" + "a" * 2048,
    ],
)
def test_only_service_account_ids_are_certified(authority: Authority, identity: str) -> None:
    with pytest.raises(IdentityError, match="is not the SPIFFE ID"):
        authority.issue(identity, NOW)


@pytest.mark.parametrize("trust_domain", ["", "Cluster.Local", "a/b", "spiffe://a", "a" * 256])
def test_invalid_trust_domain_is_rejected(trust_domain: str) -> None:
    with pytest.raises(IdentityError, match="not a trust domain"):
        Authority.create(PrivateKey.generate(), trust_domain, NOW)


def test_long_trust_domain_is_accepted() -> None:
    assert uris(Authority.create(PrivateKey.generate(), "a" * 255, NOW).certificate) == [
        "spiffe://" + "a" * 255
    ]


def test_leaf_expires_with_its_root_at_the_latest() -> None:
    root = Authority.create(PrivateKey.generate(), "cluster.local", NOW, timedelta(hours=20))
    early = root.issue(SLEEP, NOW)
    assert early.not_after == root.certificate.not_valid_after_utc
    assert early.renew_at == NOW + timedelta(hours=12)
    late = root.issue(SLEEP, NOW + timedelta(hours=19))
    assert late.renew_at == late.not_after == root.certificate.not_valid_after_utc
    with pytest.raises(IdentityError, match="the root certificate expired at 2030-01-02 08:00 UTC"):
        root.issue(SLEEP, late.renew_at)


def test_root_round_trips(authority: Authority) -> None:
    loaded = Authority.load(authority.certificate_pem, authority.key.to_pem(), NOW)
    assert loaded.certificate == authority.certificate
    assert verify(loaded.issue(SLEEP, NOW), authority.certificate) == [SLEEP]


def pem(cert: x509.Certificate) -> bytes:
    return cert.public_bytes(serialization.Encoding.PEM)


def key_pem(key: object, password: bytes | None = None) -> bytes:
    protection = serialization.BestAvailableEncryption(password) if password else serialization.NoEncryption()
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, protection)


def certified(
    key: object, *extensions: x509.ExtensionType, signer: object = None, start: datetime = NOW
) -> bytes:
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "user-provided")])
    builder = (
        x509.CertificateBuilder()
        .serial_number(1)
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .not_valid_before(start)
        .not_valid_after(start + timedelta(days=1))
    )
    for value in extensions:
        builder = builder.add_extension(value, critical=True)
    signer = signer or key
    return pem(
        builder.sign(signer, None if isinstance(signer, ed25519.Ed25519PrivateKey) else hashes.SHA256())
    )


def usage(*, sign: bool) -> x509.KeyUsage:
    flags = dict.fromkeys(
        [
            "digital_signature",
            "content_commitment",
            "key_encipherment",
            "data_encipherment",
            "key_agreement",
            "crl_sign",
            "encipher_only",
            "decipher_only",
        ],
        False,
    )
    return x509.KeyUsage(**flags, key_cert_sign=sign)


CA = x509.BasicConstraints(ca=True, path_length=None)
EC_KEY = ec.generate_private_key(ec.SECP256R1())
OTHER_EC_KEY = ec.generate_private_key(ec.SECP256R1())
RSA_KEY = rsa.generate_private_key(65537, 2048)
ED_KEY = ed25519.Ed25519PrivateKey.generate()
P521_KEY = ec.generate_private_key(ec.SECP521R1())
WEAK_RSA_KEY = rsa.generate_private_key(65537, 1024)
GOOD = certified(EC_KEY, CA, usage(sign=True))


def damaged(old: bytes, new: bytes) -> bytes:
    der = x509.load_pem_x509_certificate(GOOD).public_bytes(serialization.Encoding.DER)
    assert der.count(old) == 1
    return pem(x509.load_der_x509_certificate(der.replace(old, new)))


BASIC_CONSTRAINTS, KEY_USAGE, TRUE = b"\x55\x1d\x13", b"\x55\x1d\x0f", b"\x30\x03\x01\x01\xff"
DOUBLED = damaged(BASIC_CONSTRAINTS, KEY_USAGE)
BROKEN = damaged(TRUE, b"\x31" + TRUE[1:])


@pytest.mark.parametrize(
    ("cert", "key", "complaint"),
    [
        (b"", key_pem(EC_KEY), "not a PEM certificate"),
        (b"\xff", key_pem(EC_KEY), "not a PEM certificate"),
        (key_pem(EC_KEY), key_pem(EC_KEY), "not a PEM certificate"),
        (GOOD + GOOD, key_pem(EC_KEY), "there are 2 certificates"),
        (GOOD, b"", "not a PEM private key"),
        (GOOD, GOOD, "not a PEM private key"),
        (GOOD, key_pem(EC_KEY, b"secret"), "encrypted with a password"),
        (GOOD, key_pem(WEAK_RSA_KEY), "private key is unsupported; supported: EC P-256"),
        (GOOD, key_pem(P521_KEY), "private key is unsupported; supported: EC P-256"),
        (GOOD, key_pem(ED_KEY), "private key is unsupported; supported: EC P-256"),
        (GOOD, key_pem(RSA_KEY), "private key does not match the certificate"),
        (GOOD, key_pem(OTHER_EC_KEY), "private key does not match the certificate"),
        (
            certified(WEAK_RSA_KEY, CA, usage(sign=True)),
            key_pem(EC_KEY),
            "certificate has an unsupported key",
        ),
        (certified(ED_KEY, CA, usage(sign=True)), key_pem(EC_KEY), "certificate has an unsupported key"),
        (certified(P521_KEY, CA, usage(sign=True)), key_pem(EC_KEY), "certificate has an unsupported key"),
        (DOUBLED, key_pem(EC_KEY), "malformed"),
        (BROKEN, key_pem(EC_KEY), "malformed"),
        (certified(EC_KEY), key_pem(EC_KEY), "not a CA certificate: it lacks basicConstraints or keyUsage"),
        (
            certified(EC_KEY, CA),
            key_pem(EC_KEY),
            "not a CA certificate: it lacks basicConstraints or keyUsage",
        ),
        (
            certified(EC_KEY, x509.BasicConstraints(ca=False, path_length=None), usage(sign=True)),
            key_pem(EC_KEY),
            "CA:FALSE",
        ),
        (certified(EC_KEY, CA, usage(sign=False)), key_pem(EC_KEY), "lacks keyCertSign"),
        (
            certified(EC_KEY, CA, usage(sign=True), signer=OTHER_EC_KEY),
            key_pem(EC_KEY),
            "not signed with its own key",
        ),
        (
            certified(EC_KEY, CA, usage(sign=True), start=NOW - timedelta(days=2)),
            key_pem(EC_KEY),
            "expired at 2029-12-31 12:00 UTC",
        ),
        (
            certified(EC_KEY, CA, usage(sign=True), start=NOW + timedelta(days=2)),
            key_pem(EC_KEY),
            "not valid before 2030-01-03 12:00 UTC",
        ),
    ],
)
def test_unusable_root_is_rejected_with_the_reason(cert: bytes, key: bytes, complaint: str) -> None:
    with pytest.raises(IdentityError, match=complaint) as refusal:
        Authority.load(cert, key, NOW)
    assert "PRIVATE" not in str(refusal.value)
    assert refusal.value.__cause__ is None


def test_user_provided_root_is_used(leaf: Leaf) -> None:
    authority = Authority.load(GOOD, key_pem(EC_KEY), NOW)
    cert = certificate(authority.issue(SLEEP, NOW))
    assert cert.issuer == authority.certificate.subject
    cert.verify_directly_issued_by(authority.certificate)


def test_repr_hides_the_private_key(authority: Authority, leaf: Leaf) -> None:
    for key in (authority.key, leaf.key):
        secret = key.to_pem().splitlines()[1].decode()
        number = str(serialization.load_pem_private_key(key.to_pem(), None).private_numbers().private_value)
        for shown in (repr(key), str(key), f"{key}", repr(authority), repr(leaf), f"{leaf}"):
            assert secret not in shown
            assert number not in shown
        assert repr(key) == "<PrivateKey: hidden>"


@pytest.mark.parametrize("leak", [pickle.dumps, copy.copy, copy.deepcopy])
def test_private_key_cannot_be_pickled_or_copied(leaf: Leaf, leak: object) -> None:
    with pytest.raises(TypeError, match="cannot be copied or pickled"):
        leak(leaf.key)


@pytest.mark.parametrize(("lifetime", "warned"), [(365, 30), (90, 22.5), (8, 2)])
def test_ca_expires_soon_in_its_last_quarter(lifetime: int, warned: float) -> None:
    ca = Authority.create(PrivateKey.generate(), "cluster.local", NOW, timedelta(days=lifetime))
    assert not ca.expires_soon(ca.expires - timedelta(days=warned + 0.01))
    assert ca.expires_soon(ca.expires - timedelta(days=warned - 0.01))
