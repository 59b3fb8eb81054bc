"""The recount of a service that is gone before it has ended."""

import asyncio
import random
from types import SimpleNamespace
from typing import Any

import pytest

from tests.load.test_report import reported
from watertower.client import ClientError
from watertower.clock import SystemClock
from watertower.load.measure import Recorder
from watertower.load.recount import Ledger, Recount
from watertower.load.report import recounted
from watertower.load.schedule import Names, Phase

GONE = "no connection to r:1"


class Gone:
    """A client, and its session, that answers so many calls and no more."""

    def __init__(self, answers: list[Any]) -> None:
        self.answers = answers

    def session(self, token: bytes) -> "Gone":
        return self

    async def counts(self, *_: object) -> Any:
        if not self.answers:
            raise ClientError(GONE)
        return self.answers.pop()


@pytest.mark.parametrize("answers", [0, 1], ids=["before it has begun", "in the middle"])
def test_a_service_that_is_gone_is_not_exact_and_has_a_report(answers: int) -> None:
    """What was measured until then must not be lost with it."""
    client: Any = Gone([SimpleNamespace(freshness=SimpleNamespace(satisfied=True))] * answers)
    names, ledger = Names("run"), Ledger(1_700_000_000_000_000)
    ledger.acknowledged(0, "star", b"")
    found = asyncio.run(Recount(client, ledger, names, SystemClock()).run("star", random.Random(7), 0.0))
    assert (found["exact"], found["differences"], found["acknowledged"], found["listed_all"]) == (False, 1, 1, False)
    assert found["examples"] == [f"the recount ended: {GONE}"]
    assert recounted(found).startswith("NOT EXACT: 1 follows acknowledged, 0 lost")
    report = reported(Recorder((Phase("before", 0.0, 5.0), Phase("surge", 5.0, 10.0))), recount=found)
    assert (report["verdict"], report["exact"]) == ("not exact", False)
