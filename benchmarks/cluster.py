"""The service on a real Kafka and a real Cassandra, which are started for it: `python -m benchmarks.cluster COMMAND`.

`debut [OPTIONS]` is `watertower debut` on new topics and tables, with one broker and one node on the same cores as everything else.
"""

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from watertower.testing.engines import cassandra, kafka, unique_name

PARTITIONS = 16


@contextmanager
def prepared(partitions: int = PARTITIONS) -> Iterator[dict[str, str]]:
    """Engines with new topics and tables; the settings to reach them, as environment variables."""
    with kafka() as broker, cassandra() as node:
        name = unique_name("bench").replace("-", "_")
        settings = {
            "WATERTOWER_LOG": "kafka",
            "WATERTOWER_STORE": "cassandra",
            "WATERTOWER_KAFKA_BOOTSTRAP_SERVERS": broker.bootstrap_servers,
            "WATERTOWER_KAFKA_PREFIX": name,
            "WATERTOWER_CASSANDRA_CONTACT_POINTS": node.contact_points,
            "WATERTOWER_CASSANDRA_LOCAL_DATACENTER": node.local_datacenter,
            "WATERTOWER_CASSANDRA_REPLICATION": f"{node.local_datacenter}:1",
            "WATERTOWER_CASSANDRA_KEYSPACE": name,
        }
        for command in (("topics", "create", "--partitions", str(partitions)), ("migrate",)):
            if code := watertower(settings, *command):
                raise SystemExit(code)
        yield settings


def watertower(settings: Mapping[str, str], *arguments: str) -> int:
    """Runs the command with these settings, on this terminal. Its exit code."""
    return subprocess.run([sys.executable, "-m", "watertower", *arguments], env={**os.environ, **settings}, check=False).returncode


def main(arguments: list[str]) -> int:
    if arguments[:1] != ["debut"]:
        print(__doc__, file=sys.stderr)
        return 2
    with prepared() as settings:
        return watertower(settings, *arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
