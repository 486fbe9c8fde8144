"""mountfs pki: certificates made, handed out, renewed and shown, and what is never done."""

import json
import os
import re
import stat
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from mountfs.cli import pki
from mountfs.tls.authority import Kind
from mountfs.tls.identity import Identity
from mountfs.tls.store import Store

Run = Callable[..., tuple[int, str, str]]
CLUSTER = "0123456789abcdef" * 2


@pytest.fixture
def authority(run: Run, tmp_path: Path) -> Path:
    """The directory of an authority that has issued nothing."""
    directory = tmp_path / "pki"
    status, _, err = run("pki", "init", directory, "--cluster", CLUSTER)
    assert (status, err) == (0, "")
    return directory


@pytest.fixture
def ask(run: Run) -> Callable[..., Any]:
    """`mountfs pki ... --json`, understood."""

    def call(*arguments: str | Path) -> Any:
        status, out, err = run("pki", *arguments, "--json")
        assert (status, err) == (0, ""), err
        return json.loads(out)

    return call


def at(monkeypatch: pytest.MonkeyPatch, **later: float) -> None:
    """Let the command think that it is later."""
    then = datetime.now(UTC) + timedelta(**later)
    monkeypatch.setattr(pki, "_now", lambda: then)


def everything_in(directory: Path) -> dict[str, bytes]:
    return {str(one): one.read_bytes() for one in directory.rglob("*") if one.is_file()}


# --- init


def test_init_makes_an_authority_that_only_its_owner_can_read(authority: Path) -> None:
    assert sorted(one.name for one in authority.iterdir()) == ["authority.pem", "ca.crt"]
    assert stat.S_IMODE(authority.stat().st_mode) == 0o700
    assert stat.S_IMODE((authority / "authority.pem").stat().st_mode) == 0o600
    assert b"PRIVATE" not in (authority / "ca.crt").read_bytes()
    assert Store(authority).cluster == CLUSTER


def test_init_gives_each_cluster_an_id_of_its_own(ask: Callable[..., Any], tmp_path: Path) -> None:
    one, other = ask("init", tmp_path / "one"), ask("init", tmp_path / "other")
    assert re.fullmatch("[0-9a-f]{32}", one["cluster"])
    assert one["cluster"] != other["cluster"]


def test_init_never_overwrites(run: Run, authority: Path) -> None:
    before = everything_in(authority)
    status, _, err = run("pki", "init", authority)
    assert status == 1
    assert "authority.pem is there already, and an authority is never overwritten" in err
    assert everything_in(authority) == before


def test_init_does_not_overwrite_where_the_key_was_taken_away(run: Run, authority: Path) -> None:
    (authority / "authority.pem").unlink()
    status, _, err = run("pki", "init", authority)
    assert status == 1
    assert "ca.crt is there already" in err
    assert not (authority / "authority.pem").exists()


@pytest.mark.parametrize("wrong", ["", "abc", CLUSTER.upper(), CLUSTER + "0"])
def test_a_cluster_id_that_is_none_is_refused(run: Run, tmp_path: Path, wrong: str) -> None:
    status, _, err = run("pki", "init", tmp_path / "pki", f"--cluster={wrong}")
    assert status == 1
    assert "is no cluster id: that is 32 hex digits" in err
    assert not (tmp_path / "pki").exists()


# --- issue


def test_issue_makes_an_identity(ask: Callable[..., Any], authority: Path) -> None:
    said = ask("issue", authority, "node", "n1", "--host", "n1.example", "--host", "10.0.0.1")
    assert (said["kind"], said["name"], said["cluster"]) == ("node", "n1", CLUSTER)
    assert said["hosts"] == ["n1.example", "10.0.0.1"]
    identity = Identity.load(Path(said["directory"]), cluster=CLUSTER, kind=Kind.NODE)
    assert identity.name == "n1"
    assert said["expires_at"] == identity.expires_at.isoformat()


