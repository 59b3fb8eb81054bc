"""What a client gets from a service that waits for positions and has watches."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest

from tests.client.fake import run
from watertower.client import Client, ClientOptions, Metric, Refused
from watertower.testing.service import Service

pytestmark = pytest.mark.slow


@contextlib.asynccontextmanager
async def connected(service: Service, **options: Any) -> AsyncIterator[Client]:
    """A client; the test is skipped where the service has no watches."""
    async with Client(service.write_target, service.read_target, ClientOptions(**options)) as client:
        updates = client.watch(["nobody"])
        try:
            await anext(updates)
        except Refused as error:
            if error.status is grpc.StatusCode.UNIMPLEMENTED:
                pytest.skip("the service has no WatchCounts yet")
            raise
        finally:
            await updates.aclose()
        yield client


def test_a_session_reads_its_writes_at_once(service: Service) -> None:
    """The first answer includes the write: the service has waited for it, and says so. So do edges and lists."""

    async def test() -> None:
        async with connected(service) as client:
            for number in range(50):
                session = client.session()
                await session.follow(f"ann{number}", "bob")
                counts = await session.counts("bob")
                assert (counts.followers, counts.freshness.satisfied) == (number + 1, True)
                session = client.session((await client.like(f"ann{number}", "post")).token)
                assert (await session.list_actors("bob", page_size=1)).freshness.satisfied
                assert (await session.check(f"ann{number}", ["bob"])).active == (True,)

    run(test)


def test_many_sessions_read_their_writes_at_once(service: Service) -> None:
    """A thousand of them together, in shared requests."""

    async def test() -> None:
        async with connected(service) as client:

            async def follow_and_read(number: int) -> tuple[int, bool]:
                session = client.session()
                await session.follow(f"fan{number}", f"star{number % 10}")
                counts = await session.counts(f"fan{number}")
                return counts.following, counts.freshness.satisfied

            assert set(await asyncio.gather(*(follow_and_read(number) for number in range(1_000)))) == {(1, True)}

    run(test)


def test_a_session_is_told_when_the_projector_is_away(service: Service) -> None:
    """The service waits, until its own limit or the deadline, and then answers that it could not: no error."""

    async def test() -> None:
        async with connected(service) as client:
            session = client.session()
            await session.follow("cid", "dan")
            assert (await session.counts("dan")).freshness.satisfied
            service.kill("projector", 19)  # SIGSTOP
            try:
                await session.follow("eve", "dan")
                counts = await session.counts("dan", timeout_s=1.0)
                assert (counts.followers, counts.freshness.satisfied) == (1, False)
                assert not (await session.check("eve", ["dan"], timeout_s=1.0)).freshness.satisfied
            finally:
                service.kill("projector", 18)  # SIGCONT
            assert (await session.counts("dan")).followers == 2

    run(test)


def test_max_staleness_is_satisfied_by_a_service_that_keeps_up(service: Service) -> None:
    """A second is more than it lags behind; a microsecond it cannot promise, and says so."""

    async def test() -> None:
        async with connected(service) as client:
            assert (await client.counts("bob", max_staleness_s=5.0)).freshness.satisfied
            assert not (await client.counts("bob", max_staleness_s=1e-6, timeout_s=1.0)).freshness.satisfied

    run(test)


def test_a_watch_sees_every_follow_in_the_end(service: Service) -> None:
    """Counts rise, never fall, and reach the number of follows; other entities are not sent again."""

    async def test() -> None:
        async with connected(service) as client:
            updates = client.watch(["watched", "quiet"], [Metric.FOLLOWERS])
            first = await anext(updates)
            assert {(counts.entity, counts.followers, counts.known) for counts in first.counts} == {
                ("watched", 0, False),
                ("quiet", 0, False),
            }
            follows = asyncio.gather(*(client.follow(f"w{n}", "watched") for n in range(2_000)))
            seen = [0]
            async with asyncio.timeout(30):
                while seen[-1] < 2_000:
                    update = await anext(updates)
                    assert {counts.entity for counts in update.counts} <= {"watched"}
                    seen += [counts.followers for counts in update.counts]
            assert seen == sorted(seen)
            await follows
            await updates.aclose()

    run(test)


def test_what_is_kept_near_follows_the_service(service: Service) -> None:
    """Read over and over, an entity is answered from memory; a follow shows there by itself, and at once to the session that wrote it."""

    async def test() -> None:
        async with connected(service, near_entities_max=10, near_refresh_ms=50) as client:
            cache: Any = client._transport._near
            async with asyncio.timeout(20):
                while cache._feed is None or "idol" not in cache._feed.counts:
                    await client.counts("idol")
                    await asyncio.sleep(0.01)
                session = client.session()
                await session.follow("fan", "idol")
                assert (await session.counts("idol")).followers == 1
                while cache._feed is None or cache._feed.counts["idol"].followers < 1:
                    await client.counts("idol")
                    await asyncio.sleep(0.01)
            assert (await client.counts("idol")).followers == 1

    run(test)
