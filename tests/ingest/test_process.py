"""Ingest as a process: its end."""

import asyncio
import time
from contextlib import ExitStack
from typing import Any

import grpc

from tests.ingest.harness import HeldLog, SetClock, follow, request, until
from watertower.config import IngestSettings, ServiceSettings
from watertower.ingest.process import IngestProcess
from watertower.ingest.service import IngestService
from watertower.role import Stopping
from watertower.v1.writer_pb2_grpc import EngagementWriterStub

GRACE_S = 1.0


class WritingRole:
    """When the process is ready, writes an event whose record never lands, and tells the process to stop."""

    def __init__(self, log: HeldLog) -> None:
        self.stopping = Stopping()
        self.log = log
        self.stopped_s = 0.0

    def ready(self, address: str) -> None:
        self.writing = asyncio.create_task(self.write(address))

    async def write(self, address: str) -> None:
        async with grpc.aio.insecure_channel(address) as channel:
            stub: Any = EngagementWriterStub(channel)
            call = stub.RecordEvents(request(follow()))
            await until(lambda: len(self.log.records) == 1)
            self.stopped_s = time.monotonic()
            self.stopping.set()
            await call.code()

    def not_ready(self, reason: str) -> None:
        pass


def test_a_log_that_hangs_costs_the_grace_once() -> None:
    """For the records and for the calls that wait for them: whoever kills the process after its grace would come between the two."""
    log = HeldLog(held=True)
    role: Any = WritingRole(log)
    settings = ServiceSettings(write_port=0, drain_ms=0, shutdown_grace_ms=int(GRACE_S * 1e3))
    service = IngestService(log, IngestSettings(), SetClock())
    assert IngestProcess(service, settings, IngestSettings(), ExitStack()).run(role) == 0
    assert GRACE_S <= time.monotonic() - role.stopped_s < 1.8 * GRACE_S
