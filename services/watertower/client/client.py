"""The client: one object a process, for any number of concurrent callers on one event loop."""

import asyncio
import random
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Self, TypeVar

import grpc

from watertower.client.attempt import OnAttempt
from watertower.client.calls import Answer, Calls
from watertower.client.channels import Connect, open_channel
from watertower.client.options import ClientOptions
from watertower.client.peer import Sleep
from watertower.client.seen import Seen
from watertower.client.session import Session
from watertower.client.transport import Transport
from watertower.clock import SystemClock
from watertower.core.positions import Position
from watertower.ports import Clock

WRITE_TARGET, READ_TARGET = "127.0.0.1:50051", "127.0.0.1:50052"

T = TypeVar("T")


class Client(Calls):
    """Calls to a Watertower service. Use with `async with`, or `close()` it.

    Its reads may be behind its writes by some milliseconds; those of a `session()` are not.
    """

    def __init__(
        self,
        write_target: str = WRITE_TARGET,
        read_target: str = READ_TARGET,
        options: ClientOptions | None = None,
        *,
        credentials: grpc.ChannelCredentials | None = None,
        on_attempt: OnAttempt | None = None,
        clock: Clock | None = None,
        rng: random.Random | None = None,
        sleep: Sleep = asyncio.sleep,
        connect: Connect = open_channel,
    ) -> None:
        """Targets are HOST:PORT, or whatever gRPC resolves; the addresses of a name take turns. Connects at the first call. `credentials`
        are for TLS; `on_attempt` is told of every attempt; `clock`, `rng`, `sleep` and `connect` are for tests. Raises RuntimeError outside
        of a running event loop."""
        asyncio.get_running_loop()  # gRPC would take any loop, and hang in a later one
        super().__init__(
            Transport(
                write_target,
                read_target,
                options or ClientOptions(),
                credentials,
                clock or SystemClock(),
                rng or random.SystemRandom(),
                sleep,
                connect,
                on_attempt,
            )
        )

    def session(self, token: bytes = b"") -> Session:
        """Calls that read what they wrote and never go backwards. `token`: of another session or of a write, to go on from there. Raises
        ValueError for what is no token."""
        return Session(self._transport, token)

    async def close(self) -> None:
        """Closes the connections; calls that wait end with ClientClosed. Idempotent."""
        await self._transport.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self.close()

    def _wrote(self, token: bytes) -> None:
        pass  # a session's business

    async def _read(self, ask: Callable[[Position | None, float], Awaitable[Answer[T]]], timeout_s: float) -> T:
        return (await ask(None, timeout_s)).value

    def _watched(self) -> Seen:
        return Seen()
