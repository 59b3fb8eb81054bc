"""The figures of docs/performance.md: `make bench`, or `python -m benchmarks.service [--only NAME ...] [--json]`.

Every figure is of a real `watertower serve` (three processes, real gRPC, synced log and store) with its load on the same machine, so the
load's own cost is in it. Each runs on a new data folder. They are printed, not asserted: machines differ.
"""

import argparse
import asyncio
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import grpc

from watertower.clock import SystemClock
from watertower.core.model import Kind
from watertower.core.positions import decode_position
from watertower.debut.plan import PRESETS, STAR, Plan, Press
from watertower.debut.readers import percentile
from watertower.debut.run import Live, Service, Watcher, run
from watertower.debut.surge import Surge
from watertower.debut.visible import StarReader, until_visible
from watertower.v1 import common_pb2, writer_pb2, writer_pb2_grpc

CALLS_IN_FLIGHT = 16
CALLERS = 64


class Uniform(Plan):
    """New follows of the star at a constant rate, for lag at a given load."""

    def presses(self) -> Iterator[Press]:
        for follower in range(self.followers):
            yield Press(f"fan-{follower}", int(Kind.FOLLOW), STAR, True, int(follower / self.followers * self.preset.seconds * 1e6))


class Figure(NamedTuple):
    """What one benchmark found."""

    name: str
    values: dict[str, Any]


def request(first: int, events: int) -> writer_pb2.RecordEventsRequest:
    """New follows of one star by the actors from `first` on."""
    message = writer_pb2.RecordEventsRequest()
    now = time.time_ns() // 1000 - 3_600_000_000
    for number in range(first, first + events):
        event = message.events.add(actor=f"fan-{number}", kind=common_pb2.KIND_FOLLOW, subject="star", state=common_pb2.STATE_ACTIVE)
        event.occurred_at.FromMicroseconds(now + number)
    return message


def acknowledged(service: Service, total: int, size: int) -> dict[str, Any]:
    """Acknowledged durable events/s with 16 calls of `size` events in flight. The requests are built before the clock starts."""
    requests = [request(first, size) for first in range(0, total, size)]
    with grpc.insecure_channel(service.write) as channel:
        stub = writer_pb2_grpc.EngagementWriterStub(channel)
        stub.RecordEvents(request(total, 1), timeout=10)
        in_flight: deque[Any] = deque()
        latencies = []
        started = time.perf_counter()
        for message in requests:
            if len(in_flight) == CALLS_IN_FLIGHT:
                sent, call = in_flight.popleft()
                call.result()
                latencies.append(time.perf_counter() - sent)
            in_flight.append((time.perf_counter(), stub.RecordEvents.future(message, timeout=60)))
        while in_flight:
            sent, call = in_flight.popleft()
            call.result()
            latencies.append(time.perf_counter() - sent)
        took = time.perf_counter() - started
    return {"events_per_s": round(total / took), "events": total, "call_p50_ms": ms(latencies, 0.5), "call_p99_ms": ms(latencies, 0.99)}


def single_events(service: Service, total: int) -> dict[str, Any]:
    """Acknowledged durable events/s with 64 callers, each with one call of one event in flight."""

    async def work() -> tuple[float, list[float]]:
        async with grpc.aio.insecure_channel(service.write) as channel:
            stub = writer_pb2_grpc.EngagementWriterStub(channel)
            numbers = iter(range(total))
            latencies: list[float] = []

            async def caller() -> None:
                for number in numbers:
                    message = request(number, 1)
                    sent = time.perf_counter()
                    await stub.RecordEvents(message, timeout=60)
                    latencies.append(time.perf_counter() - sent)

            started = time.perf_counter()
            await asyncio.gather(*(caller() for _ in range(CALLERS)))
            return time.perf_counter() - started, latencies

    took, latencies = asyncio.run(work())
    return {"events_per_s": round(total / took), "events": total, "call_p50_ms": ms(latencies, 0.5), "call_p99_ms": ms(latencies, 0.99)}


def lag(service: Service, rate: float, seconds: float) -> dict[str, Any]:
    """From acknowledgement to visible through a read, at a constant rate."""
    clock = SystemClock()
    preset = PRESETS["2019"]._replace(milestones=((int(rate * seconds), seconds),))
    plan = Uniform(preset, int(rate * seconds), 1)
    with (
        closing(Surge(service.write, plan, clock.now_us() - 7_200_000_000, 1.0, clock)) as surge,
        closing(StarReader(service.read)) as star,
    ):
        watcher = Watcher(star, surge, Live(), clock, watch_s=0.005)
        watcher.start()
        surge.run()
        until_visible(watcher.seen, surge.position, clock)
        watcher.stop()
    lags = watcher.lags_s
    return {
        "offered_per_s": round(rate),
        "acknowledged_per_s": round(surge.events_acknowledged / (surge.ended_s - surge.started_s)),
        "lag_p50_ms": ms(lags, 0.5),
        "lag_p99_ms": ms(lags, 0.99),
        "calls": len(lags),
    }


