"""The query service on the embedded store, while its owner writes."""

import asyncio
import random
import threading
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.query.fakes import PATIENT
from watertower.backends.rocksdb import RocksDbReader, RocksDbStore
from watertower.clock import SystemClock
from watertower.config import QuerySettings
from watertower.core.model import Metric, Progress, Shard
from watertower.core.positions import decode_position
from watertower.ports import FeedMessage, LogIdentity, StoreIdentity
from watertower.query.cache import ENTRY_BYTES, SHARD_BYTES
from watertower.query.service import QueryService
from watertower.v1 import reader_pb2 as pb

PARTITIONS = 2
ANSWERS = 100
GAPS = 3
FOLLOWERS = int(Metric.FOLLOWERS)
IDENTITY = StoreIdentity(LogIdentity("log-1", PARTITIONS), 1)
ENTITIES = [f"e{number}" for number in range(20)]


def flush(store: RocksDbStore, offset: int, as_of: int) -> None:
    """Sets a fifth of the entities' shards, in both partitions, to a value that tells its position: offset + 1."""
    shard = Shard(offset + 1, offset + 1, (), offset)
    touched = [entity for number, entity in enumerate(ENTITIES) if (number + offset) % 5 == 0]
    store.write_derived({(entity, FOLLOWERS, partition): shard for entity in touched for partition in range(PARTITIONS)}, {})
    store.write_progress({partition: Progress(offset, b"12345678", as_of) for partition in range(PARTITIONS)})
    count = len(touched)
    store.feed.publish(
        FeedMessage(partition, offset - 1, offset, as_of, touched, bytes([FOLLOWERS]) * count, [offset + 1] * count, [offset] * count)
        for partition in range(PARTITIONS)
    )
    store.sync()


def value_at(entity: str, ends: Mapping[int, int]) -> int:
    """An entity's count when the partitions are applied up to `ends`."""
    number = ENTITIES.index(entity)
    return sum(max(0, end - (number + end) % 5 + 1) for end in ends.values())


@pytest.mark.slow
def test_no_answer_holds_less_than_it_claims_while_the_owner_writes(tmp_path: Path) -> None:
    """Loads, feed, evictions, expiry and a feed that forgets: never less than the position says, never back, exact in the end."""
    clock = SystemClock()
    store = RocksDbStore(tmp_path / "store", IDENTITY, write_buffer_bytes=1 << 20, block_cache_bytes=1 << 20, feed_messages_max=4)
    flush(store, 0, clock.now_us())
    reader = RocksDbReader(tmp_path / "store", tmp_path / "reader", IDENTITY, block_cache_bytes=1 << 20)

    enough = threading.Event()
    flushes = 1

    def write() -> None:
        nonlocal flushes
        while not enough.is_set():
            flush(store, flushes, clock.now_us())
            flushes += 1

    async def read() -> None:
        # Small enough that entries are evicted, old enough that they expire, a feed short enough that it forgets.
        settings = QuerySettings(cache_bytes_max=15 * (ENTRY_BYTES + 2 * SHARD_BYTES), cache_age_ms_max=200, tail_interval_ms=3)
        service = QueryService(reader, reader, settings, clock, random.Random(0), PARTITIONS)
        await service.start()
        epoch_at_start = service._cache.epoch
        writer = threading.Thread(target=write)
        writer.start()
        seen = dict.fromkeys(ENTITIES, 0)
        answers, exact = 0, False
        try:
            while not exact:
                wanted = random.Random(answers).sample(ENTITIES, 8)
                encoded = await service.batch_get_counts(pb.BatchGetCountsRequest(entities=wanted, metrics=[FOLLOWERS]), PATIENT)
                answer = pb.BatchGetCountsResponse.FromString(encoded)
                ends = decode_position(answer.freshness.position).offsets
                for entity, row in zip(wanted, answer.counts, strict=True):
                    assert row.values[0] >= max(value_at(entity, ends), seen[entity])
                    seen[entity] = row.values[0]
                answers += 1
                if answers >= ANSWERS and service._cache.epoch >= epoch_at_start + GAPS:
                    enough.set()
                if not writer.is_alive() and set(ends.values()) == {flushes - 1}:
                    assert [row.values[0] for row in answer.counts] == [value_at(entity, ends) for entity in wanted]
                    exact = True
                await asyncio.sleep(0.001)
        finally:
            enough.set()
            writer.join()
            await service.stop()

    async def in_time() -> None:
        async with asyncio.timeout(60):
            await read()

    try:
        asyncio.run(in_time())
    finally:
        reader.close()
        store.close()
