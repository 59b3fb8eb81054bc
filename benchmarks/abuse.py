"""Good callers beside bad ones: `python -m benchmarks.abuse [--pairs 3] [--seconds 60] [--idle 5000] [--abuses NAME ...]`; `--set` gives
settings of the service, `--json` is for machines.

A real `watertower serve`; query and the good callers on one core, everything else, the bad callers included, on the others, as the surge is
measured (benchmarks/tower.py): what they do to a server counts, not what they take from a machine that both are on. `--spread` lets
all run anywhere. Phases take turns, a quiet one and an abused one make a pair. In all of them the same good callers read counts at a
constant rate, open loop, each call with one attempt. In the abused ones other processes reset connections, read slowly, send too much or
only half of what they announced, to query and to ingest, and hold idle connections to query. Printed are the good callers' p99 of every
phase, the ratio of each pair and the median of the ratios, and the resident memory of query and ingest before, at its peak and after.
"""

import argparse
import asyncio
import json
import os
import statistics
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import grpc
from google.protobuf.timestamp_pb2 import Timestamp

from benchmarks.service import without_autogroup
from benchmarks.tower import pin
from watertower.debut.readers import percentile
from watertower.testing.abuse import abusing
from watertower.testing.service import Service
from watertower.v1 import common_pb2, reader_pb2, reader_pb2_grpc, writer_pb2, writer_pb2_grpc

ABUSES = ("connection_reset", "connection_reset", "slow_reader", "slow_reader", "oversized", "half_sent", "garbage")
READS_PER_S = 100
CALL_S = 5.0
AFTER_S = 5.0
"""Seconds of rest before memory is read again."""

READ = reader_pb2.GetCountsRequest(entity="star", metrics=[common_pb2.METRIC_FOLLOWERS])


class Phase(NamedTuple):
    """What the good callers saw."""

    calls: int
    errors: dict[str, int]
    p50_ms: float
    p99_ms: float
    peak_mib: dict[str, float]


def resident_mib(pid: int) -> float:
    return round(int(Path(f"/proc/{pid}/status").read_text().split("VmRSS:")[1].split()[0]) / 1024, 1)


def ms(latencies: list[float], share: float) -> float:
    found = percentile(latencies, share)
    return -1.0 if found is None else round(found * 1e3, 3)


def messages() -> tuple[bytes, bytes]:
    """A large read and a large write, both valid, for the bad callers."""
    read = reader_pb2.BatchGetCountsRequest(entities=[f"nobody-{n}" for n in range(200)], metrics=[common_pb2.METRIC_FOLLOWERS])
    pressed = Timestamp()
    pressed.GetCurrentTime()
    write = writer_pb2.RecordEventsRequest()
    for n in range(200):
        write.events.add(actor=f"fan-{n}", kind=common_pb2.KIND_FOLLOW, subject="crowd", state=common_pb2.STATE_ACTIVE, occurred_at=pressed)
    return read.SerializeToString(), write.SerializeToString()


async def good_callers(service: Service, seconds: float) -> Phase:
    """Reads at a constant rate; latency counts from when a read was due."""
    latencies: list[float] = []
    errors: dict[str, int] = {}
    pids = {role: service.pids()[role] for role in ("query", "ingest")}
    peak = dict.fromkeys(pids, 0.0)

    async def read(stub: Any, due_s: float) -> None:
        try:
            await stub.GetCounts(READ, timeout=CALL_S)
        except grpc.aio.AioRpcError as error:
            said = f"{error.code().name}: {error.details()}"
            errors[said] = errors.get(said, 0) + 1
        latencies.append(time.perf_counter() - due_s)

    async with grpc.aio.insecure_channel(service.read_target, options=[("grpc.enable_retries", 0)]) as channel:
        stub = reader_pb2_grpc.EngagementReaderStub(channel)
        await stub.GetCounts(READ, timeout=CALL_S)
        began = time.perf_counter()
        calls = []
        for number in range(int(seconds * READS_PER_S)):
            due_s = began + number / READS_PER_S
            await asyncio.sleep(max(0.0, due_s - time.perf_counter()))
            calls.append(asyncio.create_task(read(stub, due_s)))
            if number % READS_PER_S == 0:
                peak = {role: max(peak[role], resident_mib(pid)) for role, pid in pids.items()}
        await asyncio.gather(*calls)
    return Phase(len(calls), errors, ms(latencies, 0.5), ms(latencies, 0.99), peak)


