"""The cluster preset on engines that want TLS and a login: Secrets by reference, and a password that is rotated as the page says."""

from collections.abc import Iterator
from dataclasses import replace

import pytest

from tests.engines.clients import cassandra_session
from tests.kubernetes.cluster import ROOT, Cluster, eventually, page_block
from watertower.client import Event, Kind
from watertower.testing.engines import CassandraEngine, KafkaEngine, cassandra, kafka
from watertower.testing.engines.fixtures import engine_or_skip

NAMESPACE = "logins"
RELEASE = "watertower"
PRESET = ROOT / "deploy" / "helm" / "watertower" / "presets" / "cluster.yaml"
NEXT_USER = "next"
NEXT_PASSWORD = "SECRET"  # as in the page
SECRETS = ("kafka-login", "kafka-ca", "cassandra-login", "cassandra-ca")


@pytest.fixture(scope="module")
def locked_kafka(cluster: Cluster) -> Iterator[KafkaEngine]:
    """A broker that pods reach by TLS, with a login."""
    with engine_or_skip(kafka(own=True, secure=True, host=cluster.host_ip)) as engine:
        yield engine


@pytest.fixture(scope="module")
def locked_cassandra(cluster: Cluster) -> Iterator[CassandraEngine]:
    """A node that pods reach by TLS, with a login."""
    with engine_or_skip(cassandra(own=True, secure=True, host=cluster.host_ip)) as engine:
        yield engine


@pytest.fixture
def namespace(cluster: Cluster) -> Iterator[Cluster]:
    """Not there yet; whatever is there at the end is removed."""
    try:
        yield cluster
    finally:
        cluster.try_shell(f"helm uninstall {RELEASE} --namespace {NAMESPACE} --ignore-not-found --wait")
        cluster.try_kubectl("delete", "namespace", NAMESPACE, "--timeout=60s", timeout_s=90.0)


@pytest.mark.timeout(600)
def test_logins_by_secrets_and_a_rotated_password(namespace: Cluster, locked_kafka: KafkaEngine, locked_cassandra: CassandraEngine) -> None:
    """Refused while a Secret is missing, by name; then counts; and goes on with a second user when the first one may no longer log in."""
    cluster = namespace
    command = install_command(locked_kafka, locked_cassandra)
    refused = cluster.try_shell(f"{command} --create-namespace")
    assert refused.code != 0
    for secret in SECRETS:
        assert f"has no Secret {secret}; make it: kubectl create secret generic {secret} --namespace {NAMESPACE}" in refused.err
    assert cluster.objects(NAMESPACE) == set()

    if cluster.try_kubectl("get", "namespace", NAMESPACE).code:  # whether helm makes it before it refuses is helm's own matter
        cluster.kubectl("create", "namespace", NAMESPACE)
    for engine in (locked_kafka, locked_cassandra):
        login = ("create", "secret", "generic", f"{engine.name}-login", "--namespace", NAMESPACE)
        cluster.kubectl(*login, f"--from-literal=password={engine.password}")
        cluster.kubectl(
            "create", "secret", "generic", f"{engine.name}-ca", "--namespace", NAMESPACE, f"--from-file=ca.crt={engine.ca_file}"
        )
    cluster.shell(command)
    follow(cluster, range(100))

    with cassandra_session(locked_cassandra) as session:
        session.execute(f"CREATE ROLE {NEXT_USER} WITH PASSWORD = '{NEXT_PASSWORD}' AND LOGIN = true AND SUPERUSER = true")
    cluster.shell(here(page_block("cassandra.passwordSecret.name=cassandra-next")))
    with cassandra_session(replace(locked_cassandra, user=NEXT_USER, password=NEXT_PASSWORD)) as session:
        session.execute(f"ALTER ROLE {locked_cassandra.user} WITH LOGIN = false")
    before = pods(cluster)
    cluster.shell(here(page_block("kubectl rollout restart")))
    cluster.wait_rolled_out(NAMESPACE, *(f"deployment/{RELEASE}-{role}" for role in ("ingest", "projector", "query")))
    assert not before & pods(cluster)
    follow(cluster, range(100, 200))
    said = cluster.kubectl("-n", NAMESPACE, "exec", f"deployment/{RELEASE}-query", "--", "watertower", "audit")
    assert said.startswith("clean"), said


def install_command(log: KafkaEngine, store: CassandraEngine) -> str:
    """The preset with these addresses, users and Secrets; one pod of each role."""
    values = {
        "image.pullPolicy": "Never",
        "kafka.bootstrapServers": log.bootstrap_servers,
        "kafka.replicationFactor": 1,
        "kafka.user": log.user,
        "kafka.passwordSecret.name": "kafka-login",
        "kafka.caSecret.name": "kafka-ca",
        "cassandra.contactPoints": store.contact_points,
        "cassandra.localDatacenter": store.local_datacenter,
        "cassandra.replication": f"{store.local_datacenter}:1",
        "cassandra.user": store.user,
        "cassandra.passwordSecret.name": "cassandra-login",
        "cassandra.caSecret.name": "cassandra-ca",
        "setup.resources.requests.cpu": "50m",
    }
    for role in ("ingest", "projector", "query"):
        values |= {f"{role}.replicas": 1, f"{role}.resources.requests.cpu": "150m"}
    values |= {"ingest.minReadySeconds": 0, "query.minReadySeconds": 0}  # callers here go by a ClusterIP
    chart = PRESET.parents[1]
    chosen = " ".join(f"--set {name}={value}" for name, value in values.items())
    return f"helm upgrade --install {RELEASE} {chart} --namespace {NAMESPACE} --values {PRESET} --wait {chosen}"


def here(block: str) -> str:
    """A block of the page, in this namespace."""
    assert "--namespace watertower" in block
    return block.replace("--namespace watertower", f"--namespace {NAMESPACE}")


def pods(cluster: Cluster) -> set[str]:
    """Names of the service's pods."""
    return {pod["metadata"]["name"] for pod in cluster.pods(NAMESPACE, f"app.kubernetes.io/instance={RELEASE}")}


def follow(cluster: Cluster, fans: range) -> None:
    """So many more follow the star; returns when all are counted."""
    with cluster.client(NAMESPACE, RELEASE) as client:
        client.record_many([Event(f"fan-{fan}", Kind.FOLLOW, "star") for fan in fans])
        eventually(lambda: client.counts("star").followers == fans.stop, f"the star has {fans.stop} followers", 60.0)
