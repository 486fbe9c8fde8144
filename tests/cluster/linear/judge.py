"""Whether what workers saw could have been answered by one filesystem, one call after the other.

Each object of each round is a history of its own, and is judged alone.
"""

import time
import zlib
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec

from mountfs.sim import models
from mountfs.sim.counterexample import OBSERVERS, shortest
from mountfs.sim.history import Call, Model, Undecided, explain

from .book import Entry, by_round
from .files import RECORD_BYTES, record

STEPS_MAX: Final = 1_000_000
"""Of one history: some ten seconds and 200 MB."""
SHOWN_MAX: Final = 2
"""Counterexamples of one kind: to find one takes longer than to find that there is one."""
NAMED_MAX: Final = 8


class OfKind(msgspec.Struct):
    """What was found out about the histories of one kind."""

    histories: int = 0
    calls: int = 0
    unknown: dict[str, int] = {}
    """Calls whose outcome nobody was told, by the error; none: there was no answer."""
    wrong: int = 0
    """Histories that could not have been answered so."""
    undecided: int = 0
    """Histories that take too long to judge."""
    slowest_s: float = 0.0
    """The longest call."""
    shown: list[str] = []
    """Some of what is wrong, to be read."""


class Verdict(msgspec.Struct):
    kinds: dict[str, OfKind]
    judged_s: float
    """So long it took."""

    @property
    def wrong(self) -> int:
        return sum(kind.wrong for kind in self.kinds.values())

    @property
    def undecided(self) -> int:
        return sum(kind.undecided for kind in self.kinds.values())

    @property
    def calls(self) -> int:
        return sum(kind.calls for kind in self.kinds.values())

    def text(self) -> str:
        lines = ["kind       histories   wrong  undecided     calls  unknown  slowest call"]
        for name, kind in sorted(self.kinds.items()):
            lines.append(
                f"{name:10}{kind.histories:10}{kind.wrong:8}{kind.undecided:11}{kind.calls:10}"
                f"{sum(kind.unknown.values()):9}{kind.slowest_s:12.3f} s"
            )
        for name, kind in sorted(self.kinds.items()):
            for why, count in sorted(kind.unknown.items()):
                lines.append(f"{name}: {count} calls have an unknown outcome: {why}")
        lines.append(f"{self.calls} calls judged in {self.judged_s:.1f} s")
        for kind in self.kinds.values():
            lines += ["", *kind.shown] if kind.shown else []
        return "\n".join(lines)


class History(NamedTuple):
    about: str
    calls: list[Call]
    model: Model
    begins: Hashable
    wrong: str = ""
    """What is seen to be wrong without looking for an order."""


def judge(books: list[Path], *, steps_max: int = STEPS_MAX) -> Verdict:
    begun = time.monotonic()
    kinds: defaultdict[str, OfKind] = defaultdict(OfKind)
    for number, entries in by_round(books):
        since = min(entry.called for entry in entries)
        for kind in sorted({entry.kind for entry in entries}):
            found = kinds[kind]
            mine = [entry for entry in entries if entry.kind == kind]
            _count(found, mine)
            for history in histories(kind, mine):
                found.histories += 1
                where = f"{kind}, round {number}, {history.about}"
                _judge_one(found, history, where, since, steps_max)
    return Verdict(dict(kinds), time.monotonic() - begun)


def _count(found: OfKind, entries: list[Entry]) -> None:
    found.calls += len(entries)
    for entry in entries:
        if entry.returned is None:
            why = entry.result or "no answer"
            found.unknown[why] = found.unknown.get(why, 0) + 1
        else:
            found.slowest_s = max(found.slowest_s, (entry.returned - entry.called) / 1e9)


def _judge_one(found: OfKind, history: History, where: str, since: int, steps_max: int) -> None:
    wrong = history.wrong
    try:
        if not wrong and _fails(history, steps_max):
            wrong = "no order explains these answers"
            if len(found.shown) < SHOWN_MAX:
                example = shortest(
                    history.calls, history.model, history.begins,
                    steps_max=steps_max, observes=_observes,
                )  # fmt: skip
                wrong += f"\n{example.text(since=since)}"
    except Undecided as error:
        if not wrong:
            found.undecided += 1
            wrong = ""
        where += f" ({error})"
    if wrong:
        found.wrong += 1
        if len(found.shown) < SHOWN_MAX:
            found.shown.append(f"{where}: {wrong}")


def _observes(call: Call) -> bool:
    """Also what was refused."""
    return call.what[0] in OBSERVERS or isinstance(call.result, str)


def _fails(history: History, steps_max: int) -> bool:
    calls, model, begins = history.calls, history.model, history.begins
    return explain(calls, model, begins, steps_max=steps_max) is not None


# -- the histories of a kind, from what is in the books


def histories(kind: str, entries: list[Entry]) -> Iterator[History]:
    refused = [entry for entry in entries if isinstance(entry.result, dict)]
    if refused:
        yield History("errors", [], models.register, 0, _refusals(refused))
    entries = [
        entry._replace(returned=None, result=None)
        if isinstance(entry.result, dict) or entry.returned is None
        else entry
        for entry in entries
    ]
    yield from _HISTORIES[kind](entries)


def _refusals(refused: list[Entry]) -> str:
    counts = Counter(f"{entry.result['error']} to {entry.what[0]}" for entry in refused)
    told = ", ".join(f"{count} times {what}" for what, count in counts.most_common())
    return f"errors that are no answers: {told}"


