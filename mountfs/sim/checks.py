"""What must hold after every step (paper figure 3)."""

from collections.abc import Callable, Iterable
from hashlib import blake2b

from mountfs.errors import FsError
from mountfs.raft.core import Raft
from mountfs.raft.messages import Entry, NodeId, SnapshotHead, Term
from mountfs.raft.state import Role
from mountfs.sim.machine import Machine
from mountfs.types import LogIndex


class Broken(AssertionError):
    """A promise was broken.  `rule`: which."""

    def __init__(self, rule: str, detail: str) -> None:
        super().__init__(f"{rule}: {detail}")
        self.rule = rule


class Checks:
    def __init__(self) -> None:
        self._leaders: dict[Term, NodeId] = {}
        self._applied: dict[LogIndex, tuple[Entry, Term]] = {}
        """What was applied anywhere, by index: it is committed for ever.  And in which term that
        was seen first: it was committed in this or an earlier one.
        """
        self._entries: dict[tuple[LogIndex, Term], tuple[Term | None, bytes]] = {}
        """Of each entry ever seen: the term of the one before it, and its data."""
        self._seen: dict[NodeId, tuple[LogIndex, int]] = {}
        """How far a log was on disk when it was looked at last, and how often it had been cut."""
        self._states: dict[LogIndex, tuple[NodeId, bytes]] = {}
        """What the state was after an entry, where that was looked at; and whose."""
        self.leaders_seen = 0
        self.look_every = 100
        """So many entries apart states are compared, and looked at for what must hold in them."""
        self.violations: Callable[[Machine], Iterable[str]] = lambda machine: ()

    def look(self, raft: Raft) -> None:
        """A server has taken a step."""
        log = raft.log
        if raft.role is Role.LEADER and self._leaders.get(raft.term) != raft.node:
            self._one_leader(raft)
        before = self._seen.get(raft.node, (LogIndex(0), 0))
        if before != (log.saved, log.cuts):
            # With the last one the logs before it must be the same too: a cut need not be traced.
            start = before[0] + 1 if before[1] == log.cuts else log.committed
            self._log_matching(raft, LogIndex(max(start, log.base + 1)))
            self._seen[raft.node] = (log.saved, log.cuts)

    def _one_leader(self, raft: Raft) -> None:
        other = self._leaders.setdefault(raft.term, raft.node)
        if other != raft.node:
            raise Broken("election safety", f"{other} and {raft.node} lead in term {raft.term}")
        self.leaders_seen += 1
        # Leader completeness: what was committed in terms up to this one is in its log.  (It may
        # learn late that it was elected, when others have committed more in a later term.)
        log = raft.log
        for index, (entry, term) in self._applied.items():
            if term <= raft.term and index > log.base and log.term(index) != entry.term:
                raise Broken(
                    "leader completeness",
                    f"{raft.node} leads in term {raft.term} with term {log.term(index)} at {index},"
                    f" where an entry of term {entry.term} is committed",
                )

    def _log_matching(self, raft: Raft, start: LogIndex) -> None:
        """Of what is on disk: entries that a crash took away, before anybody could see them, may
        come again with other data.
        """
        log = raft.log
        if start > log.saved:
            return
        stop = LogIndex(log.saved + 1)
        for entry in log.entries(start, stop, 1 << 40, 1 << 40):
            previous = log.term(LogIndex(entry.index - 1))
            fact = (previous, entry.data)
            known = self._entries.setdefault((entry.index, entry.term), fact)
            if known != fact:
                raise Broken(
                    "log matching", f"{raft.node} has {fact} at {entry.index}, another {known}"
                )

    def applied(self, node: NodeId, term: Term, entry: Entry) -> None:
        """A server applies an entry; it is in that term."""
        known, _ = self._applied.setdefault(entry.index, (entry, term))
        if (known.term, known.data) != (entry.term, entry.data):
            raise Broken(
                "state machine safety",
                f"{node} applies an entry of term {entry.term} at {entry.index}, "
                f"others one of term {known.term}",
            )

    def installed(self, node: NodeId, head: SnapshotHead) -> None:
        known = self._applied.get(head.index)
        if known is not None and known[0].term != head.term:
            raise Broken("state machine safety", f"{node} installs {head}, not {known[0].term}")

    def applied_to(self, node: NodeId, machine: Machine) -> None:
        """A machine has taken in an entry."""
        if machine.applied % self.look_every == 0:
            self.same_state(node, machine)

    def same_state(self, node: NodeId, machine: Machine) -> None:
        """Every server has the same after the same entries, and that is sound."""
        try:
            rows = machine.rows()
        except FsError:
            return  # its disk is damaged: it finds that out itself
        digest = blake2b(digest_size=16)
        for key, row in sorted(rows.items()):
            digest.update(b"%d %d %b%b" % (len(key), len(row), key, row))
        first = machine.applied not in self._states
        other, known = self._states.setdefault(machine.applied, (node, digest.digest()))
        if known != digest.digest():
            raise Broken(
                "state machine safety", f"{node} differs from {other} after {machine.applied}"
            )
        if first:
            for violation in self.violations(machine):
                raise Broken("invariants", f"{node} after {machine.applied}: {violation}")

    @property
    def history(self) -> dict[LogIndex, Entry]:
        """What was applied, by index."""
        return {index: entry for index, (entry, _) in self._applied.items()}

    def forget(self, node: NodeId) -> None:
        """It went down: its log may be shorter when it comes back."""
        self._seen.pop(node, None)
