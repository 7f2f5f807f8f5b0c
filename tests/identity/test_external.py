"""Requests for an external signer, and what is accepted from it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from tests.identity.companies import Company, pem
from xds.mesh.identity.ca import key_usage
from xds.mesh.identity.external import (
    NamesError,
    identity_of,
    read_request,
    read_signed,
    require_names,
    signing_request,
)
from xds.mesh.identity.keys import IdentityError, PrivateKey

NOW = datetime(2030, 1, 1, 12, tzinfo=UTC)
IDENTITY = "spiffe://cluster.local/ns/shop/sa/web"
ROOT = Company.root("Root", NOW)
ISSUING = ROOT.subsidiary("Issuing", pathlen=0)
KEY = PrivateKey.generate()
BOTH = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]


def signed(
    ca: Company = ISSUING,
    *,
    key: PrivateKey = KEY,
    names: list[str] | None = None,
    usages: list[Any] | None = None,
    start: datetime = NOW,
    lifetime: timedelta = timedelta(days=1),
    others: list[x509.GeneralName] | None = None,
    extensions: tuple[x509.ExtensionType, ...] = (),
) -> bytes:
    builder = (
        x509.CertificateBuilder()
        .serial_number(x509.random_serial_number())
        .subject_name(x509.Name([]))
        .issuer_name(ca.certificate.subject)
        .public_key(key.public_key)
        .not_valid_before(start)
        .not_valid_after(start + lifetime)
    )
    if names != []:
        uris = [x509.UniformResourceIdentifier(name) for name in names or [IDENTITY]]
        builder = builder.add_extension(x509.SubjectAlternativeName([*uris, *(others or ())]), critical=True)
    for extension in extensions:
        builder = builder.add_extension(extension, critical=True)
    if usages:
        builder = builder.add_extension(x509.ExtendedKeyUsage(usages), critical=False)
    return builder.sign(ca.key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


def test_request_has_the_identity_and_the_usages_of_a_workload() -> None:
    request = x509.load_pem_x509_csr(signing_request(KEY, IDENTITY))
    assert request.is_signature_valid
    assert request.public_key() == KEY.public_key
    names = request.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.UniformResourceIdentifier) == [IDENTITY]
    assert list(request.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value) == BOTH


@pytest.mark.parametrize("usages", [None, BOTH])
@pytest.mark.parametrize("rest", [pem(ISSUING), pem(ISSUING) + pem(ROOT)])
def test_signed_certificate_is_accepted(usages: list[Any] | None, rest: bytes) -> None:
    own = signed(usages=usages)
    leaf = read_signed(own + rest, KEY.public_key, IDENTITY, [ROOT.certificate], NOW)
    assert leaf.chain == own + pem(ISSUING), "without the root"
    assert (leaf.not_after, leaf.renew_at) == (NOW + timedelta(days=1), NOW + timedelta(hours=12))
    assert leaf.with_key(KEY).key is KEY


def test_root_may_sign_directly() -> None:
    own = signed(ROOT, extensions=(x509.BasicConstraints(ca=False, path_length=None), key_usage(ca=False)))
    assert read_signed(own, KEY.public_key, IDENTITY, [ROOT.certificate], NOW).chain == own


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (b"nothing", "not a PEM certificate"),
        (signed(key=PrivateKey.generate()) + pem(ISSUING), "is not for the requested key"),
        (pem(ISSUING) + signed(), "is not for the requested key"),
        (signed(names=[]) + pem(ISSUING), f"is for no name, not for URI:{IDENTITY}"),
        (signed(names=[IDENTITY + "2"]) + pem(ISSUING), f"is for URI:{IDENTITY}2, not for URI:{IDENTITY}"),
        (
            signed(names=[IDENTITY, "spiffe://b"]) + pem(ISSUING),
            f"is for URI:{IDENTITY}, URI:spiffe://b, not for",
        ),
        (
            signed(others=[x509.DNSName("istiod.istio-system.svc")]) + pem(ISSUING),
            "is for URI:.*, DNS:istiod.istio-system.svc, not for",
        ),
        (
            signed(extensions=(x509.BasicConstraints(ca=True, path_length=None),)) + pem(ISSUING),
            "is that of a CA: its owner could sign any identity",
        ),
        (signed(extensions=(key_usage(ca=True),)) + pem(ISSUING), "is that of a CA"),
        (signed(usages=BOTH[:1]) + pem(ISSUING), "extendedKeyUsage lacks serverAuth or clientAuth"),
        (signed(start=NOW - timedelta(days=2)) + pem(ISSUING), "the certificate expired at"),
        (signed(start=NOW + timedelta(minutes=1)) + pem(ISSUING), "the certificate is not valid before"),
        (signed(), "the chain does not lead to the root"),
        (signed(Company.root("Root", NOW)), "the chain does not lead to the root"),
        (
            signed(ISSUING.subsidiary("Below")) + pem(ISSUING.subsidiary("Below")) + pem(ISSUING),
            "the chain does not lead to the root",
        ),
    ],
)
def test_unusable_certificate_is_refused(answer: bytes, said: str) -> None:
    with pytest.raises(IdentityError, match=said):
        read_signed(answer, KEY.public_key, IDENTITY, [ROOT.certificate], NOW)


def test_path_length_of_the_issuing_ca_counts() -> None:
    below = ISSUING.subsidiary("Below")
    with pytest.raises(IdentityError, match="allows 0 CA certificates below it"):
        read_signed(
            signed(below) + pem(below) + pem(ISSUING), KEY.public_key, IDENTITY, [ROOT.certificate], NOW
        )


def named(names: list[x509.GeneralName], common_name: str = "") -> x509.CertificateSigningRequest:
    subject = [x509.NameAttribute(NameOID.COMMON_NAME, common_name)] if common_name else []
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name(subject))
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    return read_request(KEY.sign_request(builder))[0]


OWN = x509.UniformResourceIdentifier(IDENTITY)


def test_request_for_an_external_signer_names_the_identity() -> None:
    request, key = read_request(signing_request(KEY, IDENTITY))
    assert key == KEY.public_key
    require_names(request, IDENTITY)


@pytest.mark.parametrize(
    ("names", "common_name"),
    [
        ([], ""),
        ([x509.UniformResourceIdentifier(IDENTITY + "x")], ""),
        ([OWN, x509.UniformResourceIdentifier("spiffe://cluster.local/ns/bank/sa/vault")], ""),
        ([OWN, x509.DNSName("bank.example")], ""),
        ([x509.DNSName(IDENTITY)], ""),
        ([OWN], "admin"),
    ],
)
def test_request_for_an_external_signer_names_nothing_else(
    names: list[x509.GeneralName], common_name: str
) -> None:
    with pytest.raises(NamesError, match=f"URI:{IDENTITY} alone"):
        require_names(named(names, common_name), IDENTITY)


def test_identity_is_the_only_name() -> None:
    assert identity_of(signed()) == IDENTITY
    assert identity_of(signed(others=[x509.DNSName("x")])) == ""
    assert identity_of(signed(names=[])) == ""
