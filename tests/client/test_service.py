"""The client on a real embedded service: ingest, projector and query as processes."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from tests.client.fake import run
from watertower.client import Client, ClientOptions, Counts, Event, InvalidRequest, Kind, Session, SyncClient
from watertower.core.positions import decode_position
from watertower.testing.service import Service

pytestmark = pytest.mark.slow


@asynccontextmanager
async def connected(service: Service, **options: Any) -> AsyncIterator[Client]:
    async with Client(service.write_target, service.read_target, ClientOptions(**options)) as client:
        yield client


async def satisfied(session: Session, entity: str) -> Counts:
    """The session's first answer that includes what it wrote."""
    async with asyncio.timeout(20):
        while True:
            counts = await session.counts(entity)
            if counts.freshness.satisfied:
                return counts
            await asyncio.sleep(0.01)


def test_a_follow_is_read_by_its_session(service: Service) -> None:
    """Whatever says that it is satisfied includes the write; so do edges and lists after it."""

    async def test() -> None:
        async with connected(service) as client:
            for number in range(20):
                session = client.session()
                await session.follow(f"ann{number}", "bob")
                assert (await satisfied(session, "bob")).followers == number + 1
                assert (await session.check(f"ann{number}", ["bob", "cid"])).active == (True, False)
                assert (await session.list_actors("bob")).items[0].id == f"ann{number}"
            await session.unfollow("ann0", "bob")
            assert (await satisfied(session, "bob")).followers == 19

    run(test)


def test_ten_thousand_follows_at_once_are_counted_exactly(service: Service) -> None:
    """In batches, with repeats and unfollows among them; every caller is acknowledged."""

    async def test() -> None:
        async with connected(service, timeout_ms=60_000, attempt_timeout_ms=20_000) as client:
            session = client.session()
            written = await asyncio.gather(*(session.follow(f"fan{n}", "star") for n in range(10_000)))
            again = [session.follow(f"fan{n}", "star", occurred_at=written[n].occurred_at[0]) for n in range(0, 10_000, 10)]
            gone = [session.unfollow(f"fan{n}", "star") for n in range(0, 10_000, 7)]
            await asyncio.gather(*again, *gone)
            left = 10_000 - len(range(0, 10_000, 7))
            assert (await satisfied(session, "star")).followers == left
            fans = await session.counts_many([f"fan{n}" for n in range(10_000)])
            assert sum(fan.following for fan in fans) == left

    run(test)


def test_ten_thousand_callers_need_few_requests(service: Service) -> None:
    """Acknowledged in few enough requests: the write tokens show how many records the log has of them."""

    async def test() -> None:
        async with connected(service, timeout_ms=60_000, attempt_timeout_ms=20_000) as client:
            written = await asyncio.gather(*(client.follow(f"g{n}", "idol") for n in range(10_000)))
            tokens = {one.token for one in written}
            assert len(tokens) <= 10  # the service may have put several requests in one record
            assert all(decode_position(token).offsets for token in tokens)

    run(test)


def test_one_clock_ahead_fails_alone(service: Service) -> None:
    """The service refuses the batch for one event, and its caller alone hears of it."""

    async def test() -> None:
        async with connected(service) as client:
            session = client.session()
            ahead = (await session.follow("now", "eve")).occurred_at[0].replace(year=2199)
            results = await asyncio.gather(
                *(session.follow(f"f{n}", "eve", occurred_at=ahead if n == 50 else None) for n in range(100)), return_exceptions=True
            )
            refused = [result for result in results if isinstance(result, BaseException)]
            assert [type(error) for error in refused] == [InvalidRequest]
            assert isinstance(results[50], InvalidRequest)
            assert [v.reason for v in results[50].violations] == ["OCCURRED_AT_FUTURE"]
            assert (await satisfied(session, "eve")).followers == 100

    run(test)


def test_a_restart_is_not_noticed_by_callers(service: Service) -> None:
    """Ingest is killed while follows are on their way: each is acknowledged after retries, and counts once."""

    async def test() -> None:
        async with connected(service, timeout_ms=60_000, attempt_timeout_ms=30_000, batch_items_max=20) as client:
            session = client.session()
            calls = [asyncio.create_task(session.follow(f"r{n}", "rita")) for n in range(2_000)]
            await calls[0]
            assert service.kill("ingest")
            await asyncio.gather(*calls)
            assert (await satisfied(session, "rita")).followers == 2_000

    run(test)


def test_threads(service: Service) -> None:
    """The client for threads does the same."""
    with SyncClient(service.write_target, service.read_target, ClientOptions(timeout_ms=60_000)) as client:
        session = client.session()
        session.record_many([Event(f"t{n}", Kind.LIKE, "post") for n in range(2_500)])
        while not (counts := session.counts("post")).freshness.satisfied:
            pass  # the service lags behind for some milliseconds
        assert counts.likes == 2_500