def abused(service: Service, seconds: float, abuses: list[str], idle: int, cores: set[int]) -> tuple[Phase, dict[str, dict[str, int]]]:
    read, write = messages()
    with ExitStack() as stack:
        done = {
            "query": stack.enter_context(
                abusing(
                    service.read_target,
                    "/watertower.v1.EngagementReader/BatchGetCounts",
                    read,
                    [*abuses, *([f"idle={idle}"] if idle else [])],
                    cores,
                )
            ),
            "ingest": stack.enter_context(
                abusing(service.write_target, "/watertower.v1.EngagementWriter/RecordEvents", write, abuses, cores)
            ),
        }
        phase = asyncio.run(good_callers(service, seconds))
    return phase, done


def run(pairs: int, seconds: float, idle: int, abuses: list[str], settings: dict[str, str], spread: bool, text: bool) -> dict[str, Any]:
    """All phases on one service."""
    every = os.sched_getaffinity(0)
    own = every if spread else {max(every)}
    others = every if spread else every - own
    if not others:
        raise SystemExit("one core only: --spread measures on it, which says little")
    os.sched_setaffinity(0, own)  # the good callers' threads inherit it
    with tempfile.TemporaryDirectory() as folder, Service(Path(folder) / "data", settings=settings) as service:
        service.start()
        pressed = Timestamp()
        pressed.GetCurrentTime()
        with grpc.insecure_channel(service.write_target) as channel:
            event = writer_pb2.Event(
                actor="ann", kind=common_pb2.KIND_FOLLOW, subject="star", state=common_pb2.STATE_ACTIVE, occurred_at=pressed
            )
            writer_pb2_grpc.EngagementWriterStub(channel).RecordEvents(writer_pb2.RecordEventsRequest(events=[event]), timeout=CALL_S)
        for role, pid in service.pids().items():
            pin([pid], own if role == "query" else others)
        asyncio.run(good_callers(service, min(5.0, seconds)))  # warms up
        pids = {role: service.pids()[role] for role in ("query", "ingest")}
        before = {role: resident_mib(pid) for role, pid in pids.items()}
        found: list[dict[str, Any]] = []
        for number in range(pairs):
            quiet = asyncio.run(good_callers(service, seconds))
            bad, done = abused(service, seconds, abuses, idle, others)
            found.append({"quiet": quiet._asdict(), "abused": bad._asdict(), "ratio": round(bad.p99_ms / quiet.p99_ms, 2), "done": done})
            if text:
                print(
                    f"pair {number + 1}: p99 {quiet.p99_ms:.1f} ms quiet, {bad.p99_ms:.1f} ms abused, {bad.p99_ms / quiet.p99_ms:.2f} x; "
                    f"errors {quiet.errors or 0}, {bad.errors or 0} in {bad.calls}; query {bad.peak_mib['query']} MiB; {done}",
                    flush=True,
                )
        time.sleep(AFTER_S)
        after = {role: resident_mib(pid) for role, pid in pids.items()}
        peak = {role: max(pair["abused"]["peak_mib"][role] for pair in found) for role in pids}
        return {
            "pairs": found,
            "median_ratio": statistics.median(pair["ratio"] for pair in found),
            "resident_mib": {role: {"before": before[role], "peak": peak[role], "after": after[role]} for role in pids},
            "died": len(service.events("role_died")),
            "exit_code": service.stop(),
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=60.0, help="of each phase")
    parser.add_argument("--idle", type=int, default=5_000, help="idle connections")
    parser.add_argument("--abuses", nargs="*", default=list(ABUSES), help="abusers by the name of what they do")
    parser.add_argument("--set", nargs="*", default=[], metavar="NAME=VALUE", help="settings of the service")
    parser.add_argument("--no-autogroup", action="store_true", help="Linux shares cores between threads, not sessions, meanwhile; for root")
    parser.add_argument("--spread", action="store_true", help="every process on any core")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    settings = dict(assignment.split("=", 1) for assignment in arguments.set)
    with without_autogroup(arguments.no_autogroup):
        result = run(arguments.pairs, arguments.seconds, arguments.idle, arguments.abuses, settings, arguments.spread, not arguments.json)
    if arguments.json:
        print(json.dumps(result))
        return
    print(f"median ratio of p99: {result['median_ratio']:.2f}")
    for role, memory in result["resident_mib"].items():
        print(f"{role}: {memory['before']} MiB before, {memory['peak']} at the peak, {memory['after']} after")
    print(f"processes that died: {result['died']}; exit code {result['exit_code']}")


if __name__ == "__main__":
    main()
