"""What ingest counts of its calls and its log."""

import asyncio
from typing import Any

from tests.ingest.harness import UNAVAILABLE, HeldLog, Ingest, actor_in, follow, refusal, request, serving, until
from watertower.metrics import ingest_samples


def samples(ingest: Ingest) -> dict[tuple[str, ...], Any]:
    """By the name without what all names begin with, and the labels."""
    found = ingest_samples(ingest.service)
    return {(name.removeprefix("watertower_").removeprefix("ingest_"), *labels): value for name, labels, value in found}


def test_events_count_when_they_are_acknowledged_and_records_when_they_are_durable() -> None:
    """Not before: what waits is in the queue."""

    async def run() -> None:
        log = HeldLog(held=True)
        async with serving(log) as ingest:
            call = asyncio.ensure_future(ingest.stub.RecordEvents(request(*(follow(actor_in(n % 2, skip=n)) for n in range(4)))))
            await until(lambda: len(log.records) == 2)
            seen = samples(ingest)
            assert (seen["events_acknowledged_total",], seen["records_appended_total",]) == (0, 0)
            assert (seen["queue_events",], seen["calls_under_way",]) == (4, 1)
            assert seen["queue_bytes",] > 0
            for record in log.records:
                record.land()
            await call
            seen = samples(ingest)
            assert (seen["events_acknowledged_total",], seen["records_appended_total",]) == (4, 2)
            assert (seen["queue_events",], seen["queue_bytes",]) == (0, 0)
            assert seen["appended_bytes_total",] > 4 * len("actor-0star")
            assert sum(seen["append_duration_seconds",].counts) == 2
            assert seen["append_duration_seconds",].sum_s > 0
            assert seen["calls_total", "RecordEvents", "OK"] == 1

    asyncio.run(run())


def test_what_the_log_does_not_take_is_a_failure() -> None:
    """Refused at once, or later; the call is refused and nothing is acknowledged."""

    async def run() -> None:
        log = HeldLog(held=True)
        async with serving(log) as ingest:
            log.broken = UNAVAILABLE
            assert (await refusal(ingest.stub.RecordEvents(request(follow())))).info.reason == "LOG_UNAVAILABLE"
            log.broken = None
            call = asyncio.ensure_future(refusal(ingest.stub.RecordEvents(request(follow()))))
            await until(lambda: len(log.records) == 1)
            log.records[0].future.set_exception(UNAVAILABLE)
            await call
            seen = samples(ingest)
            assert seen["append_failures_total",] == 2
            assert (seen["events_acknowledged_total",], seen["records_appended_total",]) == (0, 0)
            assert seen["calls_refused_total", "LOG_UNAVAILABLE"] == 2
            assert seen["calls_total", "RecordEvents", "UNAVAILABLE"] == 2

    asyncio.run(run())
