"""POSIX ACLs (acl(5), POSIX.1e draft 17) in the form in which the kernel hands them over as xattrs.

A value is a version (2, u32) and entries of tag u16, permissions u16, id u32, ordered by tag and
id.
"""

import struct
from typing import Final, NamedTuple

from mountfs.errors import Fault, FsError
from mountfs.types import Cred

ACCESS: Final = b"system.posix_acl_access"
DEFAULT: Final = b"system.posix_acl_default"

USER_OBJ, USER, GROUP_OBJ, GROUP, MASK, OTHER = 0x01, 0x02, 0x04, 0x08, 0x10, 0x20
_NO_ID = 0xFFFF_FFFF
_VERSION = struct.pack("<I", 2)
_ENTRY = struct.Struct("<HHI")


class Entry(NamedTuple):
    tag: int
    permissions: int
    id: int = _NO_ID


Acl = tuple[Entry, ...]


def parse(value: bytes) -> Acl:
    """Raises INVALID for what is not a valid ACL (acl_valid(3))."""
    if value[:4] != _VERSION or (len(value) - 4) % _ENTRY.size:
        raise FsError(Fault.INVALID, "not a POSIX ACL of version 2")
    entries = tuple(Entry(*fields) for fields in _ENTRY.iter_unpack(value[4:]))
    _check(entries)
    return entries


def pack(entries: Acl) -> bytes:
    return _VERSION + b"".join(_ENTRY.pack(*entry) for entry in entries)


def _check(entries: Acl) -> None:
    tags = [entry.tag for entry in entries]
    once = all(tags.count(tag) == 1 for tag in (USER_OBJ, GROUP_OBJ, OTHER))
    named = USER in tags or GROUP in tags
    mask = tags.count(MASK)
    known = all(tag in (USER_OBJ, USER, GROUP_OBJ, GROUP, MASK, OTHER) for tag in tags)
    bits = all(entry.permissions <= 7 for entry in entries)
    ascending = tags == sorted(tags)
    if not (once and known and bits and ascending and mask <= 1 and mask >= named):
        raise FsError(Fault.INVALID, "not a valid POSIX ACL")


def minimal(entries: Acl) -> bool:
    """Whether it says no more than permission bits do."""
    return len(entries) == 3


def mode_bits(entries: Acl, mode: int) -> int:
    """`mode` with the permission bits that the ACL implies: the mask stands for the group."""
    bits = {entry.tag: entry.permissions for entry in entries if entry.tag not in (USER, GROUP)}
    group = bits.get(MASK, bits[GROUP_OBJ])
    return mode & ~0o777 | bits[USER_OBJ] << 6 | group << 3 | bits[OTHER]


def with_mode(entries: Acl, mode: int) -> Acl:
    """The ACL after chmod(2): the group bits set the mask where there is one."""
    has_mask = any(entry.tag == MASK for entry in entries)
    new = {
        USER_OBJ: mode >> 6 & 7,
        (MASK if has_mask else GROUP_OBJ): mode >> 3 & 7,
        OTHER: mode & 7,
    }
    return tuple(
        entry._replace(permissions=new.get(entry.tag, entry.permissions)) for entry in entries
    )


def inherit(entries: Acl, mode: int) -> tuple[Acl, int]:
    """(access ACL, mode) of a file created with `mode` in a directory with this default ACL; the
    umask plays no part.
    """
    bits = {entry.tag: entry.permissions for entry in entries if entry.tag not in (USER, GROUP)}
    group_tag = MASK if MASK in bits else GROUP_OBJ
    new = {
        USER_OBJ: bits[USER_OBJ] & mode >> 6,
        group_tag: bits[group_tag] & mode >> 3,
        OTHER: bits[OTHER] & mode,
    }
    access = tuple(
        entry._replace(permissions=new.get(entry.tag, entry.permissions)) for entry in entries
    )
    return access, mode_bits(access, mode)


def permits(entries: Acl, file_gid: int, cred: Cred, want: int) -> bool:
    """Whether somebody who is not the owner has all of `want`."""
    mask = next((entry.permissions for entry in entries if entry.tag == MASK), 7)
    groups = {cred.gid, *cred.groups}
    in_groups = []
    for entry in entries:
        if entry.tag == USER and entry.id == cred.uid:
            return not want & ~(entry.permissions & mask)
        gid = file_gid if entry.tag == GROUP_OBJ else entry.id
        if entry.tag in (GROUP_OBJ, GROUP) and gid in groups:
            in_groups.append(entry.permissions & mask)
    if in_groups:  # one of them must suffice: the permissions of several do not add up
        return any(not want & ~permissions for permissions in in_groups)
    return not want & ~next(entry.permissions for entry in entries if entry.tag == OTHER)
