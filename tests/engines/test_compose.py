"""`make up` and `make down`: the whole service in containers, with a project name and ports of its own.

On Docker, whoever provides the other tests' engines: WATERTOWER_TEST_ENGINES says nothing here.
"""

import json
import shutil
import subprocess
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from kafka.admin import KafkaAdminClient

from tests.commands import Settings, assert_audit_is_clean, watertower
from tests.docs.pages import ROOT
from tests.needs import skip_or_fail
from watertower.testing.engines import unique_name
from watertower.testing.engines.containers import why_not
from watertower.testing.engines.engine import Request
from watertower.testing.engines.warden import Warden
from watertower.testing.service import clean_environment, free_port, wait_until

PYTHON_IMAGE = "python:3.11-slim"
UP_S = 900.0
"""Seconds for `make up`: the first one on a machine builds the image."""

COMMAND_S = 300.0
SHARED_S = 120.0
"""Seconds in which new projectors take their share of the partitions."""

GROUP = "watertower.projector"
"""Of the default prefix."""

PORTS = ("WRITE_PORT", "READ_PORT", "KAFKA_PORT", "CASSANDRA_PORT")
ONE_SHOT = {"topics", "migrate"}
LASTING = {"kafka", "cassandra", "ingest", "projector", "query"}
OWN = {"topics", "migrate", "ingest", "projector", "query", "load"}
"""What runs the service's image."""


class Composed:
    """A project of docker-compose.yml that is nobody else's."""

    def __init__(self) -> None:
        self.name = unique_name("compose")
        self.ports = {variable: free_port() for variable in PORTS}
        self._environment = clean_environment(
            {"COMPOSE_PROJECT_NAME": self.name, **{variable: str(port) for variable, port in self.ports.items()}}
        )

    def run(self, *command: str, seconds: float = COMMAND_S, code: int = 0, environment: Mapping[str, str] | None = None) -> str:
        """What the command prints; it must end with this code."""
        done = subprocess.run(
            command,
            cwd=ROOT,
            env={**self._environment, **(environment or {})},
            capture_output=True,
            text=True,
            timeout=seconds,
            check=False,
            stdin=subprocess.DEVNULL,
        )
        assert done.returncode == code, f"{' '.join(command)} ended with {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def compose(self, *arguments: str) -> str:
        return self.run("docker", "compose", *arguments)

    def containers(self) -> list[dict[str, Any]]:
        """All containers of the project, ended ones included, as Docker describes them."""
        ids = self.run("docker", "ps", "--all", "--quiet", "--filter", f"label=com.docker.compose.project={self.name}").split()
        return json.loads(self.run("docker", "inspect", *ids)) if ids else []

    def states(self) -> list[tuple[str, str]]:
        """Per container its service, and its health or, where it has ended, its exit code."""
        return [(service(found), state(found)) for found in self.containers()]

    def leftovers(self) -> list[str]:
        """What Docker still has of the project."""
        ours = ("--quiet", "--filter", f"label=com.docker.compose.project={self.name}")
        kinds = (("ps", "--all"), ("volume", "ls"), ("network", "ls"))
        return [name for kind in kinds for name in self.run("docker", *kind, *ours).split()]

    def remove(self) -> None:
        """Whatever state it is in."""
        self.run(*_removal(self.name))


def _removal(name: str) -> list[str]:
    return ["docker", "compose", "--project-name", name, "--profile", "load", "down", "--volumes", "--remove-orphans", "--timeout", "2"]


def service(container: dict[str, Any]) -> str:
    return str(container["Config"]["Labels"]["com.docker.compose.service"])


def state(container: dict[str, Any]) -> str:
    found = container["State"]
    return str(found["Health"]["Status"]) if found["Status"] == "running" else f"{found['Status']} {found['ExitCode']}"


def why_no_compose() -> str:
    """Empty when this machine can bring the project up."""
    if shutil.which("docker") is None or _code("docker", "info"):
        return "no Docker engine answers"
    if _code("docker", "compose", "version"):
        return "docker compose does not answer: install Docker's compose plugin, or deploy/stand-ins/compose.sh builds it"
    for engine in (Request("kafka"), Request("cassandra")):
        if reason := why_not(engine):
            return reason
    if _code("docker", "image", "inspect", PYTHON_IMAGE) and _code("docker", "pull", "--quiet", PYTHON_IMAGE):
        return f"the image {PYTHON_IMAGE} is not there and cannot be pulled; deploy/stand-ins/build.sh builds a stand-in"
    return ""


def _code(*command: str) -> int:
    return subprocess.run(command, capture_output=True, timeout=COMMAND_S, check=False).returncode


@pytest.fixture
def composed() -> Iterator[Composed]:
    """Not up yet; gone at the end, also when this process is killed."""
    if reason := why_no_compose():
        skip_or_fail(reason)
    project = Composed()
    warden = Warden(f'cd "$0" && {" ".join(_removal(project.name))}', str(ROOT))
    try:
        yield project
    except BaseException:
        print(project.compose("logs", "--tail", "40"))
        raise
    finally:
        project.remove()
        warden.dismiss()


