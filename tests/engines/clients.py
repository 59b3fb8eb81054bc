"""The drivers, as these tests use them."""

import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from cassandra import ConsistencyLevel
from cassandra.auth import PlainTextAuthProvider
from cassandra.cluster import EXEC_PROFILE_DEFAULT, Cluster, ExecutionProfile, Session
from cassandra.policies import DCAwareRoundRobinPolicy
from kafka import KafkaConsumer, KafkaProducer, TopicPartition
from kafka.admin import KafkaAdminClient, NewTopic

from watertower.testing.engines import CassandraEngine, KafkaEngine, unique_name

CONNECT_MS = 10_000
ANSWER_S = 60.0


def kafka_access(engine: KafkaEngine, password: str | None = None) -> dict[str, Any]:
    """What every Kafka client is told."""
    access: dict[str, Any] = {"bootstrap_servers": engine.bootstrap_servers.split(","), "bootstrap_timeout_ms": CONNECT_MS}
    if engine.secure:
        access |= {
            "security_protocol": "SASL_SSL",
            "sasl_mechanism": "SCRAM-SHA-512",
            "sasl_plain_username": engine.user,
            "sasl_plain_password": engine.password if password is None else password,
            "ssl_cafile": engine.ca_file,
        }
    return access


def make_topic(engine: KafkaEngine) -> str:
    """A new topic of one partition on all brokers."""
    topic = unique_name("topic")
    admin = KafkaAdminClient(**kafka_access(engine))
    admin.create_topics([NewTopic(topic, num_partitions=1, replication_factor=-1)])
    admin.close()
    return topic


def produce(engine: KafkaEngine, topic: str, values: list[bytes]) -> None:
    """Appends the values; returns when all are acknowledged by all in sync."""
    producer = KafkaProducer(acks="all", **kafka_access(engine))
    for sent in [producer.send(topic, value, partition=0) for value in values]:
        sent.get(ANSWER_S)
    producer.close()


def consume(engine: KafkaEngine, topic: str, count: int) -> list[bytes]:
    """The first so many values of the topic, or fewer when no more come."""
    consumer = KafkaConsumer(
        auto_offset_reset="earliest", enable_auto_commit=False, consumer_timeout_ms=int(ANSWER_S * 1000), **kafka_access(engine)
    )
    consumer.assign([TopicPartition(topic, 0)])
    found: list[bytes] = []
    for record in consumer:
        found.append(record.value)
        if len(found) == count:
            break
    consumer.close()
    return found


@contextmanager
def cassandra_session(engine: CassandraEngine, password: str | None = None) -> Iterator[Session]:
    """A session that reads and writes at quorum."""
    access: dict[str, Any] = {}
    if engine.secure:
        access["ssl_context"] = ssl.create_default_context(cafile=engine.ca_file)
        access["auth_provider"] = PlainTextAuthProvider(engine.user, engine.password if password is None else password)
    profile = ExecutionProfile(
        load_balancing_policy=DCAwareRoundRobinPolicy(engine.local_datacenter),
        consistency_level=ConsistencyLevel.LOCAL_QUORUM,
        request_timeout=ANSWER_S,
    )
    points = [(host, int(port)) for host, port in (point.split(":") for point in engine.contact_points.split(","))]
    # The driver's own limits, 2 and 5 s, are short for a machine that starts JVMs beside it.
    access |= {"control_connection_timeout": ANSWER_S, "connect_timeout": ANSWER_S}
    cluster = Cluster(points, protocol_version=5, execution_profiles={EXEC_PROFILE_DEFAULT: profile}, **access)
    try:
        yield cluster.connect()
    finally:
        cluster.shutdown()


def make_table(session: Session, copies: int) -> str:
    """A new keyspace with a table (id int primary key, word text). Its full name."""
    keyspace = unique_name("keyspace")
    session.execute(f"CREATE KEYSPACE {keyspace} WITH replication = {{'class': 'NetworkTopologyStrategy', 'replication_factor': {copies}}}")
    session.execute(f"CREATE TABLE {keyspace}.words (id int PRIMARY KEY, word text)")
    return f"{keyspace}.words"


def write(session: Session, table: str, first: int, count: int) -> None:
    for number in range(first, first + count):
        session.execute(f"INSERT INTO {table} (id, word) VALUES (%s, %s)", (number, f"word {number}"))


def read_all(session: Session, table: str) -> dict[int, str]:
    return dict(session.execute(f"SELECT id, word FROM {table}"))
