"""Conversations: text files in which servers are told things, and what they do is written below.

A line that begins with `> ` is a command; what came of it follows, indented by four spaces; all
else is prose.  `played` gives the text back with what really happens, so a file is right if it is
its own result.

    > group 1 2 3 [learners 4] [spares 5] [with window=3 batch=2 leases]
                            empty servers; spares know of nobody
    > log 1 1 1 2           what 1 has on its disk: the terms of its entries
    > term 1 7              and its term
    > pass 100 [1 2]        time passes, and the clocks of these tick (of all)
    > run 300               time passes in steps, and all messages arrive
    > elect 1               1 waits alone until it stands, and all messages arrive
    > deliver [1->2] [vote append ...] [first]      what is in flight, but not what comes of it;
                            `1->`, `->2`; the oldest only
    > settle [vote ...]     deliver until nothing is left
    > drop, double, delay [1->2] [append ...]     lost; come twice; overtaken by all others
    > mail                  what is in flight
    > cut 3, cut 1-2, heal  links; messages on them are lost
    > propose 1 a b, read 2 7, transfer 1 3, change 1 1 2 3 [learners 4]
    > snapshot 1 3 [fails]  carry it over
    > compact 1 8           drop the log up to there
    > hold 1, save 1 [2], release 1       saves wait; the first two are on disk; all of them
    > crash 1, start 1
    > show [1 2], peers 1   what they know
    > ... quietly           the same without telling
"""

from collections.abc import Callable, Iterator

import msgspec
from group import CONFIG, Group, Server, entry, members, words

from mountfs.errors import FsError
from mountfs.raft.config import Config
from mountfs.raft.messages import (
    Append,
    AppendReply,
    HardState,
    Heartbeat,
    HeartbeatReply,
    InstallSnapshot,
    Message,
    NodeId,
    ReadIndex,
    ReadIndexReply,
    Term,
    TimeoutNow,
    Vote,
    VoteReply,
)
from mountfs.types import LogIndex

KINDS: dict[str, tuple[type[Message], ...]] = {
    "vote": (Vote,),
    "votes": (Vote, VoteReply),
    "append": (Append,),
    "has": (AppendReply,),
    "appends": (Append, AppendReply),
    "heartbeat": (Heartbeat,),
    "hears": (HeartbeatReply,),
    "heartbeats": (Heartbeat, HeartbeatReply),
    "snapshot": (InstallSnapshot,),
    "stand": (TimeoutNow,),
    "ask": (ReadIndex,),
    "answer": (ReadIndexReply,),
}
LIMITS = {
    "window": "inflight_messages_max",
    "batch": "append_entries_max",
    "reads": "reads_pending_max",
    "uncommitted": "uncommitted_bytes_max",
}
INDENT = "    "


def played(text: str) -> str:
    """The conversation with what its commands really bring about."""
    return "\n".join(_play(text.splitlines())) + "\n"


def _play(lines: list[str]) -> Iterator[str]:
    talk = Conversation()
    after_command = False
    for line in lines:
        if line.startswith("> "):
            yield line
            yield from (INDENT + one for one in talk.command(line[2:]))
            after_command = True
        elif not (after_command and line.startswith(INDENT)):
            yield line
            after_command = False


