"""The main job on Kafka and Cassandra: the same counts and lists as on the embedded back ends."""

from pathlib import Path

import pytest

from tests.engines.roles import Roles
from tests.main_job import Job, do_it, the_file, written
from watertower.testing.engines import CassandraEngine, KafkaEngine

# The rows are recounted in this process, and what Cassandra's driver leaves open the collector closes.
pytestmark = pytest.mark.filterwarnings("ignore:Exception ignored in. <socket.socket:pytest.PytestUnraisableExceptionWarning")

SLICE_ROWS = 20_000
"""Rows of the file, each two follows, that every run counts; `make storm` counts all."""


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_slice_is_counted_exactly(kafka_engine: KafkaEngine, cassandra_engine: CassandraEngine, tmp_path: Path) -> None:
    """Twice over, and after removals."""
    count(kafka_engine, cassandra_engine, tmp_path, SLICE_ROWS)


@pytest.mark.storm
@pytest.mark.timeout(3_600)
def test_the_whole_file_is_counted_exactly(own_kafka: KafkaEngine, own_cassandra: CassandraEngine, tmp_path: Path) -> None:
    """578,006 follows."""
    count(own_kafka, own_cassandra, tmp_path, None)


def count(log: KafkaEngine, store: CassandraEngine, folder: Path, rows_max: int | None) -> None:
    file, rows = the_file()
    if rows_max is not None:
        rows = rows[:rows_max]
        file = written(rows, folder / "slice.csv")
    with Roles(log, store, folder / "data", projectors=2) as roles:
        roles.prepare()
        roles.start()
        settings = {name: value for name, value in roles.settings.items() if name != "data"}
        job = Job(settings, roles.ingests[0].write_target, roles.queries[0].read_target, folder, file, rows)
        do_it(job, removed_rows=min(5_000, len(rows) // 10))
        roles.assert_none_ended()
        roles.assert_nothing_is_wrong()
