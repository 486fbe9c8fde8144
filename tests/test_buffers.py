"""Buffers that are used again."""

from mountfs.buffers import Buffers


def test_a_buffer_that_was_given_back_is_used_again():
    buffers = Buffers(16, 2)
    first = buffers.get()
    assert len(first) == 16
    buffers.put(first)
    assert buffers.get() is first
    assert buffers.get() is not first


def test_what_is_no_buffer_of_ours_and_what_is_too_many_is_let_go():
    buffers = Buffers(16, 1)
    buffers.put(bytearray(15))
    buffers.put(bytes(16))
    buffers.put(None)
    mine, other = bytearray(16), bytearray(16)
    buffers.put(mine)
    buffers.put(other)
    assert buffers.get() is mine
    assert buffers.get() is not other
