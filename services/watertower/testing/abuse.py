"""Callers that a server must survive: raw sockets that speak as much HTTP/2 as they need. All belong to one event loop.

Frames and header blocks are those of RFC 9113 and RFC 7541, the message prefix that of gRPC over HTTP/2.
"""

import asyncio
import contextlib
import json
import os
import re
import resource
import socket
import struct
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterator, Sequence
from functools import partial

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_DATA, _HEADERS, _RST_STREAM, _PING, _WINDOW_UPDATE = 0, 1, 3, 6, 8
_END_STREAM, _END_HEADERS, _ACK = 1, 4, 1
_CANCEL = 8

GREETING = PREFACE + b"\0\0\0\x04\0\0\0\0\0"
"""The preface, and settings that set nothing."""

_PING_FRAME = re.compile(rb"\0\0\x08\x06\0\0\0\0\0(.{8})", re.DOTALL)
"""A ping that is no answer, and what it carries. An idle connection carries nothing in which this could be something else."""

SILENT_EVERY = 10
"""Of so many idle connections, one says nothing."""

PAUSE_S = 0.01
"""Between two abuses of one abuser."""

CONNECT_S = 10.0
"""Seconds to reach a server that has much to do."""


def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return struct.pack(">I", len(payload))[1:] + bytes((kind, flags)) + struct.pack(">I", stream) + payload


def call_headers(path: str, stream: int) -> bytes:
    """Begins a call. Header fields are literals that are not indexed."""
    fields = {
        ":method": "POST",
        ":scheme": "http",
        ":path": path,
        ":authority": "abuse",
        "te": "trailers",
        "content-type": "application/grpc",
    }
    block = b"".join(b"\0" + bytes((len(name),)) + name.encode() + bytes((len(value),)) + value.encode() for name, value in fields.items())
    return frame(_HEADERS, _END_HEADERS, stream, block)


def call_data(message: bytes, stream: int, claimed_bytes: int | None = None) -> bytes:
    """A message, and its end; or a beginning of one that claims to have more bytes."""
    prefixed = b"\0" + struct.pack(">I", len(message) if claimed_bytes is None else claimed_bytes) + message
    pieces = [prefixed[at : at + 16_384] for at in range(0, len(prefixed), 16_384)]
    frames = [frame(_DATA, 0, stream, piece) for piece in pieces]
    if claimed_bytes is None:
        frames[-1] = frame(_DATA, _END_STREAM, stream, pieces[-1])
    return b"".join(frames)


@contextlib.contextmanager
def abusing(target: str, path: str, message: bytes, abuses: Sequence[str], cores: Collection[int] = ()) -> Iterator[dict[str, int]]:
    """Abuses by these names, until the block ends, in a process of their own: whoever measures good callers must not do the work of bad
    ones. `idle=N` holds N connections; `cores` are those the process may use, if not all. What was done is in the dictionary afterwards."""
    done: dict[str, int] = {}
    command = [sys.executable, "-m", "watertower.testing.abuse", target, path, message.hex(), *abuses]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True) as process:
        try:
            if cores:
                os.sched_setaffinity(process.pid, cores)
            if process.stdout is not None:  # it is a pipe
                process.stdout.readline()
            yield done
        finally:
            out, _ = process.communicate()  # ends its standard input, and so the abuses
            done.update(json.loads(out or b"{}"))


