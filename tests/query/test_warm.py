"""What a query process had in memory is there again before its successor is ready."""

import asyncio
import random
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import grpc
import pytest
import structlog
from structlog.testing import capture_logs

from tests.query.fakes import FakeClock, FakeStore
from tests.query.serving import until
from watertower import bootstrap
from watertower.config import QuerySettings, ServiceSettings, load
from watertower.core.model import Metric
from watertower.errors import BackendRefused
from watertower.query.process import QueryProcess
from watertower.query.service import QueryService
from watertower.query.warm import WarmList
from watertower.role import Stopping
from watertower.v1 import reader_pb2 as pb
from watertower.v1 import reader_pb2_grpc

FOLLOWERS = Metric.FOLLOWERS.value
NOW = 1_700_000_000_000_000


class AskingRole:
    """When the process is ready, asks for some entities one after the other, and then tells it to stop."""

    def __init__(self, store: FakeStore, entities: list[str], clock: FakeClock) -> None:
        self.stopping = Stopping()
        self.store, self.entities, self.clock = store, entities, clock
        self.reads_before = 0

    def ready(self, address: str) -> None:
        self.reads_before = len(self.store.reads)
        self.store.open.set()
        self.asking = asyncio.create_task(self.ask(address))

    async def ask(self, address: str) -> None:
        async with grpc.aio.insecure_channel(address) as channel:
            stub: Any = reader_pb2_grpc.EngagementReaderStub(channel)
            for entity in self.entities:
                self.clock.sleep(0.001)
                await stub.GetCounts(pb.GetCountsRequest(entity=entity, metrics=[FOLLOWERS]), timeout=20)
        self.stopping.set()

    def not_ready(self, reason: str) -> None:
        pass


def run(store: FakeStore, path: Path, entities: list[str], **settings: int) -> AskingRole:
    """A process from its start to its end."""
    limits = QuerySettings(**{"warm_entities_max": 3, **settings})  # type: ignore[arg-type]
    clock = FakeClock()
    service = QueryService(store, store, limits, clock, random.Random(0), store.identity.log.partitions)
    role: Any = AskingRole(store, entities, clock)
    warm = WarmList(path, limits.warm_entities_max, structlog.get_logger())
    assert QueryProcess(service, ServiceSettings(read_port=0), limits, ExitStack(), warm).run(role) == 0
    return role  # type: ignore[no-any-return]


def filled(names: str) -> FakeStore:
    store = FakeStore()
    for partition in (0, 1):
        for name in names:
            store.write(name, FOLLOWERS, partition, 7, 3, NOW)
    return store


def test_a_restarted_process_is_ready_with_what_it_last_held(tmp_path: Path) -> None:
    """Those read last, warm_entities_max of them; nobody who asks for them makes it read the store again."""
    store, path = filled("abcde"), tmp_path / "warm"
    first = run(store, path, [*"edcba", "e", "nobody"])
    assert first.reads_before == 0
    store.reads.clear()
    second = run(store, path, [*"abe"])
    assert second.reads_before == 3
    assert sorted(store.reads) == ["a", "b", "e"]
    assert [entry.name for entry in tmp_path.iterdir()] == ["warm"]


def test_a_store_that_is_slow_does_not_hold_up_a_start_for_good(tmp_path: Path) -> None:
    """warm_ms_max: then it is ready all the same."""
    store, path = filled("ab"), tmp_path / "warm"
    run(store, path, ["a"])
    store.reads.clear()
    store.open.clear()
    assert run(store, path, ["a"], warm_ms_max=50, loads_concurrent_max=1).reads_before == 1


def test_rows_that_cannot_be_read_do_not_keep_a_process_from_starting(tmp_path: Path) -> None:
    """Whoever asks for them hears of it; the start goes on."""
    store, path = filled("ab"), tmp_path / "warm"
    run(store, path, ["a"])
    read_entities = store.read_entities

    def damaged(entities: Sequence[str]) -> Any:
        if "a" in entities:
            raise BackendRefused("Corruption: half a record")
        return read_entities(entities)

    store.read_entities = damaged  # type: ignore[method-assign] # to fail
    run(store, path, ["b"])
    assert warm_list(path).read() == ["b", "a"]


def test_a_cold_start_forgets_nothing(tmp_path: Path) -> None:
    """What was remembered stays behind what was read since, as far as there is room."""
    store, path = filled("abcd"), tmp_path / "warm"
    run(store, path, ["b", "a"])
    store.rows.clear()
    run(store, path, [])
    assert warm_list(path).read() == ["a", "b"]
    run(filled("abcd"), path, ["d", "c"], warm_ms_max=1)
    assert warm_list(path).read()[:2] == ["c", "d"]


