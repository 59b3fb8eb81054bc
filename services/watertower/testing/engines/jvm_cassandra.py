"""Cassandra as JVM processes: one data centre, node i on 127.0.0.i, one port for all."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from watertower.testing.engines import cache, jvm
from watertower.testing.engines.engine import CassandraEngine, Request
from watertower.testing.service import free_port

VERSION = "5.0.9"
HEAP_MB = 768
USER, PASSWORD = "cassandra", "cassandra"
"""The super user that a new Cassandra has."""

_JARS = f"cassandra-{VERSION}"
_DEPENDENCIES = (("org.apache.cassandra", "cassandra-all", VERSION),)
READY = "Startup complete"
_USER_MADE = "Created default superuser role"
_RING = 2**64

SYNCED = {
    "cassandra.config.allow_system_properties": "true",
    "cassandra.settings.commitlog_sync": "batch",
    "cassandra.settings.commitlog_sync_period": "0ms",
}
"""Makes a node whose cassandra.yaml is the official one sync what it acknowledges."""

QUICK_START = {
    "cassandra.skip_wait_for_gossip_to_settle": 0,
    "cassandra.ring_delay_ms": 1000,
    # Twice the ring's delay by default; a node that is silent for half of it before it owns tokens is forgotten by the others, and on
    # one machine with little to compute with they all are.
    "cassandra.gossip_quarantine_delay_ms": 120_000,
    "cassandra.superuser_setup_delay_ms": 0,
}
"""Waits for gossip, a ring and a user that a new cluster on one machine does not need (8, 30 and 10 s), and one that it does."""

# What of Java 17's insides it needs.
_OPEN = [f"--add-opens=java.base/{package}=ALL-UNNAMED" for package in ("jdk.internal.ref", "sun.nio.ch", "java.io")] + [
    f"--add-exports={package}=ALL-UNNAMED"
    for package in ("java.rmi/sun.rmi.registry", "java.rmi/sun.rmi.server", "java.management.rmi/com.sun.jmx.remote.internal.rmi")
]

# StorageService says at DEBUG that a peer has its tokens.
_LOGGING = """\
<configuration><appender name="STDOUT" class="ch.qos.logback.core.ConsoleAppender">
<encoder><pattern>%-5level [%thread] %date{ISO8601} %F:%L - %msg%n</pattern></encoder></appender>
<root level="INFO"><appender-ref ref="STDOUT"/></root>
<logger name="org.apache.cassandra.service.StorageService" level="DEBUG"/></configuration>
"""

_SETTINGS = """\
cluster_name: engines
partitioner: org.apache.cassandra.dht.Murmur3Partitioner
endpoint_snitch: SimpleSnitch
# an acknowledged write outlives its node (docs/decisions/0011); the rest as in the official file
commitlog_sync: batch
batch_size_warn_threshold: 5KiB
batch_size_fail_threshold: 50KiB
storage_compatibility_mode: CASSANDRA_4
# only for tests: fixed tokens and nothing to stream, so that nodes may start together; no snapshot at truncate and drop; a small log
num_tokens: 1
initial_token: {token}
auto_bootstrap: false
auto_snapshot: false
commitlog_total_space: 256MiB
seed_provider:
  - class_name: org.apache.cassandra.locator.SimpleSeedProvider
    parameters: [{{seeds: "{seeds}"}}]
listen_address: {host}
storage_port: {storage_port}
rpc_address: {host}
native_transport_port: {native_port}
"""

_LOGIN = """\
authenticator: PasswordAuthenticator
authorizer: CassandraAuthorizer
client_encryption_options:
  enabled: true
  optional: false
  keystore: {keystore}
  keystore_password: {password}
  store_type: PKCS12
