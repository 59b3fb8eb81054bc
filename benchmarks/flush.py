"""The whole flush of new follows of one subject, step by step: what a projector spends per event, without the log.

    python -m benchmarks.flush [--edges 1000000] [--batch 10000] [--partitions 8] [--seed 1] [--collector] [--path FOLDER]

Reads and publishes by the projector's own functions, in its order. Prints microseconds per event of each step, events/s, resident
memory, and bytes on disk per edge.
"""

import argparse
import gc
import random
import select
import shutil
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path

from watertower.backends.rocksdb import RocksDbReader, RocksDbScanner, RocksDbStore
from watertower.config import ProjectorSettings
from watertower.core.fold import fold, touched
from watertower.core.model import NO_PROGRESS, EventBatch, Kind, Record
from watertower.core.sharding import partition_of
from watertower.ports import LogIdentity, StoreIdentity
from watertower.projector.projector import messages

START_US = 1_700_000_000_000_000


def batches(edges: int, batch: int, partitions: int, seed: int) -> list[list[Record]]:
    """Flushes of one record per partition: new followers of one star, in random order of their ids, an event a microsecond."""
    rng = random.Random(seed)
    numbers = list(range(edges))
    rng.shuffle(numbers)
    flushes = []
    for number, start in enumerate(range(0, edges, batch)):
        actors: dict[int, list[str]] = defaultdict(list)
        for i in numbers[start : start + batch]:
            actor = f"user-{i:08d}"
            actors[partition_of(actor, partitions)].append(actor)
        flushes.append(
            [
                Record(
                    partition,
                    number,
                    b"01234567",
                    START_US,
                    EventBatch(
                        names,
                        bytes([Kind.FOLLOW]) * len(names),
                        ["star"] * len(names),
                        [""] * len(names),
                        b"\1" * len(names),
                        list(range(START_US + start, START_US + start + len(names))),
                    ),
                )
                for partition, names in sorted(actors.items())
            ]
        )
    return flushes


def resident_mib() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 2**20


def folder_bytes(path: Path) -> int:
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())


