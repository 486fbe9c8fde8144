"""The rules of a connection, with two cores and no network."""

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mountfs.errors import Fault, FsError
from mountfs.wire.config import Limits
from mountfs.wire.connection import (
    Answered,
    Asked,
    Connection,
    Disconnected,
    Event,
    Greeted,
    Leaving,
    Refused,
    Side,
    Withdrawn,
)
from mountfs.wire.frames import (
    ANY_CLUSTER,
    HTTP_ANSWER,
    SMALL_BYTES,
    Kind,
    encode,
    encode_ask,
    encode_fault,
)
from tests.wire.conftest import CLIENT, SERVER

FULL = FsError(Fault.NO_SPACE, "full")


class Pair:
    """A client and a server, and the bytes between them."""

    def __init__(
        self, *, client: Limits | None = None, server: Limits | None = None, **of_client: Any
    ) -> None:
        hello = msgspec.structs.replace(CLIENT, **of_client)
        self.client = Connection(Side.CLIENT, hello, client or Limits())
        self.server = Connection(Side.SERVER, SERVER, server or Limits())

    def greeted(self) -> "Pair":
        self.client.greet()
        assert [type(event) for event in to(self.server, sent_by(self.client))] == [Greeted]
        self.server.greet()
        assert [type(event) for event in to(self.client, sent_by(self.server))] == [Greeted]
        return self

    def at_server(self) -> list[Event]:
        return to(self.server, sent_by(self.client))

    def at_client(self) -> list[Event]:
        return to(self.client, sent_by(self.server))


def sent_by(core: Connection, size_max: int = 1 << 30) -> bytes:
    data = b"".join(core.outgoing())[:size_max]
    if data:
        core.sent(len(data))
    return data


def to(core: Connection, data: bytes) -> list[Event]:
    events: list[Event] = []
    while data:
        view = core.buffer()
        size = min(len(view), len(data))
        view[:size] = data[:size]
        data = data[size:]
        events += core.received(size)
    return events


@pytest.fixture
def pair() -> Pair:
    return Pair().greeted()


# --- calls ---


def test_a_call_is_answered_with_its_token(pair: Pair) -> None:
    pair.client.ask(5, b"question", "token")
    assert pair.at_server() == [Asked(1, 5, b"question")]
    pair.server.answer(1, [b"ans", b"wer"])
    assert pair.at_client() == [Answered("token", b"answer")]
    assert pair.client.asking == pair.server.answering == 0


def test_answers_may_come_in_another_order(pair: Pair) -> None:
    for number in (1, 2, 3):
        assert pair.client.ask(5, b"", f"token {number}") == number
    pair.at_server()
    for number in (3, 1, 2):
        pair.server.answer(number, str(number).encode())
    assert pair.at_client() == [Answered(f"token {n}", str(n).encode()) for n in (3, 1, 2)]


def test_a_fault_keeps_its_name_and_detail(pair: Pair) -> None:
    pair.client.ask(5, b"", "token")
    pair.at_server()
    pair.server.refuse(1, FULL)
    (event,) = pair.at_client()
    assert isinstance(event, Refused)
    assert (event.token, event.error.args) == ("token", FULL.args)


def test_a_push_is_answered(pair: Pair) -> None:
    pair.server.ask(9, b"recall", "token")
    assert pair.at_client() == [Asked(1, 9, b"recall")]
    pair.client.answer(1, b"done")
    assert pair.at_server() == [Answered("token", b"done")]


def test_a_push_can_be_refused(pair: Pair) -> None:
    pair.server.ask(9, b"recall", "token")
    pair.at_client()
    pair.client.refuse(1, FULL)
    (event,) = pair.at_server()
    assert isinstance(event, Refused)
    assert event.error.args == FULL.args


# --- cancelling ---


def test_a_cancelled_call_counts_until_it_is_answered(pair: Pair) -> None:
    number = pair.client.ask(5, b"", "token")
    pair.at_server()
    pair.client.cancel(number)
    assert pair.at_server() == [Withdrawn(number)]
    assert pair.client.asking == 1
    pair.server.refuse(number, FsError(Fault.INTERRUPTED))
    (event,) = pair.at_client()
    assert isinstance(event, Refused)
    assert event.token is None
    assert pair.client.asking == 0


def test_a_cancel_may_cross_the_answer(pair: Pair) -> None:
    number = pair.client.ask(5, b"", "token")
    pair.at_server()
    pair.server.answer(number, b"too late")
    pair.client.cancel(number)
    assert pair.at_server() == []
    assert pair.at_client() == [Answered(None, b"too late")]
    pair.client.cancel(number)  # harmless when it is answered
    assert pair.at_server() == []


