"""Who may believe what he has read: the leases of all sessions, as who leads knows them.

A lease on an inode is the right to keep what was read of it (attributes, the names in a directory,
also those that are not there, where its bytes are) without asking again.  It comes with the answer
to a question.  A change takes effect in the log, and is then *held back*: neither who made it nor
anybody who asks for the same inodes hears of it until all other sessions that had a lease on them
have said that they have forgotten what they knew, or their leases have run out.  So what was
acknowledged is never contradicted by anybody's cache.

Nobody hears of a change before those who made it: their own kernel answers as before until it is
told.  So what a session has changed while it had a lease on it is *unheard* until the session says
that it is not, and if somebody asks for it before, the session is made to forget it first.

Leases are not in the log.  Who comes to lead knows of none, and waits until all sessions that were
there have begun anew with it (and thereby forgotten everything), or until the leases that the
leader before it may have granted have run out.

No I/O.  Times are milliseconds of a clock that neither goes back nor stands still.
"""

from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Final

import msgspec

from mountfs.types import Ino

TTL_MS: Final = 6_000
"""A lease is good for so long after its session was heard of last."""
HELD_MAX: Final = 262_144
"""Leases of one session; those that are older than as many others are recalled."""
HOT_RECALLS: Final = 3
HOT_WITHIN_MS: Final = 1_000
"""A directory whose names have changed so often for others within that time is granted to nobody
for a while: who changes what others look at would wait for them each time.  Not so a file: the
kernel keeps the bytes that it reads or writes for as long as it likes, so that nobody is given any
without a lease.
"""
NAMES_TOLD_MAX: Final = 64
"""Who has changed more names of a directory is to forget all of it."""
COOL_FIRST_MS: Final = 1_000
COOL_MAX_MS: Final = 16_000
HEAT_KEPT: Final = 4_096
"""Inodes of which it is known how often they were recalled."""


class Item(msgspec.Struct, frozen=True, array_like=True):
    """What a session is to forget of one inode."""

    ino: Ino
    names: tuple[bytes, ...]
    """Of a directory: the entries that have changed."""
    is_whole: bool
    """The lease ends: everything about it is to be forgotten, and all names in it.  Otherwise only
    its attributes and these names.
    """
    gives_up_writing: bool = False
    """What was written to it and kept back is to reach the metadata first, and nothing is kept back
    any more.
    """
    is_own: bool = False
    """The session has changed it itself, and its door may not know yet."""


Done = Callable[[], None]


class Wait:
    """A change that is held back until all of `left` have forgotten what it makes untrue."""

    __slots__ = ("holds_back", "inos", "left", "number", "then")

    def __init__(
        self, number: int, inos: tuple[Ino, ...], left: set[int], *, holds_back: bool
    ) -> None:
        self.number = number
        self.inos = inos
        """Until it is over, nobody gets a lease on them."""
        self.left = left
        self.holds_back = holds_back
        """Otherwise nothing has changed, and leases are recalled because they are too many."""
        self.then: list[Done] = []


class Recall(msgspec.Struct, frozen=True):
    """To be sent to a session; it answers with `number`."""

    session: int
    number: int
    items: tuple[Item, ...]


class _Unheard:
    __slots__ = ("asked", "names", "others", "sequence")

    def __init__(self) -> None:
        self.sequence = 0
        """Of the last command that changed it."""
        self.names: tuple[bytes, ...] = ()
        self.others: set[Ino] | None = set()
        """Those with leases that the same commands have changed: who hears of one may expect the
        other.  None: they are too many, and it may be any.
        """
        self.asked = 0
        """The recall since which it was not changed again; 0: there is none."""


class _Holder:
    __slots__ = ("asked", "heard", "inos", "leaves", "too_many", "unheard", "writes")

    def __init__(self, now: float) -> None:
        self.heard = now
        self.inos: dict[Ino, None] = {}
        """On which it has a lease; the oldest first."""
        self.asked: dict[int, float] = {}
        """Recalls that it has not answered, and since when."""
        self.writes: set[Ino] = set()
        """Those that it may keep back bytes of."""
        self.unheard: dict[Ino, _Unheard] = {}
        """What it has changed itself lately, the oldest first."""
        self.too_many = 0
        """The recall of those that are more than it may have."""
        self.leaves = False
        """Its leases are not renewed any more."""


