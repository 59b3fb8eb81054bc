"""The cluster preset on real engines: a debut goes on through whatever is done to its pods."""

import csv
import io
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest

from tests.commands import assert_audit_is_clean, options, watertower
from tests.kubernetes.cluster import IMAGE, ROOT, Cluster, eventually, page_block, ready
from tests.kubernetes.debut import Debut
from watertower.client import Kind, SyncClient
from watertower.testing.engines import CassandraEngine, KafkaEngine

NAMESPACE = RELEASE = "watertower"
ROLES = ("ingest", "projector", "query")
DEPLOYMENTS = [f"deployment/{RELEASE}-{role}" for role in ROLES]
PARTITIONS = 16
UPGRADE = "helm upgrade watertower deploy/helm/watertower --namespace watertower --reset-then-reuse-values"
WARM_FOLLOWERS, QUIET_FOLLOWERS = 900, 900
HPA_CPU_PERCENT = 40
"""Of what a pod requests: below what the debut takes, above what an idle pod does."""
STAR = "star"
LOAD_JOB = ROOT / "deploy" / "examples" / "load-job.yaml"
LOAD_FOLLOWERS = 3_000


@pytest.fixture(scope="module")
def install(near_kafka: KafkaEngine, near_cassandra: CassandraEngine) -> str:
    """The command of the page, with these engines, and with requests that two cores can hold."""
    command = page_block("presets/cluster.yaml").replace("kafka.example:9092", near_kafka.bootstrap_servers)
    command = command.replace("cassandra.example:9042", near_cassandra.contact_points)
    assert near_kafka.bootstrap_servers in command
    assert near_cassandra.contact_points in command
    # What is requested is also each pod's share of the cores, beside the engines and the cluster itself.
    small = ",".join([*(f"{role}.resources.requests.cpu=150m" for role in ROLES), "setup.resources.requests.cpu=50m"])
    # Names are answered anew every 5 s here, so that the next pod need not wait for resolvers as long as elsewhere.
    quick = "ingest.minReadySeconds=10,query.minReadySeconds=10"
    return f"{command} --set image.pullPolicy=Never,{small},{quick}"


@pytest.fixture(scope="module")
def settings(near_kafka: KafkaEngine, near_cassandra: CassandraEngine) -> dict[str, object]:
    """With which this machine sees what the pods see."""
    return {
        "log": "kafka",
        "store": "cassandra",
        "kafka_bootstrap_servers": near_kafka.bootstrap_servers,
        "cassandra_contact_points": near_cassandra.contact_points,
        "cassandra_local_datacenter": near_cassandra.local_datacenter,
    }


@pytest.fixture(scope="module")
def installed(cluster: Cluster, install: str) -> Iterator[Cluster]:
    """The release, ready."""
    cluster.shell(install)
    try:
        yield cluster
    finally:
        cluster.try_shell("helm uninstall watertower --namespace watertower --ignore-not-found --wait")
        cluster.try_kubectl("delete", "namespace", NAMESPACE, "--timeout=60s", timeout_s=90.0)


@pytest.fixture(scope="module")
def client(installed: Cluster) -> Iterator[SyncClient]:
    """Of the release, on this machine."""
    with installed.client(NAMESPACE, RELEASE) as client:
        yield client


