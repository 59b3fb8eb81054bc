"""The read side's figures of docs/performance.md: `python -m benchmarks.tower [--only NAME ...] [--json]`.

    surge   GetCounts of cached entities while a surge of writes goes on and while none does, in pairs; query and readers on one core,
            everything else on the other
    batch   BatchGetCounts of 1,000 warm entities, and Redis's MGET of 1,000 keys beside it, in pairs; the server on one core, its client
            on the other
    cold    100,000 cold entities at once, and cold entities one after the other
    feed    what a query process pays for a feed of entities that it does not hold

All of a real `watertower serve` on a new data folder, but `feed`, which is one process's work alone. They are printed, not asserted.
"""

import argparse
import json
import os
import random
import shutil
import socket
import subprocess
import threading
import time
import urllib.request
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import closing, suppress
from pathlib import Path
from statistics import median
from typing import Any

import grpc

from benchmarks.service import on_service, request, without_autogroup
from watertower.clock import SystemClock
from watertower.codec import decode_feed, encode_feed
from watertower.core.positions import decode_position
from watertower.debut.plan import PROFILES
from watertower.debut.run import Live, Readers, Service
from watertower.debut.surge import seed_profiles
from watertower.debut.visible import StarReader, until_visible
from watertower.ports import FeedMessage
from watertower.query.cache import CountsCache, Load
from watertower.testing.service import free_port
from watertower.v1 import common_pb2, reader_pb2, reader_pb2_grpc, writer_pb2_grpc

ENTITIES = 10_000
BATCH = 1_000
CALLS_IN_FLIGHT = 8
CLOCK_TICKS = os.sysconf("SC_CLK_TCK")


def family(pid: int) -> list[int]:
    """A process and its children."""
    children = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(FileNotFoundError, ProcessLookupError):
            if int(stat.read_text().rpartition(")")[2].split()[1]) == pid:
                children.append(int(stat.parent.name))
    return [pid, *children]


def pin(pids: Iterable[int], cores: set[int]) -> None:
    """Every thread that these processes have."""
    for pid in pids:
        for task in Path(f"/proc/{pid}/task").iterdir():
            with suppress(ProcessLookupError):
                os.sched_setaffinity(int(task.name), cores)


def cpu_s(pids: Iterable[int]) -> float:
    """CPU seconds that these processes have used."""
    fields = [Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split() for pid in pids]
    return sum(int(one[11]) + int(one[12]) for one in fields) / CLOCK_TICKS


def spread(values: list[float]) -> dict[str, float]:
    return {"median": round(median(values), 3), "min": round(min(values), 3), "max": round(max(values), 3)}


class Writes:
    """A surge: new follows of one star, as fast as ingest takes them."""

    def __init__(self, target: str) -> None:
        self._target = target
        self._next = 0
        self.events_per_s: list[int] = []

    def run(self, seconds: float) -> bytes:
        """The write token of the last call."""
        token = b""
        with grpc.insecure_channel(self._target) as channel:
            stub = writer_pb2_grpc.EngagementWriterStub(channel)
            in_flight: deque[Any] = deque()
            began, first = time.perf_counter(), self._next
            while time.perf_counter() - began < seconds or in_flight:
                if time.perf_counter() - began < seconds:
                    in_flight.append(stub.RecordEvents.future(request(self._next, 500), timeout=60))
                    self._next += 500
                if len(in_flight) == CALLS_IN_FLIGHT or time.perf_counter() - began >= seconds:
                    token = in_flight.popleft().result().write_token
            self.events_per_s.append(round((self._next - first) / (time.perf_counter() - began)))
        return token


def misses(metrics_port: int) -> int:
    """Entities that were not in memory when they were asked for, so far."""
    with urllib.request.urlopen(f"http://127.0.0.1:{metrics_port}/metrics", timeout=10) as answer:
        lines = answer.read().decode().splitlines()
    return int(float(next(line.rsplit(" ", 1)[1] for line in lines if line.startswith("watertower_query_read_misses_total"))))


