"""Which nodes do what about a volume that is not as it should be.  No I/O."""

from collections import Counter
from collections.abc import Callable, Iterable
from typing import Final

from mountfs.errors import FsError
from mountfs.meta.diagnosis import Case, Cause, Step
from mountfs.meta.healing_tasks import (
    CopyVolume,
    Reconcile,
    Remove,
    Repair,
    Rescue,
    Seal,
    Shrink,
    Task,
)
from mountfs.meta.placement import Lot, host_of, place


class Loads:
    """How much is under way, and where."""

    def __init__(self, running: Iterable[Task], per_node_max: int) -> None:
        self._per_node_max = per_node_max
        self._of_node: Counter[int] = Counter()
        self.copies = 0
        self.orders = 0
        for task in running:
            self.add(task)

    def add(self, task: Task) -> None:
        if not task.moves_bytes:
            self.orders += 1
            return
        self.copies += 1
        self._of_node.update(task.nodes)

    def of(self, node: int) -> int:
        return self._of_node[node]

    def is_full(self, node: int) -> bool:
        return self._of_node[node] >= self._per_node_max

    @property
    def full(self) -> list[int]:
        return [node for node in self._of_node if self.is_full(node)]


def treat(case: Case, causes: Iterable[Cause], loads: Loads, lot: Lot) -> Task | str:
    """The first task that is possible now; or why there is none, in words.  "": nothing is to be
    done, or others are to be waited for.
    """
    why = ", ".join(sorted(cause.value for cause in causes))
    reason = ""
    for step in case.steps():
        found = _HOW[step](case, why, loads, lot)
        if not isinstance(found, str):
            return found
        reason = reason or found
    return reason


def _seal(case: Case, why: str, loads: Loads, lot: Lot) -> Task | str:
    return Seal(
        volume=case.record.number,
        why=case.why_seal or "it is sealed, and a node does not know",
        to=case.heard,
    )


def _copy(case: Case, why: str, loads: Loads, lot: Lot) -> Task | str:
    sources = case.live or [*case.damaged, *case.given_up]
    source = _best_source(case, sources, loads)
    if source is None:
        return ""
    target = _target(case, tuple(case.kept), loads, lot)
    if isinstance(target, str):
        return target
    going = next((node for node in case.may_go(more=1) if node != target), 0)
    if target in case.record.replicas:  # it has lost its copy, and gets it again
        going = 0
    return _copy_task(case, why, source, target, going)


def _move(case: Case, why: str, loads: Loads, lot: Lot) -> Task | str:
    """One of the replicas goes to a place with which the rule is kept."""
    reason = ""
    for going in _fullest_first(case, case.good):
        staying = tuple(node for node in case.good if node != going)
        target = _target(case, staying, loads, lot)
        if isinstance(target, str):
            reason = reason or target
            continue
        if case.cluster.broken(tuple(sorted((*staying, target)))):
            continue
        source = _best_source(case, case.good, loads)
        return "" if source is None else _copy_task(case, why, source, target, going)
    return reason


def _copy_task(case: Case, why: str, source: int, target: int, going: int) -> Task:
    before = case.record.replicas
    replicas = tuple(node for node in before if node != going)
    return CopyVolume(
        volume=case.record.number,
        why=why,
        source=source,
        target=target,
        replacing=going,
        before=before,
        replicas=replicas if target in replicas else (*replicas, target),
        copies=case.record.copies,
        bytes=0 if target in case.reports else case.bytes,
    )


def _repair(case: Case, why: str, loads: Loads, lot: Lot) -> Task | str:
    damaged = [*case.damaged, *case.given_up]
    for node in (*damaged, *(case.ill_strays if case.short else ())):
        others = [one for one in (*damaged, *case.strays) if one != node]
        sources = [*case.live, *others]
        source = _best_source(case, case.live or others, loads)
        if source is None or loads.is_full(node):
            continue
        rest = [one for one in sources if one != source]
        return Repair(
            volume=case.record.number,
            why=f"node {node}: {case.reports[node].trouble}",
            node=node,
            sources=(source, *rest),
        )
    return ""


