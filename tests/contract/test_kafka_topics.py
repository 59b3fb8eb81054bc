"""What must be true of a topic before it is used, and how the topics are made."""

import random
import threading
from collections.abc import Iterator
from dataclasses import replace
from uuid import UUID

import pytest
from kafka.admin import ConfigResource, ConfigResourceType

from tests.contract.kafka_harnesses import CLOCK, IGNORE_SOCKETS, collect_sockets, new_settings, until
from watertower.backends.kafka_client import KafkaSettings, admin
from watertower.backends.kafka_feed import KafkaFeed, KafkaFeedReader
from watertower.backends.kafka_reader import KafkaLogReader
from watertower.backends.kafka_topics import TopicsPlan, TopicState, _check, create_topics, log_identity
from watertower.backends.kafka_writer import KafkaLogWriter
from watertower.errors import BackendUnavailable, StartRefused
from watertower.testing.engines import KafkaEngine, kafka
from watertower.testing.engines.fixtures import engine_or_skip
from watertower.testing.service import free_port

pytestmark = IGNORE_SOCKETS

SAFE = {"unclean.leader.election.enable": "false", "cleanup.policy": "delete", "min.insync.replicas": "2", "max.message.bytes": "3000000"}


@pytest.fixture(autouse=True)
def _no_sockets_left() -> Iterator[None]:
    yield
    collect_sockets()


# --- conditions


@pytest.mark.parametrize(
    ("partitions", "replicas", "changes", "message"),
    [
        (65, 3, {}, r"65 partitions, at most 64 can be: use another kafka_prefix"),
        (8, 3, {"unclean.leader.election.enable": "true"}, r"unclean.leader.election.enable=true: set it to false"),
        (8, 3, {"cleanup.policy": "compact"}, r"cleanup.policy=compact: set it to delete"),
        (8, 3, {"min.insync.replicas": "1"}, r"3 replicas and min.insync.replicas=1: set it to 2"),
        (8, 3, {"max.message.bytes": "1048588"}, r"max.message.bytes=1048588: set it to"),
    ],
)
def test_an_unsafe_topic_is_refused(partitions: int, replicas: int, changes: dict[str, str], message: str) -> None:
    """With what to do."""
    with pytest.raises(StartRefused, match=message):
        _check("t", TopicState("id", partitions, replicas, SAFE | changes))


def test_fewer_replicas_need_no_second_one_in_sync() -> None:
    """One or two brokers are somebody's choice; three and an acknowledgement by one is a mistake."""
    for replicas in (1, 2):
        _check("t", TopicState("id", 64, replicas, SAFE | {"min.insync.replicas": "1"}))
    _check("t", TopicState("id", 64, 3, SAFE))


def test_the_password_is_not_shown() -> None:
    """Settings appear in logs and tracebacks."""
    settings = KafkaSettings("h:1", sasl_password="secret-word")
    assert "secret-word" not in repr(settings) + str(settings)


@pytest.mark.parametrize("servers", ["", "host", "host:", "a:1,", "a:1;b:2 c"])
def test_an_address_that_is_none_is_refused(servers: str) -> None:
    """Before anything is tried."""
    with pytest.raises(StartRefused, match="kafka_bootstrap_servers"):
        log_identity(KafkaSettings(servers), CLOCK)


def test_a_compression_that_is_not_there_is_refused() -> None:
    """With those that are."""
    with pytest.raises(StartRefused, match=r"kafka_compression is 'snappy': set one of none, gzip, lz4"):
        log_identity(KafkaSettings("h:1", compression="snappy"), CLOCK)


def test_a_broker_that_is_not_there_is_waited_for() -> None:
    """Nobody listens: trying again may help, and the message says what is waited for."""
    settings = KafkaSettings(f"127.0.0.1:{free_port()}", connect_timeout_ms=300)
    before = threading.active_count()
    for start in (KafkaLogWriter, KafkaLogReader):
        with pytest.raises(
            BackendUnavailable, match=rf"Kafka at {settings.bootstrap_servers} cannot be reached within 300 ms.*ECONNREFUSED"
        ):
            start(settings, CLOCK)
    assert threading.active_count() == before


# --- on a broker


