"""Single GetCounts of cached entities: calls per second and CPU per call, for each server set-up, and for one of grpc-go as the mark.

    .venv/bin/python -m benchmarks.gets [--seconds 5] [--rounds 3] [--only native grpc-go] [--json]

The server has one core to itself, the callers (a program in Go, so that they are not what is measured) another. The set-ups take turns,
so that a slow minute of the machine meets all of them; figures are medians of the rounds. It needs Go, and Linux. What it builds is kept
in WATERTOWER_GETS_CACHE (~/.cache/watertower/gets).
"""

import argparse
import asyncio
import importlib.util
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple

import grpc
from tests.query.fakes import FakeStore

from watertower.clock import SystemClock
from watertower.config import QuerySettings
from watertower.core.model import Metric
from watertower.query.process import server_of
from watertower.query.service import SERVICE, QueryService
from watertower.v1 import common_pb2, reader_pb2

ROOT = Path(__file__).parents[1]
CACHE = Path(os.environ.get("WATERTOWER_GETS_CACHE", Path.home() / ".cache" / "watertower" / "gets"))
METHOD = f"/{SERVICE}/GetCounts"
ENTITIES = 1_000
PARTITIONS = 8
THREADS = 8
TICKS_PER_S = os.sysconf("SC_CLK_TCK")

KINDS = {
    "grpc.aio": "query_server=grpcio",
    "grpc.aio, uvloop": "the same, on uvloop",
    "grpc, threads": f"grpcio's server of {THREADS} threads, answering from memory without the event loop",
    "native": "query_server=native",
    "native, tasks": "the same, without answers at once: a task for each call",
    "grpc-go": "a minimal server of grpc-go, answering from a map",
}


class Round(NamedTuple):
    """What one set-up did in one turn."""

    calls_per_s: float
    cpu_us_per_call: float
    cores: float  # that the server was busy
    p50_ms: float
    p99_ms: float
    errors: int


def names() -> list[str]:
    return [f"account-{number:08d}" for number in range(ENTITIES)]


def build() -> None:
    """The programs in Go, from their sources and from proto/."""
    source, binaries = CACHE / "src", CACHE / "bin"
    shutil.copytree(ROOT / "benchmarks" / "go", source, dirs_exist_ok=True)
    binaries.mkdir(exist_ok=True)

    def go(*arguments: str) -> None:
        subprocess.run(["go", "build", "-o", f"{binaries}/", *arguments], cwd=source, check=True)

    go("google.golang.org/protobuf/cmd/protoc-gen-go")
    protos = [f"watertower/v1/{name}.proto" for name in ("common", "reader")]
    package = "watertower/benchmarks/gets"
    mapped = [f"--go_opt=M{proto}={package}/v1" for proto in protos]
    command = [sys.executable, "-m", "grpc_tools.protoc", "-I", str(ROOT / "proto"), f"--plugin=protoc-gen-go={binaries}/protoc-gen-go"]
    subprocess.run([*command, f"--go_out={source}", f"--go_opt=module={package}", *mapped, *protos], check=True)
    go("./load", "./server")
    requests = [reader_pb2.GetCountsRequest(entity=name, metrics=[common_pb2.METRIC_FOLLOWERS]) for name in names()]
    (CACHE / "requests").write_text("\n".join(request.SerializeToString().hex() for request in requests))
    (CACHE / "entities").write_text("\n".join(names()))