def _call(entry: Entry, number: int, *what: Any, result: Any = None) -> Call:
    return Call(entry.who, what or entry.what, entry.called, entry.returned, result, number)


def _by_object(entries: list[Entry]) -> dict[str, list[Entry]]:
    found = defaultdict(list)
    for entry in entries:
        found[entry.about].append(entry)
    return found


def _names(entries: list[Entry]) -> Iterator[History]:
    calls = []
    for number, entry in enumerate(entries):
        kind, *rest = entry.what
        if kind != "list":
            rest = [_place(word) if isinstance(word, str) else word for word in rest]
        result = entry.result
        if isinstance(result, list):
            result = frozenset((name.encode(), ino) for name, ino in result)
        calls.append(_call(entry, number, kind, *rest, result=result))
    for directories, some in models.apart(calls):
        yield History(" and ".join(directories), some, models.names, frozenset())


def _place(path: str) -> tuple[str, bytes]:
    directory, name = path.split("/")
    return directory, name.encode()


def _attributes(entries: list[Entry]) -> Iterator[History]:
    calls = defaultdict(list)
    for number, entry in enumerate(entries):
        if entry.what[0] == "stat":
            seen = entry.result or (None, None, None)
            for attribute, value in zip(("mode", "size", "mtime"), seen, strict=True):
                read = _call(entry, number, "read", result=value)
                calls[entry.about, attribute].append(read)
        else:
            _, attribute, value = entry.what
            calls[entry.about, attribute].append(_call(entry, number, "write", value))
    calls.pop(("a1", "mtime"), None)  # it changes with the size, to what nobody knows
    for (about, attribute), some in calls.items():
        yield History(f"{attribute} of {about}", some, models.register, 0)


def _registers(entries: list[Entry]) -> Iterator[History]:
    for about, mine in _by_object(entries).items():
        calls = [_call(entry, at, result=entry.result) for at, entry in enumerate(mine)]
        yield History(about, calls, models.register, 0)


def _closed(entries: list[Entry]) -> Iterator[History]:
    """Registers; who reads on its own mount what is being written knows nothing of others."""
    ends = {
        (entry.who[0], entry.about, entry.what[1]): entry.returned
        for entry in entries
        if entry.what[0] == "write"
    }

    def is_early(entry: Entry) -> bool:
        key = entry.who[0], entry.about, entry.result
        if entry.what[0] != "read" or key not in ends:
            return False
        end = ends[key]
        return end is None or entry.called <= end

    yield from _registers([entry for entry in entries if not is_early(entry)])


def _counters(entries: list[Entry]) -> Iterator[History]:
    for about, mine in _by_object(entries).items():
        calls = [_call(entry, at, result=entry.result) for at, entry in enumerate(mine)]
        yield History(about, calls, models.counter, 0)


def _locks(entries: list[Entry]) -> Iterator[History]:
    for about, mine in _by_object(entries).items():
        calls = []
        for number, entry in enumerate(mine):
            kind, owner, *rest = entry.what
            calls.append(_call(entry, number, kind, tuple(owner), *rest, result=entry.result))
        yield History(about, calls, models.locks, models.NOTHING_HELD)


def _appends(entries: list[Entry]) -> Iterator[History]:
    for about, mine in _by_object(entries).items():
        ends = [entry.result for entry in mine if entry.what[0] == "whole" and entry.result]
        records = ends[0] if ends else []
        wrong = _not_once(records, mine)
        counts = _counts(records) if not wrong else {}
        calls = []
        for number, entry in enumerate(mine):
            if entry.what[0] == "append":
                calls.append(_call(entry, number))
                continue
            seen: Any = None
            if entry.what[0] == "read":
                seen = counts.get(tuple(entry.result or ()), entry.result)
            elif entry.result is not None:
                is_prefix = entry.result == records[: len(entry.result)]
                seen = len(entry.result) if is_prefix else entry.result
            calls.append(_call(entry, number, "read", result=seen))
        yield History(about, calls, models.appended(records), 0, wrong)


def _not_once(records: list[Any], entries: list[Entry]) -> str:
    """What is wrong with the file as it is in the end, whatever the order."""
    appends = [entry for entry in entries if entry.what[0] == "append"]
    acknowledged = {entry.what[1] for entry in appends if entry.returned is not None}
    times = Counter(records)
    problems = {
        f"of {len(acknowledged)} acknowledged records {{}} are lost": acknowledged - times.keys(),
        "{} records are there twice": {one for one, count in times.items() if count > 1},
        "{} things are there that nobody wrote": (
            times.keys() - {entry.what[1] for entry in appends}
        ),
    }
    return "; ".join(
        f"{what.format(len(which))} ({', '.join(map(str, sorted(which, key=str)[:NAMED_MAX]))})"
        for what, which in problems.items()
        if which
    )


def _counts(records: list[int]) -> dict[tuple[int, ...], int]:
    """How many records those are that have so many bytes, and that checksum."""
    crc = 0
    found: dict[tuple[int, ...], int] = {(0, 0): 0}
    for count, value in enumerate(records, 1):
        crc = zlib.crc32(record(value), crc)
        found[count * RECORD_BYTES, crc] = count
    return found


_HISTORIES = {
    "names": _names,
    "attrs": _attributes,
    "closed": _closed,
    "contents": _registers,
    "held": _closed,
    "appends": _appends,
    "counters": _counters,
    "locks": _locks,
}