@pytest.mark.timeout(600)
def test_a_debut_goes_on(installed: Cluster, client: SyncClient, settings: dict[str, object]) -> None:
    """Upgrades, deleted and evicted pods, more and fewer projectors: nothing acknowledged is lost or doubled, no read fails for good."""
    cluster = installed
    with Debut(cluster, NAMESPACE, RELEASE) as debut:
        with debut.phase("warming up"):
            wait_more(client, WARM_FOLLOWERS)
        with debut.phase("quiet"):
            wait_more(client, QUIET_FOLLOWERS)
        with debut.phase("upgrade"):
            cluster.shell(page_block("image.tag=2,ingest.image.tag=1"))
            wait_ready(cluster)  # helm does not wait for the old ones to go
            for role in ROLES:
                assert {pod["spec"]["containers"][0]["image"] for pod in cluster.pods(NAMESPACE, selector(role))} == {f"{IMAGE}:2"}
        with debut.phase("a pod of each role deleted"):
            for role in ROLES:
                cluster.kubectl("-n", NAMESPACE, "delete", "pod", names(cluster, role)[0], "--wait=false")
            wait_ready(cluster)
        with debut.phase("a pod of each role evicted"):
            for role in ROLES:
                first, second = names(cluster, role)
                eventually(partial(evictable, cluster, role), f"an eviction of {role} is allowed")
                evicted = cluster.evict(NAMESPACE, first)
                assert evicted.code == 0, evicted.err
                refused = cluster.evict(NAMESPACE, second)
                assert refused.code != 0
                assert "disruption budget" in refused.err
            wait_ready(cluster)
        with debut.phase("projector 2 -> 1 -> 3 -> 1"):
            scale(cluster, "kubectl scale deployment watertower-projector --namespace watertower --replicas=1", 1)
            wait_more(client, 100)
            scale(cluster, page_block("projector.replicas=3"), 3)  # query, too
            wait_more(client, 100)
            scale(cluster, "kubectl scale deployment watertower-projector --namespace watertower --replicas=1", 1)
            wait_more(client, 100)
        debut.stop()

    print(f"{debut.accounts} accounts, {len(debut.followers)} followers at the end; calls: {dict(debut.writes)}")
    print(debut.table())
    eventually(lambda: counted(client) == len(debut.followers), "the count is the number of acknowledged followers")
    with ThreadPoolExecutor() as pool:
        audit = pool.submit(assert_audit_is_clean, settings)
        stored = followers_stored(settings)
        print(f"audit: {audit.result()}")
    assert stored == debut.followers
    assert followers_listed(client) == sorted(debut.followers)
    pods = [pod for role in ROLES for pod in cluster.pods(NAMESPACE, selector(role))]
    restarts = {pod["metadata"]["name"]: pod["status"]["containerStatuses"][0]["restartCount"] for pod in pods}
    assert not any(restarts.values()), restarts
    assert debut.seen("normal").failed == 0, debut.seen("normal")
    assert set(debut.writes) == {"acknowledged"}, "a write failed after the client's retries"


@pytest.mark.timeout(300)
def test_the_load_test_runs_as_a_job(installed: Cluster) -> None:
    """deploy/examples/load-job.yaml, shortened, finds every follow again; its figures are printed, and not judged on a shared machine."""
    job = (
        LOAD_JOB.read_text()
        .replace("watertower:local", f"{IMAGE}:1")
        .replace('"100000"', f'"{LOAD_FOLLOWERS}"')
        .replace('cpu: "1"', "cpu: 20m")
    )
    installed.kubectl("-n", NAMESPACE, "apply", "-f", "-", stdin=job)
    name = ("-n", NAMESPACE, "job", "watertower-load")
    eventually(lambda: {"succeeded", "failed"} & set(installed.get(*name).get("status", {})), "the load test has ended", 120.0)
    last = installed.kubectl("-n", NAMESPACE, "logs", "job/watertower-load").strip().splitlines()[-1]
    installed.kubectl("-n", NAMESPACE, "delete", "job", "watertower-load")
    report = json.loads(last)
    print(f"load job: {last}")
    assert report["exact"] is True
    assert report["acknowledged"] == LOAD_FOLLOWERS


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ("ingest.replicaz=3", "replicaz"),
        ("query.replicas=-1", "/query/replicas"),
        ("kafka.user=me", "kafka.user"),
        ("settings.no_such=1", "no_such"),
    ],
)
def test_values_that_cannot_be_are_refused(installed: Cluster, wrong: str, said: str) -> None:
    """Before anything is changed; the message names the value."""
    before = installed.objects(NAMESPACE)
    refused = installed.try_shell(f"{UPGRADE} --set {wrong}")
    assert refused.code != 0
    assert said in refused.err
    assert installed.objects(NAMESPACE) == before


