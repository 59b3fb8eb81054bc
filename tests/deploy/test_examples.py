"""The engines of deploy/examples are what the chart's preset and the service expect."""

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.deploy.chart import ROOT, objects, parsed, schema_problems
from tests.needs import skip_or_fail
from watertower.backends.kafka_client import OVERHEAD_BYTES, RECORD_BYTES_MAX, KafkaSettings
from watertower.backends.kafka_topics import TopicsPlan
from watertower.testing.engines import cache
from watertower.testing.engines.engine import EngineFailed

EXAMPLES = ROOT / "deploy" / "examples"
STRIMZI = ("io.strimzi", "api", "0.51.0")
"""The last version whose classes Java 17 reads; its API is version 1 already, as that of Strimzi 1.x."""

CHECK = Path(__file__).parent / "strimzi" / "Check.java"
JAVA_S = 120.0


def example(name: str) -> list[Any]:
    """The resources of one file."""
    return parsed((EXAMPLES / f"{name}.yaml").read_text("utf-8"))


def given() -> dict[str, str]:
    """The settings that the preset gives to an ingest."""
    (ingest,) = (one for one in objects("cluster") if one["kind"] == "Deployment" and one["metadata"]["name"] == "watertower-ingest")
    return {
        variable["name"].removeprefix("WATERTOWER_").lower(): variable["value"]
        for variable in ingest["spec"]["template"]["spec"]["containers"][0]["env"]
    }


def secrets() -> set[str]:
    """The Secrets that the preset takes."""
    (ingest,) = (one for one in objects("cluster") if one["kind"] == "Deployment" and one["metadata"]["name"] == "watertower-ingest")
    volumes = ingest["spec"]["template"]["spec"]["volumes"]
    return {source["secret"]["name"] for volume in volumes for source in volume.get("projected", {}).get("sources", [])}


def strimzi_problems(text: str) -> str:
    """What Strimzi's own classes do not have, or empty. Strimzi's CustomResourceDefinitions are in no registry."""
    if shutil.which("java") is None:
        skip_or_fail("java is not installed")
    if not cache.has_jars("strimzi-api-0.51.0") and shutil.which("mvn") is None:
        skip_or_fail("mvn is not installed")
    try:
        jars = cache.jars("strimzi-api-0.51.0", (STRIMZI,))
    except EngineFailed as error:
        skip_or_fail(str(error))
    done = subprocess.run(
        ["java", "-cp", f"{jars}/*", CHECK], input=json.dumps(parsed(text)), capture_output=True, text=True, timeout=JAVA_S, check=False
    )
    assert done.returncode == 0 or done.stdout, done.stderr
    return done.stdout


@pytest.mark.slow
@pytest.mark.timeout(cache.MAVEN_S)
def test_strimzi_knows_every_property() -> None:
    """Of the kinds that its version 1 of the API has; and a mistake would be seen."""
    kafka = (EXAMPLES / "kafka.yaml").read_text("utf-8")
    whole = f"{kafka}\n---\n{(EXAMPLES / 'topics.yaml').read_text('utf-8')}"
    assert strimzi_problems(whole) == ""
    assert "Unrecognized field" in strimzi_problems(kafka.replace("entityOperator:", "entityOperators:"))
    assert "Kafka: no such kind in version v2" in strimzi_problems(kafka.replace("strimzi.io/v1\n", "strimzi.io/v2\n"))
    assert ".operations[0] cannot have that value" in strimzi_problems(kafka.replace("operations: [Create", "operations: [Creat"))


def test_the_preset_finds_the_kafka() -> None:
    """Its name, its listener, its user, and the Secrets that Strimzi makes."""
    kinds = {one["kind"]: one for one in example("kafka")}
    settings = given()
    (listener,) = kinds["Kafka"]["spec"]["kafka"]["listeners"]
    assert settings["kafka_bootstrap_servers"] == f"{kinds['Kafka']['metadata']['name']}-kafka-bootstrap:{listener['port']}"
    assert (listener["tls"], listener["authentication"]["type"]) == (True, settings["kafka_sasl_mechanism"].lower())
    assert settings["kafka_security_protocol"] == "sasl_ssl"
    user = kinds["KafkaUser"]["metadata"]["name"]
    assert settings["kafka_user"] == user
    assert {user, f"{kinds['Kafka']['metadata']['name']}-cluster-ca-cert"} <= secrets()
    assert int(settings["kafka_replication_factor"]) <= kinds["KafkaNodePool"]["spec"]["replicas"]
    service = KafkaSettings("broker:9092", prefix=settings["kafka_prefix"])
    allowed = {acl["resource"]["type"]: acl["resource"]["name"] for acl in kinds["KafkaUser"]["spec"]["authorization"]["acls"]}
    assert service.log_topic.startswith(allowed["topic"])
    assert service.group.startswith(allowed["group"])


def test_what_is_acknowledged_outlives_a_broker() -> None:
    """The brokers' own settings say so, too."""
    config = next(one for one in example("kafka") if one["kind"] == "Kafka")["spec"]["kafka"]["config"]
    assert config["min.insync.replicas"] == 2
    assert config["unclean.leader.election.enable"] is False
    assert config["auto.create.topics.enable"] is False


def test_the_topics_are_those_of_the_service() -> None:
    """As `watertower topics create` would make them."""
    topics = {one["metadata"]["name"]: one["spec"] for one in example("topics")}
    service, plan = KafkaSettings("broker:9092"), TopicsPlan()
    assert set(topics) == {service.log_topic, service.subjects_topic, service.actors_topic, service.dead_letters_topic}
    (remembered,) = (one["data"] for one in objects("cluster") if one["kind"] == "ConfigMap")
    for name, topic in topics.items():
        assert (topic["partitions"], topic["replicas"]) == (int(remembered["partitions"]), int(given()["kafka_replication_factor"]))
        feed = name in (service.subjects_topic, service.actors_topic)
        assert topic["config"] == {
            "cleanup.policy": "delete",
            "retention.ms": plan.feed_retention_ms if feed else plan.log_retention_ms,
            "min.insync.replicas": 2,
            "unclean.leader.election.enable": False,
            "max.message.bytes": RECORD_BYTES_MAX + OVERHEAD_BYTES,
            "message.timestamp.type": "LogAppendTime",
        }


def test_k8ssandra_knows_every_property() -> None:
    """By the schema of its own operator; and a mistake would be seen. No property is a deprecated one."""
    text = (EXAMPLES / "cassandra.yaml").read_text("utf-8")
    assert schema_problems(text) == ""
    assert "heap_max_sise" in schema_problems(text.replace("heap_max_size", "heap_max_sise"))
    assert "heapSize" not in text


def test_the_preset_finds_the_cassandra() -> None:
    """Its name, its data centre, the superuser that K8ssandra makes; and it syncs before it acknowledges."""
    (cluster,) = example("cassandra")
    settings, name = given(), cluster["metadata"]["name"]
    (centre,) = cluster["spec"]["cassandra"]["datacenters"]
    assert settings["cassandra_local_datacenter"] == centre["metadata"]["name"]
    assert settings["cassandra_contact_points"] == f"{name}-{centre['metadata']['name']}-service:9042"
    assert settings["cassandra_replication"] == f"{centre['metadata']['name']}:{centre['size']}"
    assert settings["cassandra_user"] == f"{name}-superuser"
    assert f"{name}-superuser" in secrets()
    assert cluster["spec"]["cassandra"]["config"]["cassandraYaml"]["commitlog_sync"] == "batch"
