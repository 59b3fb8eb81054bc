"""The topics: their names, how they are made, and what must be true of them before anything is opened."""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from kafka import errors
from kafka.admin import ConfigResource, ConfigResourceType, KafkaAdminClient

from watertower.backends.kafka_client import OVERHEAD_BYTES, RECORD_BYTES_MAX, KafkaSettings, admin, translated
from watertower.core.sharding import PARTITIONS_MAX
from watertower.errors import BackendUnavailable, StartRefused
from watertower.ports import Clock, LogIdentity

RETRY_S = 0.1
"""Seconds between two looks at topics that were just made."""

CREATE_TIMEOUT_MS = 30_000
"""ms that the brokers may take to create topics."""

REPLICAS_FOR_QUORUM = 3
"""From so many replicas on, an acknowledgement must mean two of them."""

BROKERS_CHOICE = -1
"""A replication factor that leaves the choice to the brokers' own setting."""


_NOT_THERE = (errors.UnknownTopicOrPartitionError.errno, errors.LeaderNotAvailableError.errno)


class TopicsPlan(NamedTuple):
    """What `create_topics` makes."""

    partitions: int = 64  # of every topic; fixed for good: another number would move actors to other writers
    replication_factor: int = BROKERS_CHOICE
    log_retention_ms: int = 7 * 24 * 3_600_000  # ms that events stay in the log
    feed_retention_ms: int = 3_600_000  # ms that messages stay on the counts feed


class TopicState(NamedTuple):
    """A topic as the brokers tell it."""

    topic_id: str
    partitions: int
    replicas: int  # the smallest number of any partition
    configs: Mapping[str, str]


def create_topics(settings: KafkaSettings, plan: TopicsPlan, clock: Clock) -> dict[str, bool]:
    """Makes the topics that are missing; safe to repeat, and from two places at once. Returns the names, True for those made now.

    Raises StartRefused where a topic exists that is unlike the plan or unsafe; BackendUnavailable.
    """
    if not 1 <= plan.partitions <= PARTITIONS_MAX:
        raise StartRefused(f"a log of {plan.partitions} partitions cannot be: give it 1 to {PARTITIONS_MAX}")
    retentions = {
        settings.log_topic: plan.log_retention_ms,
        settings.subjects_topic: plan.feed_retention_ms,
        settings.actors_topic: plan.feed_retention_ms,
        settings.dead_letters_topic: plan.log_retention_ms,
    }
    client = admin(settings, clock)
    try:
        with translated("the topics cannot be created"):
            present = _describe(client, retentions)
            made = _create(client, {name: retentions[name] for name in retentions if name not in present}, plan)
            deadline_s = clock.monotonic_s() + CREATE_TIMEOUT_MS / 1e3
            # A broker may know of a topic a little later than the one that made it.
            while len(states := _describe(client, retentions)) < len(retentions) and clock.monotonic_s() < deadline_s:
                clock.sleep(RETRY_S)
    finally:
        client.close()
    for name in retentions:
        if name not in states:
            raise BackendUnavailable(f"topic {name} was created but is not there yet")
        if states[name].partitions != plan.partitions:
            raise StartRefused(
                f"topic {name} has {states[name].partitions} partitions, not {plan.partitions}: the number is fixed when the log is "
                f"created; ask for {states[name].partitions}, or choose another kafka_prefix for a new log"
            )
        _check(name, states[name])
    return {name: name in made for name in retentions}


def log_identity(settings: KafkaSettings, clock: Clock) -> LogIdentity:
    """Which log this is. Raises StartRefused: no topic, or one that could lose what it acknowledged; BackendUnavailable."""
    state = checked(settings, settings.log_topic, clock)
    return LogIdentity(state.topic_id, state.partitions)


def checked(settings: KafkaSettings, topic: str, clock: Clock) -> TopicState:
    """A topic that is as it must be. Raises StartRefused, BackendUnavailable."""
    client = admin(settings, clock)
    try:
        with translated(f"topic {topic} cannot be looked at"):
            states = _describe(client, [topic])
    finally:
        client.close()
    if topic not in states:
        raise StartRefused(f"Kafka at {settings.bootstrap_servers} has no topic {topic}: run `watertower topics create` (see kafka_prefix)")
    _check(topic, states[topic])
    return states[topic]