class Abusers:
    """Abuses of one server at HOST:PORT, each a task until `stop`. `done` counts what was done, and connections that were refused."""

    def __init__(self, target: str, path: str, message: bytes) -> None:
        """`path` and `message` of a valid call."""
        host, _, port = target.rpartition(":")
        self._address = (host, int(port))
        self._path, self._message = path, message
        self._tasks: list[asyncio.Task[None]] = []
        self.done: Counter[str] = Counter()
        self.held = asyncio.Event()
        """Set when the idle connections are open."""

    def start(self, *abuses: Callable[[], Awaitable[None]]) -> None:
        """Repeats each, all at once."""
        self._tasks += [asyncio.ensure_future(self._repeat(abuse)) for abuse in abuses]

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _repeat(self, abuse: Callable[[], Awaitable[None]]) -> None:
        name = getattr(abuse, "__name__", "idle")
        while True:
            try:
                await abuse()
                self.done[name] += 1
            except (OSError, TimeoutError):  # the server has had enough of us
                self.done[f"{name}_refused"] += 1
            await asyncio.sleep(PAUSE_S)

    # --- the abuses

    async def connection_reset(self) -> None:
        """Begins a call and resets the connection."""
        async with self._connected(reset=True) as connection:
            await self._send(connection, GREETING + call_headers(self._path, 1))

    async def stream_resets(self) -> None:
        """Begins and resets 1,000 calls on one connection, without waiting for anything (CVE-2023-44487)."""
        async with self._connected() as connection:
            await self._send(connection, GREETING)
            for stream in range(1, 2_000, 2):
                reset = frame(_RST_STREAM, 0, stream, struct.pack(">I", _CANCEL))
                await self._send(connection, call_headers(self._path, stream) + call_data(self._message, stream) + reset)

    async def slow_reader(self) -> None:
        """Makes 20 calls at once, opens the windows for their answers, and reads nothing for 2 s."""
        async with self._connected(receive_buffer_bytes=4_096) as connection:
            window = frame(_WINDOW_UPDATE, 0, 0, struct.pack(">I", 2**30))
            await self._send(connection, GREETING + window)
            for stream in range(1, 40, 2):
                await self._send(connection, call_headers(self._path, stream) + call_data(self._message, stream))
            await asyncio.sleep(2.0)

    async def oversized(self) -> None:
        """A message that claims 1 GiB, and begins to come."""
        async with self._connected() as connection:
            await self._send(connection, GREETING + call_headers(self._path, 1) + call_data(bytes(50_000), 1, claimed_bytes=2**30))
            await asyncio.sleep(0.1)

    async def half_sent(self) -> None:
        """Begins 50 calls, sends half of each request, and waits for 2 s."""
        async with self._connected() as connection:
            await self._send(connection, GREETING)
            half = self._message[: len(self._message) // 2]
            for stream in range(1, 100, 2):
                await self._send(connection, call_headers(self._path, stream) + call_data(half, stream, claimed_bytes=len(self._message)))
            await asyncio.sleep(2.0)

    async def garbage(self) -> None:
        """Something that is no HTTP/2."""
        async with self._connected() as connection:
            await self._send(connection, b"GET / HTTP/1.1\r\nHost: abuse\r\n\r\n" + bytes(range(256)) * 16)
            await asyncio.sleep(0.1)

    async def hold_idle(self, connections: int) -> None:
        """Opens idle connections and keeps them, as a client does: pings are answered. One that the server closes is opened again, and then
        says what it speaks."""
        held = await self.idle(connections)
        self.done["idle"] = len(held)
        self.held.set()
        try:
            while True:
                await asyncio.sleep(1.0)
                for at, connection in enumerate(held):
                    if not _kept(connection):
                        connection.close()
                        held[at] = (await self.idle(1))[0]
                        self.done["idle_again"] += 1
        finally:
            for connection in held:
                connection.close()

    async def idle(self, connections: int, at_once: int = 50) -> list[socket.socket]:
        """Opens so many connections and does nothing with them. One in SILENT_EVERY does not even say what it speaks."""
        opened: list[socket.socket] = []
        for at in range(0, connections, at_once):
            some = await asyncio.gather(*(self._connect() for _ in range(min(at_once, connections - at))))
            opened += some
            for number, connection in enumerate(some, at + 1):  # at once: whoever says nothing for long is closed
                if number % SILENT_EVERY:
                    await self._send(connection, GREETING)
        return opened

    # --- sockets

    async def _connect(self, receive_buffer_bytes: int = 0) -> socket.socket:
        connection = socket.socket()
        connection.setblocking(False)
        if receive_buffer_bytes:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer_bytes)
        try:
            async with asyncio.timeout(CONNECT_S):
                await asyncio.get_running_loop().sock_connect(connection, self._address)
        except BaseException:
            connection.close()
            raise
        return connection

    @contextlib.asynccontextmanager
    async def _connected(self, reset: bool = False, receive_buffer_bytes: int = 0) -> AsyncIterator[socket.socket]:
        with await self._connect(receive_buffer_bytes) as connection:
            yield connection
            if reset:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    async def _send(self, connection: socket.socket, data: bytes) -> None:
        async with asyncio.timeout(CONNECT_S):
            await asyncio.get_running_loop().sock_sendall(connection, data)


def _kept(connection: socket.socket) -> bool:
    """Whether the other side still has it. Answers the pings among what has come."""
    try:
        while data := connection.recv(65_536):
            for ping in re.finditer(_PING_FRAME, data):
                connection.send(frame(_PING, _ACK, 0, ping[1]))
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


async def _main(target: str, path: str, message: str, *abuses: str) -> None:
    """Abuses until standard input ends; prints what was done."""
    abusers = Abusers(target, path, bytes.fromhex(message))
    _, files_max = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (files_max, files_max))
    for abuse in abuses:
        name, _, number = abuse.partition("=")
        abusers.start(partial(abusers.hold_idle, int(number)) if name == "idle" else getattr(abusers, name))
    loop, ended = asyncio.get_running_loop(), asyncio.Event()
    threading.Thread(target=lambda: (sys.stdin.read(), loop.call_soon_threadsafe(ended.set)), daemon=True).start()
    if any(abuse.startswith("idle=") for abuse in abuses):
        await abusers.held.wait()
    print("abusing", flush=True)
    await ended.wait()
    await abusers.stop()
    print(json.dumps(abusers.done))


if __name__ == "__main__":
    asyncio.run(_main(*sys.argv[1:]))