def _reconcile(case: Case, why: str, loads: Loads, lot: Lot) -> Task | str:
    if any(loads.is_full(node) for node in case.live):
        return ""
    return Reconcile(volume=case.record.number, why=why, among=tuple(case.live))


def _shrink(case: Case, why: str, loads: Loads, lot: Lot) -> Task | str:
    going = next(case.may_go(), 0) or _surplus(case)
    return Shrink(
        volume=case.record.number,
        why=why or f"nothing is expected of node {going} any more",
        node=going,
        before=case.record.replicas,
        replicas=tuple(node for node in case.record.replicas if node != going),
        copies=case.record.copies,
    )


def _surplus(case: Case) -> int:
    """Of too many good copies the one without which the rule is kept, on the fullest node."""

    def broken_without(node: int) -> str:
        return case.cluster.broken(tuple(sorted(one for one in case.kept if one != node)))

    order = _fullest_first(case, case.good)
    return next((node for node in order if not broken_without(node)), order[0])


def _rescue(case: Case, why: str, loads: Loads, lot: Lot) -> Task | str:
    node = max(case.strays, key=lambda one: (case.reports[one].needles, -one))
    return Rescue(
        volume=case.record.number,
        why=f"{why}, but node {node} has one that the metadata does not know of",
        node=node,
        others=tuple(one for one in case.strays if one != node),
        before=case.record.replicas,
        replicas=(*case.record.replicas, node),
        copies=case.record.copies,
    )


def _remove(case: Case, why: str, loads: Loads, lot: Lot) -> Task | str:
    return Remove(
        volume=case.record.number,
        why=why,
        strays=tuple(case.strays),
        replicas=case.record.replicas,
    )


_HOW: Final[dict[Step, Callable[[Case, str, Loads, Lot], Task | str]]] = {
    Step.SEAL: _seal,
    Step.COPY: _copy,
    Step.MOVE: _move,
    Step.REPAIR: _repair,
    Step.RECONCILE: _reconcile,
    Step.SHRINK: _shrink,
    Step.RESCUE: _rescue,
    Step.REMOVE: _remove,
}
assert set(_HOW) == set(Step)


def _best_source(case: Case, sources: Iterable[int], loads: Loads) -> int | None:
    """Of those that have the most, the one with the least to do; None: all have enough to do."""
    most = max((case.reports[one].needles for one in sources), default=0)
    able = [one for one in sources if case.reports[one].needles == most and not loads.is_full(one)]
    return min(able, key=loads.of, default=None)


def _target(case: Case, staying: tuple[int, ...], loads: Loads, lot: Lot) -> int | str:
    """Who is to have a copy beside those that stay; or why nobody can; "": wait."""
    candidates = case.cluster.candidates
    others = set(case.record.replicas).difference(staying, case.lost)
    others.update(case.ill_strays)

    def draw(pool_without: Iterable[int], room_bytes: int) -> int:
        return place(
            candidates,
            len(staying) + 1,
            lot,
            having=staying,
            avoid=others.union(pool_without),
            room_bytes=room_bytes,
        )[0]

    try:
        best = draw((), case.bytes)
    except FsError as error:
        return str(error)
    allowed = case.cluster.broken(tuple(sorted((*staying, best))))
    locations = case.cluster.locations
    taken = {host_of(node, locations.get(node, "")) for node in staying}
    for node in case.strays:  # it has most of it, if not all
        if node not in case.cluster.usable or node in others or loads.is_full(node):
            continue
        broken = case.cluster.broken(tuple(sorted((*staying, node))))
        if broken in ("", allowed) and host_of(node, locations[node]) not in taken:
            return node
    if not loads.is_full(best):
        return best
    try:
        second = draw(loads.full, case.bytes)
    except FsError:
        return ""  # the only places have enough to do
    broken = case.cluster.broken(tuple(sorted((*staying, second))))
    return second if broken in ("", allowed) else ""


def _fullest_first(case: Case, nodes: Iterable[int]) -> list[int]:
    return sorted(nodes, key=lambda node: (-case.cluster.fullness[node], node))