class Conversation:
    group: Group

    def command(self, line: str) -> list[str]:
        """What came of it."""
        name, *words_ = line.split()
        quietly = words_[-1:] == ["quietly"]
        if quietly:
            words_.pop()
        run: Callable[..., None] = getattr(self, f"do_{name}")
        if name != "group":
            self.group.lines.clear()
        try:
            run(*words_)
        except FsError as failure:
            self.group.tell(f"{failure.fault.name}: {failure}")
        told = list(self.group.lines)
        return [] if quietly else told

    # -- servers

    def do_group(self, *words_: str) -> None:
        parts: dict[str, list[str]] = {"voters": [], "learners": [], "spares": [], "with": []}
        now = parts["voters"]
        for word in words_:
            if word in parts:
                now = parts[word]
            else:
                now.append(word)
        self.group = Group(
            *map(int, parts["voters"]),
            learners=_numbers(parts["learners"]),
            spares=_numbers(parts["spares"]),
            config=_config(parts["with"]),
        )

    def do_log(self, node: str, *terms: str) -> None:
        server = self._server(node)
        server.image.entries = [entry(at + 1, int(term)) for at, term in enumerate(terms)]
        self.do_term(node, str(max(map(int, terms), default=0)))

    def do_term(self, node: str, term: str) -> None:
        server = self._server(node)
        server.image.hard = HardState(Term(int(term)))
        self.group.crash(server.node)
        self.group.start(server.node)
        self.group.lines.clear()

    def do_crash(self, node: str) -> None:
        self.group.crash(int(node))

    def do_start(self, node: str) -> None:
        self.group.start(int(node))
        self.do_show(node)

    # -- time and messages

    def do_pass(self, ms: str, *nodes: str) -> None:
        self.group.pass_time(int(ms), *_numbers(nodes))

    def do_run(self, ms: str) -> None:
        self.group.run(int(ms))

    def do_elect(self, node: str) -> None:
        self.group.elect(int(node))

    def do_deliver(self, *words_: str) -> None:
        for number in self._find(words_):
            self.group.deliver_number(number)

    def do_settle(self, *kinds: str) -> None:
        self.group.settle(*(kind for name in kinds for kind in KINDS[name]))

    def do_drop(self, *words_: str) -> None:
        for number in self._find(words_):
            self._tell_mail("lost", self.group.mail.pop(number))

    def do_double(self, *words_: str) -> None:
        for number in self._find(words_):
            self.group.post(self.group.mail[number])

    def do_delay(self, *words_: str) -> None:
        for number in self._find(words_):
            self.group.post(self.group.mail.pop(number))

    def do_mail(self) -> None:
        for message in self.group.mail.values():
            self._tell_mail("in flight", message)

    def do_cut(self, *places: str) -> None:
        for place in places:
            if "-" in place:
                one, other = map(int, place.split("-"))
                self.group.cut |= {(one, other), (other, one)}
            else:
                self.group.isolate(int(place))

    def do_heal(self) -> None:
        self.group.heal()

    def _find(self, words_: tuple[str, ...]) -> list[int]:
        source = target = None
        kinds: list[type[Message]] = []
        stop = None
        for word in words_:
            if word == "first":
                stop = 1
            elif "->" in word:
                ends = word.split("->")
                source, target = (int(end) if end else None for end in ends)
            else:
                kinds += KINDS[word]
        return self.group.find(*kinds, source=source, target=target)[:stop]

    def _tell_mail(self, what: str, message: Message) -> None:
        self.group.tell(f"{what}: {message.source} -> {message.target}: {words(message)}")

    # -- what is asked

    def do_propose(self, node: str, *commands: str) -> None:
        self.group.propose(int(node), *(command.encode() for command in commands))

    def do_read(self, node: str, request: str) -> None:
        self.group.read(int(node), int(request))

    def do_transfer(self, node: str, target: str) -> None:
        self.group.transfer(int(node), int(target))

    def do_change(self, node: str, *words_: str) -> None:
        at = words_.index("learners") if "learners" in words_ else len(words_)
        self.group.change(int(node), _numbers(words_[:at]), _numbers(words_[at + 1 :]))

    def do_snapshot(self, source: str, target: str, how: str = "") -> None:
        self.group.send_snapshot(int(source), int(target), whole=how != "fails")

    def do_compact(self, node: str, index: str) -> None:
        self.group.compact(int(node), int(index))

    def do_hold(self, node: str) -> None:
        self.group.hold(int(node))

    def do_save(self, node: str, count: str = "") -> None:
        self.group.save(int(node), int(count) if count else None)

    def do_release(self, node: str) -> None:
        self.group.release(int(node))

    # -- what is known

    def do_show(self, *nodes: str) -> None:
        for node in _numbers(nodes) or list(self.group.servers):
            self.group.tell(_state(self.group.servers[node]))

    def do_peers(self, node: str) -> None:
        for peer in self.group[int(node)].state.peers.values():
            extra = f", {peer.inflight} under way" if peer.inflight else ""
            extra += f", snapshot {peer.snapshot}" if peer.snapshot else ""
            self.group.tell(
                f"{peer.node}: {peer.flow.value}, match {peer.match}, next {peer.next}{extra}"
            )

    def _server(self, node: str) -> Server:
        return self.group.servers[int(node)]


def _numbers(words_: list[str] | tuple[str, ...]) -> list[int]:
    return [int(word) for word in words_]


def _config(words_: list[str]) -> Config:
    changes: dict[str, int | bool] = {}
    for word in words_:
        name, _, value = word.partition("=")
        if name == "leases":
            changes["lease_reads"] = True
        else:
            changes[LIMITS[name]] = int(value)
    return msgspec.structs.replace(CONFIG, **changes)


def _state(server: Server) -> str:
    raft, log = server.raft, server.raft.log
    if not server.up:
        return f"{server.node} is down"
    terms = [log.term(LogIndex(index)) for index in range(log.base + 1, log.last_index + 1)]
    line = f"{raft.node} {raft.role.value} in term {raft.term}"
    if raft.leader != NodeId(0):
        line += f" of {raft.leader}"
    line += ": log " + (" ".join(map(str, terms)) or "-")
    if log.base:
        line += f" after {log.base}/{log.base_term}"
    return line + f", committed {log.committed}, members {members(log.membership)}"