def test_memory_of_a_cancelled_call_is_its_owners_again(pair: Pair) -> None:
    body = bytearray(b"a" * (SMALL_BYTES + 1))
    number = pair.client.ask(5, body, "token")
    pair.client.cancel(number)
    body[:] = b"b" * len(body)
    asked, withdrawn = pair.at_server()
    assert isinstance(asked, Asked)
    assert bytes(asked.body) == b"a" * len(body)
    assert withdrawn == Withdrawn(number)


# --- bounds ---


def test_the_peer_says_how_many_calls_it_takes() -> None:
    pair = Pair(server=Limits(calls_max=2)).greeted()
    pair.client.ask(5, b"", 1)
    assert pair.client.may_ask(0)
    pair.client.ask(5, b"", 2)
    assert not pair.client.may_ask(0)
    pair.client.ask(5, b"", 3)
    with pytest.raises(FsError, match="asks more than 2 at a time"):
        pair.at_server()


def test_the_peer_says_how_many_bytes_it_takes() -> None:
    pair = Pair(server=Limits(calls_bytes_max=1_000)).greeted()
    assert pair.client.may_ask(5_000)  # a single one may be larger
    pair.client.ask(5, bytes(900), 1)
    assert pair.client.may_ask(50)
    assert not pair.client.may_ask(200)
    pair.client.ask(5, bytes(200), 2)
    with pytest.raises(FsError, match="more than 1000 bytes"):
        pair.at_server()


def test_what_is_answered_does_not_count_any_more() -> None:
    pair = Pair(server=Limits(calls_bytes_max=1_000)).greeted()
    for number in range(1, 6):
        pair.client.ask(5, bytes(900), "token")
        pair.at_server()
        pair.server.answer(number, b"")
        pair.at_client()
    pair.client.ask(5, bytes(400), "token")
    assert pair.client.may_ask(400)
    pair.client.ask(5, bytes(400), "token")
    assert len(pair.at_server()) == 2


@given(st.lists(st.integers(0, 2_000)))
def test_who_asks_only_when_it_may_is_never_refused(sizes: list[int]) -> None:
    pair = Pair(server=Limits(calls_bytes_max=3_000, calls_max=4)).greeted()
    waiting = 0
    for size in sizes:
        while not pair.client.may_ask(size):
            waiting += 1
            pair.server.answer(waiting, b"")
            pair.at_client()
        pair.client.ask(5, bytes(size), "token")
        pair.at_server()


def test_a_request_that_is_too_large_is_refused_on_this_side() -> None:
    pair = Pair(server=Limits(frame_bytes_max=5_000)).greeted()
    with pytest.raises(FsError) as caught:
        pair.client.ask(5, bytes(5_000), "token")
    assert caught.value.fault is Fault.TOO_BIG
    pair.client.ask(5, bytes(4_997), "token")  # with the method: 5,000
    assert len(pair.at_server()) == 1


def test_an_answer_that_is_too_large_becomes_a_fault() -> None:
    pair = Pair(client=Limits(frame_bytes_max=5_000)).greeted()
    pair.client.ask(5, b"", "token")
    pair.at_server()
    pair.server.answer(1, bytes(5_001))
    (event,) = pair.at_client()
    assert isinstance(event, Refused)
    assert event.error.fault is Fault.TOO_BIG


# --- hello ---


@pytest.mark.parametrize(
    ("of_client", "says"),
    [
        ({"cluster": bytes(16)[:-1] + b"x"}, "another cluster: node 1 belongs to 0001"),
        ({"role": "chunk"}, "another service: node 1 serves 'meta', and mount 7 asks for 'chunk'"),
        ({"version_min": 2, "version_max": 3}, "no common protocol: node 1 speaks version 1, its"),
        ({"version_min": 0, "version_max": 0}, "its peer version 0; upgrade the older one"),
    ],
)
def test_what_does_not_fit_is_said_in_one_sentence(of_client: dict[str, Any], says: str) -> None:
    pair = Pair(**of_client)
    pair.client.greet()
    with pytest.raises(FsError, match=says) as caught:
        pair.at_server()
    pair.server.close(caught.value)
    with pytest.raises(FsError, match=says):
        pair.at_client()


def test_a_client_may_leave_the_cluster_open() -> None:
    pair = Pair(cluster=ANY_CLUSTER).greeted()
    assert pair.client.peer is not None
    assert pair.client.peer.cluster == SERVER.cluster


