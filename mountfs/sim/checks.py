"""What must hold after every step (paper figure 3)."""

from mountfs.raft.core import Raft
from mountfs.raft.messages import Entry, NodeId, SnapshotHead, Term
from mountfs.raft.state import Role
from mountfs.types import LogIndex


class Broken(AssertionError):
    """A promise was broken.  `rule`: which."""

    def __init__(self, rule: str, detail: str) -> None:
        super().__init__(f"{rule}: {detail}")
        self.rule = rule


class Checks:
    def __init__(self) -> None:
        self._leaders: dict[Term, NodeId] = {}
        self._applied: dict[LogIndex, Entry] = {}
        """What was applied anywhere, by index: it is committed for ever."""
        self._entries: dict[tuple[LogIndex, Term], tuple[Term | None, bytes]] = {}
        """Of each entry ever seen: the term of the one before it, and its data."""
        self._seen: dict[NodeId, tuple[LogIndex, Term, int]] = {}
        """(last index, its term, cuts) of a log when it was looked at last."""
        self._positions: dict[NodeId, LogIndex] = {}
        self.leaders_seen = 0

    def look(self, raft: Raft) -> None:
        """A server has taken a step."""
        log = raft.log
        if raft.role is Role.LEADER and self._leaders.get(raft.term) != raft.node:
            self._one_leader(raft)
        seen = (log.last_index, log.last_term, log.cuts)
        before = self._seen.get(raft.node)
        if before != seen:
            self._log_matching(raft, before)
            self._seen[raft.node] = seen

    def _one_leader(self, raft: Raft) -> None:
        other = self._leaders.setdefault(raft.term, raft.node)
        if other != raft.node:
            raise Broken("election safety", f"{other} and {raft.node} lead in term {raft.term}")
        self.leaders_seen += 1
        # Leader completeness: everything that was applied anywhere is in its log.
        log = raft.log
        for index, entry in self._applied.items():
            if index > log.base and log.term(index) != entry.term:
                raise Broken(
                    "leader completeness",
                    f"{raft.node} leads in term {raft.term} with term {log.term(index)} at {index},"
                    f" where an entry of term {entry.term} is committed",
                )

    def _log_matching(self, raft: Raft, before: tuple[LogIndex, Term, int] | None) -> None:
        log = raft.log
        start = LogIndex(log.base + 1)
        if before is not None and before[2] == log.cuts and before[0] <= log.last_index:
            start = LogIndex(max(before[0] + 1, start))
        elif log.last_index - log.base > 0:
            start = LogIndex(max(log.base + 1, log.committed))
        if start > log.last_index:
            return
        for entry in log.entries(start, LogIndex(log.last_index + 1), 1 << 40, 1 << 40):
            previous = log.term(LogIndex(entry.index - 1))
            fact = (previous, entry.data)
            known = self._entries.setdefault((entry.index, entry.term), fact)
            if known != fact:
                raise Broken(
                    "log matching", f"{raft.node} has {fact} at {entry.index}, another {known}"
                )

    def applied(self, node: NodeId, entry: Entry) -> None:
        """A server applies an entry."""
        known = self._applied.setdefault(entry.index, entry)
        if (known.term, known.data) != (entry.term, entry.data):
            raise Broken(
                "state machine safety",
                f"{node} applies an entry of term {entry.term} at {entry.index}, "
                f"others one of term {known.term}",
            )

    def installed(self, node: NodeId, head: SnapshotHead) -> None:
        known = self._applied.get(head.index)
        if known is not None and known.term != head.term:
            raise Broken("state machine safety", f"{node} installs {head}, not {known.term}")

    def forget(self, node: NodeId) -> None:
        """It went down: its log may be shorter when it comes back."""
        self._seen.pop(node, None)
