"""What certificates say, and for how long."""

import contextlib
import doctest
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID
from hypothesis import given
from hypothesis import strategies as st

from mountfs.errors import Fault, FsError
from mountfs.tls import authority
from mountfs.tls.authority import BACKDATED, Kind, Subject

CLUSTER = "0123456789abcdef" * 2
NOW = datetime(2030, 1, 2, 3, 4, 5, tzinfo=UTC)
AUTHORITY = authority.new_authority(CLUSTER, NOW)


def test_the_examples_in_the_docstrings_hold() -> None:
    tried = doctest.testmod(authority)
    assert tried.attempted
    assert not tried.failed


def test_a_certificate_says_cluster_kind_and_name() -> None:
    made = authority.issue(AUTHORITY, Kind.NODE, "n1", NOW, hosts=["h.example", "10.0.0.1", "::1"])
    assert authority.subject_of(made.certificate) == Subject(CLUSTER, Kind.NODE, "n1")
    assert authority.hosts_of(made.certificate) == ["h.example", "10.0.0.1", "::1"]


def test_a_node_has_the_name_that_clients_check_and_a_client_has_not() -> None:
    def names(kind: Kind) -> list[str]:
        extensions = authority.issue(AUTHORITY, kind, "x", NOW).certificate.extensions
        try:
            found = extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        except x509.ExtensionNotFound:
            return []
        return found.get_values_for_type(x509.DNSName)

    assert names(Kind.NODE) == [f"{CLUSTER}.mountfs"]
    assert names(Kind.CLIENT) == []


def test_a_node_may_serve_and_call_and_a_client_may_only_call() -> None:
    def usages(kind: Kind) -> set[x509.ObjectIdentifier]:
        extensions = authority.issue(AUTHORITY, kind, "x", NOW).certificate.extensions
        return set(extensions.get_extension_for_class(x509.ExtendedKeyUsage).value)

    assert usages(Kind.CLIENT) == {ExtendedKeyUsageOID.CLIENT_AUTH}
    assert usages(Kind.NODE) == {ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH}


def test_a_certificate_begins_a_little_before_it_is_made_and_lasts_a_year() -> None:
    made = authority.issue(AUTHORITY, Kind.CLIENT, "x", NOW).certificate
    assert made.not_valid_before_utc == NOW - BACKDATED
    assert made.not_valid_after_utc == NOW + timedelta(days=365)


def test_the_authority_lasts_ten_years_and_can_sign_certificates_only() -> None:
    own = AUTHORITY.certificate
    assert own.not_valid_after_utc == NOW + timedelta(days=3650)
    constraints = own.extensions.get_extension_for_class(x509.BasicConstraints)
    assert constraints.critical
    assert constraints.value == x509.BasicConstraints(ca=True, path_length=0)


def test_no_certificate_outlives_its_authority() -> None:
    end = AUTHORITY.certificate.not_valid_after_utc
    made = authority.issue(AUTHORITY, Kind.CLIENT, "x", end - timedelta(days=1))
    assert made.certificate.not_valid_after_utc == end
    with pytest.raises(FsError, match=r"the authority expired on 2039-12-31.*--authority"):
        authority.issue(AUTHORITY, Kind.CLIENT, "x", end)


def test_renewing_keeps_what_is_said_and_changes_the_key() -> None:
    week = timedelta(days=7)
    old = authority.issue(AUTHORITY, Kind.NODE, "n1", NOW, hosts=["h", "::1"], lifetime=week)
    new = authority.renewed(AUTHORITY, old.certificate, NOW + week)
    assert authority.subject_of(new.certificate) == authority.subject_of(old.certificate)
    assert authority.hosts_of(new.certificate) == ["h", "::1"]
    assert new.certificate.not_valid_after_utc == NOW + 2 * week
    assert new.certificate.public_key() != old.certificate.public_key()
    assert new.certificate.serial_number != old.certificate.serial_number


@given(st.from_regex(authority.NAME_PATTERN, fullmatch=True), st.sampled_from(["node", "client"]))
def test_every_name_that_is_allowed_comes_back_from_its_certificate(name: str, kind: str) -> None:
    made = authority.issue(AUTHORITY, Kind(kind), name, NOW)
    assert authority.subject_of(made.certificate) == Subject(CLUSTER, Kind(kind), name)


@given(st.text())
def test_a_name_is_a_name_or_refused(name: str) -> None:
    for check in (authority.check_name, authority.check_host, authority.check_cluster):
        try:
            assert check(name) == name
        except FsError as error:
            assert error.fault is Fault.INVALID


@given(st.text(min_size=1), st.ip_addresses().map(str))
def test_hosts_that_are_allowed_come_back_from_their_certificate(text: str, address: str) -> None:
    hosts = [address]
    with contextlib.suppress(FsError):
        hosts.append(authority.check_host(text))
    made = authority.issue(AUTHORITY, Kind.NODE, "n", NOW, hosts=hosts)
    assert authority.hosts_of(made.certificate)[:1] == [address]
    assert len(authority.hosts_of(made.certificate)) == len(hosts)


@pytest.mark.parametrize(
    "name", ["", ".", "..", "../n1", "a/b", ".hidden", "-rf", "a b", "ä", "n\n", "x" * 65]
)
def test_a_name_that_is_no_file_name_is_refused(name: str) -> None:
    with pytest.raises(FsError, match="cannot be the name of a certificate"):
        authority.issue(AUTHORITY, Kind.NODE, name, NOW)


@pytest.mark.parametrize(
    "host", ["", "a b", "-a", "a..b", "[::1]", "1.2.3.4:80", "h\n", "ä.example"]
)
def test_a_host_that_is_none_is_refused(host: str) -> None:
    with pytest.raises(FsError, match="neither a host name nor an IP address"):
        authority.issue(AUTHORITY, Kind.NODE, "n", NOW, hosts=[host])


def test_keys_are_not_shown() -> None:
    assert "key" not in repr(AUTHORITY).replace("_key", "")
