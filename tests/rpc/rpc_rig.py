"""Troubled networks, other processes and certificates for the tests."""

import contextlib
import datetime
import math
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import trio

from mountfs.rpc.config import Config
from mountfs.rpc.identity import Pems, target_name

CONFIG = Config()
ANYWHERE = "127.0.0.1:0"
CLUSTER = "blue"
ADMIN = "mountfs.Admin"


def smaller(**limits: int) -> Config:
    return msgspec.structs.replace(CONFIG, **limits)


class Proxy:
    """A way to an address that can be made a black hole: nothing is forwarded, nothing is refused,
    and no connection ends.
    """

    def __init__(self) -> None:
        self.address = ""
        self.target = ""
        self.bytes_a_second = math.inf
        self._open = trio.Event()
        self._open.set()
        self._scopes: set[trio.CancelScope] = set()

    def swallow(self) -> None:
        self._open = trio.Event()

    def forward(self) -> None:
        """What came meanwhile is forgotten, as are the connections."""
        for scope in self._scopes:
            scope.cancel()
        self._open.set()

    async def carry(self, near: trio.SocketStream) -> None:
        with trio.CancelScope() as scope:
            self._scopes.add(scope)
            async with near:
                await self._open.wait()
                host, port = self.target.split(":")
                try:
                    far = await trio.open_tcp_stream(host, int(port))
                except OSError:
                    return
                async with far, trio.open_nursery() as nursery:
                    nursery.start_soon(self._pump, near, far, scope)
                    nursery.start_soon(self._pump, far, near, scope)
        self._scopes.discard(scope)

    async def _pump(
        self, source: trio.SocketStream, target: trio.SocketStream, scope: trio.CancelScope
    ) -> None:
        with contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            async for data in source:
                await self._open.wait()
                await trio.sleep(len(data) / self.bytes_a_second)
                await target.send_all(data)
        scope.cancel()


@contextlib.asynccontextmanager
async def a_proxy(target: str = "") -> AsyncIterator[Proxy]:
    proxy = Proxy()
    proxy.target = target
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    proxy.address = f"127.0.0.1:{listeners[0].socket.getsockname()[1]}"
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.serve_listeners, proxy.carry, listeners)
        yield proxy
        nursery.cancel_scope.cancel()


@contextlib.asynccontextmanager
async def another_process(*arguments: str) -> AsyncIterator[tuple[trio.Process, str]]:
    """(process, address) of `echo_node.py`, started with these; killed at the end."""
    command = [sys.executable, str(Path(__file__).with_name("echo_node.py")), *arguments]
    async with trio.open_nursery() as nursery:
        process = await nursery.start(run, command)
        try:
            with trio.fail_after(20):
                address = (await process.stdout.receive_some(100)).decode().strip()
            yield process, address
        finally:
            nursery.cancel_scope.cancel()


async def run(command: list[str], task_status: trio.TaskStatus[trio.Process]) -> None:
    await trio.run_process(
        command,
        stdout=-1,
        capture_stdout=False,
        check=False,
        deliver_cancel=_kill,
        task_status=task_status,
    )


async def _kill(process: trio.Process) -> None:
    process.kill()


class Authority:
    """Makes certificates as `mountfs pki` does."""

    def __init__(self, name: str = "authority") -> None:
        self._key = _new_key()
        self._name = _name(name)
        self._certificate = self._sign(self._name, self._key, None, days=10, authority=True)

    def issue(
        self,
        kind: str = "node",
        *,
        cluster: str = CLUSTER,
        name: str = "n",
        days: int = 1,
        trusts: "Authority | None" = None,
    ) -> Pems:
        key = _new_key()
        certificate = self._sign(
            _name(name, kind, cluster), key, target_name(cluster), days=days, authority=False
        )
        return Pems((trusts or self).pem, _pem(certificate), _key_pem(key))

    @property
    def pem(self) -> bytes:
        return _pem(self._certificate)

    def _sign(self, name, key, host, *, days, authority):
        from cryptography import x509
        from cryptography.hazmat.primitives import hashes

        now = datetime.datetime.now(datetime.UTC)
        builder = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(self._name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(days=5))
            .not_valid_after(now + datetime.timedelta(days=days))
            .add_extension(x509.BasicConstraints(authority, None), critical=True)
        )
        if host:
            names = x509.SubjectAlternativeName([x509.DNSName(host)])
            builder = builder.add_extension(names, critical=False)
        return builder.sign(self._key, hashes.SHA256())


def _new_key():
    from cryptography.hazmat.primitives.asymmetric import ec

    return ec.generate_private_key(ec.SECP256R1())


def _name(name: str, kind: str = "", cluster: str = ""):
    from cryptography.x509 import Name, NameAttribute
    from cryptography.x509.oid import NameOID

    parts = [
        (NameOID.ORGANIZATION_NAME, cluster),
        (NameOID.ORGANIZATIONAL_UNIT_NAME, kind),
        (NameOID.COMMON_NAME, name),
    ]
    return Name([NameAttribute(oid, value) for oid, value in parts if value])


def _pem(certificate) -> bytes:
    from cryptography.hazmat.primitives.serialization import Encoding

    return certificate.public_bytes(Encoding.PEM)


def _key_pem(key) -> bytes:
    from cryptography.hazmat.primitives.serialization import (
        Encoding,
        NoEncryption,
        PrivateFormat,
    )

    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