def test_a_node_is_known_by_the_names_of_this_machine_unless_others_are_given(
    ask: Callable[..., Any], authority: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("socket.gethostname", lambda: "here.example")
    said = ask("issue", authority, "node", "n1")
    assert said["hosts"] == ["here.example", "localhost", "127.0.0.1", "::1"]
    monkeypatch.setattr("socket.gethostname", lambda: "not a name")
    assert ask("issue", authority, "node", "n2")["hosts"] == ["localhost", "127.0.0.1", "::1"]


def test_days_say_how_long(ask: Callable[..., Any], authority: Path) -> None:
    said = ask("issue", authority, "client", "alice", "--days", "7")
    left = datetime.fromisoformat(said["expires_at"]) - datetime.now(UTC)
    assert timedelta(days=6, hours=23) < left < timedelta(days=7, hours=1)


def test_out_is_a_copy_to_hand_out(
    ask: Callable[..., Any], authority: Path, tmp_path: Path
) -> None:
    said = ask("issue", authority, "client", "alice", "--out", tmp_path / "stick" / "alice")
    assert said["directory"] == str(tmp_path / "stick" / "alice")
    copy = Identity.load(tmp_path / "stick" / "alice", kind=Kind.CLIENT)
    assert copy.certificate_pem == Identity.load(authority / "issued" / "alice").certificate_pem


def test_a_name_is_issued_once(run: Run, ask: Callable[..., Any], authority: Path) -> None:
    ask("issue", authority, "node", "n1")
    before = everything_in(authority)
    for kind in ("node", "client"):
        status, _, err = run("pki", "issue", authority, kind, "n1")
        assert status == 1
        assert f"to renew it: mountfs pki renew {authority} n1" in err
    assert everything_in(authority) == before


def test_an_identity_in_out_is_not_overwritten(
    run: Run, ask: Callable[..., Any], authority: Path, tmp_path: Path
) -> None:
    ask("issue", authority, "node", "n1", "--out", tmp_path / "out")
    before = everything_in(tmp_path)
    status, _, err = run("pki", "issue", authority, "node", "n2", "--out", tmp_path / "out")
    assert status == 1
    assert "own.pem is there already: name another directory with --out" in err
    assert everything_in(tmp_path) == before


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["node", "../n1"], "cannot be the name of a certificate"),
        (["node", "n1", "--host", "a b"], "neither a host name nor an IP address"),
        (["client", "c1", "--host", "h"], "--host is for nodes"),
    ],
)
def test_what_cannot_be_issued_is_one_sentence(
    run: Run, authority: Path, arguments: list[str], said: str
) -> None:
    status, out, err = run("pki", "issue", authority, *arguments)
    assert (status, out) == (1, "")
    assert said in err
    assert err.count("\n") == 1
    assert not (authority / "issued").exists()


@pytest.mark.parametrize(
    "arguments",
    [
        ["issue", "DIR", "server", "n1"],
        ["issue", "DIR", "node", "n1", "--days", "0"],
        ["issue", "DIR", "node", "n1", "--days", "-1"],
        ["renew", "DIR", "--expiring-in", "30"],
        ["renew", "DIR", "n1", "--expiring-in", "30d"],
        ["renew", "DIR", "--out", "x"],
        ["renew", "DIR", "n1", "n2", "--out", "x"],
        ["renew", "DIR", "n1", "--authority"],
        ["init"],
        [],
    ],
)
def test_a_wrong_call_is_told_where_help_is(run: Run, arguments: list[str]) -> None:
    status, out, err = run("pki", *arguments)
    assert (status, out) == (2, "")
    assert "--help" in err


def test_without_an_authority_the_next_step_is_said(run: Run, tmp_path: Path) -> None:
    for arguments in (("issue", tmp_path, "node", "n1"), ("renew", tmp_path)):
        status, _, err = run("pki", *arguments)
        assert status == 1
        assert f"authority.pem is missing: to make an authority: mountfs pki init {tmp_path}" in err


def test_an_authority_that_others_can_read_is_not_used(run: Run, authority: Path) -> None:
    (authority / "authority.pem").chmod(0o644)
    status, _, err = run("pki", "issue", authority, "node", "n1")
    assert status == 1
    assert f"chmod 600 {authority}/authority.pem" in err