@pytest.mark.slow
def test_topics_are_made_once(kafka_engine: KafkaEngine) -> None:
    """Again and from two places at once: the same topics, with the settings that they need."""
    settings, plan = new_settings(kafka_engine), TopicsPlan(6, log_retention_ms=1_000_000, feed_retention_ms=60_000)
    made: list[dict[str, bool]] = []
    threads = [threading.Thread(target=lambda: made.append(create_topics(settings, plan, CLOCK))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    names = {settings.log_topic, settings.subjects_topic, settings.actors_topic, settings.dead_letters_topic}
    assert [set(one) for one in made] == [names, names]
    identity = log_identity(settings, CLOCK)
    assert UUID(identity.log_id)
    assert identity.partitions == 6
    assert create_topics(settings, plan, CLOCK) == dict.fromkeys(names, False)
    assert log_identity(settings, CLOCK) == identity
    client = admin(settings, CLOCK)
    configs = client.describe_configs([ConfigResource(ConfigResourceType.TOPIC, name) for name in names], config_filter="all")["topic"]
    client.close()
    for name, config in configs.items():
        assert config["retention.ms"]["value"] == ("1000000" if name in (settings.log_topic, settings.dead_letters_topic) else "60000")
        assert config["message.timestamp.type"]["value"] == "LogAppendTime"
        assert config["unclean.leader.election.enable"]["config_source"] == "DYNAMIC_TOPIC_CONFIG"


@pytest.mark.slow
def test_another_number_of_partitions_is_refused(kafka_engine: KafkaEngine) -> None:
    """It is fixed; so is what one broker can keep."""
    settings = new_settings(kafka_engine)
    create_topics(settings, TopicsPlan(4), CLOCK)
    with pytest.raises(StartRefused, match="has 4 partitions, not 5: the number is fixed"):
        create_topics(settings, TopicsPlan(5), CLOCK)
    with pytest.raises(StartRefused, match="cannot keep 7 replicas"):
        create_topics(new_settings(kafka_engine), TopicsPlan(4, replication_factor=7), CLOCK)
    with pytest.raises(StartRefused, match="65 partitions cannot be: give it 1 to 64"):
        create_topics(settings, TopicsPlan(65), CLOCK)


@pytest.mark.slow
def test_a_missing_topic_is_refused(kafka_engine: KafkaEngine) -> None:
    """By everything that needs it, with the command that makes it; nothing is created by the way."""
    settings = new_settings(kafka_engine)
    for _ in range(2):
        for start in (
            lambda: KafkaLogWriter(settings, CLOCK),
            lambda: KafkaLogReader(settings, CLOCK),
            lambda: KafkaFeed(settings, CLOCK, random.Random(1), 8),
            lambda: KafkaFeedReader(settings, CLOCK, 8),
        ):
            with pytest.raises(StartRefused, match=r"has no topic .*: run `watertower topics create`"):
                start()


@pytest.mark.slow
def test_a_topic_made_again_is_another_log(kafka_engine: KafkaEngine) -> None:
    """Its offsets mean something else, so its identity is another."""
    settings = new_settings(kafka_engine)
    create_topics(settings, TopicsPlan(2), CLOCK)
    first = log_identity(settings, CLOCK)
    client = admin(settings, CLOCK)
    client.delete_topics([settings.log_topic])
    until(lambda: settings.log_topic not in client.list_topics())
    client.close()
    create_topics(settings, TopicsPlan(2), CLOCK)
    assert log_identity(settings, CLOCK).log_id != first.log_id


@pytest.mark.slow
def test_a_wrong_password_or_certificate_is_told_apart() -> None:
    """Each is refused with the settings to look at; the right ones work over TLS with a password."""
    with engine_or_skip(kafka(secure=True, own=True)) as engine:
        right = replace(new_settings(engine), connect_timeout_ms=8_000)
        create_topics(right, TopicsPlan(2), CLOCK)
        writer = KafkaLogWriter(right, CLOCK)
        assert writer.append(0, b"x", 1).result(60) == 0
        writer.close()
        for changes, message in (
            ({"sasl_password": "wrong-word"}, "does not accept user 'app' with this password.*kafka_sasl_password"),
            ({"sasl_username": "nobody"}, "does not accept user 'nobody'"),
            ({"sasl_mechanism": "PLAIN"}, "does not offer PLAIN: see kafka_sasl_mechanism"),
            ({"ssl_ca_file": ""}, "certificate that is not trusted.*kafka_ssl_ca_file"),
            ({"ssl_ca_file": "/nowhere.pem"}, "'/nowhere.pem' cannot be read"),
        ):
            with pytest.raises(StartRefused, match=message) as refusal:
                log_identity(replace(right, **({"connect_timeout_ms": 4_000} | changes)), CLOCK)  # type: ignore[arg-type]
            assert "wrong-word" not in str(refusal.value)
