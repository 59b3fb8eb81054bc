"""Reads meanwhile, from a process of its own: open loop, at a constant rate, whatever the answers take.

Run as `python -m watertower.debut.readers TARGET READS_PER_S PROFILES SEED`. Every line on standard input names the phase that begins
("idle", "surge"); every half second it prints one JSON line about the last half second; at the end of input, one about each phase.
A read is late from the moment at which it should have been sent, not from when it was (no coordinated omission: G. Tene, "How NOT to
measure latency", 2015).
"""

import asyncio
import gc
import json
import random
import sys
import time
from typing import NamedTuple

import grpc

from watertower.debut.plan import STAR
from watertower.v1 import common_pb2, reader_pb2, reader_pb2_grpc

READ_TIMEOUT_S = 5.0
STAR_SHARE = 0.2
"""Share of the reads that ask for the star; the others ask for one ordinary profile each."""


class Phase(NamedTuple):
    """Latencies in seconds, and which reads failed."""

    latencies: list[float]  # of all reads
    star: list[float]  # of those that asked for the star, which is always in memory
    errors: list[str]


def percentile(values: list[float], share: float) -> float | None:
    """The value below which this share lies (nearest rank). None of nothing."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else None


def summary(phase: Phase) -> dict[str, float | int | None]:
    def ms(latencies: list[float], share: float) -> float | None:
        value = percentile(latencies, share)
        return None if value is None else round(value * 1e3, 3)

    return {
        "reads": len(phase.latencies),
        "errors": len(phase.errors),
        "p50_ms": ms(phase.latencies, 0.50),
        "p99_ms": ms(phase.latencies, 0.99),
        "star_p50_ms": ms(phase.star, 0.50),
        "star_p99_ms": ms(phase.star, 0.99),
    }


async def read(target: str, reads_per_s: float, profiles: int, seed: int) -> None:
    rng = random.Random(seed)  # noqa: S311 - a reproducible load, not secrets
    phases: dict[str, Phase] = {}
    current = Phase([], [], [])
    window = Phase([], [], [])
    ended = False

    def on_line() -> None:
        nonlocal current, ended
        line = sys.stdin.readline().strip()
        if line:
            current = phases.setdefault(line, Phase([], [], []))
        else:
            ended = True
            loop.remove_reader(sys.stdin.fileno())

    async def one(phase: Phase, due: float, entity: str) -> None:
        try:
            await stub.GetCounts(reader_pb2.GetCountsRequest(entity=entity, metrics=[common_pb2.METRIC_FOLLOWERS]), timeout=READ_TIMEOUT_S)
        except grpc.RpcError as error:
            phase.errors.append(str(error.code()))
            window.errors.append(str(error.code()))
            return
        took = time.perf_counter() - due
        for measured in (phase, window):
            measured.latencies.append(took)
            if entity == STAR:
                measured.star.append(took)

    loop = asyncio.get_running_loop()
    async with grpc.aio.insecure_channel(target) as channel:
        stub = reader_pb2_grpc.EngagementReaderStub(channel)
        await stub.GetCounts(reader_pb2.GetCountsRequest(entity=STAR, metrics=[common_pb2.METRIC_FOLLOWERS]), timeout=READ_TIMEOUT_S)
        loop.add_reader(sys.stdin.fileno(), on_line)
        gc.freeze()
        due = reported = time.perf_counter()
        tasks: set[asyncio.Task[None]] = set()
        while not ended:
            now = time.perf_counter()
            while due <= now:
                entity = STAR if rng.random() < STAR_SHARE else f"profile-{rng.randrange(profiles)}"
                task = loop.create_task(one(current, due, entity))
                tasks.add(task)
                task.add_done_callback(tasks.discard)
                due += 1.0 / reads_per_s
            if now - reported >= 0.5:
                print(json.dumps(summary(window)), flush=True)
                window = Phase([], [], [])
                reported = now
            await asyncio.sleep(max(0.0, min(due, reported + 0.5) - time.perf_counter()))
        if tasks:
            await asyncio.wait(tasks)
    print(json.dumps({name: summary(phase) for name, phase in phases.items()}), flush=True)


if __name__ == "__main__":
    asyncio.run(read(sys.argv[1], float(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])))
