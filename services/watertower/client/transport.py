"""The calls of one client to its two servers: batched where they can be, retried, each at the position that it asks for."""

import random
from collections.abc import AsyncGenerator, Sequence
from typing import Any

import grpc

from watertower.client.ahead import Ahead
from watertower.client.answers import ALL_METRICS, Counts, Update, position_of
from watertower.client.attempt import OnAttempt
from watertower.client.batches import CountsKey, CountsQuestion, EntityBatch, EventBatch, Events
from watertower.client.batching import Batcher
from watertower.client.channels import Connect
from watertower.client.errors import ClientClosed, ClientError, InvalidRequest
from watertower.client.near_cache import NearCache
from watertower.client.options import ClientOptions
from watertower.client.peer import Peer, Sleep
from watertower.client.requests import Stamps, metric_names
from watertower.client.watch_channels import WatchChannels
from watertower.client.watching import watch
from watertower.core.model import Metric
from watertower.core.positions import Position, encode_position
from watertower.ports import Clock
from watertower.v1 import reader_pb2, reader_pb2_grpc, writer_pb2_grpc


class Transport:
    """Shared by a client and its sessions. Belongs to the event loop in which it is made."""

    def __init__(
        self,
        write_target: str,
        read_target: str,
        options: ClientOptions,
        credentials: grpc.ChannelCredentials | None,
        clock: Clock,
        rng: random.Random,
        sleep: Sleep,
        connect: Connect,
        on_attempt: OnAttempt | None = None,
    ) -> None:
        self.options, self.clock = options, clock
        self.stamps = Stamps(clock)
        self._rng = rng
        self._channels = [connect(target, credentials) for target in (write_target, read_target)]
        self._writer, self._reader = (Peer(target, options, clock, rng, sleep, on_attempt) for target in (write_target, read_target))
        self._watches = WatchChannels(lambda: connect(read_target, credentials))
        self._stub = reader_pb2_grpc.EngagementReaderStub(self._channels[1])
        record = writer_pb2_grpc.EngagementWriterStub(self._channels[0]).RecordEvents
        size = options.batch_items_max
        self._events = Batcher(self._writer, record, lambda key: EventBatch(size), options)
        # Three, so that what waits for a position does not hold up what does not, nor what waits for long what does not.
        self._counts, self._later_counts, self._ahead_counts = (
            Batcher(self._reader, self._stub.BatchGetCounts, lambda key: EntityBatch(key, size), options) for _ in range(3)
        )
        self._ahead = Ahead()
        self._near = NearCache(self._watch_all, options, clock, sleep) if options.near_entities_max else None

    def timeout_s(self, timeout_s: float | None) -> float:
        """What a call has, in seconds. Raises ClientClosed."""
        if self._reader.closed:
            raise ClientClosed("the client is closed")
        return self.options.timeout_ms / 1e3 if timeout_s is None else timeout_s

    async def record(self, messages: Events, timeout_s: float) -> bytes:
        """Records events of one caller; the write token. Raises ClientError, with the token of what was recorded."""
        deadline_s = self.clock.monotonic_s() + timeout_s
        parts = _parts(messages, self.options.batch_items_max)
        results = await self._events.submit_parts(None, parts, [len(part) for part in parts], deadline_s)
        tokens = [result for result in results if isinstance(result, bytes)]
        error = _first_error(results, self.options.batch_items_max)
        if error is None:
            return _merged(tokens)
        if tokens and isinstance(error, ClientError):
            error.partly(len(tokens), len(parts), _merged(tokens))
        raise error

    async def counts(
        self,
        entities: Sequence[str],
        metrics: Sequence[Metric],
        min_position: Position | None,
        max_staleness_s: float | None,
        timeout_s: float,
    ) -> list[Counts]:
        """The counts of entities, in place. Raises ClientError."""
        if self._near is not None:
            near = self._near.get(entities, metrics, min_position, max_staleness_s)
            if near is not None:
                return near
        key = CountsKey(tuple(metrics), None if max_staleness_s is None else round(max_staleness_s * 1e6))
        batcher = self._counts
        if min_position is not None:
            together = min_position.generation if max_staleness_s is None else encode_position(min_position)
            key = key._replace(waits_s=round(timeout_s, 1), together=together)
            batcher = self._ahead_counts if self._ahead.includes(min_position) else self._later_counts
        deadline_s = self.clock.monotonic_s() + timeout_s
        size = self.options.batch_items_max
        questions = [CountsQuestion(part, min_position) for part in _parts(entities, size)]
        results = await batcher.submit_parts(key, questions, [len(question.entities) for question in questions], deadline_s)
        answered = [part for part in results if isinstance(part, list)]
        if min_position is not None:
            for part in answered:
                self._ahead.answered(min_position, position_of(part[0].freshness.position))
        error = _first_error(results, size)
        if error is not None:
            raise error
        return [counts for part in answered for counts in part]

    async def ask(self, method: str, request: Any, min_position: Position | None, max_staleness_s: float | None, timeout_s: float) -> Any:
        """The answer of another method of the reader. Raises ClientError."""
        if min_position is not None:
            request.min_position = encode_position(min_position)
        if max_staleness_s is not None:
            request.max_staleness.FromMicroseconds(round(max_staleness_s * 1e6))
        return await self._reader.call(getattr(self._stub, method), request, self.clock.monotonic_s() + timeout_s)

    def watch(self, request: reader_pb2.WatchCountsRequest) -> AsyncGenerator[Update, None]:
        """The updates of one watch."""
        return watch(self._reader, self._watches, request, self.options, self._rng)

    def _watch_all(self, entities: Sequence[str]) -> AsyncGenerator[Update, None]:
        return self.watch(reader_pb2.WatchCountsRequest(entities=entities, metrics=metric_names(ALL_METRICS)))

    async def close(self) -> None:
        """Ends everything that is under way. Idempotent."""
        self._writer.close()
        self._reader.close()
        if self._near is not None:
            await self._near.close()
        for batcher in (self._events, self._counts, self._later_counts, self._ahead_counts):
            await batcher.close()
        await self._watches.close()
        for channel in self._channels:
            await channel.close()


def _parts(items: Sequence[Any], size: int) -> list[Any]:
    return [items[at : at + size] for at in range(0, len(items), size)]


def _first_error(results: Sequence[object], size: int) -> Exception | None:
    """Of the parts of a call, each of so many items; with places as the caller counts them."""
    for number, result in enumerate(results):
        if isinstance(result, InvalidRequest):
            return result.moved(number * size)
        if isinstance(result, Exception):
            return result
    return None


def _merged(tokens: Sequence[bytes]) -> bytes:
    """One token for what was recorded in several parts."""
    position: Position | None = None
    for token in tokens:
        written = position_of(token)
        if len(tokens) == 1 or written is None:
            return token
        position = written if position is None else position.merged(written)
    return b"" if position is None else encode_position(position)
