"""POSIX ACLs: forms, and who is let in."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mountfs.errors import Fault
from mountfs.meta import acl
from mountfs.meta.acl import Entry
from mountfs.types import Cred

BITS = st.integers(0, 7)
IDS = st.lists(st.integers(0, 5), max_size=3, unique=True).map(sorted)


@st.composite
def acls(draw):
    entries = [Entry(acl.USER_OBJ, draw(BITS))]
    entries += [Entry(acl.USER, draw(BITS), uid) for uid in draw(IDS)]
    entries.append(Entry(acl.GROUP_OBJ, draw(BITS)))
    entries += [Entry(acl.GROUP, draw(BITS), gid) for gid in draw(IDS)]
    if len(entries) > 2 or draw(st.booleans()):
        entries.append(Entry(acl.MASK, draw(BITS)))
    return (*entries, Entry(acl.OTHER, draw(BITS)))


def permissions(entries, tag):
    return next((entry.permissions for entry in entries if entry.tag == tag), None)


@given(acls())
def test_an_acl_comes_back_from_its_bytes(entries):
    assert acl.parse(acl.pack(entries)) == entries


@given(acls(), st.integers(0, 0o7777))
def test_after_chmod_the_mode_says_what_was_asked_for(entries, mode):
    changed = acl.with_mode(entries, mode)
    assert acl.mode_bits(changed, mode) == mode
    named = [entry for entry in entries if entry.tag in (acl.USER, acl.GROUP)]
    assert [entry for entry in changed if entry.tag in (acl.USER, acl.GROUP)] == named


@given(acls(), st.integers(0, 0o777))
def test_what_is_inherited_grants_no_more_than_was_asked_for_and_is_in_the_default(entries, mode):
    inherited, bits = acl.inherit(entries, mode)
    assert bits & ~mode == 0
    assert acl.mode_bits(inherited, bits) == bits
    for entry, default in zip(inherited, entries, strict=True):
        assert entry.permissions & ~default.permissions == 0
        assert entry[::2] == default[::2]


@given(acls(), st.integers(0, 5), st.lists(st.integers(0, 5), min_size=1), st.integers(1, 7))
def test_access_is_decided_as_acl_5_says(entries, uid, groups, want):
    """The algorithm of the manual page, for who is not the owner; the file's group is 0."""
    mask = permissions(entries, acl.MASK)
    mask = 7 if mask is None else mask
    users = [entry for entry in entries if entry.tag == acl.USER and entry.id == uid]
    owning = [entry for entry in entries if entry.tag == acl.GROUP_OBJ and 0 in groups]
    named = [entry for entry in entries if entry.tag == acl.GROUP and entry.id in groups]
    if users:
        granted = users[0].permissions & mask & want == want
    elif owning or named:
        granted = any(entry.permissions & mask & want == want for entry in owning + named)
    else:
        granted = permissions(entries, acl.OTHER) & want == want
    cred = Cred(uid, groups[0], tuple(groups[1:]))
    assert acl.permits(entries, 0, cred, want) == granted


BASE = (Entry(acl.USER_OBJ, 7), Entry(acl.GROUP_OBJ, 5), Entry(acl.OTHER, 1))


@pytest.mark.parametrize(
    "entries",
    [
        BASE[:2],  # no others
        (BASE[0], *BASE),  # two owners
        (BASE[0], Entry(acl.USER, 7, 1), *BASE[1:]),  # a named user without a mask
        (BASE[1], BASE[0], BASE[2]),  # in disorder
        (*BASE[:2], Entry(0x40, 7), BASE[2]),  # an unknown tag
        (Entry(acl.USER_OBJ, 8), *BASE[1:]),  # an unknown permission
        (*BASE[:2], Entry(acl.MASK, 7), Entry(acl.MASK, 7), BASE[2]),
    ],
)
def test_what_is_no_acl_is_refused(entries, fails):
    with fails(Fault.INVALID):
        acl.parse(acl.pack(entries))


def test_bytes_that_are_no_acl_are_refused(fails):
    for value in (b"", b"\2\0\0\0", b"\1\0\0\0" + acl.pack(BASE)[4:], acl.pack(BASE)[:-1]):
        with fails(Fault.INVALID):
            acl.parse(value)
