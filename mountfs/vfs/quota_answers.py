"""What a node answers on its control socket about quotas and what they limit."""

from typing import Any

from mountfs.errors import Fault, FsError
from mountfs.meta.local import Meta
from mountfs.meta.ops.count import Counted, CountIn, OpenBelow, PathOf
from mountfs.meta.ops.quota import Below, DeleteQuota, GetQuota, ListQuotas, Owners, SetQuota, Told
from mountfs.meta.quota import Kind, Limits
from mountfs.types import Ino
from mountfs.vfs.control import Answerer

NAMES_AT_ONCE = 2_000
QUOTAS_AT_ONCE = 500
OWNERS_AT_ONCE = 10_000
OPEN_MAX = 100_000


def quota_answers(meta: Meta) -> dict[str, Answerer]:
    """Question -> who answers it."""

    async def quota_get(args: dict[str, Any]) -> Any:
        return _quota(await meta.read(GetQuota(*_whose(args))))

    async def quota_set(args: dict[str, Any]) -> Any:
        """Limits that are not named stay as they are."""
        kind, number = _whose(args)
        told = await meta.read(GetQuota(kind, number))
        now = Limits() if told.quota is None else told.quota.limits
        limits = Limits(
            *(_number(args, name, getattr(now, name)) for name in Limits.__struct_fields__)
        )
        await meta.propose(SetQuota(kind, number, limits))
        return _quota(await meta.read(GetQuota(kind, number)))

    async def quota_delete(args: dict[str, Any]) -> Any:
        await meta.propose(DeleteQuota(*_whose(args)))
        return {}

    async def quota_list(args: dict[str, Any]) -> Any:
        """Some of them, behind one."""
        after = _number(args, "after_kind", 0), _number(args, "after_number", 0)
        found = []
        for told in await meta.read(ListQuotas(*after, QUOTAS_AT_ONCE)):
            quota = _quota(told)
            if told.kind is Kind.TREE:
                path = await meta.read(PathOf(Ino(told.number)))
                quota["path"] = path.decode("utf-8", "surrogateescape")
            found.append(quota)
        return found

    async def quota_below(args: dict[str, Any]) -> Any:
        return await meta.read(Below(_ino(args)))

    async def quota_count(args: dict[str, Any]) -> Any:
        """Of some names of a directory, what has to be charged to it."""
        asked = CountIn(_ino(args), _number(args, "after", 0), NAMES_AT_ONCE)
        last, found = await meta.read(asked)
        return {"last": last, "counted": [_counted(one) for one in found]}

    async def quota_open(args: dict[str, Any]) -> Any:
        return [_counted(one) for one in await meta.read(OpenBelow(_ino(args), OPEN_MAX))]

    async def quota_owners(args: dict[str, Any]) -> Any:
        """Some of the users or groups that have something, from one on."""
        kind, first = _whose(args)
        return await meta.read(Owners(kind, first, OWNERS_AT_ONCE))

    return {
        answerer.__name__: answerer
        for answerer in (
            quota_get, quota_set, quota_delete, quota_list, quota_below, quota_count, quota_open,
            quota_owners,
        )
    }  # fmt: skip


def _quota(told: Told) -> dict[str, Any]:
    limits = None
    if told.quota is not None:
        names = Limits.__struct_fields__
        limits = {name: getattr(told.quota.limits, name) for name in names}
        limits["bytes_since_ns"] = told.quota.bytes_since
        limits["inodes_since_ns"] = told.quota.inodes_since
    return {
        "kind": told.kind.name.lower(),
        "number": told.number,
        "limits": limits,
        "bytes": told.bytes,
        "inodes": told.inodes,
    }


def _counted(one: Counted) -> tuple[int, int, int, int, bool]:
    return one.ino, one.uid, one.gid, one.bytes, one.is_directory


def _whose(args: dict[str, Any]) -> tuple[Kind, int]:
    try:
        kind = Kind[str(args.get("kind")).upper()]
    except KeyError:
        raise FsError(Fault.INVALID, "a quota is that of a tree, a user or a group") from None
    return kind, _number(args, "number", None)


def _ino(args: dict[str, Any]) -> Ino:
    return Ino(_number(args, "ino", None))


def _number(args: dict[str, Any], name: str, otherwise: int | None) -> int:
    found = args.get(name, otherwise)
    if not isinstance(found, int):
        raise FsError(Fault.INVALID, f"{name} has to be a number")
    return found
