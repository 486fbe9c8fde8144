"""The limits of what is sent and received."""

import msgspec

from mountfs.types import KIB, MIB


class Config(msgspec.Struct, frozen=True, kw_only=True):
    message_bytes_max: int = 16 * MIB
    """The largest body, of a call or of its answer."""
    piece_bytes_max: int = MIB
    """The largest piece of a stream of pieces."""
    pieces_in_flight_max: int = 4
    """Pieces that have left the caller, and the sending of which is not yet done; the same for
    pieces that have come and wait for the handler."""

    keepalive_ms: int = 400
    """A connection with calls on it is tried after so long without a sign of life."""
    keepalive_timeout_ms: int = 1_500
    """It is given up when nothing comes back for so long."""
    window_bytes: int = 512 * KIB
    """What may be on its way on a connection, not yet taken by gRPC at the other end.  A keepalive
    stands behind it: on a link that needs longer for it than the timeout, nothing large arrives.
    """
    connect_ms: int = 1_000
    """An attempt to connect may take so long."""
    retry_ms: int = 20
    retry_max_ms: int = 150
    """Between attempts to reach an address: doubled from the one to the other."""

    calls_max: int = 64
    """Calls that are served at once, each in a thread; more are refused."""
    channels_max: int = 64
    """Addresses to which a client keeps a connection."""
    close_ms: int = 3_000
    """How long closing may take."""

    def __post_init__(self) -> None:
        assert 0 < self.retry_ms <= self.retry_max_ms, self
        assert self.piece_bytes_max <= self.message_bytes_max, self


EVERYWHERE = (
    # A call is never made twice behind our back: not all of them may be.
    ("grpc.enable_retries", 0),
    # Two servers on one port would share the connections.
    ("grpc.so_reuseport", 0),
    ("grpc.optimization_target", "latency"),
    # It would make the window grow.
    ("grpc.http2.bdp_probe", 0),
    # A connection belongs to one channel, and ends with it.
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.http2.max_ping_strikes", 0),
)

Options = tuple[tuple[str, int | str], ...]


def options(config: Config) -> Options:
    """For servers and channels alike."""
    return (
        *EVERYWHERE,
        ("grpc.max_receive_message_length", config.message_bytes_max),
        ("grpc.max_send_message_length", config.message_bytes_max),
        ("grpc.http2.lookahead_bytes", config.window_bytes),
        ("grpc.keepalive_time_ms", config.keepalive_ms),
        ("grpc.keepalive_timeout_ms", config.keepalive_timeout_ms),
        # Without it, a keepalive that is not answered is given a minute.
        ("grpc.http2.ping_timeout_ms", config.keepalive_timeout_ms),
        ("grpc.http2.min_recv_ping_interval_without_data_ms", config.keepalive_ms // 2),
    )
