"""The role processes of one cluster on real engines, each of which a test may hurt."""

import signal
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType

from tests.calls import several
from tests.commands import options, watertower
from tests.expected import Expected, assert_reader_equals
from watertower.testing.engines import CassandraEngine, KafkaEngine, unique_name
from watertower.testing.service import NotInTime, Service, wait_until

PARTITIONS = 16

READY_S = 120.0
"""Seconds that a role may take to be ready: several start at once, beside engines that start."""

SHARED_S = 120.0
"""Seconds in which the projectors share the partitions anew after one of them came or went."""

QUICK: Mapping[str, object] = {  # a dead or frozen projector is noticed soon
    "kafka_session_timeout_ms": 4_000,
    "kafka_heartbeat_ms": 700,
    "projector_retry_cap_ms": 1_000,
}


class Roles:
    """Projectors, ingests and query processes with topics and a keyspace of their own. Use with `with`: at its end every process is gone,
    and if the test failed, the end of each log is printed.

    `prepare` makes topics and tables, `start` starts everything.
    """

    def __init__(
        self,
        log: KafkaEngine,
        store: CassandraEngine,
        folder: Path,
        *,
        projectors: int = 1,
        ingests: int = 1,
        queries: int = 1,
        settings: Mapping[str, object] | None = None,
    ) -> None:
        """`folder` is where a data folder would be, if one were used. `settings` as in `--set`."""
        name = unique_name("roles")
        copies = min(len(store.nodes), 3)
        self.settings: dict[str, object] = {
            "data": folder,
            "log": "kafka",
            "store": "cassandra",
            "kafka_bootstrap_servers": log.bootstrap_servers,
            "kafka_prefix": name,
            "cassandra_contact_points": store.contact_points,
            "cassandra_local_datacenter": store.local_datacenter,
            "cassandra_keyspace": name,
            "cassandra_replication": f"{store.local_datacenter}:{copies}",
            **QUICK,
            **(settings or {}),
        }
        own = {setting: value for setting, value in self.settings.items() if setting != "data"}
        self.projectors = [Service(folder, "projector", settings=own) for _ in range(projectors)]
        self.ingests = [Service(folder, "ingest", settings=own) for _ in range(ingests)]
        self.queries = [Service(folder, "query", settings=own) for _ in range(queries)]
        self._exit = ExitStack()

    @property
    def all(self) -> list[Service]:
        return [*self.projectors, *self.ingests, *self.queries]

    def __iter__(self) -> Iterator[Service]:
        return iter(self.all)

    @property
    def write_target(self) -> str:
        """All ingests."""
        return several([ingest.write_target for ingest in self.ingests])

    # --- life

    def prepare(self) -> None:
        """Makes the topics and the tables."""
        settings = {name: value for name, value in self.settings.items() if name != "data"}
        for command in (("topics", "create", "--partitions", str(PARTITIONS)), ("migrate",)):
            ran = watertower(*command, *options(settings))
            assert ran.code == 0, ran.err

    def start(self) -> None:
        """Starts all, and waits until all are ready and every partition has its projector."""
        for role in self.all:
            role.start(ready=False)
        self.wait_ready()
        self.wait_shared()

    def wait_ready(self) -> None:
        for role in self.all:
            role.wait_ready(READY_S)

    def stop(self) -> None:
        """Asks all to end, and waits: each must end by itself, and well."""
        for role in self.all:
            role.send(signal.SIGTERM)
        for role in self.all:
            assert role.wait_ended() == 0, role.log_tail()

    # --- who applies what

    def wait_shared(self) -> None:
        """Waits until every partition is one projector's and every projector has some."""

        def shared() -> bool:
            applied = [applied_by(projector) for projector in self.projectors]
            return all(applied) and sorted(p for some in applied for p in some) == list(range(PARTITIONS))

        try:
            wait_until(shared, "the projectors share the partitions", SHARED_S)
        except NotInTime as error:
            found = [sorted(applied_by(projector)) for projector in self.projectors]
            raise NotInTime(f"{error}: they apply {found}") from None

    def wait_taken_over(self, gone: Service) -> None:
        """Waits until the other projectors apply every partition."""

        def taken_over() -> bool:
            others = [applied_by(projector) for projector in self.projectors if projector is not gone]
            return set().union(*others) == set(range(PARTITIONS))

        wait_until(taken_over, "the others have taken the partitions over", SHARED_S)

    # --- what must be, and what must not

    def assert_answers_equal(self, entities: Sequence[str], expected: Expected) -> None:
        """Each query process, which includes everything by its own word, answers what is recounted."""
        for query in self.queries:
            assert_reader_equals(query.read_target, entities, expected)

    def assert_none_ended(self) -> None:
        """Only the test ends roles: nothing that happens to the engines does."""
        for role in self.all:
            assert role.process is not None
            assert role.process.poll() is None, f"{role.command} ended by itself ({role.process.poll()}):\n{role.log_tail()}"

    def assert_nothing_is_wrong(self) -> None:
        """No start of any role said something that must never be, or raised what nobody expected."""
        for role in self.all:
            for name in ("partition_stopped", "refused", "feed_failed"):
                found = role.events(name, every_start=True)
                assert not found, f"{role.command}: {found[:3]}"
            said = role.said(every_start=True)
            for word in ("Exception in thread", "exception was never retrieved"):
                at = said.find(word)
                assert at < 0, f"{role.command}: {said[max(0, at - 500) : at + 3_000]}"

    # --- with

    def __enter__(self) -> "Roles":
        for role in self.all:
            self._exit.enter_context(role)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._exit.__exit__(kind, error, trace)


def applied_by(projector: Service) -> frozenset[int]:
    """The partitions that a projector applies, as it says."""
    applied: set[int] = set()
    for event in projector.events():
        if event["event"] == "partitions_taken_up":
            applied.update(map(int, event["positions"]))
        elif event["event"] == "partitions_let_go":
            applied.difference_update(event["partitions"])
    return frozenset(applied)