@contextmanager
def started(command: list[str], core: int) -> Iterator["subprocess.Popen[str]"]:
    """A process on one core, until the block ends."""
    with subprocess.Popen(["taskset", "-c", str(core), *command], stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        try:
            yield process
        finally:
            process.kill()


def said(process: "subprocess.Popen[str]") -> str:
    """Its next line."""
    line = process.stdout.readline() if process.stdout is not None else ""
    if not line:
        raise SystemExit(f"a process of the benchmark ended: {process.args!r}")
    return line


def cpu_s(pid: int) -> float:
    """Seconds of CPU that a process has used, all threads and the kernel's work for it."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS_PER_S


def measure(kind: str, seconds: float, connections: int, callers: int) -> Round:
    """One turn of one set-up."""
    if kind == "grpc-go":
        command = [str(CACHE / "bin" / "server"), f"-entities={CACHE / 'entities'}"]
    else:
        command = [sys.executable, "-m", "benchmarks.gets", "--serve", kind]
    with started(command, core=0) as server:
        port = int(said(server))
        load = [str(CACHE / "bin" / "load"), f"-address=127.0.0.1:{port}", f"-method={METHOD}", f"-requests={CACHE / 'requests'}"]
        load += [f"-connections={connections}", f"-callers={callers}", f"-for={seconds}s", "-warm=2s"]
        with started(load, core=max(os.sched_getaffinity(0))) as caller:
            said(caller)
            before = cpu_s(server.pid)
            said(caller)
            used_s = cpu_s(server.pid) - before
            found = json.loads(said(caller))
    return Round(
        found["calls"] / seconds, used_s / max(1, found["calls"]) * 1e6, used_s / seconds, found["p50_ms"], found["p99_ms"], found["errors"]
    )


def filled_store() -> FakeStore:
    """Accounts with followers from every partition."""
    store = FakeStore(PARTITIONS)
    now_us = SystemClock().now_us()
    for number, name in enumerate(names()):
        for partition in range(PARTITIONS):
            store.write(name, Metric.FOLLOWERS, partition, number, number, now_us, publish=False)
    return store


async def serve(kind: str) -> None:
    """A query service, until the process is killed."""
    store = filled_store()
    native: Literal["grpcio", "native"] = "native" if kind.startswith("native") else "grpcio"
    limits = QuerySettings(cache_age_ms_max=3_600_000, stale_after_ms=3_600_000, server=native)
    service = QueryService(store, store, limits, SystemClock(), random.Random(1), PARTITIONS)
    await service.start()
    for name in names():  # into memory: it is not loads that are measured
        await service.get_counts(reader_pb2.GetCountsRequest(entity=name, metrics=[common_pb2.METRIC_FOLLOWERS]), Patient())
    if kind == "grpc, threads":
        threads = grpc.server(ThreadPoolExecutor(THREADS))
        answer: Any = grpc.unary_unary_rpc_method_handler(lambda data, _: service.get_counts_now(data))
        threads.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, {"GetCounts": answer}),))
        port = threads.add_insecure_port("127.0.0.1:0")
        threads.start()
    else:
        if kind == "native, tasks":
            vars(service)["get_counts_now"] = lambda data: None  # what this set-up is about
        server = server_of(service, "127.0.0.1", 0, limits)
        port = await server.start()
    print(port, flush=True)
    await asyncio.Event().wait()


class Patient:
    """A call without a deadline."""

    def time_remaining(self) -> float | None:
        return None

    def invocation_metadata(self) -> None:
        """None."""

    def peer(self) -> str:
        return "nobody"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=5.0, help="seconds of each turn, after two of warming up")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each set-up")
    parser.add_argument("--connections", type=int, default=4)
    parser.add_argument("--callers", type=int, default=64, help="each with one call at a time")
    parser.add_argument("--only", nargs="+", choices=KINDS, metavar="SET-UP", help=f"of: {'; '.join(KINDS)}")
    parser.add_argument("--json", action="store_true", help="every round, too, as the last line")
    parser.add_argument("--serve", choices=KINDS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        if arguments.serve == "grpc.aio, uvloop":
            importlib.import_module("uvloop").install()
        return asyncio.run(serve(arguments.serve))
    if shutil.which("go") is None or len(os.sched_getaffinity(0)) < 2:
        raise SystemExit("this needs Go, and two cores")
    CACHE.mkdir(parents=True, exist_ok=True)
    build()
    kinds = [kind for kind in arguments.only or KINDS if "uvloop" not in kind or importlib.util.find_spec("uvloop")]
    rounds: dict[str, list[Round]] = {kind: [] for kind in kinds}
    for _ in range(arguments.rounds):
        for kind in kinds:
            rounds[kind].append(measure(kind, arguments.seconds, arguments.connections, arguments.callers))
    print(f"{arguments.callers} callers on {arguments.connections} connections; the server on one core; medians of {arguments.rounds}")
    print(f"{'':18}{'calls/s':>10}{'CPU us/call':>13}{'calls/CPU s':>13}{'cores':>7}{'p50 ms':>8}{'p99 ms':>8}{'errors':>8}")
    medians: dict[str, dict[str, Any]] = {}
    for kind, found in rounds.items():
        median = Round(*(statistics.median(column) for column in zip(*found, strict=True)))
        medians[kind] = median._asdict()
        print(
            f"{kind:18}{median.calls_per_s:10,.0f}{median.cpu_us_per_call:13.1f}{1e6 / median.cpu_us_per_call:13,.0f}"
            f"{median.cores:7.2f}{median.p50_ms:8.2f}{median.p99_ms:8.2f}{median.errors:8.0f}"
        )
    if arguments.json:
        every = {kind: [turn._asdict() for turn in found] for kind, found in rounds.items()}
        print(json.dumps({"medians": medians, "rounds": every}))
    return None


if __name__ == "__main__":
    main()
