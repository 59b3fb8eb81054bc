"""The log on Kafka: records of 1,000 events through 16 partitions, and what a record costs on either side.

    python -m benchmarks.kafka_log [--records N] [--compression none|gzip|lz4|zstd] [--idle N]

Starts a broker on this machine (watertower.testing.engines), so the figures are those of engine and clients on the same cores. The
writer and the reader run in processes of their own, the broker's own time is not counted; CPU is user + system of the process, from
before the first record to after the last.
"""

import argparse
import multiprocessing
import random
import resource
import statistics
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, NamedTuple

from watertower.backends.kafka_client import KafkaSettings
from watertower.backends.kafka_reader import KafkaLogReader
from watertower.backends.kafka_topics import TopicsPlan, create_topics
from watertower.backends.kafka_writer import KafkaLogWriter
from watertower.clock import SystemClock
from watertower.codec import encode_batch
from watertower.core.model import EventBatch, Kind
from watertower.testing.engines import kafka, unique_name

PARTITIONS = 16
EVENTS = 1_000
IN_FLIGHT = 1
"""Records of one partition that are under way, as ingest has it."""

_CLOCK = SystemClock()


class Side(NamedTuple):
    """What one side did."""

    seconds: float
    cpu_seconds: float
    records: int


def payload(rng: random.Random, spread: bool) -> bytes:
    """A record of new follows: of one subject, as on a debut, or of as many as there are events."""
    actors = [f"user-{rng.getrandbits(48):012x}" for _ in range(EVENTS)]
    subjects = [f"user-{rng.getrandbits(48):012x}" for _ in range(EVENTS)] if spread else ["debut"] * EVENTS
    moments = [1_700_000_000_000_000 + rng.randrange(10**9) for _ in range(EVENTS)]
    return encode_batch(EventBatch(actors, bytes([Kind.FOLLOW]) * EVENTS, subjects, [""] * EVENTS, b"\x01" * EVENTS, moments))


def write(settings: KafkaSettings, payloads: list[bytes], records: int, out: Any) -> None:
    """Keeps IN_FLIGHT records of each partition under way."""
    writer = KafkaLogWriter(settings, _CLOCK)
    began, cpu = time.perf_counter(), _cpu()
    waiting: list[deque[Future[int]]] = [deque() for _ in range(PARTITIONS)]
    for number in range(records):
        queue = waiting[number % PARTITIONS]
        if len(queue) >= IN_FLIGHT:
            queue.popleft().result()
        queue.append(writer.append(number % PARTITIONS, payloads[number % len(payloads)], _CLOCK.now_us()))
    for queue in waiting:
        for future in queue:
            future.result()
    out.put(Side(time.perf_counter() - began, _cpu() - cpu, records))
    writer.close()


def read(settings: KafkaSettings, records: int, out: Any) -> None:
    """Reads as a projector does that has nothing else to do."""
    reader = KafkaLogReader(settings, _CLOCK)
    began, cpu = time.perf_counter(), _cpu()
    reached = dict.fromkeys(range(PARTITIONS), -1)
    found = 0
    while found < records:
        new = reader.read(reached, 1_000, 8 * 2**20)
        for record in new:
            reached[record.partition] = record.offset
        found += len(new)
        if not new:
            time.sleep(0.005)
    out.put(Side(time.perf_counter() - began, _cpu() - cpu, found))
    reader.close()


def latencies_ms(settings: KafkaSettings, record: bytes, count: int) -> tuple[list[float], list[float]]:
    """Of lone appends, 20 ms apart: until acknowledged, and until read by a reader that looks every 1 ms."""
    writer, reader = KafkaLogWriter(settings, _CLOCK), KafkaLogReader(settings, _CLOCK)
    reached = reader.ends(range(PARTITIONS))
    acknowledged, seen = [], []
    for number in range(count):
        began = time.perf_counter()
        future = writer.append(number % PARTITIONS, record, _CLOCK.now_us())

        def tell(_: object, began: float = began) -> None:
            acknowledged.append(time.perf_counter() - began)

        future.add_done_callback(tell)
        while not (new := reader.read(reached, 10, 2**20)):
            time.sleep(0.001)
        seen.append(time.perf_counter() - began)
        reached[new[0].partition] = new[0].offset
        future.result()
        time.sleep(0.02)
    reader.close()
    writer.close()
    return [1e3 * s for s in acknowledged], [1e3 * s for s in seen]


def apart(work: Callable[..., None], *arguments: object) -> Side:
    """In a process of its own."""
    context = multiprocessing.get_context("spawn")
    out = context.Queue()
    process = context.Process(target=work, args=(*arguments, out))
    process.start()
    side: Side = out.get()
    process.join()
    return side


def _cpu() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def _show(name: str, side: Side, size: int) -> None:
    print(
        f"  {name:6} {side.records / side.seconds:8,.0f} records/s {side.records * EVENTS / side.seconds:11,.0f} events/s "
        f"{side.records * size / side.seconds / 2**20:6.1f} MiB/s {1e6 * side.cpu_seconds / side.records:7,.0f} us CPU/record"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--records", type=int, default=4_000)
    parser.add_argument("--compression", action="append", choices=["none", "gzip", "lz4", "zstd"])
    parser.add_argument("--idle", type=int, default=200, help="lone appends")
    options = parser.parse_args()
    rng = random.Random(1)
    with kafka() as engine:
        for spread in (False, True):
            payloads = [payload(rng, spread) for _ in range(32)]
            size = len(payloads[0])
            for compression in options.compression or ["none", "lz4", "gzip"]:
                settings = KafkaSettings(engine.bootstrap_servers, unique_name("bench"), compression=compression)
                create_topics(settings, TopicsPlan(PARTITIONS), _CLOCK)
                print(f"{'spread' if spread else 'debut'}, records of {EVENTS:,} events, {size:,} bytes, {compression}:")
                _show("write", apart(write, settings, payloads, options.records), size)
                _show("read", apart(read, settings, options.records), size)
        acknowledged, seen = latencies_ms(settings, payloads[0], options.idle)
        for name, values in (("acknowledged", acknowledged), ("read", seen)):
            quantiles = statistics.quantiles(values, n=100)
            print(f"a lone append is {name} after p50 {quantiles[49]:.1f} ms, p99 {quantiles[98]:.1f} ms")


if __name__ == "__main__":
    main()
