"""Records in the log's topic that no ingest can have written, on a Kafka broker."""

import json

import pytest
from kafka import KafkaProducer

from tests.commands import options, watertower
from tests.contract.kafka_harnesses import CLOCK, KafkaLogHarness, new_settings
from watertower.backends.kafka_dead_letters import REASON_CHARACTERS_MAX, dead_letters
from watertower.testing.contract_log import WAIT_S, read_all
from watertower.testing.engines import KafkaEngine

pytestmark = pytest.mark.slow


def test_what_is_set_aside_is_kept_as_it_lay(kafka_engine: KafkaEngine) -> None:
    """With its place, its moment and the reason, bounded; `watertower dlq` lists it, and replays nothing that cannot be read."""
    settings = new_settings(kafka_engine)
    log = KafkaLogHarness(settings)
    assert list(dead_letters(settings, CLOCK)) == []
    other = KafkaProducer(bootstrap_servers=settings.bootstrap_servers)
    for payload in (b"{}", b"x" * 100):
        other.send(settings.log_topic, payload, partition=3).get(WAIT_S)
    other.close()
    found = read_all(log.reader(), {3: -1})
    for record in found:
        log.reader().set_aside(record, "r" * 1_000)
    letters = list(dead_letters(settings, CLOCK))
    assert [letter.record for letter in letters] == found
    assert {letter.reason for letter in letters} == {"r" * REASON_CHARACTERS_MAX}

    given = {"log": "kafka", "store": "cassandra", "kafka_bootstrap_servers": settings.bootstrap_servers, "kafka_prefix": settings.prefix}
    listed = watertower("dlq", "list", "--json", *options(given))
    assert listed.code == 0, listed.err
    rows = [json.loads(line) for line in listed.out.splitlines()]
    assert [(row["partition"], row["offset"], row["bytes"]) for row in rows] == [(3, 0, 2), (3, 1, 100)]
    replayed = watertower("dlq", "replay", "--json", *options(given))
    assert (replayed.code, json.loads(replayed.out)) == (0, {"appended": 0, "left": 2})
    log.close()
