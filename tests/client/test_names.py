"""Targets that are names: the client follows them to new addresses."""

import asyncio
import socket
import struct
from typing import Any

from tests.client.fake import run, serving
from watertower.client import Client, ClientOptions
from watertower.client.channels import RESOLVE_MS_MIN

FIRST, SECOND = "127.0.0.2", "127.0.0.3"
NAME = "watertower.test"
_HEADER = struct.Struct(">HHHHHH")
_ANSWER_NAME_AT, _A, _IN = 0xC00C, 1, 1


class Names(asyncio.DatagramProtocol):
    """A name server that gives every name one address, which changes."""

    def __init__(self) -> None:
        self.address = FIRST
        self.asked_s: list[float] = []

    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        ident, _, questions, *_ = _HEADER.unpack_from(data)
        end = data.index(b"\0", _HEADER.size) + 5
        kind = struct.unpack(">H", data[end - 4 : end - 2])[0]
        answer = b""
        if kind == _A:
            self.asked_s.append(asyncio.get_running_loop().time())
            answer = struct.pack(">HHHIH4s", _ANSWER_NAME_AT, _A, _IN, 0, 4, socket.inet_aton(self.address))
        self._transport.sendto(_HEADER.pack(ident, 0x8580, questions, bool(answer), 0, 0) + data[_HEADER.size : end] + answer, addr)


def test_a_name_that_moves_is_followed() -> None:
    """When every address that the client knows is gone, it asks for the new ones at once, but not more often than it may."""

    async def test() -> None:
        loop = asyncio.get_running_loop()
        transport, names = await loop.create_datagram_endpoint(Names, ("127.0.0.1", 0))
        try:
            async with serving(host=FIRST) as first:
                at = f"dns://127.0.0.1:{transport.get_extra_info('sockname')[1]}/{NAME}:{first.port}"
                client = Client(at, at, ClientOptions(timeout_ms=8_000))
                await client.counts("bob")
                assert len(first.reads) == 1
            async with client, serving(first.port, SECOND) as second:
                names.address = SECOND
                await client.counts("bob")
                assert len(second.reads) == 1
        finally:
            transport.close()
        # A channel each for reads and writes, and only that for reads was used.
        waits_s = [after - before for before, after in zip(names.asked_s, names.asked_s[1:], strict=False)]
        assert waits_s
        assert min(waits_s) > RESOLVE_MS_MIN / 1e3 * 0.9

    run(test)