def footprint(service: Service, data: Path, total: int) -> dict[str, Any]:
    """Resident memory of each process and bytes on disk per edge, after `total` new edges and after a rest."""
    acknowledged(service, total, 500)
    with grpc.insecure_channel(service.write) as channel:
        token = writer_pb2_grpc.EngagementWriterStub(channel).RecordEvents(request(total + 1, 500), timeout=60).write_token
    with closing(StarReader(service.read)) as star:
        until_visible(star.look, decode_position(token), SystemClock())
    time.sleep(5)
    parts = {
        part: sum(f.stat().st_size for f in (data / part).rglob("*") if f.is_file()) for part in os.listdir(data) if (data / part).is_dir()
    }
    parts["log files"] = sum(f.stat().st_size for f in data.iterdir() if f.is_file())
    resident = {}
    for role, pid in service.pids.items():
        status = Path(f"/proc/{pid}/status").read_text()
        resident[role] = {key: round(int(status.split(f"{key}:")[1].split()[0]) / 1024, 1) for key in ("VmRSS", "RssAnon", "VmHWM")}
    return {"edges": total, "resident_mb": resident, "bytes_per_edge": {part: round(size / total, 1) for part, size in parts.items()}}


def ms(seconds: list[float], share: float) -> float | None:
    value = percentile(seconds, share)
    return None if value is None else round(value * 1e3, 2)


def debut(home: Path, followers: int, reads_per_s: float) -> dict[str, Any]:
    """`watertower debut`, with its readers before and during the surge at the same offered load."""
    options = {"data": str(home / "data")}
    return run(Plan(PRESETS["2019"], followers, 7), None, reads_per_s, options, home / "service.log", Live(), SystemClock())


AUTOGROUP = Path("/proc/sys/kernel/sched_autogroup_enabled")


@contextmanager
def without_autogroup(wanted: bool) -> Iterator[None]:
    """Until the block ends, Linux gives cores to threads, not to sessions ("autogroup", sched(7)). With it, callers on the server's core
    wait 40 ms and more for that core, whatever the server does. Needs root."""
    before = AUTOGROUP.read_text() if wanted and AUTOGROUP.exists() else "0"
    if not int(before):
        yield
        return
    AUTOGROUP.write_text("0")
    try:
        yield
    finally:
        AUTOGROUP.write_text(before)


def on_service(measure: Callable[[Service, Path], dict[str, Any]], settings: Mapping[str, str] | None = None) -> dict[str, Any]:
    """On a service of its own, with these settings and a new data folder."""
    home = Path(tempfile.mkdtemp(prefix="watertower-bench-"))
    try:
        with (home / "service.log").open("wb") as log:
            service = Service({"data": str(home / "data"), **(settings or {})}, log)
            try:
                return measure(service, home / "data")
            finally:
                service.stop()
    finally:
        shutil.rmtree(home, ignore_errors=True)


def on_folder(measure: Callable[[Path], dict[str, Any]]) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="watertower-bench-") as home:
        return measure(Path(home))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="*", help="names of benchmarks")
    parser.add_argument("--followers", type=int, default=1_000_000)
    parser.add_argument(
        "--half-load", type=float, default=20_000, help="events/s for the lag figure: half of what becomes visible at full load"
    )
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    benchmarks: dict[str, Callable[[], dict[str, Any]]] = {
        "acknowledged-500": lambda: on_service(lambda s, _: acknowledged(s, 1_000_000, 500)),
        "acknowledged-1": lambda: on_service(lambda s, _: single_events(s, 50_000)),
        "debut": lambda: on_folder(lambda home: debut(home, options.followers, 100)),
        "lag-half-load": lambda: on_service(lambda s, _: lag(s, options.half_load, 20)),
        "footprint": lambda: on_service(lambda s, data: footprint(s, data, 1_000_000)),
    }
    cpu = next(
        (line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")), "?"
    )
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False).stdout.strip()
    print(f"{os.cpu_count()} cores, {cpu}, Python {platform.python_version()}, commit {commit}", file=sys.stderr)
    for name, measure in benchmarks.items():
        if not options.only or name in options.only:
            figure = Figure(name, measure())
            print(
                json.dumps({figure.name: figure.values}) if options.json else f"{figure.name}: {json.dumps(figure.values, indent=2)}",
                flush=True,
            )


if __name__ == "__main__":
    main()