def test_what_is_in_memory_is_written_down_meanwhile(tmp_path: Path) -> None:
    """Each warm_interval_ms, for a process that is killed writes nothing at its end."""
    store, path = filled("ab"), tmp_path / "warm"

    class WaitingRole(AskingRole):
        async def ask(self, address: str) -> None:
            stop, self.stopping = self.stopping, Stopping()  # the asking is over before it stops
            await super().ask(address)
            await until(lambda: warm_list(path).read() == ["b", "a"])
            self.written = path.read_bytes()
            stop.set()

    limits, clock = QuerySettings(warm_interval_ms=1), FakeClock()
    service = QueryService(store, store, limits, clock, random.Random(0), store.identity.log.partitions)
    role: Any = WaitingRole(store, ["a", "b"], clock)
    assert QueryProcess(service, ServiceSettings(read_port=0), limits, ExitStack(), warm_list(path)).run(role) == 0
    assert role.written


def test_a_stop_during_the_warming_ends_it(tmp_path: Path) -> None:
    """The process does not begin to serve."""
    store, path = filled("ab"), tmp_path / "warm"
    run(store, path, ["a"])
    store.open.clear()
    clock = FakeClock()
    role: Any = AskingRole(store, ["a"], clock)
    limits = QuerySettings(warm_entities_max=3)
    service = QueryService(store, store, limits, clock, random.Random(0), store.identity.log.partitions)
    process = QueryProcess(service, ServiceSettings(read_port=0), limits, ExitStack(), WarmList(path, 3, structlog.get_logger()))

    async def stop_when_it_reads() -> None:
        await until(lambda: store.concurrent == 1)
        role.stopping.set()
        store.open.set()

    start = service.start

    async def start_and_stop() -> None:
        await start()
        role.stopper = asyncio.create_task(stop_when_it_reads())

    service.start = start_and_stop  # type: ignore[method-assign] # to stop in the middle
    assert process.run(role) == 0
    assert not hasattr(role, "asking")


@pytest.mark.parametrize(
    ("options", "at"),
    [
        ({}, "data/query-warm"),
        ({"query_warm_file": "elsewhere"}, "elsewhere"),
        ({"log": "kafka", "store": "cassandra", "query_warm_file": "elsewhere"}, "elsewhere"),
        ({"log": "kafka", "store": "cassandra"}, None),
        ({"query_warm_entities_max": 0}, None),
    ],
)
def test_where_it_is_kept(options: dict[str, Any], at: str | None) -> None:
    """`query_warm_file`; else in the data folder, if there is one; and nowhere where nothing is to be kept."""
    kept = bootstrap._warm_list(load({"data": "data", **options}))
    assert (kept and kept._path) == (at and Path(at))


def warm_list(path: Path) -> WarmList:
    return WarmList(path, 3, structlog.get_logger())


@pytest.mark.parametrize(
    "content",
    [b"", b"something else\na\n", b"watertower entities 1\n\xff\n", b"watertower entities 2\na\n"],
)
def test_a_file_that_is_no_list_is_left_alone_and_said(tmp_path: Path, content: bytes) -> None:
    """The start goes on without."""
    path = tmp_path / "warm"
    path.write_bytes(content)
    with capture_logs() as said:
        assert warm_list(path).read() == []
    assert [line["event"] for line in said] == ["warm_list_unreadable"]


def test_lines_that_are_no_ids_are_left_out(tmp_path: Path) -> None:
    """However long they are; and no more are read than are kept."""
    path = tmp_path / "warm"
    path.write_text("watertower entities 1\n" + "x" * 1_000_000)
    assert all(len(entity) <= 129 for entity in warm_list(path).read())
    path.write_text("watertower entities 1\na\n\nb\x07\nc\n")
    assert warm_list(path).read() == ["a"]
    warm_list(path).write(["a", "é" * 64, "c", "d"])
    assert warm_list(path).read() == ["a", "é" * 64, "c"]


def test_a_folder_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    """And ends nothing."""
    with capture_logs() as said:
        warm_list(tmp_path / "none" / "warm").write(["a"])
        assert warm_list(tmp_path / "none" / "warm").read() == []
    assert [line["event"] for line in said] == ["warm_list_not_written"]
