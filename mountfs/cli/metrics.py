"""What a node counts, for Prometheus: http(s)://HOST:PORT/metrics.

It is served by a thread, which only reads numbers that the one Trio thread writes.  With TLS it is
behind the certificates of the cluster, as every port is.
"""

import contextlib
import ssl
import threading
from collections.abc import Callable, Iterable, Iterator
from socketserver import ThreadingMixIn
from typing import Any, Final
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from prometheus_client import CollectorRegistry, make_wsgi_app
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from mountfs.chunks.overview import Overview
from mountfs.chunks.reporter import Reporter
from mountfs.errors import Fault, FsError
from mountfs.meta.diagnosis import Cause
from mountfs.meta.fleet import Standing
from mountfs.meta.server import MetaServer
from mountfs.raft.figures import Spread

PATIENCE_S: Final = 10.0
READERS_MAX: Final = 8


class NodeMetrics(Collector):
    """`meta`: None: the node has no metadata.  `space`: (total, free) bytes of its volumes, and who
    reports them; None: it has none.  `overview`: what the leader knows of the bytes of the cluster;
    None: this node does not lead.
    """

    def __init__(
        self,
        meta: MetaServer | None,
        space: Callable[[], tuple[int, int]] | None,
        reporter: Reporter | None = None,
        overview: Callable[[], Overview | None] = lambda: None,
    ) -> None:
        self._meta = meta
        self._space = space
        self._reporter = reporter
        self._overview = overview

    def collect(self) -> Iterable[Metric]:
        if self._meta is not None:
            yield from self._raft(self._meta)
            yield from self._log(self._meta)
            yield from self._metadata(self._meta)
        if self._space is not None:
            total, free = self._space()
            yield _gauge("chunks_disk_bytes", "Size of the disk of the volumes.", total)
            yield _gauge("chunks_disk_free_bytes", "Free on the disk of the volumes.", free)
        if self._reporter is not None:
            heard = int(not self._reporter.problem)
            yield _gauge("chunks_heard", "1 if the leader heard the last report.", heard)
        if (overview := self._overview()) is not None:
            yield from _bytes(overview)

    def _raft(self, meta: MetaServer) -> Iterator[Metric]:
        group, figures = meta.group, meta.node.figures
        raft = group.raft
        log, state = raft.log, raft.state
        yield _gauge("raft_leader", "1 if this node leads.", int(state.is_leader))
        yield _gauge("raft_term", "Term of the election that counts.", raft.term)
        yield _gauge("raft_last_index", "Last entry of the log.", log.last_index)
        yield _gauge("raft_committed_index", "Last entry that a majority has.", log.committed)
        yield _gauge("raft_applied_index", "Last entry in the state.", group.machine.applied)
        yield _gauge("raft_voters", "Voters of the group.", len(state.membership.voters))
        lag = GaugeMetricFamily(
            "mountfs_raft_lag_entries", "Entries that a node lacks, as its leader knows.",
            labels=["node"],
        )  # fmt: skip
        for node, peer in list(state.peers.items()):
            lag.add_metric([str(node)], log.last_index - peer.match)
        yield lag
        yield _counter("raft_elections_won", "Elections that this node won.", figures.elections_won)
        yield _spread("raft_leaderless_seconds", "How long nobody led.", figures.leaderless_s)
        yield _spread("raft_commit_seconds", "From a proposal to its effect.", figures.commit_s)
        yield _spread("raft_apply_seconds", "To take in what was committed.", figures.apply_s)
        yield _spread("raft_batch_entries", "Entries in one append.", figures.batch_entries)
        yield _counter("raft_proposals", "Commands that were proposed here.", figures.proposals)
        yield _counter("raft_applied", "Entries that were taken in.", figures.applied)
        yield _counter("raft_messages", "Messages sent.", figures.messages)
        yield _counter("raft_envelopes", "What they travelled in.", figures.envelopes)
        yield _counter("raft_sent_bytes", "Bytes of envelopes.", figures.sent_bytes)
        yield _counter("raft_dropped", "Envelopes with no way out.", meta.links.dropped)
        yield _gauge("raft_waiting_proposals", "Not answered yet.", len(group.waiting))
        yield _gauge("raft_waiting_reads", "Not answered yet.", len(group.readers))
        yield _gauge("raft_uncommitted_bytes", "Not at a majority yet.", state.uncommitted_bytes)

    def _log(self, meta: MetaServer) -> Iterator[Metric]:
        journal = meta.journal
        yield _spread("log_sync_seconds", "fdatasync of the log.", meta.node.figures.sync_s)
        yield _gauge("log_bytes", "Size of the log on disk.", journal.size_bytes)
        yield _gauge(
            "log_unsynced_records", "Appended, and not on disk yet.",
            journal.last_index - journal.synced_index,
        )  # fmt: skip
        full = meta.node.full is not None
        yield _gauge("log_full", "1 if the disk has no room for the log.", int(full))

    def _metadata(self, meta: MetaServer) -> Iterator[Metric]:
        machine = meta.machine.replica.machine
        yield _gauge("meta_sessions", "Sessions that have not ended.", len(machine.sessions))
        yield _gauge("meta_inodes", "Files and directories.", machine.tree.counters.inodes)
        yield _gauge("meta_pending_rows", "To be checkpointed.", meta.machine.replica.pending_rows)
        yield _gauge("meta_checkpoint_index", "Last entry in it.", meta.machine.stored.index)
        yield _counter("meta_commands", "Commands of clients.", meta.service.commands)
        yield _counter("meta_queries", "Queries of clients.", meta.service.queries)
        safe = meta.group.is_leader and meta.safe_mode.is_on
        yield _gauge("meta_safe_mode", "1 if this node leads in safe mode.", int(safe))
        damaged = meta.group.failure is not None
        yield _gauge("meta_damaged", "1 if this copy is of no use.", int(damaged))
        yield _gauge("meta_troubles", "Background work that fails.", len(meta.troubles))


