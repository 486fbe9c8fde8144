"""The control socket of a node: a line with a question in, a line with the answer out, both JSON.

It works when the mount does not: it shares nothing with the path of a request but the event loop.
"""

import json
import os
import socket
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
import trio

from mountfs.errors import Fault, FsError

QUESTION_BYTES_MAX = 64 * 1024
ANSWER_BYTES_MAX = 64 * 1024 * 1024
CLIENTS_MAX = 16
CLIENT_S = 30

Answerer = Callable[[dict[str, Any]], Awaitable[Any]]


class Question(msgspec.Struct):
    ask: str
    args: dict[str, Any] = {}


async def serve(path: Path, answerers: dict[str, Answerer]) -> None:
    """Answer questions at `path` until cancelled.  Only the owner of the home can connect."""
    with suppress(FileNotFoundError):
        os.unlink(path)  # of a node that was killed
    listener = trio.socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    with listener:
        with _short(path) as name:
            await listener.bind(name)
        os.chmod(path, 0o600)
        listener.listen(CLIENTS_MAX)
        limit = trio.CapacityLimiter(CLIENTS_MAX)
        try:
            async with trio.open_nursery() as nursery:
                while True:
                    client, _ = await listener.accept()
                    await limit.acquire_on_behalf_of(client)
                    nursery.start_soon(_serve_client, client, answerers, limit)
        finally:
            with suppress(FileNotFoundError):
                os.unlink(path)


async def _serve_client(
    client: trio.socket.SocketType, answerers: dict[str, Answerer], limit: trio.CapacityLimiter
) -> None:
    stream = trio.SocketStream(client)
    try:
        with trio.move_on_after(CLIENT_S):
            answer = await _answer(await _line(stream), answerers)
            await stream.send_all(_encoded(answer) + b"\n")
    except (trio.BrokenResourceError, trio.ClosedResourceError):
        pass  # it asked and went
    finally:
        limit.release_on_behalf_of(client)
        with trio.CancelScope(shield=True):
            await stream.aclose()


def _encoded(answer: dict[str, Any]) -> bytes:
    try:
        return msgspec.json.encode(answer)
    except UnicodeEncodeError:  # a path that is not UTF-8
        text = json.dumps(answer, default=str)  # with its odd bytes as \\udcXX
        return text.encode()


async def _line(stream: trio.SocketStream) -> bytes:
    data = b""
    while not data.endswith(b"\n") and len(data) < QUESTION_BYTES_MAX:
        more = await stream.receive_some(QUESTION_BYTES_MAX)
        if not more:
            break
        data += more
    return data


async def _answer(line: bytes, answerers: dict[str, Answerer]) -> dict[str, Any]:
    try:
        question = msgspec.json.decode(line, type=Question)
        answerer = answerers.get(question.ask)
        if answerer is None:
            return {"error": f"unknown question {question.ask!r}"}
        return {"answer": await answerer(question.args)}
    except msgspec.DecodeError as error:
        return {"error": f"not a question: {error}"}
    except FsError as error:
        return {"error": str(error), "fault": error.fault.name}


def ask(path: Path, question: str, *, seconds: float = 10, **args: Any) -> Any:
    """Ask the node of a home, blocking.  Raises FsError: NOT_FOUND (nobody there), DENIED (it is
    another user's), TIMED_OUT, or what the node says.
    """
    client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    client.settimeout(seconds)
    try:
        with client, _short(path) as name:
            client.connect(name)
            client.sendall(msgspec.json.encode({"ask": question, "args": args}) + b"\n")
            data = bytearray()
            while not data.endswith(b"\n") and len(data) < ANSWER_BYTES_MAX:
                more = client.recv(1 << 20)
                if not more:
                    break
                data += more
    except TimeoutError:
        raise FsError(
            Fault.TIMED_OUT, f"{path}: the node did not answer within {seconds:g} s"
        ) from None
    except PermissionError:
        raise FsError(
            Fault.DENIED, f"{path.parent} is another user's: ask as that user, or as root"
        ) from None
    except OSError as error:
        raise FsError(Fault.NOT_FOUND, f"{path}: no node is running ({error.strerror})") from None
    try:
        answer: dict[str, Any] = msgspec.json.decode(bytes(data), type=dict[str, Any])
    except msgspec.DecodeError:
        raise FsError(Fault.TIMED_OUT, f"{path}: the node broke off its answer") from None
    if "error" in answer:
        raise FsError(Fault[answer.get("fault", "INVALID")], answer["error"])
    return answer["answer"]


class _short:
    """A socket's name is limited to about 100 bytes: go through a descriptor of its directory."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._fd = -1

    def __enter__(self) -> str:
        self._fd = os.open(self._path.parent, os.O_PATH | os.O_DIRECTORY)
        return f"/proc/self/fd/{self._fd}/{self._path.name}"

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)