def test_a_server_may_not_leave_the_cluster_open() -> None:
    client = Connection(Side.CLIENT, CLIENT, Limits())
    hello = msgspec.structs.replace(SERVER, cluster=ANY_CLUSTER)
    with pytest.raises(FsError, match="another cluster"):
        to(client, b"".join(encode(Kind.HELLO, 0, hello.encode())))


def test_the_highest_version_and_the_common_features_are_in_force() -> None:
    client = Connection(Side.CLIENT, msgspec.structs.replace(CLIENT, features=0b0110), Limits())
    hello = msgspec.structs.replace(SERVER, features=0b0011, version_max=9)
    to(client, b"".join(encode(Kind.HELLO, 0, hello.encode())))
    assert (client.version, client.features) == (1, 0b0010)


def test_http_is_answered_in_http() -> None:
    server = Connection(Side.SERVER, SERVER, Limits())
    with pytest.raises(FsError) as caught:
        to(server, b"GET / HTTP/1.1\r\nHost: node\r\n\r\n")
    server.close(caught.value)
    assert sent_by(server) == HTTP_ANSWER


# --- a broken peer ---

BROKEN_BY_CLIENT = [
    (encode(Kind.HELLO, 0, SERVER.encode()), "says hello twice"),
    (encode_ask(Kind.CALL, 0, 5, b""), "numbers a request 0 after 0"),
    (encode_ask(Kind.CALL, 3, 5, b"") * 2, "numbers a request 3 after 3"),
    (encode(Kind.CALL, 1, b"ab"), "without a method"),
    (encode(Kind.REPLY, 1, b""), "REPLY, which is not its to send"),
    (encode_ask(Kind.PUSH, 1, 5, b""), "PUSH, which is not its to send"),
    (encode(Kind.FAULT, 1, encode_fault(FULL)), "FAULT, which is not its to send"),
    (encode(Kind.PUSH_ACK, 1, b"\0"), "answers 1, which nobody asked"),
    (encode(12, 0), "a frame of the unknown kind 12"),
    (encode(Kind.GOODBYE, 0, b"") * 2, "damaged goodbye"),
    (encode(Kind.GOODBYE, 0, b"\0\0") + encode_ask(Kind.CALL, 1, 5, b""), "after it has said good"),
]


@pytest.mark.parametrize(("frames", "says"), BROKEN_BY_CLIENT)
def test_a_client_that_breaks_the_rules(pair: Pair, frames: list[bytes], says: str) -> None:
    with pytest.raises(FsError, match=says):
        to(pair.server, b"".join(frames))


BROKEN_BY_SERVER = [
    (encode(Kind.REPLY, 1, b""), "answers 1, which nobody asked"),
    (encode(Kind.FAULT, 1, encode_fault(FULL)), "answers 1, which nobody asked"),
    (encode_ask(Kind.CALL, 1, 5, b""), "CALL, which is not its to send"),
    (encode(Kind.PUSH_ACK, 1, b"\0"), "PUSH_ACK, which is not its to send"),
]


@pytest.mark.parametrize(("frames", "says"), BROKEN_BY_SERVER)
def test_a_server_that_breaks_the_rules(pair: Pair, frames: list[bytes], says: str) -> None:
    with pytest.raises(FsError, match=says):
        to(pair.client, b"".join(frames))


def test_a_fault_for_the_connection_says_why_it_ends(pair: Pair) -> None:
    pair.client.ask(5, b"", "token")
    assert pair.server.close(FULL) == []
    with pytest.raises(Disconnected, match="node 1 says: full"):
        pair.at_client()
    assert pair.client.close(None) == ["token"]


def test_the_last_word_comes_after_what_was_begun(pair: Pair) -> None:
    """Otherwise it would be taken for the rest of a frame."""
    body = bytearray(b"a" * (SMALL_BYTES + 1))
    pair.client.ask(5, body, "token")
    begun = sent_by(pair.client, 1_000)
    pair.client.close(FULL)
    body[:] = b"b" * len(body)
    rest = sent_by(pair.client)
    asked_bytes = 16 + len(body)
    (asked,) = to(pair.server, (begun + rest)[:asked_bytes])
    assert isinstance(asked, Asked)
    assert bytes(asked.body) == b"a" * len(body)
    with pytest.raises(Disconnected, match="mount 7 says: full"):
        to(pair.server, (begun + rest)[asked_bytes:])


# --- parting ---