def _bytes(overview: Overview) -> Iterator[Metric]:
    """Of the cluster, as its leader knows it."""
    volumes = overview.volumes
    yield _gauge("bytes_looked", "1 if the leader has looked at all volumes.", int(volumes.looked))
    yield _gauge("bytes_volumes", "Volumes of the cluster.", volumes.volumes)
    causes = _by("bytes_volumes_wrong", "Volumes that are not as they should be.", "cause")
    for cause in Cause:
        causes.add_metric([cause.name.lower()], volumes.causes.get(cause.value, 0))
    yield causes
    yield _gauge("bytes_to_copy", "Bytes that are to be copied.", volumes.bytes_to_copy)
    yield _gauge("bytes_copy_rate", "Bytes copied per second, lately.", volumes.bytes_per_second)
    yield _gauge(
        "bytes_stuck", "Volumes that nothing can be done for.", sum(volumes.stuck.values())
    )
    yield _gauge("bytes_copies_possible", "Copies the cluster can give.", overview.copies_possible)
    yield _counter("bytes_repairs", "Steps of repair that were done.", overview.repairs_done)
    yield _counter("bytes_repairs_failed", "Steps that failed.", overview.repairs_failed)
    standings = _by("bytes_nodes", "Nodes that keep slices.", "standing")
    for standing in Standing:
        count = sum(node.view.standing == standing.value for node in overview.nodes)
        standings.add_metric([standing.value], count)
    yield standings
    total = _by("bytes_node_disk", "Size of the disks of a node.", "node")
    free = _by("bytes_node_disk_free", "Free on the disks of a node.", "node")
    kept = _by("bytes_node_volumes", "Volumes that a node has.", "node")
    for node in overview.nodes:
        total.add_metric([node.name], node.view.total_bytes)
        free.add_metric([node.name], node.view.free_bytes)
        kept.add_metric([node.name], node.view.volumes)
    yield from (total, free, kept)


def _by(name: str, text: str, label: str) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"mountfs_{name}", text, labels=[label])


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(f"mountfs_{name}", text, value)


def _counter(name: str, text: str, value: float) -> Metric:
    return CounterMetricFamily(f"mountfs_{name}", text, value)


def _spread(name: str, text: str, spread: Spread) -> Metric:
    so_far = 0
    buckets: list[tuple[str, float]] = []
    for bound, count in zip([*map(str, spread.bounds), "+Inf"], spread.counts, strict=True):
        so_far += count
        buckets.append((bound, so_far))
    return HistogramMetricFamily(f"mountfs_{name}", text, buckets, spread.sum)


@contextlib.contextmanager
def served(
    collector: Collector,
    host: str,
    port: int,
    ssl_context: Callable[[], ssl.SSLContext] | None = None,
) -> Iterator[int]:
    """Answer while the block lasts; yields the port.  Raises BUSY."""
    registry = CollectorRegistry()
    registry.register(collector)
    try:
        server = make_server(host, port, make_wsgi_app(registry), _Server, _Handler)
    except OSError as error:
        raise FsError(
            Fault.BUSY,
            f"cannot serve metrics at {host}:{port}: {error.strerror or error}; name another place "
            "with --metrics, or --metrics off",
        ) from error
    server.ssl_context = ssl_context
    thread = threading.Thread(target=server.serve_forever, name="metrics", daemon=True)
    thread.start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True
    block_on_close = False
    ssl_context: Callable[[], ssl.SSLContext] | None = None

    def __init__(self, *arguments: Any) -> None:
        self._readers = threading.Semaphore(READERS_MAX)
        super().__init__(*arguments)

    def server_bind(self) -> None:
        """Without asking the name service who we are."""
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()
        self.server_name, self.server_port = str(self.server_address[0]), self.server_address[1]
        self.setup_environ()

    def process_request(self, request: Any, client_address: Any) -> None:
        if not self._readers.acquire(blocking=False):
            self.shutdown_request(request)
            return
        super().process_request(request, client_address)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._readers.release()

    def finish_request(self, request: Any, client_address: Any) -> None:
        request.settimeout(PATIENCE_S)
        if self.ssl_context is None:
            super().finish_request(request, client_address)
            return
        with self.ssl_context().wrap_socket(request, server_side=True) as secured:
            super().finish_request(secured, client_address)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Somebody without a certificate, or who went away: nothing to be said."""


class _Handler(WSGIRequestHandler):
    def log_message(self, *arguments: Any) -> None:
        pass
