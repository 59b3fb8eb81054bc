"""Backups of a cluster, by Cassandra's own tools: with the commands of docs/cluster.md while events are written, and table by table with
events in between, in the right order and in a wrong one."""

import os
import random
import shlex
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest
from kafka import TopicPartition
from kafka.admin import KafkaAdminClient

from tests.calls import follow, record, wait_visible, writing
from tests.commands import options, watertower
from tests.docs.pages import CLUSTER_BACKUP, block_of
from tests.engines.clients import cassandra_session, kafka_access
from tests.engines.roles import READY_S, Roles
from tests.expected import Expected, assert_store_equals
from tests.needs import skip_or_fail
from tests.traffic import Writers
from watertower.testing.engines import CassandraEngine, KafkaEngine
from watertower.testing.engines.jvm_cassandra import CassandraNode
from watertower.testing.service import wait_until

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(600),
    # The rows are recounted in this process, and what Cassandra's driver leaves open the collector closes.
    pytest.mark.filterwarnings("ignore:Exception ignored in. <socket.socket:pytest.PytestUnraisableExceptionWarning"),
]

TAKE, RESTORE = (block_of(*place).text for place in CLUSTER_BACKUP)
IN_ORDER = ("progress", "edges", "counts", "lists")
COMMAND_S = 240.0
APPLIED_S = 120.0


class Terminal:
    """A shell on the node's machine: `nodetool` and `watertower` are on the path, settings in the environment."""

    def __init__(self, roles: Roles, node: CassandraNode, folder: Path) -> None:
        self.roles, self._node = roles, node
        self.keyspace = str(roles.settings["cassandra_keyspace"])
        tools = folder / "tools"
        tools.mkdir()
        for name, command in (("nodetool", node.nodetool), ("watertower", [sys.executable, "-m", "watertower"])):
            tool = tools / name
            tool.write_text(f'#!/bin/sh\nexec {shlex.join(command)} "$@"\n')
            tool.chmod(0o700)
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("WATERTOWER_")}
        self._environment = {
            **inherited,
            **{f"WATERTOWER_{name.upper()}": str(value) for name, value in roles.settings.items()},
            "PATH": f"{tools}:{os.environ['PATH']}",
            "BACKUP": str(folder / "backup"),
            "CASSANDRA_DATA": str(node.data),
            "HOME": str(folder),  # nodetool keeps a history there
        }

    def run(self, commands: str) -> None:
        """To their end, which must be a good one."""
        done = subprocess.run(
            ["bash", "-eu", "-o", "pipefail", "-c", commands],
            env=self._environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=COMMAND_S,
            check=False,
        )
        assert done.returncode == 0, f"{commands}\n{done.stdout}{done.stderr}\n{self._node.log_tail()}"

    def take(self, table: str) -> None:
        """A backup of one table alone: the commands of the page, but for the others."""
        self.run(TAKE.replace(" ".join(IN_ORDER), table))

    def restore(self, store: CassandraEngine) -> None:
        """The tables are lost; then the commands of the page."""
        with cassandra_session(store) as session:
            session.execute(f"DROP KEYSPACE {self.keyspace}")
        self.run(RESTORE)


@contextmanager
def running(log: KafkaEngine, store: CassandraEngine, folder: Path) -> Iterator[tuple[Roles, Terminal]]:
    """One process of each role, and a terminal on the one node."""
    node = store.nodes[0]
    if not isinstance(node, CassandraNode):
        skip_or_fail(f"the files of a node of provider {store.provider} are out of reach")
    with Roles(log, store, folder / "data") as roles:
        roles.prepare()
        roles.start()
        yield roles, Terminal(roles, node, folder)


def applied(roles: Roles, expected: Expected) -> None:
    """Waits until everything is counted."""
    wait_visible(roles.queries[0].read_target, expected.ends, APPLIED_S)


