"""What clients of the metadata are promised, checked against what is applied: each command acts
once, what was acknowledged has happened and stays, and a session ends only when it may.
"""

from collections import defaultdict
from typing import Any

from mountfs.errors import FsError
from mountfs.meta.ops.session import EndSession
from mountfs.meta.protocol import encode
from mountfs.meta.state_machine import Entry as Asked
from mountfs.raft.messages import Entry, NodeId
from mountfs.sim.checks import Broken

Outcome = bytes
"""The encoded reply; or the name of the fault with which a command was refused."""


class Promises:
    def __init__(self) -> None:
        self._carried_out: dict[tuple[int, int], tuple[int, Outcome]] = {}
        """By session and sequence: where in the log, and the reply."""
        self._numbers: dict[int, set[tuple[int, int]]] = defaultdict(set)
        """The sessions and sequences with which a command was sent, which is one as far as the
        caller knows.
        """
        self._acknowledged: dict[tuple[int, int], Outcome] = {}
        self.ending: dict[int, int] = {}
        """Sessions, and when somebody first asked for their end."""
        self.ended: dict[int, int] = {}
        """Those that have ended, and when that was first applied."""
        self.reaped = 0
        """Files that went with their last user."""

    # -- servers

    def applied(
        self, node: NodeId, entry: Entry, asked: Asked, reply: object, acted: bool, now: int
    ) -> None:
        """A server has taken in a command."""
        if not asked.session:
            if isinstance(asked.command, EndSession):
                self.ended.setdefault(asked.command.number, now)
            return
        place = (asked.session, asked.sequence)
        known = self._carried_out.get(place)
        if not acted:
            if known is not None and known[0] == entry.index:
                raise Broken(
                    "state machine safety",
                    f"{node} does not carry out {place} at {entry.index}, but another did",
                )
        elif known is None:
            self._carried_out[place] = (entry.index, _outcome(reply))
        elif known[0] != entry.index:
            raise Broken(
                "exactly once",
                f"{node} carries out command {place[1]} of session {place[0]} at {entry.index}, "
                f"which was carried out at {known[0]}: {asked.command}",
            )

    def ends_for_silence(self, node: NodeId, session: int, silent_us: int, ttl_us: int) -> None:
        """A leader ends a session that it has not heard for so long."""
        if silent_us < ttl_us:
            raise Broken(
                "sessions",
                f"{node} ends session {session} after {silent_us / 1e6:.3f} s of silence since it "
                f"leads, not {ttl_us / 1e6:.3f} s",
            )

    # -- clients

    def sent(self, command: int, session: int, sequence: int) -> None:
        self._numbers[command].add((session, sequence))

    def acknowledged(self, session: int, sequence: int, answer: bytes | FsError) -> None:
        place = (session, sequence)
        outcome = answer if isinstance(answer, bytes) else answer.fault.name.encode()
        found = self._carried_out.get(place)
        if found is None:
            raise Broken(
                "nothing acknowledged is lost",
                f"command {sequence} of session {session} was answered with {outcome!r}, but "
                "nobody has carried it out",
            )
        if found[1] != outcome:
            raise Broken(
                "exactly once",
                f"command {sequence} of session {session} was answered with {outcome!r}, but "
                f"its effect was {found[1]!r}",
            )
        self._acknowledged[place] = outcome

    def told_that_it_has_ended(self, session: int) -> None:
        if session not in self.ended:
            raise Broken("sessions", f"a client is told that session {session} has ended")

    # -- the end

    def judge(self, history: dict[int, Asked]) -> None:
        """`history`: the commands that every server has applied in the end, by their place."""
        for place, outcome in self._acknowledged.items():
            index, _ = self._carried_out[place]
            asked = history.get(index)
            if asked is None or (asked.session, asked.sequence) != place:
                raise Broken(
                    "nothing acknowledged is lost",
                    f"command {place[1]} of session {place[0]} was answered with {outcome!r}, "
                    f"but at {index} is {asked}",
                )
        for number, places in self._numbers.items():
            acted = sorted(self._carried_out[one] for one in places if one in self._carried_out)
            if len(acted) > 1:
                raise Broken("exactly once", f"command {number} was carried out {len(acted)} times")


def _outcome(reply: Any) -> Outcome:
    return reply.fault.name.encode() if isinstance(reply, FsError) else encode(reply)