def surge(service: Service, metrics_port: int, pairs: int, seconds: float, reads_per_s: float, profiles: int) -> dict[str, Any]:
    """Pairs of an idle phase and one with a surge; the surge is applied before the next pair begins. Of `profiles` profiles: the more, the
    rarer each is read, and those that nobody read for a minute are no longer in memory. How many those were is in the result."""
    clock = SystemClock()
    until = seed_profiles(service.write, PROFILES, clock.now_us() - 86_400_000_000)
    with closing(StarReader(service.read)) as star:
        until_visible(star.look, until, clock)
        with grpc.insecure_channel(service.read) as channel:  # what is asked for is in memory from the beginning
            reader = reader_pb2_grpc.EngagementReaderStub(channel)
            for first in range(0, PROFILES, BATCH):
                some = [f"profile-{number}" for number in range(first, min(first + BATCH, PROFILES))]
                reader.BatchGetCounts(reader_pb2.BatchGetCountsRequest(entities=some, metrics=[common_pb2.METRIC_FOLLOWERS]), timeout=60)
        pin([os.getpid(), *family(service.pids["ingest"]), *family(service.pids["projector"])], {0})
        os.sched_setaffinity(0, {1})  # the readers inherit it
        readers = Readers(service.read, reads_per_s, 1, Live(), profiles)
        os.sched_setaffinity(0, {0})
        pin(family(service.pids["query"]), {1})
        writes = Writes(service.write)
        time.sleep(2)
        of_the_store = {"idle": 0, "surge": 0}
        for pair in range(pairs):
            before = misses(metrics_port)
            readers.phase(f"idle {pair}")
            time.sleep(seconds)
            readers.phase("between")  # to be asked for its metrics costs the query process milliseconds
            of_the_store["idle"] += (between := misses(metrics_port)) - before
            readers.phase(f"surge {pair}")
            token = writes.run(seconds)
            readers.phase("between")
            of_the_store["surge"] += misses(metrics_port) - between
            until_visible(star.look, decode_position(token), clock)
        phases = {name: phase for name, phase in readers.result().items() if name != "between"}
        os.sched_setaffinity(0, {0, 1})
    ratios = [phases[f"surge {pair}"]["p99_ms"] / phases[f"idle {pair}"]["p99_ms"] for pair in range(pairs)]
    return {
        "p99_ratio": spread(ratios),
        "idle_p99_ms": spread([phases[f"idle {pair}"]["p99_ms"] for pair in range(pairs)]),
        "surge_p99_ms": spread([phases[f"surge {pair}"]["p99_ms"] for pair in range(pairs)]),
        "idle_p50_ms": spread([phases[f"idle {pair}"]["p50_ms"] for pair in range(pairs)]),
        "surge_p50_ms": spread([phases[f"surge {pair}"]["p50_ms"] for pair in range(pairs)]),
        "star_p99_ratio": spread([phases[f"surge {pair}"]["star_p99_ms"] / phases[f"idle {pair}"]["star_p99_ms"] for pair in range(pairs)]),
        "surge_events_per_s": writes.events_per_s,
        "reads_of_the_store": of_the_store,
        "reads": sum(phase["reads"] for phase in phases.values()),
        "errors": sum(phase["errors"] for phase in phases.values()),
    }


def batches(target: str, seconds: float, metrics: list[common_pb2.Metric]) -> int:
    """Calls of 1,000 entities, some in flight at once; how many were answered. Requests are ready, answers are not looked into."""
    rng = random.Random(1)
    names = [f"fan-{number}" for number in range(ENTITIES)]
    requests = [reader_pb2.BatchGetCountsRequest(entities=rng.sample(names, BATCH), metrics=metrics).SerializeToString() for _ in range(50)]
    answered = 0
    with grpc.insecure_channel(target) as channel:
        call: Any = channel.unary_unary("/watertower.v1.EngagementReader/BatchGetCounts")
        in_flight: deque[Any] = deque()
        until = time.perf_counter() + seconds
        while time.perf_counter() < until:
            while len(in_flight) < CALLS_IN_FLIGHT:
                in_flight.append(call.future(requests[answered % 50], timeout=60))
            in_flight.popleft().result()
            answered += 1
        for one in in_flight:
            one.result()
            answered += 1
    return answered


