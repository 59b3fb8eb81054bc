"""Engines start by one line, do real work, keep their data when a node is killed, and keep strangers out."""

import pytest
from cassandra.cluster import NoHostAvailable
from kafka import KafkaProducer
from kafka.errors import KafkaError

from tests.engines.clients import cassandra_session, consume, kafka_access, make_table, make_topic, produce, read_all, write
from watertower.testing.engines import CassandraEngine, KafkaEngine, cassandra, kafka
from watertower.testing.engines.fixtures import engine_or_skip

VALUES = [b"first", b"second", b"third"]


@pytest.mark.slow
def test_kafka_takes_and_gives_records(kafka_engine: KafkaEngine) -> None:
    """The shared broker answers a real producer and a real consumer."""
    topic = make_topic(kafka_engine)
    produce(kafka_engine, topic, VALUES)
    assert consume(kafka_engine, topic, len(VALUES)) == VALUES


@pytest.mark.slow
def test_cassandra_takes_and_gives_rows(cassandra_engine: CassandraEngine) -> None:
    """The shared node answers a real session."""
    with cassandra_session(cassandra_engine) as session:
        table = make_table(session, copies=1)
        write(session, table, 0, 3)
        assert read_all(session, table) == {0: "word 0", 1: "word 1", 2: "word 2"}


@pytest.mark.slow
def test_a_killed_broker_comes_back_with_its_records() -> None:
    """Three brokers: one is killed, writes go on, it starts again; then every record is there. A clean stop and a pause work, too."""
    with engine_or_skip(kafka(nodes=3, own=True)) as engine:
        topic = make_topic(engine)
        produce(engine, topic, VALUES)
        engine.nodes[0].kill()
        produce(engine, topic, VALUES)
        engine.nodes[0].start()
        engine.nodes[1].stop()
        produce(engine, topic, VALUES)
        engine.nodes[1].start()
        engine.nodes[2].pause()
        produce(engine, topic, VALUES)
        engine.nodes[2].resume()
        assert consume(engine, topic, 4 * len(VALUES)) == 4 * VALUES


@pytest.mark.slow
def test_a_killed_node_comes_back_with_its_rows() -> None:
    """Three nodes: one is killed, quorum writes go on, it starts again; then every row is there. A clean stop and a pause work, too."""
    with engine_or_skip(cassandra(nodes=3, own=True)) as engine:
        with cassandra_session(engine) as session:
            assert {host.address for host in session.hosts} == {"127.0.0.1", "127.0.0.2", "127.0.0.3"}
            table = make_table(session, copies=3)
            write(session, table, 0, 10)
            engine.nodes[0].kill()
            write(session, table, 10, 10)
            engine.nodes[0].start()
            engine.nodes[1].stop()
            write(session, table, 20, 10)
            engine.nodes[1].start()
            engine.nodes[2].pause()
            write(session, table, 30, 10)
            engine.nodes[2].resume()
        with cassandra_session(engine) as session:
            assert read_all(session, table) == {number: f"word {number}" for number in range(40)}


@pytest.mark.slow
def test_a_single_node_keeps_its_data() -> None:
    """What one broker and one node acknowledged is there after they were killed and started again."""
    with engine_or_skip(kafka(own=True)) as log, engine_or_skip(cassandra(own=True)) as store:
        topic = make_topic(log)
        produce(log, topic, VALUES)
        log.nodes[0].kill()
        log.nodes[0].start()
        assert consume(log, topic, len(VALUES)) == VALUES
        with cassandra_session(store) as session:
            table = make_table(session, copies=1)
            write(session, table, 0, 3)
        store.nodes[0].kill()
        store.nodes[0].start()
        with cassandra_session(store) as session:
            assert len(read_all(session, table)) == 3


@pytest.mark.slow
def test_secure_kafka_asks_for_a_password() -> None:
    """SASL_SSL with SCRAM-SHA-512: the right password works, a wrong one does not."""
    with engine_or_skip(kafka(secure=True)) as engine:
        topic = make_topic(engine)
        produce(engine, topic, VALUES)
        assert consume(engine, topic, len(VALUES)) == VALUES
        with pytest.raises(KafkaError):
            KafkaProducer(**kafka_access(engine, password="wrong"))


@pytest.mark.slow
def test_secure_cassandra_asks_for_a_password() -> None:
    """TLS and a password: the right one works, a wrong one does not."""
    with engine_or_skip(cassandra(secure=True)) as engine:
        with cassandra_session(engine) as session:
            table = make_table(session, copies=1)
            write(session, table, 0, 3)
            assert len(read_all(session, table)) == 3
        with pytest.raises(NoHostAvailable, match="AuthenticationFailed"), cassandra_session(engine, password="wrong"):
            pass
