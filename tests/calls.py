"""Calls to a running service, one attempt each, and waiting for what they wrote."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import grpc
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc

from watertower.client.errors import RETRYABLE
from watertower.clock import SystemClock
from watertower.core.positions import Position, decode_position
from watertower.testing.service import NotInTime, wait_until
from watertower.v1 import common_pb2, reader_pb2, reader_pb2_grpc, writer_pb2, writer_pb2_grpc

CLOCK = SystemClock()

CALL_S = 5.0
"""Deadline of one attempt."""

METRICS = ("followers", "following", "likes", "likes_given", "comments", "comments_written")
"""In the order of the API's numbers, from 1."""

_CHANNEL = (
    ("grpc.enable_retries", 0),
    ("grpc.service_config", '{"loadBalancingConfig": [{"round_robin": {}}]}'),
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.min_reconnect_backoff_ms", 50),
    ("grpc.max_reconnect_backoff_ms", 200),
)


@contextlib.contextmanager
def writing(target: str) -> Iterator[writer_pb2_grpc.EngagementWriterStub]:
    """`target` is HOST:PORT, or several as in `several`."""
    with grpc.insecure_channel(target, options=_CHANNEL) as channel:
        yield writer_pb2_grpc.EngagementWriterStub(channel)


@contextlib.contextmanager
def reading(target: str) -> Iterator[reader_pb2_grpc.EngagementReaderStub]:
    """`target` is HOST:PORT, or several as in `several`."""
    with grpc.insecure_channel(target, options=_CHANNEL) as channel:
        yield reader_pb2_grpc.EngagementReaderStub(channel)


def several(targets: Sequence[str]) -> str:
    """One target for servers that do the same: calls take turns, and pass by a server that is away."""
    return f"ipv4:{','.join(targets)}"


def health(target: str, service: str = "") -> str:
    """What the server says of itself; "CLOSED" where nothing answers."""
    with grpc.insecure_channel(target, options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
        try:
            answer = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(service=service), timeout=2.0)
        except grpc.RpcError as error:
            if error.code() not in RETRYABLE:
                raise
            return "CLOSED"
    name: str = health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status)
    return name


def refusal(error: grpc.RpcError) -> tuple[str, float | None]:
    """(reason, seconds that RetryInfo says) of a refused call; ("", None) if it says neither."""
    reason, retry_s = "", None
    trailing: Any = error.trailing_metadata()  # the published types of an item are not those of the pairs that it is
    for key, value in trailing or ():
        if key == "grpc-status-details-bin":
            for packed in status_pb2.Status.FromString(value).details:
                info, retry = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
                if packed.Unpack(info):
                    reason = info.reason
                elif packed.Unpack(retry):
                    retry_s = retry.retry_delay.ToMicroseconds() / 1e6
    return reason, retry_s


class Event(NamedTuple):
    """One event as a caller thinks of it."""

    actor: str
    kind: int
    subject: str
    ref: str
    active: bool
    occurred_at: int

    def message(self) -> writer_pb2.Event:
        event = writer_pb2.Event(
            actor=self.actor,
            kind=common_pb2.Kind.Name(self.kind),
            subject=self.subject,
            ref=self.ref,
            state=common_pb2.STATE_ACTIVE if self.active else common_pb2.STATE_REMOVED,
        )
        event.occurred_at.FromMicroseconds(self.occurred_at)
        return event


def record(stub: Any, events: Sequence[Event], timeout_s: float = CALL_S) -> Position:
    """One attempt. The position of the write token. Raises grpc.RpcError."""
    request = writer_pb2.RecordEventsRequest(events=[event.message() for event in events])
    return decode_position(stub.RecordEvents(request, timeout=timeout_s).write_token)


def follow(actor: str, subject: str, active: bool = True) -> Event:
    return Event(actor, 1, subject, "", active, CLOCK.now_us())


def counts_request(entities: Sequence[str]) -> reader_pb2.BatchGetCountsRequest:
    return reader_pb2.BatchGetCountsRequest(entities=entities, metrics=[f"METRIC_{metric.upper()}" for metric in METRICS])


def read_counts(stub: Any, entities: Sequence[str]) -> tuple[list[dict[str, int]], Position]:
    """(counts by metric of each entity, the answer's position). One attempt."""
    counts: list[dict[str, int]] = []
    position = b""
    for at in range(0, len(entities), 1_000):
        answer = stub.BatchGetCounts(counts_request(entities[at : at + 1_000]), timeout=CALL_S)
        counts += [dict(zip(METRICS, row.values, strict=True)) for row in answer.counts]
        position = position or answer.freshness.position
    return counts, decode_position(position)


def position_of(target: str, seconds: float = 60.0) -> dict[int, int]:
    """The offsets by partition that the reader's answers include, as soon as it answers."""
    with reading(target) as stub:
        found: Position = wait_until(lambda: _position(stub), "the reader answers", seconds)
    return dict(found.offsets)


def wait_visible(target: str, wanted: Mapping[int, int], seconds: float = 60.0) -> None:
    """Waits until the reader says that its answers include these offsets by partition."""
    missing = dict(wanted)

    def visible() -> bool:
        position = _position(stub)
        if position is not None:
            missing.clear()
            missing.update((p, end) for p, end in wanted.items() if position.offsets.get(p, -1) < end)
        return not missing

    with reading(target) as stub:
        try:
            wait_until(visible, "", seconds)
        except NotInTime:
            raise NotInTime(f"the reader does not include {missing} within {seconds:g} s") from None


def _position(stub: Any) -> Position | None:
    """None while there is no answer."""
    try:
        return read_counts(stub, ["nobody"])[1]
    except grpc.RpcError as error:
        if error.code() not in RETRYABLE:
            raise
        return None