@pytest.mark.timeout(300)
def test_another_number_of_partitions_is_refused(installed: Cluster, install: str) -> None:
    """By the chart for a release that is there, by the service for one that is new on the same topics: its log says what to do."""
    refused = installed.try_shell(f"{UPGRADE} --set partitions={PARTITIONS // 2}")
    assert refused.code != 0
    assert f'partitions: this release has "{PARTITIONS}"' in refused.err
    other = install.replace("--install watertower ", "--install other ")
    assert other != install
    try:
        assert installed.try_shell(f"{other},partitions={PARTITIONS // 2}").code != 0
        log = installed.kubectl("-n", NAMESPACE, "logs", "-l", "job-name=other-watertower-topics", "--tail=-1").strip()
        print(log)
        assert f"has {PARTITIONS} partitions, not {PARTITIONS // 2}" in log
    finally:
        installed.try_shell(f"helm uninstall other --namespace {NAMESPACE} --wait")
        installed.kubectl("-n", NAMESPACE, "delete", "job", "-l", "app.kubernetes.io/instance=other", "--ignore-not-found")


@pytest.mark.autoscale
@pytest.mark.timeout(600)
def test_an_autoscaler_acts(installed: Cluster, client: SyncClient) -> None:
    """With metrics-server: query gets a third pod under load, which becomes ready."""
    installed.shell(f"{UPGRADE} --wait --set query.autoscaling.enabled=true,query.autoscaling.cpuPercent={HPA_CPU_PERCENT}")
    with Debut(installed, NAMESPACE, RELEASE) as debut:
        with debut.phase("more pods"):
            eventually(lambda: sum(map(ready, installed.pods(NAMESPACE, selector("query")))) > 2, "a third pod of query")
        debut.stop()
    print(debut.table())
    print(installed.kubectl("-n", NAMESPACE, "get", "hpa"))


@pytest.mark.timeout(300)
def test_uninstalling_leaves_nothing(installed: Cluster) -> None:
    """No object of any kind."""
    assert len(installed.objects(NAMESPACE)) > 10
    installed.shell(page_block("helm uninstall"))
    eventually(lambda: not installed.objects(NAMESPACE), "an empty namespace", 60.0)


def evictable(cluster: Cluster, role: str) -> bool:
    """Whether the budget has noticed that all pods are ready."""
    budgets = cluster.kubectl("-n", NAMESPACE, "get", "pdb", "-l", selector(role), "-o", "jsonpath={.items[*].status.disruptionsAllowed}")
    return budgets == "1"


def selector(role: str) -> str:
    return f"app.kubernetes.io/instance={RELEASE},app.kubernetes.io/component={role}"


def names(cluster: Cluster, role: str) -> list[str]:
    return [pod["metadata"]["name"] for pod in cluster.pods(NAMESPACE, selector(role))]


def wait_ready(cluster: Cluster) -> None:
    """Waits until each role has two pods again, both ready, and what was to go is gone."""

    def all_ready() -> bool:
        pods = cluster.get("-n", NAMESPACE, "pods", "-l", f"app.kubernetes.io/instance={RELEASE}")["items"]
        return len(pods) == 2 * len(ROLES) and all(map(ready, pods))

    eventually(all_ready, "two ready pods of each role")


def counted(client: SyncClient) -> int:
    """The star's followers."""
    return client.counts(STAR).followers


def scale(cluster: Cluster, command: str, projectors: int) -> None:
    """Returns when there are so many projectors, ready."""
    cluster.shell(command)
    cluster.wait_rolled_out(NAMESPACE, DEPLOYMENTS[1])
    eventually(lambda: len(names(cluster, "projector")) == projectors, f"{projectors} projectors")


def wait_more(client: SyncClient, followers: int) -> None:
    """Waits until the star has so many more followers than now."""
    before = counted(client)
    eventually(lambda: counted(client) >= before + followers, f"{followers} more followers")


def followers_stored(settings: dict[str, object]) -> set[str]:
    """Who follows the star by the edges, read from the store beside the service."""
    ran = watertower("export", "edges", *options(settings))
    assert ran.code == 0, ran.err
    rows = list(csv.DictReader(io.StringIO(ran.out)))
    return {row["actor"] for row in rows if row["subject"] == STAR and row["state"] == "active"}


def followers_listed(client: SyncClient) -> list[str]:
    """Who follows the star by the list behind the count, all pages of it, in order of their names."""
    found: list[str] = []
    token = ""
    while True:
        page = client.list_actors(STAR, Kind.FOLLOW, page_size=1_000, page_token=token)
        found += [item.id for item in page.items]
        token = page.next_page_token
        if not token:
            return sorted(found)
