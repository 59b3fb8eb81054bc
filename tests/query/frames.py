"""HTTP/2 by hand (RFC 9113), for what no well-behaved client would send. A header block is uncompressed (RFC 7541, 6.2.2)."""

import socket
import struct
from types import TracebackType
from typing import Self

DATA, HEADERS, RESET, SETTINGS, PING, GOAWAY, WINDOW_UPDATE = 0, 1, 3, 4, 6, 7, 8
END_STREAM, END_HEADERS, ACK = 1, 4, 1
GET_COUNTS = "/watertower.v1.EngagementReader/GetCounts"
LIST_ACTORS = "/watertower.v1.EngagementReader/ListActors"


def frame(kind: int, flags: int, stream: int, body: bytes = b"") -> bytes:
    return struct.pack(">I", len(body))[1:] + bytes((kind, flags)) + struct.pack(">I", stream) + body


def headers(path: str, more: tuple[tuple[str, str], ...] = ()) -> bytes:
    """The header block of a call."""
    fields = ((":method", "POST"), (":scheme", "http"), (":path", path), (":authority", "t"), ("te", "trailers"))
    return b"".join(b"\x00" + _text(name) + _text(value) for name, value in (*fields, ("content-type", "application/grpc"), *more))


def message(body: bytes, length: int | None = None, compressed: bool = False) -> bytes:
    """A message as gRPC frames it; `length` is what its head says, where that is a lie."""
    return struct.pack(">BI", compressed, len(body) if length is None else length) + body


class Connection:
    """A connection that sends what it is told. `window` is how much of an answer it takes on each stream, bytes."""

    def __init__(self, port: int, window: int = 65_535, preface: bool = True) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=20)
        if preface:
            self.send(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(SETTINGS, 0, 0, struct.pack(">HI", 4, window)))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.socket.close()

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def call(self, stream: int, path: str, body: bytes, more: tuple[tuple[str, str], ...] = ()) -> None:
        """A whole call; `body` is one message, framed."""
        self.send(frame(HEADERS, END_HEADERS, stream, headers(path, more)) + frame(DATA, END_STREAM, stream, body))

    def wait_closed(self) -> bool:
        """Whether the other side closes within the time out, whatever it sends before."""
        try:
            while self.socket.recv(65_536):
                pass
        except TimeoutError:
            return False
        except OSError:
            return True
        return True

    def read(self, size: int) -> bytes:
        """Bytes that were sent to us. Raises ConnectionError at their end, TimeoutError."""
        data = b""
        while len(data) < size:
            part = self.socket.recv(size - len(data))
            if not part:
                raise ConnectionError("closed")
            data += part
        return data

    def next_frame(self) -> tuple[int, int, int, bytes]:
        """(type, flags, stream, body) of the next frame."""
        head = self.read(9)
        size = int.from_bytes(head[:3], "big")
        return head[3], head[4], int.from_bytes(head[5:], "big"), self.read(size)


def _text(text: str) -> bytes:
    """A string of HPACK with its length (7 bits, then more), not Huffman coded."""
    data = text.encode()
    length = len(data)
    if length < 127:
        return bytes((length,)) + data
    head, rest = b"\x7f", length - 127
    while rest >= 128:
        head += bytes((rest % 128 + 128,))
        rest //= 128
    return head + bytes((rest,)) + data
