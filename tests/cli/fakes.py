"""A Watertower service inside the test's process: real gRPC on a free port, rows in dicts, faults on demand."""

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, NamedTuple

import grpc
from google.protobuf.any_pb2 import Any as AnyMessage
from google.rpc import error_details_pb2, status_pb2

from watertower.core.model import KINDS, Kind, Metric
from watertower.core.positions import Position, encode_position
from watertower.v1 import common_pb2, reader_pb2, reader_pb2_grpc, writer_pb2, writer_pb2_grpc


class Event(NamedTuple):
    """An event as the service received it."""

    actor: str
    kind: int
    subject: str
    ref: str
    state: int
    occurred_at: int


class Refusal(NamedTuple):
    """How the fake refuses a call."""

    status: grpc.StatusCode
    message: str = "refused"
    violations: tuple[tuple[str, str], ...] = ()
    reason: str = ""
    retry_after_s: float | None = None
    pushback: str | None = None


class FakeService(writer_pb2_grpc.EngagementWriterServicer, reader_pb2_grpc.EngagementReaderServicer):
    """Keeps what it receives. `on_record(number of the call, request)` may answer with a Refusal, or wait."""

    def __init__(self) -> None:
        self.calls: list[writer_pb2.RecordEventsRequest] = []
        self.recorded: list[list[Event]] = []
        self.call_times: list[float] = []
        self.on_record: Callable[[int, writer_pb2.RecordEventsRequest], Refusal | None] = lambda number, request: None
        self.on_read: Callable[[str], Refusal | None] = lambda method: None
        self.offset = 0
        self.generation = 1
        self.visible_lag_reads = 0
        self.freshnesses: list[common_pb2.Freshness] = []  # of the next answers, instead of what it knows
        self.reads: list[Any] = []
        self.lock = threading.Lock()

    @property
    def events(self) -> list[Event]:
        """Every event that was recorded."""
        return [event for events in self.recorded for event in events]

    # --- the writer

    def RecordEvents(self, request: writer_pb2.RecordEventsRequest, context: grpc.ServicerContext) -> writer_pb2.RecordEventsResponse:  # noqa: N802
        with self.lock:
            self.calls.append(request)
            self.call_times.append(time.monotonic())
            number = len(self.calls)
        refusal = self.on_record(number, request)
        if refusal is not None:
            _refuse(context, refusal)
        with self.lock:
            self.recorded.append(
                [Event(e.actor, e.kind, e.subject, e.ref, e.state, e.occurred_at.ToMicroseconds()) for e in request.events]
            )
            self.offset += 1
            return writer_pb2.RecordEventsResponse(write_token=encode_position(Position(self.generation, {0: self.offset})))

    # --- the reader

    def GetCounts(self, request: reader_pb2.GetCountsRequest, context: grpc.ServicerContext) -> reader_pb2.GetCountsResponse:  # noqa: N802
        self._reading("GetCounts", request, context)
        response = reader_pb2.GetCountsResponse(values=[0] * len(request.metrics), known=False)
        self._freshness(response.freshness)
        return response

    def BatchGetCounts(self, request: Any, context: grpc.ServicerContext) -> reader_pb2.BatchGetCountsResponse:  # noqa: N802
        self._reading("BatchGetCounts", request, context)
        response = reader_pb2.BatchGetCountsResponse()
        totals: Counter[tuple[str, int]] = Counter()
        for actor, kind, subject, _ in self._active():
            rule = KINDS[Kind(kind)]
            totals[subject, rule.subject_metric] += 1
            totals[actor, rule.actor_metric] += 1
        for index, entity in enumerate(request.entities):
            response.counts.add(values=[totals[entity, m] for m in request.metrics])
            if not any(totals[entity, metric] for metric in Metric):
                response.exceptions.add(index=index, known=False)
        self._freshness(response.freshness)
        return response

    def CheckEdges(self, request: Any, context: grpc.ServicerContext) -> reader_pb2.CheckEdgesResponse:  # noqa: N802
        self._reading("CheckEdges", request, context)
        pairs = {(actor, kind, subject) for actor, kind, subject, _ in self._active()}
        response = reader_pb2.CheckEdgesResponse(active=[(request.actor, request.kind, s) in pairs for s in request.subjects])
        self._freshness(response.freshness)
        return response

    def ListActors(self, request: Any, context: grpc.ServicerContext) -> reader_pb2.ListActorsResponse:  # noqa: N802
        self._reading("ListActors", request, context)
        rows = [(at, a, r) for (a, k, s, r), at in self._active().items() if (s, k) == (request.subject, request.kind)]
        response = reader_pb2.ListActorsResponse()
        self._page(response, rows, request, "actor")
        return response

    def ListSubjects(self, request: Any, context: grpc.ServicerContext) -> reader_pb2.ListSubjectsResponse:  # noqa: N802
        self._reading("ListSubjects", request, context)
        rows = [(at, s, r) for (a, k, s, r), at in self._active().items() if (a, k) == (request.actor, request.kind)]
        response = reader_pb2.ListSubjectsResponse()
        self._page(response, rows, request, "subject")
        return response

    def _page(self, response: Any, rows: list[tuple[int, str, str]], request: Any, other: str) -> None:
        rows.sort(reverse=True)
        start = int(request.page_token or 0)
        for at, name, ref in rows[start : start + request.page_size]:
            item = response.items.add(ref=ref, **{other: name})
            item.occurred_at.FromMicroseconds(at)
        if start + request.page_size < len(rows):
            response.next_page_token = str(start + request.page_size)
        self._freshness(response.freshness)

    def _active(self) -> dict[tuple[str, int, str, str], int]:
        edges: dict[tuple[str, int, str, str], Event] = {}
        for event in sorted(self.events, key=lambda e: (e.occurred_at, e.state)):
            edges[event[:4]] = event
        return {key: event.occurred_at for key, event in edges.items() if event.state == 1}

    def _reading(self, method: str, request: Any, context: grpc.ServicerContext) -> None:
        self.reads.append(request)
        refusal = self.on_read(method)
        if refusal is not None:
            _refuse(context, refusal)

    def _freshness(self, freshness: Any) -> None:
        if self.freshnesses:
            freshness.CopyFrom(self.freshnesses.pop(0))
            return
        freshness.as_of.FromMicroseconds(1_700_000_000_000_000)
        offset = self.offset
        if self.visible_lag_reads > 0:
            self.visible_lag_reads -= 1
            offset -= 1
        freshness.position = encode_position(Position(self.generation, {0: offset} if offset > 0 else {}))


