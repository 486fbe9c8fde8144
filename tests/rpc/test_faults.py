"""Faults as statuses and back, without a network."""

import grpc
import pytest

from mountfs.errors import Fault, FsError
from mountfs.rpc.faults import DETAIL_CHARS_MAX, from_status, status_of, to_metadata


@pytest.mark.parametrize("fault", Fault)
@pytest.mark.parametrize("detail", ["", "no space on /x", "naïve \udcff"])
def test_every_fault_survives(fault, detail):
    found = from_status(status_of(fault), "", to_metadata(FsError(fault, detail)), "h:1")
    assert (found.fault, found.detail) == (fault, detail)


def test_a_long_detail_is_cut():
    found = from_status(
        grpc.StatusCode.INTERNAL, "", to_metadata(FsError(Fault.DEVICE, "é" * 5000)), "h:1"
    )
    assert len(found.detail) <= DETAIL_CHARS_MAX
    assert set(found.detail) == {"é"}


@pytest.mark.parametrize("code", [code for code in grpc.StatusCode if code.name != "OK"])
def test_a_bare_status_is_some_fault_and_says_where(code):
    found = from_status(code, "", (), "h:1")
    assert "h:1" in found.detail


def test_a_bare_status_says_what_to_do():
    def fault(code: grpc.StatusCode) -> Fault:
        return from_status(code, "", (), "h:1").fault

    assert fault(grpc.StatusCode.DEADLINE_EXCEEDED) is Fault.TIMED_OUT
    assert fault(grpc.StatusCode.UNAVAILABLE) is Fault.NOT_LEADER
    assert fault(grpc.StatusCode.UNIMPLEMENTED) is Fault.UNSUPPORTED


def test_a_fault_that_this_version_does_not_know_falls_back_on_the_status():
    found = from_status(
        grpc.StatusCode.NOT_FOUND, "gone", (("mountfs-fault", "FROM_THE_FUTURE"),), "h:1"
    )
    assert (found.fault, found.detail) == (Fault.NOT_FOUND, "h:1: gone")
