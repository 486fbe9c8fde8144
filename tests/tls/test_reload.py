"""A process follows its files: good ones are taken, bad ones are said and left."""

import os
import threading
import time
from datetime import timedelta
from pathlib import Path

import pytest

from mountfs.errors import Fault, FsError
from mountfs.tls import pem
from mountfs.tls.authority import Kind
from mountfs.tls.identity import Identity
from mountfs.tls.reload import Identities
from mountfs.tls.store import issued_in
from tests.tls.conftest import B, Cluster, Shake, now


class Clock:
    """Wall-clock time, for those who ask.  Begins now."""

    def __init__(self) -> None:
        self.now = time.time()

    def __call__(self) -> float:
        return self.now

    def pass_(self, span: timedelta) -> None:
        self.now += span.total_seconds()


SECOND = timedelta(seconds=1)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def directory(ours: Cluster) -> Path:
    return ours.directory(Kind.NODE, "n1")


@pytest.fixture
def identities(directory: Path, clock: Clock) -> Identities:
    return Identities(directory, kind=Kind.NODE, clock=clock)


def renew(ours: Cluster, name: str = "n1") -> None:
    ours.store.renew(ours.store.find(name, now()), now())


def test_without_good_files_there_is_no_beginning(directory: Path) -> None:
    (directory / "own.pem").chmod(0o644)
    with pytest.raises(FsError, match="chmod 600"):
        Identities(directory)


def test_what_has_not_changed_is_the_same_object(identities: Identities, clock: Clock) -> None:
    before = identities.current()
    clock.pass_(10 * SECOND)
    assert identities.current() is before
    assert identities.problem is None


def test_a_renewed_certificate_is_taken_within_a_second(
    identities: Identities, ours: Cluster, clock: Clock
) -> None:
    before = identities.current()
    renew(ours)
    assert identities.current() is before  # looked a moment ago
    clock.pass_(SECOND)
    assert identities.current().certificate_pem != before.certificate_pem
    assert identities.problem is None


def test_a_clock_that_was_set_back_does_not_stop_it(
    identities: Identities, ours: Cluster, clock: Clock
) -> None:
    before = identities.current()
    renew(ours)
    clock.pass_(timedelta(minutes=-30))
    assert identities.current() is not before