@contextmanager
def serving(service: FakeService, address: str = "127.0.0.1:0") -> Iterator[str]:
    """Serves on a free port (or on `address`); gives the target."""
    server = grpc.server(ThreadPoolExecutor(16))
    writer_pb2_grpc.add_EngagementWriterServicer_to_server(service, server)
    reader_pb2_grpc.add_EngagementReaderServicer_to_server(service, server)
    port = server.add_insecure_port(address)
    server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        server.stop(0).wait()


def _refuse(context: grpc.ServicerContext, refusal: Refusal) -> None:
    status = status_pb2.Status(code=refusal.status.value[0], message=refusal.message)

    def pack(message: Any) -> None:
        packed = AnyMessage()
        packed.Pack(message)
        status.details.append(packed)

    pack(error_details_pb2.ErrorInfo(domain="watertower.v1", reason=refusal.reason))
    if refusal.violations:
        bad = error_details_pb2.BadRequest()
        for field, rule in refusal.violations:
            bad.field_violations.add(field=field, description=rule)
        pack(bad)
    if refusal.retry_after_s is not None:
        retry = error_details_pb2.RetryInfo()
        retry.retry_delay.FromMicroseconds(int(refusal.retry_after_s * 1e6))
        pack(retry)
    metadata: list[tuple[str, str | bytes]] = [("grpc-status-details-bin", status.SerializeToString())]
    if refusal.pushback is not None:
        metadata.append(("grpc-retry-pushback-ms", refusal.pushback))
    context.set_trailing_metadata(tuple(metadata))
    context.abort(refusal.status, refusal.message)
