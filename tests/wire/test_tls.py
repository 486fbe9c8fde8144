"""The same over TLS, and who is not let in."""

import datetime
import ipaddress
import ssl
from pathlib import Path
from typing import Any

import pytest
import trio

from mountfs.errors import Fault, FsError
from mountfs.types import MIB
from mountfs.wire.config import Limits
from mountfs.wire.connection import Disconnected
from tests.wire.conftest import ECHO, QUICK, SLOW_ECHO, WAIT, Answers, read_all, served, until

pytest.importorskip("cryptography", reason="makes the certificates")

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

NOW = datetime.datetime.now(datetime.UTC)
DAY = datetime.timedelta(days=1)


class Authority:
    """Signs certificates, and has one of its own."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir()
        self._directory = directory
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "test authority")])
        certificate = (
            self._builder(self._name, self._key, NOW + DAY)
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .sign(self._key, hashes.SHA256())
        )
        self.file = directory / "ca.pem"
        self.file.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))

    def _builder(
        self, name: x509.Name, key: ec.EllipticCurvePrivateKey, until: datetime.datetime
    ) -> x509.CertificateBuilder:
        return (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(self._name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(NOW - 2 * DAY)
            .not_valid_after(until)
        )

    def issue(self, name: str, until: datetime.datetime = NOW + DAY) -> Path:
        """A file with a certificate and its key."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
        address = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
        certificate = (
            self._builder(subject, key, until)
            .add_extension(x509.SubjectAlternativeName([address]), critical=False)
            .sign(self._key, hashes.SHA256())
        )
        file = self._directory / f"{name}.pem"
        file.write_bytes(
            certificate.public_bytes(serialization.Encoding.PEM)
            + key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
        )
        return file

    def server(self, file: Path) -> ssl.SSLContext:
        """Lets in only those that have a certificate of this authority."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(file)
        context.load_verify_locations(self.file)
        context.verify_mode = ssl.CERT_REQUIRED
        return context

    def client(self, file: Path | None) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.load_verify_locations(self.file)
        if file is not None:
            context.load_cert_chain(file)
        return context


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path / "ours")


@pytest.fixture
def inside(authority: Authority) -> ssl.SSLContext:
    return authority.server(authority.issue("node 1"))


def trusted(authority: Authority) -> dict[str, Any]:
    return {
        "ssl_context": authority.client(authority.issue("mount 7")),
        "server_hostname": "127.0.0.1",
    }


async def test_calls_over_tls(
    answers: Answers, authority: Authority, inside: ssl.SSLContext
) -> None:
    async with served(answers, ssl_context=lambda: inside) as here:
        client = await here.connect(**trusted(authority))

        async def caller(size: int) -> None:
            body = bytes(range(256)) * (size // 256)
            for method in (ECHO, SLOW_ECHO, ECHO):
                assert await client.call(method, [body[:7], body[7:]]) == body

        async with trio.open_nursery() as nursery:
            for size in (0, 256, 16_384, 65_536, MIB, 4 * MIB, 512, 16 * MIB):
                nursery.start_soon(caller, size)
        for certificate, name in ((client.certificate, "node 1"), (here.peer.certificate, "mount")):
            assert certificate is not None
            assert name in x509.load_der_x509_certificate(certificate).subject.rfc4514_string()


async def test_a_renewed_certificate_is_shown_from_then_on(
    answers: Answers, authority: Authority, inside: ssl.SSLContext
) -> None:
    now = inside
    async with served(answers, ssl_context=lambda: now) as here:
        before = await here.connect(**trusted(authority))
        now = authority.server(authority.issue("node 1"))
        after = await here.connect(**trusted(authority))
        assert await before.call(ECHO, b"still there") == b"still there"
        assert await after.call(ECHO, b"new") == b"new"
        assert before.certificate != after.certificate


async def test_cancelling_and_the_end_over_tls(
    answers: Answers, authority: Authority, inside: ssl.SSLContext
) -> None:
    async with served(answers, ssl_context=lambda: inside) as here, trio.open_nursery() as nursery:
        client = await here.connect(**trusted(authority))
        with trio.move_on_after(0.02):
            await client.call(WAIT)
        await until(lambda: answers.cancelled == 1)

        async def caller() -> None:
            with pytest.raises(Disconnected) as caught:
                await client.call(WAIT)
            assert caught.value.sent

        nursery.start_soon(caller)
        await until(lambda: answers.waiting == 1)
        here.peer.close()
        await client.closed.wait()


async def test_a_slow_reader_over_tls(
    answers: Answers, authority: Authority, inside: ssl.SSLContext
) -> None:
    limits = Limits(out_bytes_max=MIB)
    async with served(answers, ssl_context=lambda: inside, limits=limits) as here:
        client = await here.connect(**trusted(authority), limits=limits)
        async with trio.open_nursery() as nursery:
            for _ in range(20):
                nursery.start_soon(client.call, ECHO, bytes(MIB))
        assert await client.call(ECHO, b"goes on") == b"goes on"


async def test_nobody_without_a_certificate_gets_in(
    answers: Answers, authority: Authority, inside: ssl.SSLContext
) -> None:
    async with served(answers, ssl_context=lambda: inside) as here:
        with pytest.raises(FsError, match="certificate required") as caught:
            await here.connect(ssl_context=authority.client(None), server_hostname="127.0.0.1")
        assert caught.value.fault is Fault.DENIED
        assert not here.service.peers


async def test_an_expired_certificate(
    answers: Answers, authority: Authority, inside: ssl.SSLContext
) -> None:
    expired = authority.client(authority.issue("mount 8", NOW - DAY))
    async with served(answers, ssl_context=lambda: inside) as here:
        with pytest.raises(FsError, match="certificate expired"):
            await here.connect(ssl_context=expired, server_hostname="127.0.0.1")


async def test_a_certificate_of_another_authority(
    answers: Answers, authority: Authority, inside: ssl.SSLContext, tmp_path: Path
) -> None:
    foreign = Authority(tmp_path / "theirs")
    context = authority.client(foreign.issue("mount 9"))
    async with served(answers, ssl_context=lambda: inside) as here:
        with pytest.raises(FsError) as caught:
            await here.connect(ssl_context=context, server_hostname="127.0.0.1")
        assert caught.value.fault is Fault.DENIED
        with pytest.raises(FsError, match="the certificate is not good: "):
            await here.connect(
                ssl_context=foreign.client(foreign.issue("mount 10")), server_hostname="127.0.0.1"
            )
        assert not here.service.peers


async def test_a_server_of_another_name(
    answers: Answers, authority: Authority, inside: ssl.SSLContext
) -> None:
    context = trusted(authority)["ssl_context"]
    async with served(answers, ssl_context=lambda: inside) as here:
        with pytest.raises(FsError, match=r"the certificate is not good: .*node2"):
            await here.connect(ssl_context=context, server_hostname="node2")


async def test_a_client_without_tls_at_a_server_with_it(
    answers: Answers, inside: ssl.SSLContext
) -> None:
    async with served(answers, ssl_context=lambda: inside) as here:
        with pytest.raises(Disconnected, match=r"without a hello \(does it want TLS\?\)") as caught:
            await here.connect()
        assert not caught.value.sent


async def test_a_client_with_tls_at_a_server_without_it(
    answers: Answers, authority: Authority
) -> None:
    async with served(answers, limits=QUICK) as here:
        with pytest.raises(FsError, match="TLS: ") as caught:
            await here.connect(**trusted(authority))
        assert caught.value.fault is Fault.DENIED


async def test_a_stranger_that_never_shakes_hands_is_cut_off(
    answers: Answers, inside: ssl.SSLContext
) -> None:
    async with served(answers, ssl_context=lambda: inside, limits=QUICK) as here:
        async with await here.raw() as stream:
            assert await read_all(stream) == b""
        async with await here.raw() as stream:
            await stream.send_all(b"GET / HTTP/1.1\r\n\r\n")
            await read_all(stream)
        await until(lambda: here.service._connections == 0)