def test_files_are_looked_at_once_a_second_at_most(
    identities: Identities, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked = []
    monkeypatch.setattr(Identities, "_look", lambda self: looked.append(1) or self._stamps)
    for _ in range(100):
        identities.current()
    assert len(looked) == 0
    clock.pass_(SECOND)
    for _ in range(100):
        identities.current()
    assert len(looked) == 1


def test_a_half_written_file_is_not_taken_and_said_until_it_is_whole(
    identities: Identities, directory: Path, ours: Cluster, clock: Clock
) -> None:
    before = identities.current()
    renew(ours)
    whole = (directory / "own.pem").read_bytes()
    (directory / "own.pem").write_bytes(whole[: len(whole) // 3])
    clock.pass_(SECOND)
    assert identities.current() is before
    assert identities.problem is not None
    assert (
        "own.pem has no whole certificate in it; the certificate from before, valid until 20"
        in (identities.problem)
    )
    assert "is used meanwhile" in identities.problem

    (directory / "own.pem").write_bytes(whole)
    clock.pass_(SECOND)
    assert identities.current().certificate_pem in whole
    assert identities.problem is None


def test_a_file_that_went_away_is_said(
    identities: Identities, directory: Path, clock: Clock
) -> None:
    before = identities.current()
    (directory / "ca.crt").unlink()
    clock.pass_(SECOND)
    assert identities.current() is before
    assert "ca.crt is missing" in (identities.problem or "")


def test_a_key_that_others_may_read_is_not_taken_before_chmod(
    identities: Identities, directory: Path, ours: Cluster, clock: Clock
) -> None:
    before = identities.current()
    renew(ours)
    (directory / "own.pem").chmod(0o644)
    clock.pass_(SECOND)
    assert identities.current() is before
    assert "chmod 600" in (identities.problem or "")
    (directory / "own.pem").chmod(0o600)
    clock.pass_(SECOND)
    assert identities.current() is not before
    assert identities.problem is None


def test_a_key_that_becomes_readable_for_others_is_said(
    identities: Identities, directory: Path, clock: Clock
) -> None:
    (directory / "own.pem").chmod(0o640)
    clock.pass_(SECOND)
    assert "chmod 600" in (identities.problem or "")


@pytest.mark.parametrize("which", ["another name", "another kind", "another cluster"])
def test_who_a_process_is_does_not_change_while_it_runs(
    identities: Identities,
    directory: Path,
    ours: Cluster,
    theirs: Cluster,
    clock: Clock,
    which: str,
) -> None:
    before = identities.current()
    other = {
        "another name": lambda: ours.directory(Kind.NODE, "n2"),
        "another kind": lambda: ours.directory(Kind.CLIENT, "c1"),
        "another cluster": lambda: theirs.directory(Kind.NODE, "n1"),
    }[which]()
    for name in ("ca.crt", "own.pem"):
        (directory / name).write_bytes((other / name).read_bytes())
    clock.pass_(SECOND)
    assert identities.current() is before
    expected = {
        "another name": "is the certificate of n2, and this is n1",
        "another kind": "is the certificate of client c1, and a node's is needed",
        "another cluster": f"is for node n1 of cluster {B}, and this is cluster {before.cluster}",
    }[which]
    assert expected in (identities.problem or "")


def test_a_certificate_that_comes_too_early_is_taken_when_its_time_comes(
    identities: Identities, ours: Cluster, clock: Clock
) -> None:
    before = identities.current()
    later = now() + timedelta(days=2)
    ours.store.renew(ours.store.find("n1", now()), later)
    clock.pass_(SECOND)
    assert identities.current() is before
    assert "is not valid before" in (identities.problem or "")
    clock.pass_(timedelta(days=3))
    assert identities.current() is not before
    assert identities.problem is None


def test_a_new_authority_of_the_same_cluster_is_taken_once_both_files_are_there(
    identities: Identities, directory: Path, ours: Cluster, clock: Clock, tmp_path: Path
) -> None:
    """What is done when a key was stolen: nothing of the old authority is trusted any more."""
    before = identities.current()
    anew = Cluster(tmp_path / "anew", ours.id).directory(Kind.NODE, "n1")
    (directory / "ca.crt").write_bytes((anew / "ca.crt").read_bytes())
    clock.pass_(SECOND)
    assert identities.current() is before
    assert "was not issued by an authority in" in (identities.problem or "")
    (directory / "own.pem").write_bytes((anew / "own.pem").read_bytes())
    clock.pass_(SECOND)
    assert identities.current().authorities_pem == (anew / "ca.crt").read_bytes()
    assert identities.problem is None


def test_one_that_expires_is_said_two_weeks_before(identities: Identities, clock: Clock) -> None:
    clock.pass_(timedelta(days=350))
    assert identities.problem is None
    clock.pass_(timedelta(days=2))
    assert "own.pem expires on 20" in (identities.problem or "")
    assert "mountfs pki renew DIR n1" in (identities.problem or "")


def test_one_that_has_expired_stays_and_is_said(identities: Identities, clock: Clock) -> None:
    before = identities.current()
    clock.pass_(timedelta(days=366))
    assert identities.current() is before
    assert "own.pem expired on 20" in (identities.problem or "")


def test_one_made_for_a_day_is_not_complained_about_all_day(ours: Cluster, clock: Clock) -> None:
    directory = ours.directory(Kind.CLIENT, "c1", lifetime=timedelta(days=1))
    identities = Identities(directory, clock=clock)
    assert identities.problem is None
    clock.pass_(timedelta(hours=20))
    assert "expires on" in (identities.problem or "")


def test_connections_after_a_renewal_show_the_new_certificate(
    identities: Identities, ours: Cluster, clock: Clock, shake: Shake
) -> None:
    client = ours.identity(Kind.CLIENT, "c1")

    def shown() -> bytes | None:
        context = identities.current().server_context()
        both = shake(context, client.client_context(), client.server_name)
        assert (both.server_error, both.client_error) == (None, None)
        return both.client.getpeercert(True)

    before = shown()
    renew(ours)
    clock.pass_(SECOND)
    assert shown() != before


def test_a_reader_never_sees_anything_but_a_whole_identity(ours: Cluster, directory: Path) -> None:
    """Renewing for a while, also the authority, under one who reads all the time."""
    done = threading.Event()
    seen: set[bytes] = set()
    failed: list[BaseException] = []

    def read() -> None:
        while not done.is_set():
            try:
                seen.add(Identity.load(directory).certificate_pem)
            except BaseException as error:
                failed.append(error)
                return

    reader = threading.Thread(target=read)
    reader.start()
    try:
        for number in range(60):
            if number % 20 == 10:
                ours.store.renew_authority(now())
            renew(ours)
    finally:
        done.set()
        reader.join()
    assert failed == []
    assert len(seen) > 5  # or there was nothing to see


def test_trust_is_in_place_before_what_needs_it(
    ours: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A copy that knows the old authority only is replaced by one of the new: after each step of
    it, the copy can be used."""
    out = tmp_path / "out"
    ours.store.issue(Kind.NODE, "n1", now(), out=out)
    ours.store.renew_authority(now())
    replace, seen = os.replace, []

    def watched(source: Path, target: Path) -> None:
        replace(source, target)
        seen.append(Identity.load(out).certificate_pem)

    monkeypatch.setattr("os.replace", watched)
    ours.store.renew(ours.store.find("n1", now()), now(), out=out)
    assert len(set(seen)) == 2


def test_a_reader_that_is_overtaken_finds_enough_trust(
    ours: Cluster, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Everything is replaced between its two reads."""
    read, reads = pem.read, []

    def slow(file: Path, *, secret: bool) -> bytes:
        text = read(file, secret=secret)
        reads.append(file.name)
        if len(reads) == 1:
            ours.store.renew_authority(now())
            renew(ours)
        return text

    monkeypatch.setattr(pem, "read", slow)
    assert Identity.load(directory).name == "n1"
    assert reads[0] == "own.pem"


def test_threads_share_it(ours: Cluster, directory: Path) -> None:
    clock = Clock()
    identities = Identities(directory, clock=clock)
    done = threading.Event()
    failed: list[BaseException] = []

    def use() -> None:
        try:
            while not done.is_set():
                clock.pass_(SECOND)
                identities.current().server_context()
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=use) for _ in range(4)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(20):
            renew(ours)
    finally:
        done.set()
        for thread in threads:
            thread.join()
    assert failed == []
    clock.pass_(SECOND)
    found = issued_in(directory, now())
    assert found.problem is None
    assert identities.current().expires_at == Identity.load(directory).expires_at


def test_what_a_killed_writer_left_is_in_nobodys_way(ours: Cluster, directory: Path) -> None:
    (directory / ".own.pem.new").write_text("-----BEGIN")
    (directory / ".own.pem.new").chmod(0o644)
    before = Identity.load(directory).certificate_pem
    renew(ours)
    assert Identity.load(directory).certificate_pem != before
    assert sorted(one.name for one in directory.iterdir()) == ["ca.crt", "own.pem"]


def test_a_renewal_that_fails_leaves_the_old_one(
    ours: Cluster, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = Identity.load(directory).certificate_pem

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(FsError, match="No space left") as caught:
        renew(ours)
    assert caught.value.fault is Fault.NO_SPACE
    monkeypatch.undo()
    assert Identity.load(directory).certificate_pem == before
    assert sorted(one.name for one in directory.iterdir()) == ["ca.crt", "own.pem"]