class _Heat:
    __slots__ = ("cool_ms", "count", "since", "until")

    def __init__(self, now: float) -> None:
        self.count = 0
        self.since = now
        self.until = 0.0
        self.cool_ms = float(COOL_FIRST_MS)


class Leases:
    def __init__(self, ttl_ms: int = TTL_MS, held_max: int = HELD_MAX) -> None:
        self.ttl_ms = ttl_ms
        self._held_max = held_max
        self._holders: dict[int, _Holder] = {}
        """Sessions that have begun with us."""
        self._of: dict[Ino, dict[int, None]] = {}
        """Which sessions have a lease on an inode."""
        self._waits: dict[int, Wait] = {}
        self._pending: dict[Ino, list[Wait]] = {}
        self._heat: dict[Ino, _Heat] = {}
        self._next = 1
        self.outbox: list[Recall] = []
        """Recalls to be sent."""
        self._unsettled: set[int] = set()
        """Sessions that may have leases of a leader before us."""
        self._honoured_until = 0.0
        self._settled: list[Done] = []
        self._writers: dict[Ino, int] = {}
        """Who may keep back what he has written to a file: one session, and then nobody else has a
        lease on it.
        """
        self._unheard: dict[Ino, int] = {}
        """Who has changed an inode, and may not have told his kernel yet."""
        self._given_up: dict[Ino, Wait] = {}
        """Files whose writers are asked for what they have kept back."""
        self.lost: set[int] = set()
        """Sessions that do not answer, and may have kept back what others have asked for.  They
        have to be ended, and `drop`ped: what they have must not come later.
        """
        self.recalls = 0
        self.granted = 0

    # -- who leads

    def lead(self, sessions: Iterable[int], now: float) -> None:
        """We lead now; `sessions`: those that may have leases."""
        self.lead_no_more()
        self._unsettled = set(sessions)
        self._honoured_until = now + self.ttl_ms

    def lead_no_more(self) -> list[Done]:
        """Forget everything.  Returns those who waited: it is not for us to answer them now."""
        waiting = [then for wait in self._waits.values() for then in wait.then]
        waiting += self._settled
        self._settled = []
        self._holders.clear()
        self._of.clear()
        self._waits.clear()
        self._pending.clear()
        self._writers.clear()
        self._given_up.clear()
        self._unheard.clear()
        self.lost.clear()
        self._unsettled.clear()
        self.outbox.clear()
        return waiting

    def is_settled(self, now: float) -> bool:
        """Whether no lease of a leader before us is left."""
        if self._unsettled and now >= self._honoured_until:
            self._unsettled.clear()
        return not self._unsettled

    def when_settled(self, then: Done) -> None:
        self._settled.append(then)

    # -- sessions

    def begin(self, session: int, now: float, writes: Iterable[Ino] = ()) -> list[Done]:
        """It has no lease, whatever it had before, but for those to write on files of which it has
        kept back bytes.  Returns what need not wait any more.
        """
        holder = _Holder(now)
        before = self._holders.get(session)
        if before is not None and before.leaves:
            return self.drop(session)
        for ino in writes:
            if self._writers.setdefault(ino, session) == session:
                holder.writes.add(ino)
        done = self.drop(session, keep=holder.writes)
        self._holders[session] = holder
        for ino in holder.writes:
            self._hold(session, holder, ino)
            wait = self._given_up.get(ino)
            if wait is not None:  # it has not heard, or nobody will hear its answer
                self.outbox.append(Recall(session, wait.number, (_given_up(ino),)))
        return done

    def drop(self, session: int, keep: Collection[Ino] = ()) -> list[Done]:
        """It is gone, or its leases have run out, but for those to write on files of `keep`."""
        self._unsettled.discard(session)
        self.lost.discard(session)
        holder = self._holders.pop(session, None)
        if holder is not None:
            for ino in holder.inos:
                self._forget(ino, session)
            for ino in holder.writes.difference(keep):
                del self._writers[ino]
            for ino in list(holder.unheard):
                self._has_heard(session, holder, ino)
        done = [
            then
            for wait in list(self._waits.values())
            if session in wait.left and not self._is_asked_for(wait, keep)
            for then in self._answered(wait, session)
        ]
        return done + self._when_settled()

    def _when_settled(self) -> list[Done]:
        if self._unsettled:
            return []
        settled, self._settled = self._settled, []
        return settled

    def let_go(self, session: int, now: float) -> Wait | None:
        """It is about to be ended, and is to have no leases when it is: whoever leads then knows
        nothing of it any more.  Returns what has to be waited for.
        """
        holder = self._holders.get(session)
        if holder is None or now - holder.heard > self.ttl_ms:
            return None
        holder.leaves = True
        return self._waiting({session}, (), holds_back=False)

    def hear(self, session: int, now: float) -> bool:
        """It has asked us something.  Returns whether its leases are good for the whole time again:
        not while it owes us an answer for long.
        """
        holder = self._holders.get(session)
        if holder is None or holder.leaves:
            return False
        if holder.asked and now - next(iter(holder.asked.values())) > self.ttl_ms / 2:
            return False
        holder.heard = now
        return True

    def has_told(self, session: int, told: int) -> None:
        """Its door knows what its commands up to `told` have done."""
        holder = self._holders.get(session)
        if holder is not None:
            for ino, unheard in list(holder.unheard.items()):
                if unheard.sequence > told:
                    break
                self._has_heard(session, holder, ino)

    def _has_heard(self, session: int, holder: _Holder, ino: Ino) -> None:
        del holder.unheard[ino]
        if self._unheard.get(ino) == session:
            del self._unheard[ino]

    def look(self, now: float) -> list[Done]:
        """To be called often: what need not wait any more because leases have run out."""
        done: list[Done] = []
        if self._unsettled and self.is_settled(now):
            done += self._when_settled()
        if not self._waits:
            return done
        for session in {one for wait in self._waits.values() for one in wait.left}:
            holder = self._holders.get(session)
            if holder is not None and now - holder.heard <= self.ttl_ms:
                continue
            if holder is not None and holder.writes:
                self.lost.add(session)
            else:
                done += self.drop(session)
        return done

    def has_begun(self, session: int) -> bool:
        holder = self._holders.get(session)
        return holder is not None and not holder.leaves

    def held_back(self) -> list[Wait]:
        """All changes that others may not know of yet."""
        return [wait for wait in self._waits.values() if wait.holds_back]

    # -- what is read

    def blocked(self, seen: Collection[Ino], session: int) -> Wait | None:
        """A change that an answer from these inodes would tell of too early.  That goes for who is
        himself asked to forget them, too: others beside him would believe what they knew.
        """
        pending, unheard = self._pending, self._unheard
        if pending:
            for ino in seen:
                for wait in pending.get(ino, ()):
                    if wait.holds_back:
                        return wait
        if unheard:
            for ino in seen:
                maker = unheard.get(ino)
                if maker is not None and maker != session:
                    return self._ask_maker(ino, maker)
        return None

    def all_blocking(self, seen: Collection[Ino], session: int) -> list[Wait]:
        """The same for an answer that will not be made again: all that it has to wait for."""
        if not self._pending and not self._unheard:
            return []
        found: dict[int, Wait] = {}
        for ino in seen:
            for wait in self._pending.get(ino, ()):
                if wait.holds_back:
                    found[wait.number] = wait
            maker = self._unheard.get(ino)
            if maker is None or maker == session:
                continue
            if self._holders[maker].unheard[ino].asked not in found:
                wait = self._ask_maker(ino, maker)
                found[wait.number] = wait
        return list(found.values())

    def _ask_maker(self, ino: Ino, maker: int) -> Wait:
        unheard = self._holders[maker].unheard
        others = unheard[ino].others
        inos = tuple(unheard) if others is None else (ino, *(others & unheard.keys()))
        items = []
        for one in inos:
            names = unheard[one].names
            items.append(Item(one, names, len(names) > NAMES_TOLD_MAX, is_own=True))
        return self._ask({maker: items}, inos, holds_back=True)

    def grant(self, session: int, seen: Collection[Ino], now: float) -> bool:
        """A lease on each of these inodes, or on none."""
        holder = self._holders.get(session)
        if holder is None or not self._may_have(seen, now):
            return False
        if len(holder.inos) > 2 * self._held_max:  # it does not give back what is asked of it
            return False
        for ino in seen:
            if ino and ino not in holder.inos:
                self._hold(session, holder, ino)
        self.granted += len(seen)
        if len(holder.inos) > self._held_max and holder.too_many not in self._waits:
            holder.too_many = self._recall_oldest(session, holder)
        return True

    def _hold(self, session: int, holder: _Holder, ino: Ino) -> None:
        holder.inos[ino] = None
        who = self._of.get(ino)
        if who is None:
            self._of[ino] = {session: None}
        else:
            who[session] = None

    def cool(self, session: int, granted: Iterable[Ino], now: float) -> bool:
        """A lease was granted on these inodes, and its holder has not been told.  Take it back if
        one of them is to be granted to nobody by now, and return whether that is so.
        """
        heat = self._heat
        if all(now >= heat[ino].until for ino in granted if ino in heat):
            return False
        holder = self._holders.get(session)
        for ino in granted:
            if holder is not None and ino not in holder.writes:
                holder.inos.pop(ino, None)
                self._forget(ino, session)
        return True

    def new(self, session: int, seen: Iterable[Ino]) -> list[Ino]:
        """Those of these inodes on which it has no lease."""
        holder = self._holders.get(session)
        return [] if holder is None else [ino for ino in seen if ino and ino not in holder.inos]

    def _may_have(self, seen: Collection[Ino], now: float) -> bool:
        pending, heat = self._pending, self._heat
        if pending and not pending.keys().isdisjoint(seen):
            return False
        if heat:
            for ino in seen:
                found = heat.get(ino)
                if found is not None and now < found.until:
                    return False
        return True

    def _recall_oldest(self, session: int, holder: _Holder) -> int:
        """More than it needs, so that it does not have to be done for each new one."""
        count = len(holder.inos) - self._held_max + self._held_max // 16
        items = []
        for ino in list(holder.inos)[:count]:
            if ino not in holder.writes:
                items.append(Item(ino, (), True))
        inos = tuple(item.ino for item in items)
        return self._ask({session: items}, inos, holds_back=False).number

    # -- what is kept back

    def kept_back(self, seen: Iterable[Ino], session: int) -> Wait | None:
        """Another session may have kept back what these inodes are asked for: it is asked for it.
        Returns what an answer has to wait for.
        """
        writers = self._writers
        if not writers:
            return None
        for ino in seen:
            writer = writers.get(ino)
            if writer is not None and writer != session:
                return self._ask_for(ino, writer)
        return None

    def grant_writing(self, session: int, ino: Ino) -> bool | Wait:
        """Whether it may keep back what it writes to a file; or what it has to wait for, and then
        to ask again.
        """
        holder = self._holders.get(session)
        if holder is None:
            return False
        writer = self._writers.get(ino)
        if writer == session:
            return ino not in self._given_up
        if writer is not None:
            return self._ask_for(ino, writer)
        if ino in self._pending:
            return self._pending[ino][0]
        others = self._of.get(ino, {}).keys() - {session}
        if others:
            asked = {other: [Item(ino, (), True)] for other in others}
            return self._ask(asked, (ino,), holds_back=False)
        self._writers[ino] = session
        holder.writes.add(ino)
        self._hold(session, holder, ino)
        return True

    def _ask_for(self, ino: Ino, writer: int) -> Wait:
        wait = self._given_up.get(ino)
        if wait is None:
            asked = {writer: [_given_up(ino)]}
            wait = self._given_up[ino] = self._ask(asked, (ino,), holds_back=False)
        return wait

    def _is_asked_for(self, wait: Wait, kept: Collection[Ino]) -> bool:
        return any(self._given_up.get(ino) is wait for ino in wait.inos if ino in kept)

    # -- what changes

    def changed(
        self,
        session: int,
        changes: Mapping[Ino, tuple[bytes, ...]],
        now: float,
        sequence: int = 0,
    ) -> Wait | None:
        """A command of `session` has changed these inodes, and of directories these names.

        Returns what its answer has to wait for, if anything; `outbox` has what is to be sent.
        """
        asked: dict[int, list[Item]] = {}
        touched: list[Ino] = []
        maker = self._holders.get(session)
        if maker is not None:
            known = {ino for ino in changes if ino in maker.inos}
            if known:
                for ino, names in changes.items():
                    self._note_unheard(session, maker, ino, names, sequence, known)
        for ino, names in changes.items():
            who = self._of.get(ino)
            others = () if who is None else who.keys() - {session}
            if not others:
                continue
            touched.append(ino)
            is_whole = bool(names) and self._warm(ino, now)
            for other in others:
                asked.setdefault(other, []).append(Item(ino, names, is_whole))
        if not asked:
            return None
        return self._ask(asked, tuple(touched), holds_back=True)

    def _note_unheard(
        self,
        session: int,
        maker: _Holder,
        ino: Ino,
        names: tuple[bytes, ...],
        sequence: int,
        known: set[Ino],
    ) -> None:
        unheard = maker.unheard.pop(ino, None) or _Unheard()
        unheard.sequence = sequence
        if len(unheard.names) <= NAMES_TOLD_MAX:
            unheard.names += names
        if unheard.others is not None:
            unheard.others |= known
            unheard.others.discard(ino)
            if len(unheard.others) > NAMES_TOLD_MAX:
                unheard.others = None
        unheard.asked = 0
        maker.unheard[ino] = unheard
        self._unheard[ino] = session

    def _warm(self, ino: Ino, now: float) -> bool:
        """Count a recall.  Returns whether the inode is to be granted to nobody for a while."""
        heat = self._heat.get(ino)
        if heat is None:
            if len(self._heat) >= HEAT_KEPT:
                del self._heat[next(iter(self._heat))]
            heat = self._heat[ino] = _Heat(now)
        if now - heat.since > HOT_WITHIN_MS:
            if now - heat.since > 2 * heat.cool_ms + HOT_WITHIN_MS:
                heat.cool_ms = COOL_FIRST_MS
            heat.since, heat.count = now, 0
        heat.count += 1
        if heat.count < HOT_RECALLS:
            return False
        heat.until = now + heat.cool_ms
        heat.cool_ms = min(2 * heat.cool_ms, COOL_MAX_MS)
        heat.count, heat.since = 0, heat.until
        return True

    def _ask(
        self, asked: Mapping[int, list[Item]], inos: tuple[Ino, ...], *, holds_back: bool
    ) -> Wait:
        wait = self._waiting(set(asked), inos, holds_back=holds_back)
        for session, items in asked.items():
            self.outbox.append(Recall(session, wait.number, tuple(items)))
            self.recalls += 1
            holder = self._holders.get(session)
            if holder is not None and holder.unheard:
                for item in items:
                    unheard = holder.unheard.get(item.ino)
                    if unheard is not None and item.is_own:
                        unheard.asked = wait.number
        return wait

    def _waiting(self, left: set[int], inos: tuple[Ino, ...], *, holds_back: bool) -> Wait:
        wait = Wait(self._next, inos, left, holds_back=holds_back)
        self._next += 1
        self._waits[wait.number] = wait
        for ino in inos:
            self._pending.setdefault(ino, []).append(wait)
        return wait

    def sent(self, recall: Recall, now: float) -> None:
        holder = self._holders.get(recall.session)
        if holder is not None:
            holder.asked[recall.number] = now

    def answered(self, recall: Recall) -> list[Done]:
        """A session has forgotten what it was asked to.  Returns what need not wait any more."""
        holder = self._holders.get(recall.session)
        if holder is not None and holder.asked.pop(recall.number, None) is not None:
            for item in recall.items:
                unheard = holder.unheard.get(item.ino)
                if unheard is not None and 0 < unheard.asked <= recall.number:
                    self._has_heard(recall.session, holder, item.ino)
                if item.is_whole and item.ino in holder.inos:
                    del holder.inos[item.ino]
                    self._forget(item.ino, recall.session)
                if item.gives_up_writing:
                    holder.writes.discard(item.ino)
                    if self._writers.get(item.ino) == recall.session:
                        del self._writers[item.ino]
        wait = self._waits.get(recall.number)
        return [] if wait is None else self._answered(wait, recall.session)

    def _answered(self, wait: Wait, session: int) -> list[Done]:
        wait.left.discard(session)
        if wait.left:
            return []
        del self._waits[wait.number]
        for ino in wait.inos:
            if self._given_up.get(ino) is wait:
                del self._given_up[ino]
            others = self._pending[ino]
            others.remove(wait)
            if not others:
                del self._pending[ino]
        return wait.then

    def _forget(self, ino: Ino, session: int) -> None:
        who = self._of.get(ino)
        if who is not None:
            who.pop(session, None)
            if not who:
                del self._of[ino]

    # -- for people

    def waits(self) -> Mapping[int, Wait]:
        """Those that are not over, by their number."""
        return self._waits

    def told(self) -> dict[int, int]:
        """How many leases each session has."""
        return {session: len(holder.inos) for session, holder in self._holders.items()}


def _given_up(ino: Ino) -> Item:
    return Item(ino, (), True, gives_up_writing=True)
