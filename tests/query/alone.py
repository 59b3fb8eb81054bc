"""A query service in a process of its own, on a fake store, with the server that WATERTOWER_QUERY_SERVER says: to be abused.

    python -m tests.query.alone [MB of address space]

It prints its port, and ends when its standard input does.
"""

import asyncio
import os
import random
import resource
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from tests.query.fakes import FakeStore
from watertower.clock import SystemClock
from watertower.config import QuerySettings
from watertower.core.model import Kind, Metric
from watertower.ports import ListCursor
from watertower.query.process import server_of
from watertower.query.service import QueryService

ROOT = Path(__file__).parents[2]


class Alone(NamedTuple):
    process: "subprocess.Popen[str]"
    port: int

    def rss_mb(self, peak: bool = False) -> float:
        """Memory that it holds, or held at most."""
        lines = Path(f"/proc/{self.process.pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) / 1_024 for line in lines if line.startswith("VmHWM" if peak else "VmRSS"))


@contextmanager
def alone(server: str, address_space_mb: int | None = None) -> Iterator[Alone]:
    """The process, until the block ends."""
    command = [sys.executable, "-m", "tests.query.alone", *([] if address_space_mb is None else [str(address_space_mb)])]
    environment = {**os.environ, "WATERTOWER_QUERY_SERVER": server, "RUST_BACKTRACE": "0"}
    with subprocess.Popen(command, cwd=ROOT, env=environment, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            yield Alone(process, int(process.stdout.readline()))
        finally:
            process.kill()


def store() -> FakeStore:
    """A star, and lists whose pages are large."""
    now_us = SystemClock().now_us()
    filled = FakeStore()
    filled.write("star", Metric.FOLLOWERS, 0, 42, 1, now_us)
    filled.beat(1, now_us)
    filled.lists["ListActors", "star", Kind.FOLLOW] = [ListCursor(now_us - n, f"{n:0128d}", "") for n in range(1_000)]
    return filled


async def main() -> None:
    if sys.argv[1:]:
        resource.setrlimit(resource.RLIMIT_AS, (int(sys.argv[1]) << 20,) * 2)
    filled, limits = store(), QuerySettings()
    service = QueryService(filled, filled, limits, SystemClock(), random.Random(0), filled.identity.log.partitions)
    server = server_of(service, "127.0.0.1", 0, limits)
    port = await server.start()
    await service.start()
    print(port, flush=True)
    await asyncio.to_thread(sys.stdin.read)
    await server.stop(1.0)
    await service.stop()


if __name__ == "__main__":
    asyncio.run(main())
