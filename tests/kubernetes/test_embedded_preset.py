"""The embedded preset: one pod, one volume. It keeps its data, and it is away while its pod moves."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest

from tests.calls import follow, read_counts, reading, record, writing
from tests.kubernetes.cluster import Cluster, eventually, page_block, ready
from watertower.client import Event, Kind

NAMESPACE = "embedded"
RELEASE = "watertower"
POD = f"{RELEASE}-0"
VALUES = "--set image.pullPolicy=Never" + "".join(f",{role}.resources.requests.cpu=100m" for role in ("ingest", "projector", "query"))
UNINSTALL = f"helm uninstall {RELEASE} --namespace {NAMESPACE} --wait"
FANS = [f"fan-{number}" for number in range(2_000)]
LOOK_S = 0.05
ATTEMPT_S = 1.0


@pytest.fixture(scope="module")
def installed(cluster: Cluster) -> Iterator[Cluster]:
    """The release, ready, with FANS that follow bob."""
    install(cluster)
    try:
        with cluster.client(NAMESPACE, RELEASE) as client:
            client.record_many([Event(fan, Kind.FOLLOW, "bob") for fan in FANS])
        wait_counted(cluster)
        yield cluster
    finally:
        cluster.try_shell(f"{UNINSTALL} --ignore-not-found")
        cluster.try_kubectl("delete", "namespace", NAMESPACE, "--timeout=60s", timeout_s=90.0)


@pytest.mark.timeout(300)
def test_data_outlive_the_pod(installed: Cluster) -> None:
    """A pod that is deleted comes back with every count; how long neither reads nor writes were answered is printed."""
    before = installed.get("-n", NAMESPACE, "pod", POD)["metadata"]["uid"]
    with gaps(installed) as watched:
        installed.kubectl("-n", NAMESPACE, "delete", "pod", POD, "--wait=false")
        eventually(lambda: new_pod_ready(installed, before), "the new pod is ready", 120.0)
        eventually(lambda: all(line.answered_again for line in watched), "reads and writes are answered again", 60.0)
    for line in watched:
        print(f"embedded, pod deleted: {line.name} not answered for {line.longest_s:.1f} s")
    wait_counted(installed)
    said = installed.kubectl("-n", NAMESPACE, "exec", POD, "-c", "query", "--", "watertower", "audit", "--data", "/data/watertower")
    assert said.startswith("clean"), said
    assert watched[0].longest_s > 0


@pytest.mark.timeout(300)
def test_a_backup_is_restored(installed: Cluster, tmp_path: Path) -> None:
    """By the commands of the page, from a file outside the cluster: what came after the backup is gone, all else is there."""
    installed.shell(f"cd {tmp_path}; {here('-cf - backup')}")
    assert (tmp_path / "backup.tar").stat().st_size > 0
    with installed.client(NAMESPACE, RELEASE) as client:
        client.record_many([Event(f"late-{fan}", Kind.FOLLOW, "bob") for fan in FANS])
        eventually(lambda: client.counts("bob").followers == 2 * len(FANS), "the late ones are counted", 60.0)
    said = installed.shell(f"cd {tmp_path}; {here('name: restore')}")
    assert "\nclean" in said, said
    wait_counted(installed)


@pytest.mark.timeout(300)
def test_a_volume_outlives_the_release_and_keeps_its_partitions(installed: Cluster) -> None:
    """Uninstalling leaves the claim only. On it, a release with other partitions is refused, and one with the same has the data."""
    installed.shell(UNINSTALL)
    eventually(lambda: installed.objects(NAMESPACE) == {f"persistentvolumeclaim/data-{POD}"}, "nothing but the claim", 60.0)

    installed.shell(f"{install_command().replace('--wait', '')},partitions=4")

    def refusal() -> str:
        for previous in ((), ("--previous",)):
            log = installed.try_kubectl("-n", NAMESPACE, "logs", POD, "-c", "ingest", *previous).out
            if "partitions and the settings say" in log:
                return log.strip().splitlines()[-1]
        return ""

    print(f"refused at start: {eventually(refusal, 'the log says why', 90.0)}")
    installed.shell(UNINSTALL)
    install(installed)
    wait_counted(installed)


def install_command() -> str:
    """That of the page, in a namespace of this test's own."""
    return f"{here('presets/embedded.yaml')} {VALUES}"


def here(part: str) -> str:
    """The block of the page with this in it, in the namespace of this test."""
    block = page_block(part)
    assert "--namespace watertower" in block
    return block.replace("--namespace watertower", f"--namespace {NAMESPACE}")


def install(cluster: Cluster) -> None:
    cluster.shell(install_command())


def new_pod_ready(cluster: Cluster, before: str) -> bool:
    return any(pod["metadata"]["uid"] != before and ready(pod) for pod in cluster.get("-n", NAMESPACE, "pods")["items"])


def wait_counted(cluster: Cluster) -> None:
    with cluster.client(NAMESPACE, RELEASE) as client:
        eventually(lambda: client.counts("bob").followers == len(FANS), f"bob has {len(FANS)} followers", 60.0)


class Answers:
    """When calls of one kind were answered, one attempt after the other."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.answered_s = [time.monotonic()]
        self.failures, self.failed_s = 0, 0.0

    @property
    def longest_s(self) -> float:
        """The longest time between two answers."""
        return max(after - before for before, after in zip(self.answered_s, self.answered_s[1:], strict=False))

    @property
    def answered_again(self) -> bool:
        """After at least one that failed."""
        return self.failures > 0 and self.answered_s[-1] > self.failed_s


@contextmanager
def gaps(cluster: Cluster) -> Iterator[list[Answers]]:
    """Reads and writes at the Services while the body runs."""
    stop = threading.Event()
    write, read = (cluster.target(NAMESPACE, f"{RELEASE}-{role}", port) for role, port in (("ingest", 50051), ("query", 50052)))

    def look(answers: Answers) -> None:
        with writing(write) as writer, reading(read) as reader:
            while not stop.wait(LOOK_S):
                try:
                    if answers.name == "writes":
                        record(writer, [follow("ann", "cid")], ATTEMPT_S)
                    else:
                        read_counts(reader, ["bob"])
                except grpc.RpcError:
                    answers.failures += 1
                    answers.failed_s = time.monotonic()
                else:
                    answers.answered_s.append(time.monotonic())

    lines = [Answers("reads"), Answers("writes")]
    threads = [threading.Thread(target=look, args=(line,)) for line in lines]
    for thread in threads:
        thread.start()
    try:
        yield lines
    finally:
        stop.set()
        for thread in threads:
            thread.join()
