"""Callers that misbehave, against real processes: the good ones are served meanwhile, and memory stays within bounds. benchmarks/abuse.py
measures the same at full size."""

import asyncio
import contextlib
from pathlib import Path

import grpc
import pytest

from tests.calls import METRICS, follow, read_counts, reading, record, wait_visible, writing
from watertower.testing.abuse import SILENT_EVERY, Abusers, abusing
from watertower.testing.service import Service
from watertower.v1 import reader_pb2, reader_pb2_grpc, writer_pb2

GROWTH_BYTES_MAX = 256 * 2**20
"""What a process may take more than before, while it is abused."""

ABUSES = ("connection_reset", "stream_resets", "slow_reader", "oversized", "half_sent", "garbage")
PATHS = {"query": "/watertower.v1.EngagementReader/BatchGetCounts", "ingest": "/watertower.v1.EngagementWriter/RecordEvents"}
READ = reader_pb2.GetCountsRequest(entity="star", metrics=["METRIC_FOLLOWERS"])


def resident_bytes(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) * 1024


def bulk(role: str) -> bytes:
    """A large valid request."""
    if role == "query":
        entities = [f"nobody-{number}" for number in range(200)]
        return reader_pb2.BatchGetCountsRequest(entities=entities, metrics=[f"METRIC_{m.upper()}" for m in METRICS]).SerializeToString()
    events = [follow(f"fan-{number}", "crowd").message() for number in range(200)]
    return writer_pb2.RecordEventsRequest(events=events).SerializeToString()


async def good_calls(target: str, seconds: float) -> int:
    """A read every 20 ms, one attempt each; how many there were. Raises what one fails with."""
    calls, loop = 0, asyncio.get_running_loop()
    end = loop.time() + seconds
    async with grpc.aio.insecure_channel(target, options=[("grpc.enable_retries", 0)]) as channel:
        stub = reader_pb2_grpc.EngagementReaderStub(channel)
        while loop.time() < end:
            answer = await stub.GetCounts(READ, timeout=5.0)
            assert list(answer.values) == [1]
            calls += 1
            await asyncio.sleep(0.02)
    return calls


@pytest.mark.slow
def test_reads_are_served_while_others_misbehave(tmp_path: Path) -> None:
    """One abuse after the other, each by four abusers of query and four of ingest: every read of a good caller is answered, both processes
    live, and neither grows by more than a bound."""
    with Service(tmp_path / "data") as service:
        service.start()
        with writing(service.write_target) as writer:
            wait_visible(service.read_target, record(writer, [follow("ann", "star")]).offsets)
        before = {role: resident_bytes(service.pids()[role]) for role in PATHS}
        for abuse in ABUSES:
            with (
                abusing(service.read_target, PATHS["query"], bulk("query"), [abuse] * 4) as of_query,
                abusing(service.write_target, PATHS["ingest"], bulk("ingest"), [abuse] * 4) as of_ingest,
            ):
                calls = asyncio.run(good_calls(service.read_target, 4.0))
                grown = {role: resident_bytes(service.pids()[role]) - before[role] for role in PATHS}
            print(f"{abuse}: {calls} good calls; query {of_query}, ingest {of_ingest}; grown by {grown} bytes")
            assert calls > 20
            assert of_query.get(abuse)
            assert of_ingest.get(abuse)
            assert max(grown.values()) < GROWTH_BYTES_MAX
        with writing(service.write_target) as writer:
            wait_visible(service.read_target, record(writer, [follow("bob", "star")]).offsets)
        with reading(service.read_target) as reader:
            assert read_counts(reader, ["star"])[0][0]["followers"] == 2
        assert service.events("role_died") == []
        assert service.stop() == 0


@pytest.mark.slow
def test_idle_connections_hold_up_nobody_and_end(tmp_path: Path) -> None:
    """500 connections that do nothing, some of them not even the beginning of HTTP/2: reads are served meanwhile, those that said nothing
    are closed after `handshake_ms_max`, and above `connections_max` further ones are closed as they come."""
    settings = {"query_handshake_ms_max": 2_000, "query_connections_max": 520, "query_listeners_max": 1}  # chance spreads them over several
    with Service(tmp_path / "data", settings=settings) as service:
        service.start()
        with writing(service.write_target) as writer:
            wait_visible(service.read_target, record(writer, [follow("ann", "star")]).offsets)
        pid = service.pids()["query"]
        before = resident_bytes(pid)

        async def scenario() -> None:
            abusers = Abusers(service.read_target, PATHS["query"], b"")
            good = asyncio.create_task(good_calls(service.read_target, 5.0))
            await asyncio.sleep(0.1)
            opened = await abusers.idle(500)
            with contextlib.ExitStack() as stack:
                for connection in opened:
                    stack.enter_context(connection)
                grown = resident_bytes(pid) - before
                for connection in await abusers.idle(100):
                    opened.append(stack.enter_context(connection))
                assert await good > 50
                ended = await asyncio.gather(*(_ended(connection) for connection in opened))
            first, surplus = ended[:500], ended[500:]
            silent = first[SILENT_EVERY - 1 :: SILENT_EVERY]
            greeted = [end for number, end in enumerate(first, 1) if number % SILENT_EVERY]
            print(f"500 idle connections: {grown >> 20} MiB")
            assert all(silent)
            assert not any(greeted)
            assert sum(surplus) > 50
            assert grown < GROWTH_BYTES_MAX

        asyncio.run(scenario())
        assert service.stop() == 0


async def _ended(connection: object) -> bool:
    """Whether the other side has closed it."""
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(1.0):
            while await loop.sock_recv(connection, 65_536):  # type: ignore[arg-type]
                pass
    except TimeoutError:
        return False
    except OSError:
        return True
    return True
