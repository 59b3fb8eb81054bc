"""EngagementWriter: validates, routes, coalesces, appends; acknowledges only what the log holds durably."""

import math
import re
from collections.abc import Callable, Iterable

import grpc
import structlog

from watertower.admission import Admission, Work
from watertower.config import IngestSettings
from watertower.core.positions import Position, encode_position
from watertower.counters import CallCounters
from watertower.errors import CallRefused, Reason
from watertower.ingest.appender import AppendCounters, Appender
from watertower.ingest.batcher import Batcher
from watertower.ingest.events import events_of
from watertower.ports import Clock, LogWriter
from watertower.rpc import CallContext, service_handler
from watertower.v1.writer_pb2 import DESCRIPTOR, RecordEventsRequest, RecordEventsResponse
from watertower.validation import EVENTS_MAX

TRACEPARENT = "traceparent"
_WELL_FORMED = re.compile(r"(?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")

SERVICE: str = DESCRIPTOR.services_by_name["EngagementWriter"].full_name


class IngestService:
    """The write side of the API on top of a log. One event loop runs it."""

    def __init__(
        self, log: LogWriter, settings: IngestSettings, clock: Clock, generation: int = 1, uniform: Callable[[], float] = lambda: 0.5
    ) -> None:
        """`generation` of the rows that are made from the log: part of every write token. `uniform` gives random numbers in [0, 1)."""
        self._partitions = log.identity.partitions
        self._clock = clock
        self._generation = generation
        self._ahead_us_max = settings.clock_ahead_ms_max * 1_000
        self._retry_after_s = settings.retry_after_ms / 1_000
        self._batcher = Batcher(
            self._partitions,
            record_events_max=settings.record_events_max,
            record_bytes_max=settings.record_bytes_max,
            queue_events_max=settings.queue_events_max,
            queue_bytes_max=settings.queue_bytes_max,
            retry_after_s=self._retry_after_s,
        )
        self._appender = Appender(log, self._batcher, clock)
        self.admission = Admission(settings, {"RecordEvents": Work.WRITE}, {}, uniform)
        self.calls = CallCounters(["RecordEvents"])
        self.acknowledged = 0
        """Events of calls that were answered with OK."""
        self._stopping = False

    @property
    def queue_events(self) -> int:
        """Events that wait for the log or are in flight to it."""
        return self._batcher.events

    @property
    def queue_bytes(self) -> int:
        """Bytes of their ids."""
        return self._batcher.id_bytes

    @property
    def appends(self) -> AppendCounters:
        """What the log took."""
        return self._appender.counters

    def handler(self) -> grpc.GenericRpcHandler:
        """What an RpcServer serves."""
        return service_handler(
            SERVICE,
            {"RecordEvents": (RecordEventsRequest, self.record_events)},
            structlog.get_logger("watertower.ingest"),
            unavailable=Reason.LOG_UNAVAILABLE,
            retry_after_s=self._retry_after_s,
            admission=self.admission,
            counters=self.calls,
        )

    async def record_events(self, request: RecordEventsRequest, context: CallContext) -> RecordEventsResponse:
        """EngagementWriter.RecordEvents. Raises CallRefused, BackendUnavailable."""
        if self._stopping:
            raise CallRefused(Reason.STOPPING, retry_after_s=self._retry_after_s)
        # Before any work; the bytes are known only after it, so `append` looks again.
        self._batcher.refuse_if_full(min(len(request.events), EVENTS_MAX))
        parts = events_of(request, self._partitions, self._clock.now_us() + self._ahead_us_max)
        offsets = await self._appender.append(parts, self._deadline_s(context), traceparent(context.invocation_metadata()))
        self.acknowledged += len(request.events)
        return RecordEventsResponse(write_token=encode_position(Position(self._generation, offsets)))

    async def drain(self) -> None:
        """Refuses new calls with STOPPING and waits until everything that was taken in is answered for by the log."""
        self._stopping = True
        await self._appender.drained()

    def _deadline_s(self, context: CallContext) -> float:
        remaining_s = context.time_remaining()
        return math.inf if remaining_s is None else self._clock.monotonic_s() + remaining_s


def traceparent(metadata: Iterable[tuple[str, str | bytes]] | None) -> str:
    """A call's W3C trace context; empty when it has none, or none that is well formed (it is then to be ignored, says the
    recommendation)."""
    for key, value in metadata or ():
        if key == TRACEPARENT and isinstance(value, str) and _WELL_FORMED.fullmatch(value):
            return value
    return ""
