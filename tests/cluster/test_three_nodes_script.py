"""scripts/cluster: a cluster to look at, up and down again."""

import socket
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "cluster"


def cluster(*words: str | Path) -> str:
    done = subprocess.run(
        [SCRIPT, *words], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=110
    )
    assert done.returncode == 0, f"exit {done.returncode}: {done.stdout}{done.stderr}"
    return done.stdout


def test_a_cluster_comes_up_takes_files_and_goes_down(tmp_path: Path) -> None:
    for port in (7410, 7411, 7412, 7420, 7430):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                pytest.skip(f"something listens at port {port}, perhaps a cluster to look at")
    point, directory = tmp_path / "mnt", tmp_path / "nodes"
    try:
        said = cluster("up", point, "--dir", directory)
        assert "leads" in said
        (point / "file").write_text("hello")
    finally:
        cluster("down", "--dir", directory)
    assert not (point / "file").exists()
    try:
        cluster("up", point, "--dir", directory)
        assert (point / "file").read_text() == "hello"
    finally:
        assert "have ended" in cluster("down", "--dir", directory)