def test_the_commands_of_the_page_while_events_are_written(
    own_kafka: KafkaEngine, own_cassandra: CassandraEngine, tmp_path: Path, rng: random.Random
) -> None:
    """A backup is made while events are written and applied; then the tables are lost. What the backup has, and what Kafka has since its
    progress, is every acknowledged event, counted once."""
    with running(own_kafka, own_cassandra, tmp_path) as (roles, terminal):
        with Writers(roles.write_target, 2, rng) as writers:
            wait_until(partial(writers.acknowledged_more_than, 2_000), "events are acknowledged", APPLIED_S)
            before = writers.acknowledged
            terminal.run(TAKE)
            during = writers.acknowledged - before
            wait_until(partial(writers.acknowledged_more_than, before + during + 1_000), "events are acknowledged", APPLIED_S)
            expected = writers.finish()
        applied(roles, expected)
        assert during > 0, "nothing was written while the backup was made"
        roles.stop()
        terminal.restore(own_cassandra)
        roles.start()
        applied(roles, expected)
        roles.assert_answers_equal(["s0", "s1", "a0", "a1"], expected)
        roles.stop()
        roles.assert_nothing_is_wrong()
        assert_store_equals(roles.settings, expected)


class Story:
    """Events of a few accounts, recorded in chapters; each one moves, removes and adds edges of the chapters before."""

    def __init__(self, roles: Roles) -> None:
        self._roles, self.expected, self._chapter = roles, Expected(), 0

    def go_on(self) -> None:
        """One more chapter, counted when it returns."""
        events = [follow(f"{self._chapter}-{n}", "star") for n in range(40)]
        if self._chapter:
            events += [follow(f"{self._chapter - 1}-{n}", "star", active=False) for n in range(10)]
            events += [follow(f"{self._chapter - 1}-{n}", f"{self._chapter}-{n}") for n in range(20)]
        self._chapter += 1
        with writing(self._roles.write_target) as stub:
            self.expected.take(events, record(stub, events, timeout_s=30.0))
        applied(self._roles, self.expected)


def test_events_between_the_tables(own_kafka: KafkaEngine, own_cassandra: CassandraEngine, tmp_path: Path) -> None:
    """Between any two tables, and after the last one, more is counted: in the order progress, edges, derived rows a replay heals that,
    whichever chapter a table is of. Where Kafka does not have all of the replay any more, the projector refuses to start."""
    with running(own_kafka, own_cassandra, tmp_path) as (roles, terminal):
        story = Story(roles)
        for table in IN_ORDER:
            story.go_on()
            terminal.take(table)
        story.go_on()
        roles.stop()
        terminal.restore(own_cassandra)
        assert _audited(roles) != 0, "the tables are of one moment: nothing is shown"
        roles.start()
        applied(roles, story.expected)
        story.go_on()
        roles.stop()
        roles.assert_nothing_is_wrong()
        assert_store_equals(roles.settings, story.expected)

        terminal.restore(own_cassandra)
        _drop_records(own_kafka, str(roles.settings["kafka_prefix"]), story.expected.ends)
        (projector,) = roles.projectors
        projector.start(ready=False)
        assert projector.wait_ended(READY_S) == 3
        assert "what lies between is lost" in projector.log_tail()


@pytest.mark.storm
def test_a_backup_in_another_order_is_none(own_kafka: KafkaEngine, own_cassandra: CassandraEngine, tmp_path: Path) -> None:
    """Derived rows first and progress last: the projector believes counted what the rows lack. The audit shows it, and the first event on
    such an edge stops its partition."""
    with running(own_kafka, own_cassandra, tmp_path) as (roles, terminal):
        story = Story(roles)
        for table in reversed(IN_ORDER):
            story.go_on()
            terminal.take(table)
        roles.stop()
        terminal.restore(own_cassandra)
        roles.start()
        applied(roles, story.expected)  # it says so
        assert _audited(roles) == 1
        with writing(roles.write_target) as stub:  # what the third chapter added is among the edges, and not in the counts
            record(stub, [follow(f"2-{n}", "star", active=False) for n in range(20, 40)], timeout_s=30.0)
        (projector,) = roles.projectors
        stopped = partial(projector.events, "partition_stopped")
        wait_until(stopped, "a partition is stopped", APPLIED_S)


def _audited(roles: Roles) -> int:
    """The exit code of the audit."""
    return watertower("audit", *options(roles.settings)).code


def _drop_records(log: KafkaEngine, prefix: str, ends: dict[int, int]) -> None:
    """All but the last record of each partition."""
    admin = KafkaAdminClient(**kafka_access(log))
    admin.delete_records({TopicPartition(f"{prefix}.events", partition): end for partition, end in ends.items() if end > 0})
    admin.close()
