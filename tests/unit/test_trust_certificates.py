"""Certificates: only those of members are read as such, whatever the bytes."""

from __future__ import annotations

import datetime
import ssl

import pytest
from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from trusted import Site

from edge_runtime.ports import EdgeError
from edge_runtime.trust import certificates
from edge_runtime.trust.keys import PrivateKey


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    return Site(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="module")
def pem(site: Site) -> bytes:
    return site.member("press-1").cert_file.read_bytes()


def test_no_clock_of_any_machine_can_refuse_a_member(pem: bytes) -> None:
    certificate = x509.load_pem_x509_certificate(pem)
    assert certificate.not_valid_before_utc == datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
    assert certificate.not_valid_after_utc.year == 9999


@pytest.mark.parametrize(
    ("role", "serves"),
    [("gateway", True), ("viewer", False), ("operator", False), ("engineer", False), ("receiver", False), ("device", False)],
)
def test_only_gateways_may_be_servers(site: Site, role: str, serves: bool) -> None:
    certificate = x509.load_pem_x509_certificate(site.authority.issue(site.csr(), f"a-{role}", role))  # type: ignore[arg-type]
    usage = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert (ExtendedKeyUsageOID.SERVER_AUTH in usage) is serves
    assert ExtendedKeyUsageOID.CLIENT_AUTH in usage
    assert not certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca


def test_no_person_can_have_the_user_name_of_a_gateway(site: Site) -> None:
    def certificate_name(pem: bytes) -> str:
        name = x509.load_pem_x509_certificate(pem).subject
        return str(name.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value)

    assert certificate_name(site.authority.issue(site.csr(), "carol", "viewer")) == "person:carol"
    assert certificate_name(site.authority.issue(site.csr(), "press-9", "gateway")) == "press-9"


@pytest.mark.parametrize(
    ("role", "common"),
    [
        ("gateway", "person:alice"),
        ("engineer", "alice"),
        ("root", "alice"),
        ("root", "person:alice"),
        ("", "press-1"),
        ("gateway", ""),
    ],
)
def test_a_certificate_of_another_form_is_of_no_member(role: str, common: str) -> None:
    key = PrivateKey.generate()
    parts = [(NameOID.ORGANIZATION_NAME, "plant-1"), (NameOID.ORGANIZATIONAL_UNIT_NAME, role), (NameOID.COMMON_NAME, common)]
    name = x509.Name([x509.NameAttribute(oid, value) for oid, value in parts if value])
    until = x509.PrivateKeyUsagePeriod(not_before=None, not_after=datetime.datetime(2030, 1, 1))
    builder = certificates._builder(name, name, key.native.public_key(), key.native.public_key())
    builder = builder.add_extension(until, critical=False)
    with pytest.raises(EdgeError, match="not the certificate of a member"):
        certificates.parse(certificates._pem(builder.sign(key.native, None)))


def test_the_authoritys_certificate_is_no_members_and_the_other_way_round(site: Site, pem: bytes) -> None:
    assert certificates.parse_authority(site.authority.ca) == ("plant-1", site.authority.public)
    with pytest.raises(EdgeError, match="not the certificate of a member"):
        certificates.parse(site.authority.ca)
    key, name = PrivateKey.generate(), certificates._name("plant-1", None, certificates.AUTHORITY_NAME)
    by_another = certificates._builder(name, name, key.native.public_key(), PrivateKey.generate().native.public_key())
    for wrong in (pem, certificates._pem(by_another.sign(PrivateKey.generate().native, None))):
        with pytest.raises(EdgeError, match="not the certificate of a site's authority"):
            certificates.parse_authority(wrong)


def test_a_member_cannot_sign_for_the_authority(site: Site, pem: bytes) -> None:
    """Also with the authority's name as issuer."""
    press = site.member("press-2")
    false = certificates.issue(press.key, site.authority.ca, PrivateKey.generate().public, ("press-3", "gateway"), 10**9)
    assert certificates.is_signed(pem, site.authority.ca)
    assert not certificates.is_signed(false, site.authority.ca)
    assert not certificates.is_signed(false, press.cert_file.read_bytes())


READERS = (certificates.parse, certificates.parse_authority, certificates.requested)


@settings(max_examples=200, deadline=None)
@given(at=st.integers(min_value=0), span=st.integers(0, 5), instead=st.binary(max_size=5))
def test_damaged_pem_is_refused_in_words(site: Site, pem: bytes, at: int, span: int, instead: bytes) -> None:
    for text in (pem, site.authority.ca, site.csr()):
        here = at % len(text)
        for reader in READERS:
            try:
                reader(text[:here] + instead + text[here + span :])
            except EdgeError as error:
                assert error.cause
                assert error.hint


@pytest.mark.filterwarnings("ignore:Parsed a serial number")
@settings(max_examples=200, deadline=None)
@given(at=st.integers(min_value=0), value=st.integers(0, 255), twice=st.integers(min_value=0))
def test_damaged_der_is_refused_in_words_or_says_the_same(site: Site, pem: bytes, at: int, value: int, twice: int) -> None:
    """Below the PEM, where each byte means something."""
    der = bytearray(ssl.PEM_cert_to_DER_cert(pem.decode()))
    der[at % len(der)] = value
    der[twice % len(der)] ^= 1
    assume(bytes(der) != ssl.PEM_cert_to_DER_cert(pem.decode()))
    damaged = ssl.DER_cert_to_PEM_cert(bytes(der)).encode()
    for reader in (certificates.parse, certificates.parse_authority):
        try:
            reader(damaged)
        except EdgeError as error:
            assert error.cause
    try:
        # One bit outside of what is signed is read over: that the signature has no bits left over.
        assert not certificates.is_signed(damaged, site.authority.ca) or certificates.parse(damaged) == certificates.parse(pem)
    except EdgeError as error:
        assert "not a certificate" in error.cause
