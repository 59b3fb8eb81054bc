"""The service that the programs of other languages call."""

from collections.abc import Iterator

import pytest

from tests.calls import Event, follow, read_counts, reading, record, writing
from watertower.testing.service import Service, wait_until
from watertower.v1 import common_pb2, reader_pb2

FOLLOWERS = 3
"""Of bob, once ann follows: two pages of the programs' size."""

_EARLIER_US = 1_714_564_800_000_000


@pytest.fixture(scope="package")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """The embedded service. cid and dan have followed bob on 2024-05-01; ann is the programs' to follow."""
    with Service(tmp_path_factory.mktemp("languages") / "data") as running:
        running.start()
        with writing(running.write_target) as stub:
            earlier: list[Event] = [
                follow(actor, "bob")._replace(occurred_at=_EARLIER_US + n * 1_000_000) for n, actor in enumerate(("cid", "dan"))
            ]
            record(stub, earlier)
        wait_followers(running, FOLLOWERS - 1)
        yield running


def wait_followers(running: Service, wanted: int) -> None:
    """Waits until the service counts so many followers of bob, at least."""
    with reading(running.read_target) as stub:
        wait_until(lambda: read_counts(stub, ["bob"])[0][0]["followers"] >= wanted, f"bob has {wanted} followers")


def waits_for_positions(running: Service) -> bool:
    """Whether the service knows min_position. One that does says `satisfied` to a request that asks for nothing."""
    with reading(running.read_target) as stub:
        answer = stub.GetCounts(reader_pb2.GetCountsRequest(entity="bob", metrics=[common_pb2.METRIC_FOLLOWERS]), timeout=5.0)
    return bool(answer.freshness.satisfied)
