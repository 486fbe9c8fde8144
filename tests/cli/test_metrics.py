"""Figures over HTTP, behind the certificates of the cluster if there are any."""

import ssl
import urllib.error
import urllib.request
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from mountfs.cli.metrics import served
from mountfs.cli.trust import Trust
from mountfs.errors import Fault, FsError
from mountfs.tls.authority import Kind
from mountfs.tls.store import Store


class One(Collector):
    def collect(self) -> Iterator[Metric]:
        yield GaugeMetricFamily("mountfs_test", "One.", 1)


def test_metrics_are_read_over_http() -> None:
    with (
        served(One(), "127.0.0.1", 0) as port,
        urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer,
    ):
        assert b"mountfs_test 1.0" in answer.read()


def test_a_place_that_is_taken_is_named() -> None:
    with (
        served(One(), "127.0.0.1", 0) as port,
        pytest.raises(FsError) as caught,
        served(One(), "127.0.0.1", port),
    ):
        pass
    assert caught.value.fault is Fault.BUSY
    assert "--metrics" in str(caught.value)


def test_with_certificates_nobody_without_one_gets_through(tmp_path: Path) -> None:
    trusts = identities(tmp_path)
    node, client = trusts
    with served(One(), "127.0.0.1", 0, node.server_context) as port:
        url = f"https://127.0.0.1:{port}/metrics"
        stranger = ssl.create_default_context()
        stranger.check_hostname, stranger.verify_mode = False, ssl.CERT_NONE
        with pytest.raises((urllib.error.URLError, ssl.SSLError, ConnectionError)):
            urllib.request.urlopen(url, timeout=10, context=stranger).read()
        with pytest.raises((urllib.error.URLError, ConnectionError)):
            urllib.request.urlopen(url.replace("https", "http"), timeout=10).read()
        assert client.identities is not None
        context = client.identities.current().client_context()
        context.check_hostname = False  # the name is the cluster's, not this address
        with urllib.request.urlopen(url, timeout=10, context=context) as answer:
            assert b"mountfs_test 1.0" in answer.read()


def identities(directory: Path) -> tuple[Trust, Trust]:
    """A node's and a client's, of one cluster."""
    now = datetime.now(UTC)
    store = Store.create(directory / "pki", "ab" * 16, now)
    node = store.issue(Kind.NODE, "n1", now).directory
    client = store.issue(Kind.CLIENT, "reader", now).directory
    return Trust(node), Trust(client, kind=None)
