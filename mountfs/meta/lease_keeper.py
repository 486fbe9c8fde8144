"""Leases, as who leads keeps them: the tasks that ask sessions to forget, and those who wait until
they have.  What is decided is in `lease_desk.py` and `leases.py`.
"""

import logging
from collections.abc import Awaitable, Callable
from typing import Final

import trio

from mountfs.errors import FsError
from mountfs.meta.lease_desk import LeaseDesk, tell
from mountfs.meta.leases import TTL_MS, Recall, Wait
from mountfs.meta.protocol import Method, Recalled, encode
from mountfs.wire.connection import Disconnected
from mountfs.wire.service import Peer

log = logging.getLogger(__name__)

LOOK_S: Final = 0.1


class LeaseKeeper(LeaseDesk[Peer]):
    """`now`: milliseconds that only grow; `end_session` ends one, durably.  Somebody must `run`
    it.
    """

    def __init__(
        self,
        now: Callable[[], float],
        end_session: Callable[[int], Awaitable[None]],
        ttl_ms: int = TTL_MS,
    ) -> None:
        super().__init__(now, ttl_ms)
        self._end_session = end_session
        self._ending: set[int] = set()
        self._wake = trio.Event()
        self.on_more = lambda: self._wake.set()

    async def run(self) -> None:
        """Until cancelled."""
        async with trio.open_nursery() as nursery:
            while True:
                with trio.move_on_after(LOOK_S):
                    await self._wake.wait()
                self._wake = trio.Event()
                tell(self.leases.look(self._now()))
                outbox, self.leases.outbox = self.leases.outbox, []
                for recall in outbox:
                    nursery.start_soon(self._recall, recall)
                for session in self.leases.lost - self._ending:
                    self._ending.add(session)
                    nursery.start_soon(self._end, session)

    async def _end(self, session: int) -> None:
        """It does not give up what it has kept back: then it must not come later."""
        log.warning("session %d is silent, and has bytes that others ask for: it is ended", session)
        try:
            await self._end_session(session)
        except FsError as error:
            log.warning("session %d could not be ended: %s", session, error)
        finally:
            self._ending.discard(session)

    async def _recall(self, recall: Recall) -> None:
        """If nothing comes of it, the leases run out."""
        peer = self._peers.get(recall.session)
        if peer is None or peer.why is not None:
            return
        self.leases.sent(recall, self._now())
        with trio.move_on_after(2 * self.leases.ttl_ms / 1000):
            try:
                await peer.push(Method.RECALL, encode(Recalled(recall.items)))
            except (Disconnected, FsError) as error:
                log.info("session %d has not forgotten what it was to: %s", recall.session, error)
                return
            if self._peers.get(recall.session) is peer:
                tell(self.leases.answered(recall))

    # -- who leads, and who is there

    async def let_go(self, session: int) -> None:
        """Return when it has no leases any more, and gets none: it is told to begin anew, or they
        run out.
        """
        await self.settled()
        wait = self.leases.let_go(session, self._now())
        if wait is not None:
            await self.over(wait)

    # -- questions

    async def settled(self) -> None:
        if self.is_settled:
            return
        event = trio.Event()
        self.leases.when_settled(event.set)
        await event.wait()

    async def over(self, wait: Wait) -> None:
        if not wait.left:  # by now
            return
        event = trio.Event()
        wait.then.append(event.set)
        await event.wait()
