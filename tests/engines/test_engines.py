"""Engines start by one line, do real work, keep their data when a node is killed, and keep strangers out."""

import pytest
from cassandra import OperationTimedOut
from cassandra.cluster import NoHostAvailable
from kafka import KafkaProducer
from kafka.errors import KafkaError, KafkaTimeoutError

from tests.engines.clients import ANSWER_S, cassandra_session, consume, kafka_access, make_table, make_topic, produce, read_all, write
from watertower.testing.engines import CassandraEngine, KafkaEngine, cassandra, kafka
from watertower.testing.engines.fixtures import engine_or_skip

pytestmark = [
    pytest.mark.slow,
    # cassandra-driver leaves the sockets of failed connections to the garbage collector, which warns.
    pytest.mark.filterwarnings("ignore:Exception ignored in. <socket.socket:pytest.PytestUnraisableExceptionWarning"),
]

VALUES = [b"first", b"second", b"third"]
PAUSE_S = 2.0


def test_kafka_takes_and_gives_records(kafka_engine: KafkaEngine) -> None:
    """The shared broker answers a real producer and a real consumer."""
    topic = make_topic(kafka_engine)
    produce(kafka_engine, topic, VALUES)
    assert consume(kafka_engine, topic, len(VALUES)) == VALUES


def test_cassandra_takes_and_gives_rows(cassandra_engine: CassandraEngine) -> None:
    """The shared node answers a real session."""
    with cassandra_session(cassandra_engine) as session:
        table = make_table(session, copies=1)
        write(session, table, 0, 3)
        assert read_all(session, table) == {0: "word 0", 1: "word 1", 2: "word 2"}


def test_a_single_broker_keeps_its_records_and_can_be_paused() -> None:
    """What a broker acknowledged is there after it was killed and started again; while it is paused it answers nothing."""
    with engine_or_skip(kafka(own=True)) as engine:
        topic = make_topic(engine)
        produce(engine, topic, VALUES)
        engine.nodes[0].kill()
        engine.nodes[0].start()
        assert consume(engine, topic, len(VALUES)) == VALUES
        producer = KafkaProducer(acks="all", **kafka_access(engine))
        producer.send(topic, b"before", partition=0).get(ANSWER_S)
        engine.nodes[0].pause()
        sent = producer.send(topic, b"meanwhile", partition=0)
        with pytest.raises(KafkaTimeoutError):
            sent.get(PAUSE_S)
        engine.nodes[0].resume()
        sent.get(ANSWER_S)
        producer.close()


def test_a_single_node_keeps_its_rows_and_can_be_paused() -> None:
    """What a node acknowledged is there after it was killed and started again; while it is paused it answers nothing."""
    with engine_or_skip(cassandra(own=True)) as engine:
        with cassandra_session(engine) as session:
            table = make_table(session, copies=1)
            write(session, table, 0, 3)
        engine.nodes[0].kill()
        engine.nodes[0].start()
        with cassandra_session(engine) as session:
            assert len(read_all(session, table)) == 3
            engine.nodes[0].pause()
            with pytest.raises(OperationTimedOut):
                session.execute(f"SELECT id, word FROM {table}", timeout=PAUSE_S)
            engine.nodes[0].resume()
            assert len(read_all(session, table)) == 3


@pytest.mark.timeout(900)  # six starts of nodes
def test_a_killed_broker_comes_back_with_its_records() -> None:
    """Three brokers: one is killed, writes go on; it starts again and another stops cleanly, writes go on; every record is there."""
    with engine_or_skip(kafka(nodes=3, own=True)) as engine:
        topic = make_topic(engine)
        produce(engine, topic, VALUES)
        engine.nodes[0].kill()
        produce(engine, topic, VALUES)
        engine.nodes[0].start()
        engine.nodes[1].stop()
        produce(engine, topic, VALUES)
        assert consume(engine, topic, 3 * len(VALUES)) == 3 * VALUES


@pytest.mark.timeout(900)
def test_a_killed_node_comes_back_with_its_rows() -> None:
    """Three nodes: one is killed, quorum writes go on; it starts again and another stops cleanly, writes go on; every row is there."""
    with engine_or_skip(cassandra(nodes=3, own=True)) as engine, cassandra_session(engine) as session:
        table = make_table(session, copies=3)
        write(session, table, 0, 10)
        engine.nodes[0].kill()
        write(session, table, 10, 10)
        engine.nodes[0].start()
        engine.nodes[1].stop()
        write(session, table, 20, 10)
        assert read_all(session, table) == {number: f"word {number}" for number in range(30)}


def test_secure_kafka_asks_for_a_password() -> None:
    """SASL_SSL with SCRAM-SHA-512: the right password works, a wrong one does not."""
    with engine_or_skip(kafka(secure=True)) as engine:
        topic = make_topic(engine)
        produce(engine, topic, VALUES)
        assert consume(engine, topic, len(VALUES)) == VALUES
        with pytest.raises(KafkaError):
            KafkaProducer(**kafka_access(engine, password="wrong"))


def test_secure_cassandra_asks_for_a_password() -> None:
    """TLS and a password: the right one works, a wrong one does not."""
    with engine_or_skip(cassandra(secure=True)) as engine:
        with cassandra_session(engine) as session:
            table = make_table(session, copies=1)
            write(session, table, 0, 3)
            assert len(read_all(session, table)) == 3
        with pytest.raises(NoHostAvailable, match="AuthenticationFailed"), cassandra_session(engine, password="wrong"):
            pass
