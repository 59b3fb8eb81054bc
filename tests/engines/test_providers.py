"""Which provider gives an engine, what the errors say, and that an engine never outlives who started it."""

import os
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.engines.clients import ANSWER_S, make_topic, produce
from tests.needs import skip_or_fail
from watertower.testing.engines import EngineUnavailable, NodeNotControllable, cassandra, kafka
from watertower.testing.engines.addresses import why_not as why_no_address
from watertower.testing.engines.engine import Request
from watertower.testing.engines.jvm import java_version
from watertower.testing.service import alive, wait_until


@pytest.fixture
def nothing_set(monkeypatch: pytest.MonkeyPatch) -> None:
    """An environment that names no engine and forces no provider."""
    for name in list(os.environ):
        if name.startswith("WATERTOWER_TEST_"):
            monkeypatch.delenv(name)


@pytest.fixture
def no_programs(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A PATH without java and mvn."""
    monkeypatch.setenv("PATH", "")
    java_version.cache_clear()
    yield
    java_version.cache_clear()


@pytest.mark.usefixtures("nothing_set", "no_programs")
def test_without_a_provider_the_error_says_what_to_do() -> None:
    """Each provider that was tried says what it lacks."""
    with pytest.raises(EngineUnavailable) as refused, kafka(nodes=3):
        pass
    for part in ("WATERTOWER_TEST_KAFKA is not set", "containers are for one node", "openjdk-17-jre-headless"):
        assert part in str(refused.value)


@pytest.mark.usefixtures("nothing_set")
def test_a_forced_provider_is_the_only_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """WATERTOWER_TEST_ENGINES allows one provider, and refuses what it does not know."""
    monkeypatch.setenv("WATERTOWER_TEST_ENGINES", "addresses")
    with pytest.raises(EngineUnavailable, match=r"allows no other.*WATERTOWER_TEST_CASSANDRA is not set"), cassandra():
        pass
    monkeypatch.setenv("WATERTOWER_TEST_ENGINES", "pigeons")
    with pytest.raises(EngineUnavailable, match="pigeons is not one of addresses, containers, jvm"), cassandra():
        pass


@pytest.mark.usefixtures("nothing_set")
@pytest.mark.parametrize(
    ("asked", "reason"),
    [
        (Request("kafka", own=True), "one of its own"),
        (Request("kafka", nodes=3), "2 of the 3 nodes"),
        (Request("kafka", secure=True), "wants a login"),
        (Request("kafka", host="10.243.0.1"), "at 10.243.0.1"),
        (Request("kafka", nodes=2), ""),
    ],
    ids=["own", "too few", "no login", "elsewhere", "fits"],
)
def test_addresses_are_taken_only_where_they_fit(asked: Request, reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """An engine that is shared, too small or without a login is not given to a test that wants another."""
    monkeypatch.setenv("WATERTOWER_TEST_KAFKA", "127.0.0.1:1, 127.0.0.1:2")
    found = why_no_address(asked)
    assert reason in found
    assert bool(reason) == bool(found)


@pytest.mark.slow
def test_engines_end_with_the_process_that_started_them() -> None:
    """A test runner that is killed leaves no engine and no data behind."""
    program = """
from watertower.testing.engines import kafka
with kafka(own=True) as engine:
    print(engine.nodes[0].pid, engine.nodes[0].folder, flush=True)
    input()
"""
    environment = {**os.environ, "WATERTOWER_TEST_ENGINES": "jvm"}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", program], **pipes, text=True, env=environment) as runner:
        said = runner.stdout.readline().split()
        runner.kill()
        if not said:
            skip_or_fail(runner.stderr.read())
    pid, folder = int(said[0]), Path(said[1])
    wait_until(lambda: not alive(pid) and not folder.parent.exists(), "the broker and its data are gone")


@pytest.mark.slow
@pytest.mark.usefixtures("nothing_set")
def test_the_command_says_how_to_find_the_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    """`python -m watertower.testing.engines` prints assignments with which a test finds the engine by its address; SIGTERM ends it."""
    command = [sys.executable, "-m", "watertower.testing.engines", "kafka", "--secure"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as running:
        try:
            line = running.stdout.readline()
            if not line:
                skip_or_fail(running.stderr.read())
            for assignment in shlex.split(line):
                monkeypatch.setenv(*assignment.split("=", 1))
            monkeypatch.setenv("WATERTOWER_TEST_ENGINES", "addresses")
            with kafka(secure=True) as engine:
                assert engine.provider == "addresses"
                produce(engine, make_topic(engine), [b"first"])
                with pytest.raises(NodeNotControllable, match="own=True"):
                    engine.nodes[0].kill()
        finally:
            running.terminate()
        assert running.wait(ANSWER_S) == 0
