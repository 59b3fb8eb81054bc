"""Connections for watches, beside the one for reads: a server bounds the calls at once on a connection, and gRPC queues more in silence."""

import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Any

from watertower.client.peer import Method
from watertower.v1 import reader_pb2_grpc

WATCHES_PER_CHANNEL = 8
"""Watches on one connection; half of what a server that is set to few calls at once takes."""


class _Channel:
    def __init__(self, channel: Any) -> None:
        self.channel = channel
        self.method: Method = reader_pb2_grpc.EngagementReaderStub(channel).WatchCounts
        self.watches = 0


class WatchChannels:
    """As many connections as the watches need; each is closed with its last watch."""

    def __init__(self, connect: Callable[[], Any]) -> None:
        """`connect` gives a new channel to the reader, with connections of its own."""
        self._connect = connect
        self._open: list[_Channel] = []

    @contextlib.asynccontextmanager
    async def method(self) -> AsyncIterator[Method]:
        """The stub's WatchCounts, for one watch."""
        mine = next((one for one in self._open if one.watches < WATCHES_PER_CHANNEL), None)
        if mine is None:
            mine = _Channel(self._connect())
            self._open.append(mine)
        mine.watches += 1
        try:
            yield mine.method
        finally:
            mine.watches -= 1
            if not mine.watches and mine in self._open:
                self._open.remove(mine)
                await mine.channel.close()

    async def close(self) -> None:
        """Ends every watch. Idempotent."""
        opened, self._open = self._open, []
        for one in opened:
            await one.channel.close()
