"""One plain node in a container of the official image, through testcontainers.

Where official images cannot be pulled, deploy/stand-ins/build.sh builds local ones of the same names.
"""

import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from importlib.util import find_spec
from typing import TYPE_CHECKING

from watertower.clock import SystemClock
from watertower.testing.engines import jvm_cassandra, jvm_kafka
from watertower.testing.engines.engine import CassandraEngine, EngineFailed, KafkaEngine, Node, Request
from watertower.testing.engines.warden import Warden
from watertower.testing.service import free_port

if TYPE_CHECKING:
    from docker.models.containers import Container

KAFKA_IMAGE = f"apache/kafka:{jvm_kafka.VERSION}"
CASSANDRA_IMAGE = f"cassandra:{jvm_cassandra.VERSION}"
START_S = 240.0
"""Seconds that a container may take to be ready on a busy machine."""

STOP_S = 60
"""Seconds that a container may take to end cleanly, before Docker kills it."""

_LOG_LINES_SHOWN = 40
_DOCKER_S = 10
_POLL_S = 0.2
_KAFKA_PORT, _CASSANDRA_PORT = 9094, 9042

_clock = SystemClock()


class _ContainerNode(Node):
    """A container that says in its log that it is ready."""

    def __init__(self, address: str, container: "Container", ready_line: str) -> None:
        super().__init__(address)
        self._container = container
        self._ready_line = ready_line
        self._ready_before = 0

    def wait_ready(self) -> None:
        """Waits until it has said so once more than before. Raises EngineFailed."""
        deadline = _clock.monotonic_s() + START_S
        while self._said().count(self._ready_line) <= self._ready_before:
            self._container.reload()
            if self._container.status == "exited":
                raise EngineFailed(f"the container ended instead of saying '{self._ready_line}':\n{self._log_tail()}")
            if _clock.monotonic_s() > deadline:
                raise EngineFailed(f"the container did not say '{self._ready_line}' within {START_S:g} s:\n{self._log_tail()}")
            _clock.sleep(_POLL_S)

    def kill(self) -> None:
        self._unpause()  # Docker does not kill a paused container
        self._container.kill()
        self._container.wait(timeout=STOP_S)

    def stop(self) -> None:
        self._unpause()
        self._container.stop(timeout=STOP_S)

    def start(self) -> None:
        self._ready_before = self._said().count(self._ready_line)
        self._container.start()
        self.wait_ready()

    def pause(self) -> None:
        self._container.pause()

    def resume(self) -> None:
        self._container.unpause()

    def _unpause(self) -> None:
        self._container.reload()
        if self._container.status == "paused":
            self._container.unpause()

    def _said(self) -> str:
        said: bytes = self._container.logs()
        return said.decode("utf-8", errors="replace")

    def _log_tail(self) -> str:
        return "\n".join(self._said().splitlines()[-_LOG_LINES_SHOWN:])


def why_not(request: Request) -> str:
    """Empty when a container can be what is asked for; else why it cannot."""
    if request.nodes > 1 or request.secure:
        return "containers are for one node without a login"
    if request.host:
        return "containers are published at 127.0.0.1 only"
    if find_spec("testcontainers") is None:
        return "testcontainers is not installed (pip install 'watertower[engines]')"
    return _why_no_image(KAFKA_IMAGE if request.engine == "kafka" else CASSANDRA_IMAGE)


@contextmanager
def kafka(request: Request) -> Iterator[KafkaEngine]:
    """A broker on a free port of 127.0.0.1; gone, with its data, at the end."""
    port = free_port()
    listeners = {
        "process.roles": "broker,controller",
        "node.id": 1,
        "controller.quorum.voters": "1@localhost:9093",
        "controller.listener.names": "CONTROLLER",
        "listeners": f"BROKER://:9092,CONTROLLER://:9093,OUTSIDE://:{_KAFKA_PORT}",
        "advertised.listeners": f"BROKER://localhost:9092,OUTSIDE://127.0.0.1:{port}",
        "listener.security.protocol.map": "BROKER:PLAINTEXT,CONTROLLER:PLAINTEXT,OUTSIDE:PLAINTEXT",
        "inter.broker.listener.name": "BROKER",
        "log.dirs": "/var/lib/kafka/data",
    }
    properties = listeners | jvm_kafka.settings(request)
    environment = {f"KAFKA_{name.replace('.', '_').upper()}": str(value) for name, value in properties.items()}
    environment["KAFKA_HEAP_OPTS"] = f"-Xms{jvm_kafka.HEAP_MB // 2}m -Xmx{jvm_kafka.HEAP_MB}m"
    with _started(KAFKA_IMAGE, environment, _KAFKA_PORT, port, jvm_kafka.READY) as node:
        yield KafkaEngine(provider="containers", nodes=[node])


@contextmanager
def cassandra(request: Request) -> Iterator[CassandraEngine]:
    """A node on a free port of 127.0.0.1; gone, with its data, at the end."""
    environment = {
        "MAX_HEAP_SIZE": f"{jvm_cassandra.HEAP_MB}M",
        "HEAP_NEWSIZE": f"{jvm_cassandra.HEAP_MB // 4}M",  # the official image wants both
        "JVM_OPTS": " ".join(f"-D{name}={value}" for name, value in {**jvm_cassandra.QUICK_START, **jvm_cassandra.SYNCED}.items()),
    }
    with _started(CASSANDRA_IMAGE, environment, _CASSANDRA_PORT, free_port(), jvm_cassandra.READY) as node:
        yield CassandraEngine(provider="containers", nodes=[node])


@contextmanager
def _started(image: str, environment: Mapping[str, str], inside: int, port: int, ready_line: str) -> Iterator[_ContainerNode]:
    # Read at import. Its own warden would be one more image to pull; ours needs none.
    os.environ.setdefault("TESTCONTAINERS_RYUK_DISABLED", "true")
    from testcontainers.core.container import DockerContainer

    container = DockerContainer(image).with_envs(**environment)
    # A fixed port, because a container that starts again would get another one; and on this machine's loopback only.
    container.ports[str(inside)] = ("127.0.0.1", port)  # type: ignore[assignment]  # Docker takes pairs, testcontainers' hint does not
    with container:
        warden = Warden('docker rm --force --volumes "$0"', container.get_container_id()) if shutil.which("docker") else None
        try:
            node = _ContainerNode(f"127.0.0.1:{port}", container.get_wrapped_container(), ready_line)
            node.wait_ready()
            yield node
        finally:
            if warden is not None:
                warden.dismiss()


@cache
def _why_no_image(image: str) -> str:
    import docker  # comes with testcontainers, which is optional
    from docker.errors import DockerException, ImageNotFound

    try:
        client = docker.from_env(timeout=_DOCKER_S)
        client.ping()
    except DockerException:
        return "no Docker engine answers"
    try:
        client.images.get(image)
    except ImageNotFound:
        try:
            client.images.pull(*image.split(":"))
        except DockerException as error:
            return f"the image {image} is not there and cannot be pulled ({error}); deploy/stand-ins/build.sh builds a stand-in"
    finally:
        client.close()
    return ""