def follow(path: Path, identity: StoreIdentity) -> None:
    """What a query process does beside the surge: polls every 20 ms until its standard input ends, then says how it went."""
    before = resident_mib()
    reader = RocksDbReader(path, path.parent / "follower", identity, ProjectorSettings().block_cache_bytes)
    took: list[float] = []
    messages = 0
    while not select.select([sys.stdin], [], [], 0.02)[0]:
        started = time.perf_counter()
        messages += len(reader.poll())
        took.append((time.perf_counter() - started) * 1e3)
    took.sort()
    print(
        f"follower: {len(took)} polls, {messages} messages, p50 {took[len(took) // 2]:.1f} ms, p99 {took[len(took) * 99 // 100]:.1f} ms, "
        f"max {took[-1]:.0f} ms, {sum(took) / 1e3:.1f} s in all; resident {resident_mib():.0f} MiB, {before:.0f} before it opened; "
        f"opened anew {reader.reopened} times"
    )
    reader.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--edges", type=int, default=1_000_000)
    parser.add_argument("--batch", type=int, default=10_000)
    parser.add_argument("--partitions", type=int, default=8)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--collector", action="store_true", help="leave Python's collector of cycles on")
    parser.add_argument("--follow", type=Path, default=None, help=argparse.SUPPRESS)
    parser.add_argument("--path", type=Path, default=None)
    args = parser.parse_args()
    if args.follow is not None:
        follow(args.follow, StoreIdentity(LogIdentity("benchmark", args.partitions), 1))
        return
    path = args.path or Path(tempfile.mkdtemp(prefix="flush-"))
    identity = StoreIdentity(LogIdentity("benchmark", args.partitions), 1)
    settings = ProjectorSettings()
    # The input is not the projector's: keep the collector of cycles away from it.
    flushes = batches(args.edges, args.batch, args.partitions, args.seed)
    gc.collect()
    gc.freeze()
    if not args.collector:
        gc.disable()
    resident_before = resident_mib()
    store = RocksDbStore(path / "store", identity, settings.write_buffer_bytes, settings.block_cache_bytes, settings.feed_messages_max)

    command = [sys.executable, __file__, "--follow", str(path / "store"), "--partitions", str(args.partitions)]
    follower = subprocess.Popen(command, stdin=subprocess.PIPE)
    spent: dict[str, float] = defaultdict(float)
    computed: dict[str, float] = defaultdict(float)  # by this thread alone: what an idle core would take, but for waiting for the disk
    slowest_sync = 0.0
    resident_max = 0.0
    mark, mark_cpu = time.perf_counter(), time.thread_time()

    def lap(step: str) -> float:
        nonlocal mark, mark_cpu
        now, now_cpu = time.perf_counter(), time.thread_time()
        took, mark = now - mark, now
        spent[step] += took
        computed[step] += now_cpu - mark_cpu
        mark_cpu = now_cpu
        return took

    progress = dict.fromkeys(range(args.partitions), NO_PROGRESS)
    as_of = dict.fromkeys(range(args.partitions), START_US)
    cpu = time.process_time()
    for records in flushes:
        keys = touched(records)
        lap("touched")
        edges, shards = store.read_touched(keys)
        lap("read")
        flush = fold(records, edges, shards)
        lap("fold")
        store.write_derived(flush.shards, flush.lists)
        lap("write_derived")
        store.write_edges(flush.edges)
        lap("write_edges")
        store.write_progress(flush.progress)
        store.feed.publish(messages(flush, progress, as_of))
        lap("feed")
        store.sync()
        slowest_sync = max(slowest_sync, lap("sync"))
        progress.update(flush.progress)
        resident_max = max(resident_max, resident_mib())
        mark, mark_cpu = time.perf_counter(), time.thread_time()
    cpu = time.process_time() - cpu
    follower.communicate()

    total, busy = sum(spent.values()), sum(computed.values())
    per_event = 1e6 / args.edges
    for step, seconds in spent.items():
        print(f"{step:14} {seconds * per_event:6.2f} us/event, {computed[step] * per_event:6.2f} of them computing")
    print(
        f"{'whole':14} {total * per_event:6.2f} us/event, {busy * per_event:6.2f} of them computing, {cpu * per_event:.2f} with all threads"
    )
    print(f"{args.edges / total:,.0f} events/s; {args.edges / busy:,.0f} if this thread had not waited for anything")
    print(f"slowest sync {slowest_sync * 1e3:.0f} ms")
    print(f"resident {resident_max:.0f} MiB at most, of which {resident_before:.0f} MiB are the benchmark's own input")
    print(f"on disk {folder_bytes(path) / args.edges:.0f} bytes/edge while running")

    before = resident_mib()
    opened = time.perf_counter()
    reader = RocksDbReader(path / "store", path / "reader", identity, settings.block_cache_bytes)
    print(f"reader: opened in {(time.perf_counter() - opened) * 1e3:.0f} ms, {resident_mib() - before:.0f} MiB more")
    started = time.perf_counter()
    for i in range(2_000):
        reader.read_entities([f"user-{i:08d}"])
    print(f"reader: read_entities of 1: {(time.perf_counter() - started) / 2_000 * 1e6:.1f} us")
    started = time.perf_counter()
    page = reader.list_actors("star", Kind.FOLLOW, None, 1_000)
    print(f"reader: list_actors {(time.perf_counter() - started) * 1e3:.2f} ms for {len(page)} rows")
    reader.close()

    scanner = RocksDbScanner(path / "store", path / "scanner", identity)
    for name in ("edges", "shards", "subject_lists", "actor_lists"):
        started = time.perf_counter()
        rows = sum(1 for _ in getattr(scanner, name)())
        print(f"scanner: {name:13} {rows / (time.perf_counter() - started):,.0f} rows/s of {rows:,}")
    scanner.close()

    store.close()
    print(f"on disk {folder_bytes(path) / args.edges:.0f} bytes/edge after closing")
    if args.path is None:
        shutil.rmtree(path)


if __name__ == "__main__":
    main()
