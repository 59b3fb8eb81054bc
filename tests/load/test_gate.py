"""The door of a herd: what goes through while it is open, and that nothing does while it is shut."""

import asyncio

import pytest

from tests.client.fake import run
from watertower.load.gate import Gate


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(1_000):
            writer.write(data)
            await writer.drain()
    except OSError:
        pass  # it was cut
    finally:
        writer.close()


async def said(target: str, data: bytes) -> bytes:
    """What comes back through a new connection; b"" if it is cut."""
    host, _, port = target.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        writer.write(data)
        writer.write_eof()
        return await reader.read()
    except OSError:
        return b""
    finally:
        writer.close()


def test_it_passes_on_while_it_is_open_and_cuts_while_it_is_shut() -> None:
    """Connections that there are, too; and it can be opened again."""

    async def test() -> None:
        server = await asyncio.start_server(echo, "127.0.0.1", 0)
        async with server, Gate(f"127.0.0.1:{server.sockets[0].getsockname()[1]}") as gate:
            host, _, port = gate.address.rpartition(":")
            reader, writer = await asyncio.open_connection(host, int(port))
            writer.write(b"here")
            assert await reader.readexactly(4) == b"here"
            gate.shut()
            with pytest.raises((OSError, asyncio.IncompleteReadError)):
                await reader.readexactly(1)
            writer.close()
            assert await said(gate.address, b"shut") == b""
            gate.open()
            reader, writer = await asyncio.open_connection(host, int(port))
            writer.write(b"again" * 50_000)
            assert await reader.readexactly(250_000) == b"again" * 50_000
            writer.close()

    run(test)


def test_nobody_behind_it_is_a_cut_connection() -> None:
    async def test() -> None:
        async with Gate("127.0.0.1:1") as gate:
            assert await said(gate.address, b"hello") == b""

    run(test)