class Redis:
    """A Redis server with a key an entity, in memory only."""

    def __init__(self) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        arguments = ["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
        self.process = subprocess.Popen(arguments, stdout=subprocess.DEVNULL)
        for _ in range(200):
            with suppress(ConnectionRefusedError):
                self._socket = socket.create_connection(("127.0.0.1", port))
                break
            time.sleep(0.05)
        self._file = self._socket.makefile("rb")
        for number in range(ENTITIES):
            self._socket.sendall(self._command("SET", f"fan-{number}", "1"))
            self._file.readline()

    def mgets(self, seconds: float) -> int:
        """MGETs of 1,000 keys, some on their way at once; how many were answered."""
        rng = random.Random(1)
        names = [f"fan-{number}" for number in range(ENTITIES)]
        commands = [self._command("MGET", *rng.sample(names, BATCH)) for _ in range(50)]
        answer = len(b"*1000\r\n") + BATCH * len(b"$1\r\n1\r\n")
        answered = sent = 0
        until = time.perf_counter() + seconds
        while time.perf_counter() < until or answered < sent:
            while sent - answered < CALLS_IN_FLIGHT and time.perf_counter() < until:
                self._socket.sendall(commands[sent % 50])
                sent += 1
            self._file.read(answer)
            answered += 1
        return answered

    def stop(self) -> None:
        self._socket.close()
        self.process.terminate()
        self.process.wait(20)

    @staticmethod
    def _command(*words: str) -> bytes:
        return f"*{len(words)}\r\n".encode() + b"".join(f"${len(word)}\r\n{word}\r\n".encode() for word in words)


def batch(service: Service, pairs: int, seconds: float) -> dict[str, Any]:
    """Counts per second of the server's CPU, and Redis's beside it where it is installed."""
    with grpc.insecure_channel(service.write) as channel:
        stub = writer_pb2_grpc.EngagementWriterStub(channel)
        for first in range(0, ENTITIES, 500):
            token = stub.RecordEvents(request(first, 500), timeout=60).write_token
    with closing(StarReader(service.read)) as star:
        until_visible(star.look, decode_position(token), SystemClock())
    query = family(service.pids["query"])
    pin([os.getpid(), *family(service.pids["ingest"]), *family(service.pids["projector"])], {0})
    pin(query, {1})
    redis = Redis() if shutil.which("redis-server") else None
    if redis is not None:
        pin([redis.process.pid], {1})
    found: dict[str, list[float]] = {}
    one: list[common_pb2.Metric] = [common_pb2.METRIC_FOLLOWING]
    two: list[common_pb2.Metric] = [common_pb2.METRIC_FOLLOWERS, common_pb2.METRIC_FOLLOWING]
    runs: dict[str, tuple[list[int], Callable[[], int]]] = {
        "1 metric": (query, lambda: batches(service.read, seconds, one)),
        "2 metrics": (query, lambda: batches(service.read, seconds, two)),
    }
    if redis is not None:
        server = redis
        runs["redis mget"] = ([server.process.pid], lambda: server.mgets(seconds))
    batches(service.read, 1.0, one)  # load
    for _ in range(pairs):
        for name, (pids, run) in runs.items():
            before, began = cpu_s(pids), time.perf_counter()
            calls = run()
            used, took = cpu_s(pids) - before, time.perf_counter() - began
            found.setdefault(f"{name}: entities per CPU s", []).append(calls * BATCH / used)
            found.setdefault(f"{name}: CPU us per entity", []).append(used / calls / BATCH * 1e6)
            found.setdefault(f"{name}: entities per s", []).append(calls * BATCH / took)
    if redis is not None:
        redis.stop()
    os.sched_setaffinity(0, {0, 1})
    return {name: spread(values) for name, values in found.items()}


def cold(service: Service, total: int) -> dict[str, Any]:
    """Entities that nobody has asked for: one call after the other, then all the rest at once, each call repeated until it is answered."""
    with grpc.insecure_channel(service.write) as channel:
        stub = writer_pb2_grpc.EngagementWriterStub(channel)
        for first in range(0, total + 10_000, 500):
            token = stub.RecordEvents(request(first, 500), timeout=60).write_token
    with closing(StarReader(service.read)) as star:
        until_visible(star.look, decode_position(token), SystemClock())
    metrics: list[common_pb2.Metric] = [common_pb2.METRIC_FOLLOWERS, common_pb2.METRIC_FOLLOWING]
    query = family(service.pids["query"])
    with grpc.insecure_channel(service.read) as channel:
        reader = reader_pb2_grpc.EngagementReaderStub(channel)
        before, began = cpu_s(query), time.perf_counter()
        for first in range(total, total + 10_000, BATCH):
            reader.BatchGetCounts(_batch(first, metrics), timeout=60)
        took, used = time.perf_counter() - began, cpu_s(query) - before
        refusals, latencies = [0], []
        began = time.perf_counter()

        def ask(first: int) -> None:
            while True:
                try:
                    reader.BatchGetCounts(_batch(first, metrics), timeout=60)
                except grpc.RpcError as error:
                    if error.code() is not grpc.StatusCode.RESOURCE_EXHAUSTED:
                        raise
                    refusals[0] += 1
                    time.sleep(random.uniform(0.0, 0.5))
                else:
                    latencies.append(time.perf_counter() - began)
                    return

        threads = [threading.Thread(target=ask, args=(first,)) for first in range(0, total, BATCH)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        warm = time.perf_counter()
        reader.BatchGetCounts(_batch(0, metrics), timeout=60)
        warm = time.perf_counter() - warm
    resident = Path(f"/proc/{query[0]}/status").read_text().split("VmRSS:")[1].split()[0]
    return {
        "in turn: entities per s": round(10_000 / took),
        "in turn: CPU us per entity": round(used / 10_000 * 1e6, 1),
        "at once: entities": total,
        "at once: all answered after s": round(max(latencies), 2),
        "at once: calls refused and repeated": refusals[0],
        "afterwards: warm batch ms": round(warm * 1e3, 1),
        "resident MB": round(int(resident) / 1024),
    }


def _batch(first: int, metrics: list[common_pb2.Metric]) -> reader_pb2.BatchGetCountsRequest:
    return reader_pb2.BatchGetCountsRequest(entities=[f"fan-{number}" for number in range(first, first + BATCH)], metrics=metrics)


def feed(events_per_s: int) -> dict[str, Any]:
    """A spread load: each event touches a shard of another subject and one of another actor. Decoding, and dropping what is not held."""
    count = 10_000
    cache = CountsCache(1 << 30, 60.0, 1.0, 60.0, lambda: 0.5)
    load = Load()
    for number in range(ENTITIES):
        cache.register(f"profile-{number}", load)
    cache.begin(load, 0.0)
    cache.finish(load, [{} for _ in load.entities])
    costs: dict[str, list[float]] = {"decode": [], "apply": []}
    for turn in range(50):
        entities = [f"entity-{turn}-{number:08d}" for number in range(count)]
        payload = encode_feed(FeedMessage(0, turn - 1, turn, turn, entities, bytes([1, 2]) * (count // 2), [3] * count, [turn] * count))
        began = time.process_time()
        message = decode_feed(payload)
        decoded = time.process_time()
        for _ in cache.apply(message):
            pass
        costs["decode"].append((decoded - began) / count * 1e6)
        costs["apply"].append((time.process_time() - decoded) / count * 1e6)
    per_shard = median(costs["decode"]) + median(costs["apply"])
    return {
        "decode: us per shard": spread(costs["decode"]),
        "drop: us per shard": spread(costs["apply"]),
        "share of a core at 100,000 events/s, both shards of each": round(per_shard * 2 * events_per_s / 1e6, 3),
        "share of a core at 100,000 events/s, subjects only": round(per_shard * events_per_s / 1e6, 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", help="names of benchmarks")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=8.0, help="of one phase")
    parser.add_argument("--reads-per-s", type=float, default=200.0)
    parser.add_argument("--profiles", type=int, default=200, help="that the readers of a surge ask for, besides the star")
    parser.add_argument("--no-autogroup", action="store_true", help="Linux shares cores between threads, not sessions, meanwhile; for root")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    metrics_port = free_port()
    benchmarks: dict[str, Callable[[], dict[str, Any]]] = {
        "surge": lambda: on_service(
            lambda s, _: surge(s, metrics_port, options.pairs, options.seconds, options.reads_per_s, options.profiles),
            {"query_metrics_port": str(metrics_port)},
        ),
        "batch": lambda: on_service(lambda s, _: batch(s, options.pairs, options.seconds)),
        "cold": lambda: on_service(lambda s, _: cold(s, 100_000)),
        "feed": lambda: feed(100_000),
    }
    for name, measure in benchmarks.items():
        if not options.only or name in options.only:
            with without_autogroup(options.no_autogroup):
                values = measure()
            print(json.dumps({name: values}) if options.json else f"{name}: {json.dumps(values, indent=2)}", flush=True)


if __name__ == "__main__":
    main()