def _check(topic: str, state: TopicState) -> None:
    """What could lose an acknowledged record, or refuse one that ingest may write."""
    if state.partitions > PARTITIONS_MAX:
        raise StartRefused(f"topic {topic} has {state.partitions} partitions, at most {PARTITIONS_MAX} can be: use another kafka_prefix")
    wanted = {"unclean.leader.election.enable": "false", "cleanup.policy": "delete"}
    for name, value in wanted.items():
        if state.configs[name] != value:
            raise StartRefused(f"topic {topic} has {name}={state.configs[name]}: set it to {value}, or acknowledged records can be lost")
    in_sync = int(state.configs["min.insync.replicas"])
    if state.replicas >= REPLICAS_FOR_QUORUM and in_sync < REPLICAS_FOR_QUORUM - 1:
        raise StartRefused(
            f"topic {topic} has {state.replicas} replicas and min.insync.replicas={in_sync}: set it to 2, or one broker that dies can take "
            "acknowledged records with it"
        )
    if int(state.configs["max.message.bytes"]) < RECORD_BYTES_MAX:
        raise StartRefused(
            f"topic {topic} has max.message.bytes={state.configs['max.message.bytes']}: set it to {RECORD_BYTES_MAX + OVERHEAD_BYTES}"
        )


def _create(client: KafkaAdminClient, retentions: Mapping[str, int], plan: TopicsPlan) -> set[str]:
    """Makes topics; returns those that nobody else had made in between."""
    if not retentions:
        return set()
    replicas = plan.replication_factor
    safe = {"unclean.leader.election.enable": "false"}
    if replicas == BROKERS_CHOICE:
        replicas = _default_replicas(client)
    if replicas >= REPLICAS_FOR_QUORUM:
        safe["min.insync.replicas"] = str(REPLICAS_FOR_QUORUM - 1)
    request: dict[str, dict[str, Any]] = {
        name: {
            "num_partitions": plan.partitions,
            "replication_factor": replicas,
            "configs": safe
            | {
                "cleanup.policy": "delete",
                "retention.ms": str(retention_ms),
                "max.message.bytes": str(RECORD_BYTES_MAX + OVERHEAD_BYTES),
                # By the brokers' clocks, not by those of the ingests: one that is years behind would have its records dropped at the
                # next look at the retention, and one that is an hour ahead would be refused. Ours is in the headers.
                "message.timestamp.type": "LogAppendTime",
            },
        }
        for name, retention_ms in retentions.items()
    }
    response = client.create_topics(request, timeout_ms=CREATE_TIMEOUT_MS, raise_errors=False)
    for topic in response["topics"]:
        error = errors.for_code(topic["error_code"])
        if error is errors.InvalidReplicationFactorError:
            raise StartRefused(
                f"Kafka cannot keep {replicas} replicas of topic {topic['name']} ({topic['error_message']}): start more brokers, or ask "
                "for fewer replicas"
            )
        if error not in (errors.NoError, errors.TopicAlreadyExistsError):
            raise error(topic["error_message"])
    client.wait_for_topics(list(retentions), timeout_ms=CREATE_TIMEOUT_MS)
    return {topic["name"] for topic in response["topics"] if topic["error_code"] == errors.NoError.errno}


def _default_replicas(client: KafkaAdminClient) -> int:
    """The brokers' default, asked for because the other settings depend on it."""
    broker = str(client.describe_cluster()["brokers"][0]["broker_id"])
    found = client.describe_configs([ConfigResource(ConfigResourceType.BROKER, broker)], config_filter="all")
    return int(found["broker"][broker]["default.replication.factor"]["value"])


def _describe(client: KafkaAdminClient, topics: Iterable[str]) -> dict[str, TopicState]:
    """The topics that exist, with leaders for their partitions."""
    found = {topic["name"]: topic for topic in client.describe_topics(list(topics))}
    for topic in found.values():
        if topic["error_code"] not in (errors.NoError.errno, *_NOT_THERE):
            raise errors.for_code(topic["error_code"])(topic["name"])
    present = [name for name, topic in found.items() if topic["error_code"] == errors.NoError.errno]
    if not present:
        return {}
    configs = client.describe_configs([ConfigResource(ConfigResourceType.TOPIC, name) for name in present], config_filter="all")["topic"]
    return {
        name: TopicState(
            str(found[name]["topic_id"]),
            len(found[name]["partitions"]),
            min(len(partition["replica_nodes"]) for partition in found[name]["partitions"]),
            {key: str(config["value"]) for key, config in configs[name].items()},
        )
        for name in present
        if configs[name]  # nothing is said of a topic that went just now
    }