def test_an_authority_that_has_expired_issues_nothing(
    run: Run, authority: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    at(monkeypatch, days=3651)
    status, _, err = run("pki", "issue", authority, "node", "n1")
    assert status == 1
    assert "the authority expired on" in err
    assert "renew DIR --authority" in err


# --- renew


def test_renew_takes_what_expires_within_thirty_days(
    ask: Callable[..., Any], authority: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ask("issue", authority, "node", "short", "--days", "29")
    ask("issue", authority, "node", "long")
    before = everything_in(authority)
    said = ask("renew", authority)
    assert [one["name"] for one in said["renewed"]] == ["short"]
    changed = {path for path, text in everything_in(authority).items() if before[path] != text}
    assert changed == {str(authority / "issued" / "short" / "own.pem")}

    at(monkeypatch, days=340)
    said = ask("renew", authority)
    assert [one["name"] for one in said["renewed"]] == ["long", "short"]
    assert Identity.load(authority / "issued" / "short", now=pki._now()).name == "short"


def test_renew_expiring_in(ask: Callable[..., Any], authority: Path) -> None:
    ask("issue", authority, "node", "n1", "--days", "10")
    assert ask("renew", authority, "--expiring-in", "1w")["renewed"] == []
    assert len(ask("renew", authority, "--expiring-in", "11d")["renewed"]) == 1


def test_renew_by_name_keeps_what_the_certificate_says(
    ask: Callable[..., Any], authority: Path
) -> None:
    old = ask("issue", authority, "node", "n1", "--host", "h.example", "--days", "90")
    (new,) = ask("renew", authority, "n1")["renewed"]
    for same in ("name", "kind", "cluster", "hosts", "directory"):
        assert new[same] == old[same]
    assert new["sha256"] != old["sha256"]
    left = datetime.fromisoformat(new["expires_at"]) - datetime.now(UTC)
    assert timedelta(days=89) < left < timedelta(days=91)


def test_renew_can_put_a_copy_in_place_of_the_one_that_was_handed_out(
    ask: Callable[..., Any], authority: Path, tmp_path: Path
) -> None:
    ask("issue", authority, "node", "n1", "--out", tmp_path / "out")
    (new,) = ask("renew", authority, "n1", "--days", "5", "--out", tmp_path / "out")["renewed"]
    assert Identity.load(tmp_path / "out").expires_at.isoformat() == new["expires_at"]


def test_a_dry_run_changes_nothing(run: Run, ask: Callable[..., Any], authority: Path) -> None:
    ask("issue", authority, "node", "n1", "--days", "10")
    before = everything_in(authority)
    status, out, _ = run("pki", "renew", authority, "--dry-run")
    assert status == 0
    assert "1 certificate would be renewed" in out
    assert [one["name"] for one in ask("renew", authority, "--dry-run")["renewed"]] == ["n1"]
    ask("renew", authority, "--authority", "--dry-run")
    assert everything_in(authority) == before


def test_one_that_cannot_be_renewed_does_not_keep_the_others_from_it(
    run: Run, ask: Callable[..., Any], authority: Path
) -> None:
    for name in ("bad", "good"):
        ask("issue", authority, "node", name, "--days", "10")
    before = (authority / "issued" / "good" / "own.pem").read_bytes()
    os.truncate(authority / "issued" / "bad" / "own.pem", 10)
    status, out, err = run("pki", "renew", authority)
    assert status == 1
    assert "1 certificate renewed" in out
    assert "bad cannot be renewed: " in err
    assert (authority / "issued" / "good" / "own.pem").read_bytes() != before


def test_an_expired_certificate_is_renewed_like_any_other(
    ask: Callable[..., Any], authority: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ask("issue", authority, "client", "alice", "--days", "1")
    at(monkeypatch, days=3)
    (new,) = ask("renew", authority)["renewed"]
    assert new["problem"] is None


def test_an_authority_in_its_last_year_is_told_of(
    run: Run, ask: Callable[..., Any], authority: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it issues ends with it, so renewing certificates alone would end badly."""
    ask("issue", authority, "node", "n1")
    at(monkeypatch, days=3600)
    for arguments in (("renew", authority), ("issue", authority, "node", "n2")):
        status, _, err = run("pki", *arguments)
        assert status == 0
        assert re.search(r"the authority expires on 20.*, in 50 days.*renew .* --authority", err)
    assert run("pki", "renew", authority, "--authority")[0] == 0
    status, _, err = run("pki", "renew", authority)
    assert (status, err) == (0, "")


def test_an_unknown_name_is_one_sentence(run: Run, authority: Path) -> None:
    status, _, err = run("pki", "renew", authority, "nobody")
    assert status == 1
    assert f"nothing was issued to nobody; see: mountfs pki show {authority}" in err


def test_renewing_the_authority_breaks_nothing_that_was_issued(
    run: Run, ask: Callable[..., Any], authority: Path
) -> None:
    ask("issue", authority, "node", "n1")
    status, out, _ = run("pki", "renew", authority, "--authority")
    assert status == 0
    assert f"First copy {authority}/ca.crt to every node and client" in out
    said = ask("show", authority)
    assert [one["kind"] for one in said["certificates"]] == ["authority", "authority"]
    assert [one["problem"] for one in said["issued"]] == [None]
    ask("issue", authority, "node", "n2")
    assert ask("show", authority / "issued" / "n2")["issued"][0]["problem"] is None


# --- show


def test_show_says_what_was_issued_and_when_it_expires(
    run: Run, ask: Callable[..., Any], authority: Path
) -> None:
    ask("issue", authority, "node", "n1", "--host", "h.example")
    ask("issue", authority, "client", "alice", "--days", "10")
    status, out, _ = run("pki", "show", authority)
    assert status == 0
    assert re.search(r"alice +client +20\S+ \S+ UTC, in 10 days", out)
    assert re.search(r"n1 +node +20\S+ \S+ UTC, in 365 days +h.example", out)
    assert CLUSTER in out


def test_show_is_not_well_when_something_has_expired_or_is_broken(
    run: Run, ask: Callable[..., Any], authority: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ask("issue", authority, "node", "n1", "--days", "1")
    ask("issue", authority, "node", "n2")
    (authority / "issued" / "n2" / "own.pem").chmod(0o604)
    at(monkeypatch, days=3)
    status, out, _ = run("pki", "show", authority)
    assert status == 1
    assert re.search("problem: .*n1/own.pem expired on", out)
    assert re.search("problem: .*chmod 600 .*n2/own.pem", out)
    assert "2 days ago" in out


def test_show_needs_no_key_of_the_authority(ask: Callable[..., Any], authority: Path) -> None:
    ask("issue", authority, "node", "n1")
    (authority / "authority.pem").unlink()
    assert [one["name"] for one in ask("show", authority)["issued"]] == ["n1"]


def test_show_of_what_is_nothing_of_ours(run: Run, tmp_path: Path) -> None:
    (tmp_path / "noise").write_text("noise")
    for place, said in (
        (tmp_path, "is neither an authority nor an identity"),
        (tmp_path / "nowhere", "is missing"),
        (tmp_path / "noise", "has no whole certificate in it"),
    ):
        status, _, err = run("pki", "show", place)
        assert status == 1
        assert err.startswith(f"mountfs pki: {place} {said}")


# --- all of them


def test_no_key_is_ever_printed(run: Run, authority: Path, tmp_path: Path) -> None:
    printed = ""
    for arguments in (
        ("issue", authority, "node", "n1", "--out", tmp_path / "out"),
        ("renew", authority, "n1"),
        ("renew", authority, "--authority"),
        ("show", authority),
        ("show", authority / "authority.pem"),
        ("show", tmp_path / "out"),
        ("show", tmp_path / "out" / "own.pem", "--json"),
    ):
        status, out, err = run("pki", *arguments)
        assert status == 0
        printed += out + err
    keys = [one for one in everything_in(tmp_path).values() if b"PRIVATE KEY" in one]
    assert len(keys) == 3
    assert "PRIVATE" not in printed
    for text in keys:
        for line in text.decode().partition("PRIVATE KEY-----\n")[2].splitlines()[:-1]:
            assert line not in printed


def test_every_key_is_for_its_owner_only_whatever_the_umask(
    run: Run, authority: Path, tmp_path: Path
) -> None:
    before = os.umask(0)
    try:
        run("pki", "issue", authority, "node", "n1", "--out", tmp_path / "out")
        run("pki", "renew", authority, "n1", "--out", tmp_path / "out")
        run("pki", "renew", authority, "--authority")
    finally:
        os.umask(before)
    for path, text in everything_in(tmp_path).items():
        mode = stat.S_IMODE(os.stat(path).st_mode)
        assert mode & 0o077 == (0 if b"PRIVATE" in text else 0o044), path


@pytest.mark.parametrize("action", ["init", "issue", "renew", "show"])
def test_the_help_of_each_action_has_examples_and_exit_statuses(run: Run, action: str) -> None:
    status, out, _ = run("pki", action, "--help")
    assert status == 0
    assert f"\n  mountfs pki {action}" in out
    assert "exit status" in out
    assert "--json" in out


def test_other_commands_do_not_pay_for_certificates() -> None:
    code = (
        "import sys; from mountfs.cli.main import parser; parser(); "
        "sys.exit('cryptography' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
