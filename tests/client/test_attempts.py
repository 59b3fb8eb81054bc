"""What a client tells of its attempts."""

import asyncio
from typing import Any

import grpc
import pytest

from tests.client.fake import AWAY, Naps, refused, run, serving
from watertower.client import Attempt, Client, ClientError, ClientOptions, InvalidRequest, SyncClient, Unavailable
from watertower.errors import Reason, Violation


def test_every_attempt_is_told() -> None:
    """Of both servers: method, number, items, and how it ended; a caller sees one call that went well."""
    told: list[Attempt] = []

    async def test() -> None:
        async with serving() as fake:
            fake.on_record = lambda number, request: refused(Reason.QUEUE_FULL, 0.01) if number == 0 else None
            fake.on_read = lambda number, request: AWAY if number == 1 else None
            async with Client(fake.target, fake.target, sleep=Naps(), on_attempt=told.append) as client:
                await asyncio.gather(client.follow("ann", "bob"), client.follow("cid", "bob"))
                await client.counts_many(["ann", "bob", "cid"])
                await client.check("ann", ["bob"])
                await client.list_actors("bob")
                await client.list_subjects("ann")
            assert {attempt.target for attempt in told} == {fake.target}

    run(test)
    assert [(attempt.method, attempt.number, attempt.items, attempt.status.name, attempt.reason) for attempt in told] == [
        ("RecordEvents", 0, 2, "RESOURCE_EXHAUSTED", "QUEUE_FULL"),
        ("RecordEvents", 1, 2, "OK", ""),
        ("BatchGetCounts", 0, 3, "OK", ""),
        ("CheckEdges", 0, 1, "UNAVAILABLE", ""),
        ("CheckEdges", 1, 1, "OK", ""),
        ("ListActors", 0, 1, "OK", ""),
        ("ListSubjects", 0, 1, "OK", ""),
    ]
    assert all(0.0 < attempt.took_s < 10.0 for attempt in told)


def test_an_attempt_that_is_final_is_told() -> None:
    told: list[Attempt] = []

    def refuse(number: int, request: Any) -> Any:
        return refused(Reason.OCCURRED_AT_FUTURE, violations=[Violation("events[0].occurred_at", Reason.OCCURRED_AT_FUTURE)])

    async def test() -> None:
        async with serving() as fake:
            fake.on_record = refuse
            async with Client(fake.target, fake.target, ClientOptions(), on_attempt=told.append) as client:
                with pytest.raises(InvalidRequest):
                    await client.follow("ann", "bob")

    run(test)
    assert [attempt.status for attempt in told] == [grpc.StatusCode.INVALID_ARGUMENT]


def test_threads_have_it_too() -> None:
    """Nothing answers there: told all the same."""
    told: list[Attempt] = []
    client = SyncClient("127.0.0.1:1", "127.0.0.1:1", ClientOptions(attempts_max=1), on_attempt=told.append)
    with client, pytest.raises(Unavailable, match="nothing answers"):
        client.counts("bob")
    assert [(attempt.method, attempt.status) for attempt in told] == [("BatchGetCounts", grpc.StatusCode.UNAVAILABLE)]


def test_a_call_that_found_nobody_says_why() -> None:
    """The retries wait for a connection in vain; what was wrong with it is in the error all the same."""

    async def test() -> None:
        async with Client("127.0.0.1:1", "127.0.0.1:1", ClientOptions()) as client:
            for call in (client.follow("ann", "bob", timeout_s=0.7), client.check("ann", ["bob"], timeout_s=0.7)):
                with pytest.raises(ClientError, match=r"127\.0\.0\.1:1.*[Cc]onnection refused"):
                    await call

    run(test)
