"""Real Kafka and real Cassandra for tests and benchmarks, started by one line.

    with kafka() as log, cassandra(nodes=3) as store:
        KafkaProducer(bootstrap_servers=log.bootstrap_servers)
        store.nodes[0].kill()

Three providers are tried in this order; WATERTOWER_TEST_ENGINES=addresses|containers|jvm allows one only:

- addresses: WATERTOWER_TEST_KAFKA and WATERTOWER_TEST_CASSANDRA name engines that run (addresses.py);
- containers: one plain node of the official image, where a Docker engine answers;
- jvm: processes of this machine from Maven Central's jars (Java 17, Maven): also several nodes, and secure ones.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TypeVar

from watertower.testing.engines import addresses, containers, jvm_cassandra, jvm_kafka
from watertower.testing.engines.engine import (
    CassandraEngine,
    Engine,
    EngineFailed,
    EngineUnavailable,
    KafkaEngine,
    Node,
    NodeNotControllable,
    Provider,
    Request,
    unique_name,
)

__all__ = [
    "CassandraEngine",
    "Engine",
    "EngineFailed",
    "EngineUnavailable",
    "KafkaEngine",
    "Node",
    "NodeNotControllable",
    "Provider",
    "cassandra",
    "kafka",
    "unique_name",
]

FORCE = "WATERTOWER_TEST_ENGINES"


_E = TypeVar("_E", bound=Engine)
_Ways = dict[Provider, tuple[Callable[[Request], str], Callable[[Request], AbstractContextManager[_E]]]]
"""Per provider, in the order in which they are tried: what says why it cannot, and what starts."""

_KAFKA: _Ways[KafkaEngine] = {
    "addresses": (addresses.why_not, addresses.kafka),
    "containers": (containers.why_not, containers.kafka),
    "jvm": (jvm_kafka.why_not, jvm_kafka.kafka),
}
_CASSANDRA: _Ways[CassandraEngine] = {
    "addresses": (addresses.why_not, addresses.cassandra),
    "containers": (containers.why_not, containers.cassandra),
    "jvm": (jvm_cassandra.why_not, jvm_cassandra.cassandra),
}


@contextmanager
def kafka(nodes: int = 1, *, secure: bool = False, own: bool = False, host: str = "") -> Iterator[KafkaEngine]:
    """Kafka with so many brokers; from three on with replication factor 3 and two in sync. Ready; gone at the end.

    `secure`: SASL_SSL with SCRAM-SHA-512. `own`: nobody else's, so that its nodes may be killed. `host`: an address of this machine at
    which others than its own processes reach it; one node. Raises EngineUnavailable, EngineFailed.
    """
    with _start(_KAFKA, Request("kafka", nodes, secure, own, host)) as engine:
        yield engine


@contextmanager
def cassandra(nodes: int = 1, *, secure: bool = False, own: bool = False, host: str = "") -> Iterator[CassandraEngine]:
    """Cassandra with so many nodes. Ready; gone at the end.

    `secure`: TLS only, and a password. `own`: nobody else's, so that its nodes may be killed. `host`: an address of this machine at
    which others than its own processes reach it; one node. Raises EngineUnavailable, EngineFailed.
    """
    with _start(_CASSANDRA, Request("cassandra", nodes, secure, own, host)) as engine:
        yield engine


def _start(ways: "_Ways[_E]", request: Request) -> AbstractContextManager[_E]:
    forced = os.environ.get(FORCE, "")
    if forced and forced not in ways:
        raise EngineUnavailable(f"{FORCE}={forced} is not one of {', '.join(ways)}")
    reasons = []
    for provider, (why_not, start) in ways.items():
        if forced in ("", provider):
            reason = why_not(request)
            if not reason:
                return start(request)
            reasons.append(f"{provider}: {reason}")
    only = f" (and {FORCE}={forced} allows no other)" if forced else ""
    raise EngineUnavailable(f"no {request.engine} for this test{only}; " + "; ".join(reasons))