def test_what_is_under_way_at_goodbye_is_answered(pair: Pair) -> None:
    pair.client.ask(5, b"", "token")
    pair.server.goodbye("restart", "node 2")
    assert pair.at_client() == [Leaving("restart", "node 2")]
    with pytest.raises(Disconnected) as caught:
        pair.client.ask(5, b"", "another")
    assert not caught.value.sent
    assert len(pair.at_server()) == 2  # the call and the goodbye
    assert not pair.server.parted
    pair.server.ask(9, b"recall", "for the answer")  # the server may still push
    pair.server.answer(1, b"answer")
    assert len(pair.at_client()) == 2
    assert not pair.client.parted
    pair.client.answer(1, b"")
    pair.at_server()
    assert pair.server.parted
    assert pair.client.parted


def test_a_client_says_goodbye_first(pair: Pair) -> None:
    pair.client.goodbye("unmounted")
    assert pair.at_server() == [Leaving("unmounted", "")]
    assert pair.at_client() == [Leaving("", "")]
    assert pair.client.parted
    assert pair.server.parted


# --- time ---

TIMES = Limits(ping_ms=1_000, dead_ms=3_000)


def watched() -> Pair:
    return Pair(client=TIMES, server=TIMES).greeted()


def test_who_hears_something_asks_nothing() -> None:
    pair = watched()
    assert pair.client.tick(0) == 1_000
    pair.client.alive()
    assert pair.client.tick(1_000) == 2_000
    assert pair.client.out_bytes == 0


def test_a_silent_peer_is_asked_and_answers() -> None:
    pair = watched()
    for now in (0, 1_000):
        pair.client.tick(now)
    assert pair.at_server() == []
    assert pair.at_client() == []  # it was PONG
    for now in range(2_000, 10_000, 1_000):
        pair.client.tick(now)
        pair.at_server()
        pair.at_client()


def test_a_dead_peer_is_found_in_time() -> None:
    pair = watched()
    due = 0.0
    with pytest.raises(Disconnected, match=r"nothing was heard for 3\.0 s"):
        while due < 10_000:
            due = pair.client.tick(due)
    assert due == 3_000


def test_who_has_slept_itself_gives_the_peer_its_time_again() -> None:
    pair = watched()
    for now in (0, 1_000):
        pair.client.tick(now)
    assert pair.client.tick(60_000) == 61_000
    with pytest.raises(Disconnected):
        for now in range(61_000, 70_000, 1_000):
            pair.client.tick(now)


# --- all together ---


@given(st.data())
def test_whatever_happens_every_request_is_answered_once(data: st.DataObject) -> None:
    """Requests in both directions, cancelled and not, and streams cut anywhere."""
    pair = Pair(server=Limits(calls_max=5), client=Limits(calls_max=5)).greeted()
    sides = (pair.client, pair.server)
    wires = {pair.client: bytearray(), pair.server: bytearray()}  # to whom
    asked: dict[Connection, set[int]] = {side: set() for side in sides}
    answered: dict[Connection, list[int]] = {side: [] for side in sides}
    cancelled: dict[Connection, set[int]] = {side: set() for side in sides}
    taken: dict[Connection, set[int]] = {side: set() for side in sides}

    def deliver(side: Connection, size: int) -> None:
        wire = wires[side]
        for event in to(side, bytes(wire[:size])):
            if isinstance(event, Asked):
                taken[side].add(event.number)
            elif isinstance(event, (Answered, Refused)) and event.token is not None:
                answered[side].append(event.token)
        del wire[:size]

    for _ in range(data.draw(st.integers(0, 40))):
        side = data.draw(st.sampled_from(sides))
        other = pair.server if side is pair.client else pair.client
        match data.draw(st.sampled_from(["ask", "cancel", "answer", "refuse", "send", "deliver"])):
            case "ask" if side.may_ask(0):
                number = len(asked[side]) + 1
                asked[side].add(number)
                assert side.ask(1, bytes(data.draw(st.integers(0, 30))), number) == number
            case "cancel" if asked[side]:
                number = data.draw(st.sampled_from(sorted(asked[side])))
                cancelled[side].add(number)
                side.cancel(number)
            case "answer" if taken[side]:
                side.answer(taken[side].pop(), b"answer")
            case "refuse" if taken[side]:
                side.refuse(taken[side].pop(), FULL)
            case "send":
                wires[other] += sent_by(side, data.draw(st.integers(1, 100)))
            case "deliver":
                deliver(side, data.draw(st.integers(1, 100)))

    for _ in range(3):
        for side, other in (sides, sides[::-1]):
            wires[other] += sent_by(side)
            deliver(other, 1 << 30)
            while taken[other]:
                other.answer(taken[other].pop(), b"answer")
    for side in sides:
        assert side.asking == side.answering == 0
        assert len(set(answered[side])) == len(answered[side])
        assert asked[side] - cancelled[side] <= set(answered[side]) <= asked[side]