@pytest.mark.slow
@pytest.mark.timeout(1_800)
def test_up_counts_and_down_leaves_nothing(composed: Composed, tmp_path: Path) -> None:
    """Everything gets ready; what is written is counted, by three projectors and after another broker has taken over the volume, too."""
    composed.run("make", "up", seconds=UP_S)
    assert dict(composed.states()) == dict.fromkeys(ONE_SHOT, "exited 0") | dict.fromkeys(LASTING, "healthy")
    assert_confined(composed.containers())

    settings = {
        "log": "kafka",
        "store": "cassandra",
        "kafka_bootstrap_servers": f"127.0.0.1:{composed.ports['KAFKA_PORT']}",
        "cassandra_contact_points": f"127.0.0.1:{composed.ports['CASSANDRA_PORT']}",
    }
    follow(composed, tmp_path, ["ann", "cid", "dan"])
    assert followers(composed) == 3

    composed.compose("up", "--detach", "--wait", "--no-recreate", "--scale", "projector=3")
    assert Counter(composed.states())["projector", "healthy"] == 3
    wait_until(lambda: sharing(settings) == 3, "three projectors share the partitions", SHARED_S)
    follow(composed, tmp_path, [f"many{number}" for number in range(500)])
    assert followers(composed) == 503

    composed.compose("up", "--detach", "--wait", "--no-deps", "--force-recreate", "kafka")
    follow(composed, tmp_path, ["eve", "fay"])
    assert followers(composed) == 505
    assert assert_audit_is_clean(settings)["edges"] == 505
    assert {service(found): found["RestartCount"] for found in composed.containers()} == dict.fromkeys(ONE_SHOT | LASTING, 0)

    slow = ("steady", "--seconds", "2", "--profiles", "50", "--threshold", "read.p50_ms=0")
    missed = composed.run("docker", "compose", "--profile", "load", "run", "--rm", "--no-deps", "load", "load", *slow, code=1)
    assert "verdict: thresholds missed" in missed or "verdict: generator behind" in missed
    debut_is_exact(composed, tmp_path / "report")

    volumes = [mount["Name"] for found in composed.containers() for mount in found["Mounts"] if mount["Type"] == "volume"]
    assert volumes
    composed.run("make", "down")
    assert composed.leftovers() == []
    assert not set(volumes) & set(composed.run("docker", "volume", "ls", "--quiet").split())


def debut_is_exact(composed: Composed, folder: Path) -> None:
    """`make load` sends a debut from a container of its own, and leaves its report here. Latencies are those of a machine that does all of
    it at once: they are not looked at."""
    limits = "--threshold read.p99_ms=off --threshold write.p99_ms=off --threshold generator.late_p99_ms=off"
    chosen = {"LOAD_SCENARIO": "debut", "LOAD_ARGS": f"--followers 5000 --times 10 --profiles 200 {limits}", "LOAD_REPORT": str(folder)}
    composed.run("make", "load", seconds=UP_S, environment=chosen)
    assert_confined(composed.containers())
    report = json.loads((folder / "report.json").read_text("utf-8"))
    print({name: value for name, value in report["figures"].items() if value})
    assert (report["verdict"], report["exact"], report["acknowledged"]) == ("pass", True, 5_000)
    assert (report["recount"]["counted"], report["recount"]["listed"], report["recount"]["actors_checked"]) == (5_000, 5_000, 5_000)
    assert "**pass**" in (folder / "report.md").read_text("utf-8")


def assert_confined(containers: list[dict[str, Any]]) -> None:
    """The service's containers may write nothing and are nobody special; what is published is for this machine only."""
    for found in containers:
        if service(found) in OWN:
            assert found["Config"]["User"] == "10001:10001"
            assert found["HostConfig"]["ReadonlyRootfs"]
            assert found["HostConfig"]["CapDrop"] == ["ALL"]
        for bindings in (found["HostConfig"]["PortBindings"] or {}).values():
            assert {binding["HostIp"] for binding in bindings} == {"127.0.0.1"}


def follow(composed: Composed, folder: Path, actors: list[str]) -> None:
    """Each follows bob; returns when the reader shows it."""
    file = folder / f"{actors[0]}.csv"
    file.write_text("actor,subject\n" + "".join(f"{actor},bob\n" for actor in actors), "utf-8")
    ran = watertower("import", file, environment=targets(composed), timeout_s=COMMAND_S)
    assert ran.code == 0, ran.out + ran.err


def followers(composed: Composed) -> int:
    ran = watertower("counts", "bob", "--metric", "followers", "--json", environment=targets(composed))
    assert ran.code == 0, ran.err
    return int(json.loads(ran.out)["entities"][0]["followers"])


def targets(composed: Composed) -> dict[str, str]:
    return {
        "WATERTOWER_WRITE_TARGET": f"127.0.0.1:{composed.ports['WRITE_PORT']}",
        "WATERTOWER_READ_TARGET": f"127.0.0.1:{composed.ports['READ_PORT']}",
    }


def sharing(settings: Settings) -> int:
    """Members of the projectors' group that have partitions."""
    admin = KafkaAdminClient(bootstrap_servers=str(settings["kafka_bootstrap_servers"]))
    try:
        members = admin.describe_groups([GROUP])[GROUP]["members"]
    finally:
        admin.close()
    return sum(any(topic["partitions"] for topic in member["member_assignment"]["assigned_partitions"]) for member in members)