"""


def jars() -> Path:
    """The folder with Cassandra and all that it needs."""
    return cache.jars(_JARS, _DEPENDENCIES)


class CassandraNode(jvm.JvmNode):
    """A node that is ready when it and its peers see each other and know each other's tokens, too: whatever asks for a quorum right
    after that gets one, and a table made then has all its copies."""

    def __init__(
        self, number: int, host: str, folder: Path, arguments: Sequence[str], native_port: int, storage_port: int, management_port: int
    ) -> None:
        super().__init__(f"cassandra {number}", f"{host}:{native_port}", folder, _JARS, arguments, READY)
        self.data = folder / "data" / "data"
        """The folder with the tables' files."""
        self.nodetool: Sequence[str] = [
            *("java", "-XX:TieredStopAtLevel=1", *_OPEN, "-cp", f"{jars()}/*"),
            *("org.apache.cassandra.tools.NodeTool", "--host", "127.0.0.1", "--port", str(management_port)),
        ]
        """The command line of Cassandra's `nodetool` on this node; its arguments follow."""
        self.peers: Sequence[CassandraNode] = ()
        self._up, self._has_token = (f"/{host}:{storage_port} {what}" for what in ("is now UP", "state NORMAL, token"))
        self._to_meet: dict[CassandraNode, int] = {}

    def launch(self, trained: Path | None = None) -> None:
        # From there on a peer's log is about this start.
        self._to_meet = {peer: len(peer.said()) for peer in self.peers if peer.running and not peer.paused}
        super().launch(trained)

    def wait_ready(self) -> None:
        super().wait_ready()
        for peer, length in self._to_meet.items():
            self.wait_for_line(peer._up)
            peer.wait_for_line(self._up, after=length)
            if self.starts == 1:  # nodes keep what they know of tokens
                self.wait_for_line(peer._has_token)
                peer.wait_for_line(self._has_token, after=length)


def why_not(request: Request) -> str:
    """Empty when this machine can start it; else what is missing."""
    return jvm.why_no_jvm(_JARS)


@contextmanager
def cassandra(request: Request) -> Iterator[CassandraEngine]:
    """Nodes on free ports; gone, with their data, at the end."""
    class_path = f"{jars()}/*"
    hosts = request.hosts
    native_port, storage_port = jvm.shared_port(hosts), jvm.shared_port(hosts)
    seeds = ",".join(f"{host}:{storage_port}" for host in hosts)
    nodes = []
    with jvm.data_folder("cassandra") as folder:
        for number, host in enumerate(hosts, 1):
            home = folder / str(number)
            home.mkdir()
            token = -(2**63) + 1 + (number - 1) * (_RING // request.nodes)
            text = _SETTINGS.format(token=token, seeds=seeds, host=host, storage_port=storage_port, native_port=native_port)
            if request.secure:
                text += _LOGIN.format(keystore=cache.certificates(request.host) / "server.p12", password=cache.STORE_PASSWORD)
            (home / "cassandra.yaml").write_text(text)
            (home / "logback.xml").write_text(_LOGGING)
            management_port = free_port()
            options = [*_java_options(home, request), f"-Dcassandra.jmx.local.port={management_port}"]
            arguments = [*options, "-cp", class_path, "org.apache.cassandra.service.CassandraDaemon"]
            nodes.append(CassandraNode(number, host, home, arguments, native_port, storage_port, management_port))
        for node in nodes:
            node.peers = [peer for peer in nodes if peer is not node]
        access = {"user": USER, "password": PASSWORD, "ca_file": str(cache.certificates(request.host) / "ca.pem")} if request.secure else {}
        with jvm.launched(nodes):
            if request.secure:
                jvm.wait_for_any(nodes, _USER_MADE)
            yield CassandraEngine(provider="jvm", nodes=nodes, **access)


def _java_options(home: Path, request: Request) -> list[str]:
    properties = {
        "cassandra.config": (home / "cassandra.yaml").as_uri(),
        "logback.configurationFile": home / "logback.xml",
        "cassandra.storagedir": home / "data",
        "cassandra-foreground": "yes",
        **QUICK_START,
        # One copy, the default, would lock everybody out with the node that holds it.
        "cassandra.system_auth.default_rf": request.replication_factor,
    }
    heap = [f"-Xms{HEAP_MB}m", f"-Xmx{HEAP_MB}m", "-XX:+UseSerialGC"]
    return [*heap, *_OPEN, *(f"-D{name}={value}" for name, value in properties.items())]
