"""How a client connects."""

from collections.abc import Callable
from typing import Any, TypeAlias

import grpc

Connect: TypeAlias = Callable[[str, grpc.ChannelCredentials | None], Any]
"""Gives a channel to a target: a grpc.aio.Channel, or what has as much of one as the stubs use."""

KEEPALIVE_MS = 20_000
"""ms without a sign of the server, while a call is under way, after which it is asked for one: a lost host is noticed."""

KEEPALIVE_TIMEOUT_MS = 5_000
"""ms that it has for that."""

ANSWER_BYTES_MAX = 4_194_304
"""Bytes of one answer: 1,000 list items with the longest ids are a tenth of it."""

RECONNECT_MS_MAX = 1_000
"""ms between two attempts to connect: a service that is back is found soon."""

CONNECT_TIMEOUT_MS = 5_000
"""ms that one attempt to connect may take, name, handshakes and all."""

RESOLVE_MS_MIN = 1_000
"""ms between two questions for the addresses of a name. gRPC's own 30 s are longer than an orchestrator takes to replace every process: all
addresses that a client knows would be gone, and it would not ask for the new ones."""

_OPTIONS: tuple[tuple[str, int | str], ...] = (
    ("grpc.enable_retries", 0),  # ours are counted, jittered and bounded
    # Every address of the name takes its turn; a process that is away is passed by.
    ("grpc.service_config", '{"loadBalancingConfig": [{"round_robin": {}}]}'),
    ("grpc.keepalive_time_ms", KEEPALIVE_MS),
    ("grpc.keepalive_timeout_ms", KEEPALIVE_TIMEOUT_MS),
    ("grpc.max_receive_message_length", ANSWER_BYTES_MAX),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", CONNECT_TIMEOUT_MS),  # for all its name, it is that
    ("grpc.max_reconnect_backoff_ms", RECONNECT_MS_MAX),
    ("grpc.dns_min_time_between_resolutions_ms", RESOLVE_MS_MIN),
    # A client's connections are its own: closing one client, or a backoff of one, is nothing to another.
    ("grpc.use_local_subchannel_pool", 1),
)


def open_channel(target: str, credentials: grpc.ChannelCredentials | None) -> grpc.aio.Channel:
    """A channel to HOST:PORT, or to any target that gRPC knows (`dns:///host:port`, `ipv4:a:1,b:1`). Connects at the first call."""
    if credentials is None:
        return grpc.aio.insecure_channel(target, options=_OPTIONS)
    return grpc.aio.secure_channel(target, credentials, options=_OPTIONS)
