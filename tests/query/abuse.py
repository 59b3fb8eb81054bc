"""Callers that mean harm, or are broken: each function is one kind, for as long as it says, against whatever listens on a port.

They know nothing of the server but its address, so that any of them can be abused, and compared.
"""

import gzip
import struct
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress

import grpc

from tests.query.frames import (
    DATA,
    END_HEADERS,
    END_STREAM,
    GET_COUNTS,
    HEADERS,
    LIST_ACTORS,
    PING,
    RESET,
    Connection,
    frame,
    headers,
    message,
)
from watertower.v1 import common_pb2, reader_pb2

STAR = message(reader_pb2.GetCountsRequest(entity="star", metrics=[common_pb2.METRIC_FOLLOWERS]).SerializeToString())
PAGE = message(reader_pb2.ListActorsRequest(subject="star", kind=common_pb2.KIND_FOLLOW, page_size=1_000).SerializeToString())
CANCEL = struct.pack(">I", 8)


def resets(port: int, seconds: float) -> None:
    """Calls that are cancelled in the same breath (the rapid reset of CVE-2023-44487), on one connection after another."""
    until = time.monotonic() + seconds
    call = headers(GET_COUNTS)
    while time.monotonic() < until:
        with ExitStack() as stack:
            connection = stack.enter_context(Connection(port))
            try:
                for stream in range(1, 20_001, 2):
                    connection.send(
                        frame(HEADERS, END_HEADERS, stream, call) + frame(DATA, END_STREAM, stream, STAR) + frame(RESET, 0, stream, CANCEL)
                    )
            except OSError:
                pass  # it has had enough of us


def half_sent(port: int, seconds: float, connections: int = 50) -> None:
    """Calls whose request never comes whole, and connections that never say a word or stop in the preface."""
    with ExitStack() as stack:
        for number in range(connections):
            if number % 5 == 0:
                connection = stack.enter_context(Connection(port, preface=False))
                connection.send(b"PRI * HT"[: number % 9])
                continue
            connection = stack.enter_context(Connection(port))
            for stream in range(1, 200, 2):
                connection.send(frame(HEADERS, END_HEADERS, stream, headers(GET_COUNTS)) + frame(DATA, 0, stream, message(b"abc", 100)))
        time.sleep(seconds)


def garbage(port: int, seconds: float) -> None:
    """What is no HTTP/2, no gRPC, no message: each on a connection of its own."""
    head = frame(HEADERS, END_HEADERS, 1, headers(GET_COUNTS))
    rubbish = (
        b"GET / HTTP/1.1\r\nHost: t\r\n\r\n",
        b"\x00" * 1_000,
        frame(HEADERS, END_HEADERS, 1, b"\xff" * 50),
        frame(HEADERS, END_HEADERS, 2, headers(GET_COUNTS)),
        frame(DATA, END_STREAM, 1, STAR),
        frame(PING, 0, 0, b"short"),
        frame(99, 0, 0, b"unknown"),
        head + frame(DATA, END_STREAM, 1, b"\x07" + STAR[1:]),
        head + frame(DATA, END_STREAM, 1, b"\x00\x00"),
        head + frame(DATA, END_STREAM, 1, STAR + STAR),
        head + frame(DATA, END_STREAM, 1, b""),
        frame(HEADERS, END_HEADERS | END_STREAM, 1, headers(GET_COUNTS, (("grpc-timeout", "9" * 30),))),
        frame(HEADERS, END_HEADERS | END_STREAM, 1, headers("/" + "x" * 8_000)),
        (1 << 24).to_bytes(4, "big") + bytes(5),
    )
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        for bytes_sent in rubbish:
            with ExitStack() as stack:
                connection = stack.enter_context(Connection(port))
                try:
                    connection.send(bytes_sent)
                    connection.socket.settimeout(0.02)
                    connection.socket.recv(65_536)
                except OSError:
                    pass


def slow_readers(port: int, seconds: float, connections: int = 10, calls: int = 50) -> None:
    """Callers that ask for large pages and read nothing: 134 KB are made for each call, and wait."""
    with ExitStack() as stack:
        for _ in range(connections):
            connection = stack.enter_context(Connection(port, window=0))
            for stream in range(1, 2 * calls, 2):
                connection.call(stream, LIST_ACTORS, PAGE)
        time.sleep(seconds)


def idle(port: int, seconds: float, connections: int = 300) -> None:
    """Connections that have opened and do nothing."""
    with ExitStack() as stack:
        for _ in range(connections):
            stack.enter_context(Connection(port))
        time.sleep(seconds)


def pings(port: int, seconds: float) -> None:
    """As fast as they go, whose answers nobody reads."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        with ExitStack() as stack:
            connection = stack.enter_context(Connection(port))
            connection.socket.settimeout(0.2)
            try:
                while time.monotonic() < until:
                    connection.send(frame(PING, 0, 0, bytes(8)) * 1_000)
            except OSError:
                pass


def oversized(port: int, seconds: float, megabytes: int = 16) -> None:
    """Requests of many times the limit, as a client would send them: within the windows that the server gives."""
    until = time.monotonic() + seconds

    while time.monotonic() < until:
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel, suppress(grpc.RpcError):
            channel.unary_unary(GET_COUNTS)(bytes(megabytes << 20), timeout=10)


def compressed(port: int, megabytes: int = 60) -> None:
    """One request that is a thousand times larger than it looks."""
    packed = message(gzip.compress(bytes(megabytes << 20)), compressed=True)
    with Connection(port) as connection:
        connection.send(frame(HEADERS, END_HEADERS, 1, headers(GET_COUNTS, (("grpc-encoding", "gzip"),))))
        parts = [packed[at : at + 16_000] for at in range(0, len(packed), 16_000)]
        for part in parts:
            connection.send(frame(DATA, END_STREAM if part is parts[-1] else 0, 1, part))
        while connection.next_frame()[0] != HEADERS:
            pass  # until it is answered


def lie(port: int) -> None:
    """One head of a message that says that 4 GiB follow."""
    with Connection(port) as connection:
        connection.send(frame(HEADERS, END_HEADERS, 1, headers(GET_COUNTS)) + frame(DATA, 0, 1, message(b"", 2**32 - 1)))
        connection.socket.settimeout(1)
        connection.wait_closed()


KINDS: tuple[Callable[[int, float], None], ...] = (resets, half_sent, garbage, slow_readers, idle, pings, oversized)
"""What goes on for a while; `compressed` and `lie` are single shots."""
