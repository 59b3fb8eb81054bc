"""Kafka as JVM processes: KRaft, every node broker and controller."""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from watertower.testing.engines import cache, jvm
from watertower.testing.engines.engine import EngineFailed, KafkaEngine, Request
from watertower.testing.service import free_port

VERSION = "4.4.0"
LOG4J_VERSION = "2.25.5"
"""Without it the broker logs nothing, and nothing says that it is ready."""

HEAP_MB = 384
USER, PASSWORD = "app", "app-secret"

_JARS = f"kafka-{VERSION}"
_DEPENDENCIES = (("org.apache.kafka", "kafka_2.13", VERSION), ("org.apache.logging.log4j", "log4j-slf4j-impl", LOG4J_VERSION))
_CLUSTER_ID = "5L6g3nShT-eMCtK--X86sw"
READY = "Kafka Server started"
_FORMAT_S = 120

_LOGGING = """\
status=warn
appender.c.type=Console
appender.c.name=c
appender.c.layout.type=PatternLayout
appender.c.layout.pattern=[%d] %p %m (%c)%n
rootLogger.level=info
rootLogger.appenderRef.c.ref=c
"""


def jars() -> Path:
    """The folder with the broker and all that it needs."""
    return cache.jars(_JARS, _DEPENDENCIES)


def settings(request: Request) -> dict[str, object]:
    """What tests want of a broker, however it is started."""
    factor, in_sync = request.replication_factor, max(1, request.replication_factor - 1)
    return {
        "default.replication.factor": factor,
        "min.insync.replicas": in_sync,
        "auto.create.topics.enable": "false",
        "unclean.leader.election.enable": "false",
        "offsets.topic.replication.factor": factor,
        "offsets.topic.num.partitions": 4,
        "transaction.state.log.replication.factor": factor,
        "transaction.state.log.min.isr": in_sync,
        "transaction.state.log.num.partitions": 4,
        "share.coordinator.state.topic.replication.factor": factor,
        "share.coordinator.state.topic.min.isr": in_sync,
        # Only so that tests are quick: groups begin at once, a dead member is noticed in a second, a dead broker in three.
        "group.initial.rebalance.delay.ms": 0,
        "group.min.session.timeout.ms": 1000,
        "broker.session.timeout.ms": 3000,
        "broker.heartbeat.interval.ms": 500,
        # The default, 128 MiB, is a third of the heap.
        "log.cleaner.dedupe.buffer.size": 8 * 1024 * 1024,
    }


def why_not(request: Request) -> str:
    """Empty when this machine can start it; else what is missing."""
    return jvm.why_no_jvm(_JARS)


@contextmanager
def kafka(request: Request) -> Iterator[KafkaEngine]:
    """Brokers on free ports of one address; gone, with their data, at the end."""
    class_path = f"{jars()}/*"
    host = request.host or "127.0.0.1"
    ports = [(jvm.shared_port([host]), free_port(), jvm.shared_port([host])) for _ in range(request.nodes)]
    voters = ",".join(f"{number}@127.0.0.1:{controller}" for number, (_, controller, _) in enumerate(ports, 1))
    nodes = []
    with jvm.data_folder("kafka") as folder:
        for number, (plain, controller, secure) in enumerate(ports, 1):
            home = folder / str(number)
            home.mkdir()
            (home / "log4j2.properties").write_text(_LOGGING)
            listeners = f"PLAINTEXT://{host}:{plain}" + (f",SASL_SSL://{host}:{secure}" if request.secure else "")
            properties: dict[str, object] = {
                "process.roles": "broker,controller",
                "node.id": number,
                "controller.quorum.voters": voters,
                "controller.listener.names": "CONTROLLER",
                "listeners": f"{listeners},CONTROLLER://127.0.0.1:{controller}",
                "advertised.listeners": listeners,
                "listener.security.protocol.map": "CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT,SASL_SSL:SASL_SSL",
                "inter.broker.listener.name": "PLAINTEXT",
                "log.dirs": home / "data",
                **settings(request),
                **(_login(request) if request.secure else {}),
            }
            (home / "server.properties").write_text("".join(f"{name}={value}\n" for name, value in properties.items()))
            options = [
                f"-Xms{HEAP_MB // 2}m",
                f"-Xmx{HEAP_MB}m",
                "-XX:+UseSerialGC",
                f"-Dlog4j2.configurationFile={home}/log4j2.properties",
            ]
            arguments = [*options, "-cp", class_path, "kafka.Kafka", "server.properties"]
            address = f"{host}:{secure}" if request.secure else f"{host}:{plain}"
            nodes.append(jvm.JvmNode(f"kafka {number}", address, home, _JARS, arguments, READY))
        _format([node.folder for node in nodes], class_path, request.secure)
        access = {"user": USER, "password": PASSWORD, "ca_file": str(cache.certificates(request.host) / "ca.pem")} if request.secure else {}
        with jvm.launched(nodes):
            yield KafkaEngine(provider="jvm", nodes=nodes, **access)


def _login(request: Request) -> dict[str, object]:
    certificates = cache.certificates(request.host)
    listener = "listener.name.sasl_ssl"
    return {
        f"{listener}.sasl.enabled.mechanisms": "SCRAM-SHA-512",
        f"{listener}.scram-sha-512.sasl.jaas.config": "org.apache.kafka.common.security.scram.ScramLoginModule required;",
        f"{listener}.ssl.keystore.type": "PEM",
        f"{listener}.ssl.keystore.location": certificates / "server.pem",
        f"{listener}.ssl.truststore.type": "PEM",
        f"{listener}.ssl.truststore.location": certificates / "ca.pem",
    }


def _format(homes: list[Path], class_path: str, secure: bool) -> None:
    """Prepares the data folders, side by side. The first user must be there before the first login."""
    quick = ["-Xmx256m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", *jvm.sharing(_JARS)]
    command = ["java", *quick, "-cp", class_path, "kafka.tools.StorageTool", "format", "-t", _CLUSTER_ID, "-c", "server.properties"]
    if secure:
        command += ["--add-scram", f"SCRAM-SHA-512=[name={USER},password={PASSWORD}]"]
    running = [subprocess.Popen(command, cwd=home, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) for home in homes]
    try:
        for process in running:
            said, _ = process.communicate(timeout=_FORMAT_S)
            if process.returncode:
                raise EngineFailed(f"kafka could not format its storage:\n{said}")
    finally:
        for process in running:
            with process:
                process.kill()
