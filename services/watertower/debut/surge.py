"""Sends the presses: calls of up to 500 events, several on their way at once, each repeated to the letter until it is acknowledged."""

from __future__ import annotations

import random
import threading
from collections import deque
from collections.abc import Iterator
from typing import NamedTuple

import grpc

from watertower.client.errors import RETRYABLE
from watertower.core.backoff import full_jitter
from watertower.core.positions import Position, decode_position
from watertower.debut.plan import CALL_EVENTS, REPEATED_CALLS, Plan, Press
from watertower.ports import Clock
from watertower.v1 import common_pb2, writer_pb2, writer_pb2_grpc

CALLS_ON_THEIR_WAY = 8
CALL_TIMEOUT_S = 30.0
_RETRY_BASE_S, _RETRY_CAP_S = 0.05, 2.0
_PACE_S = 0.02
"""At a fixed speed, seconds of presses that go into one call at most."""


class Acknowledged(NamedTuple):
    """One acknowledged call."""

    at_s: float  # monotonic
    events: int
    position: Position


class Surge:
    """Sends a plan. `acknowledged` and the counters may be read from another thread while `run` works."""

    def __init__(self, target: str, plan: Plan, base_us: int, speed: float | None, clock: Clock) -> None:
        self._plan, self._base_us, self._speed, self._clock = plan, base_us, speed, clock
        self._channel = grpc.insecure_channel(target)
        self._stub = writer_pb2_grpc.EngagementWriterStub(self._channel)
        self._rng = random.Random(plan.seed + 1)  # noqa: S311 - a reproducible load, not secrets
        self._slots = threading.Semaphore(CALLS_ON_THEIR_WAY)
        self._failed: deque[tuple[writer_pb2.RecordEventsRequest, int]] = deque()  # request, attempts before
        self._refusal: grpc.RpcError | None = None
        self.acknowledged: deque[Acknowledged] = deque()
        self.position = Position(1, {})  # of everything that is acknowledged
        self.events_acknowledged = self.calls = self.retried = 0
        self.started_s = self.ended_s = 0.0

    def run(self) -> None:
        """Sends everything; returns when everything is acknowledged. Raises grpc.RpcError for a refusal that is final."""
        self.started_s = self._clock.monotonic_s()
        for request in self._requests():
            for _ in range(2 if self._rng.random() < REPEATED_CALLS else 1):
                self._repeat_failed()
                self._send(request, 0)
                self.calls += 1
        while True:
            for _ in range(CALLS_ON_THEIR_WAY):
                self._slots.acquire()
            self._slots.release(CALLS_ON_THEIR_WAY)
            if not self._failed:
                break
            self._repeat_failed()
        if self._refusal is not None:
            raise self._refusal
        self.ended_s = self._clock.monotonic_s()

    def close(self) -> None:
        """Ends the connection."""
        self._channel.close()

    def _send(self, request: writer_pb2.RecordEventsRequest, attempt: int) -> None:
        self._slots.acquire()
        if self._refusal is not None:
            self._slots.release()
            raise self._refusal
        call = self._stub.RecordEvents.future(request, timeout=CALL_TIMEOUT_S)
        call.add_done_callback(lambda done: self._finish(request, attempt, done))

    def _repeat_failed(self) -> None:
        while self._failed:
            request, attempt = self._failed.popleft()
            self.retried += 1
            self._clock.sleep(full_jitter(attempt, _RETRY_BASE_S, _RETRY_CAP_S, self._rng.random()))
            self._send(request, attempt + 1)

    def _finish(self, request: writer_pb2.RecordEventsRequest, attempt: int, call: grpc.Future[writer_pb2.RecordEventsResponse]) -> None:
        """In a thread of the channel, the moment the answer is there: its time is what lag is measured from."""
        try:
            position = decode_position(call.result().write_token)
        except grpc.RpcError as error:
            if error.code() in RETRYABLE:
                self._failed.append((request, attempt))
            else:
                self._refusal = error
        else:
            self.position = self.position.merged(position)
            self.events_acknowledged += len(request.events)
            self.acknowledged.append(Acknowledged(self._clock.monotonic_s(), len(request.events), position))
        finally:
            self._slots.release()

    def _requests(self) -> Iterator[writer_pb2.RecordEventsRequest]:
        due: list[Press] = []
        for press in self._plan.presses():
            if self._speed is not None and due:
                behind = self._clock.monotonic_s() - self.started_s
                if press.at_us / 1e6 / self._speed > behind + _PACE_S:
                    yield _request(due, self._base_us)
                    due = []
                    self._clock.sleep(max(0.0, press.at_us / 1e6 / self._speed - (self._clock.monotonic_s() - self.started_s)))
            due.append(press)
            if len(due) == CALL_EVENTS:
                yield _request(due, self._base_us)
                due = []
        if due:
            yield _request(due, self._base_us)


def _request(presses: list[Press], base_us: int) -> writer_pb2.RecordEventsRequest:
    request = writer_pb2.RecordEventsRequest()
    add = request.events.add
    for actor, kind, subject, active, at in presses:
        event = add(
            actor=actor,
            kind=common_pb2.Kind.ValueType(kind),
            subject=subject,
            state=common_pb2.STATE_ACTIVE if active else common_pb2.STATE_REMOVED,
        )
        # By hand: FromMicroseconds takes 150 ns more, a tenth of the event, on the cores that the surge is measured on.
        seconds, micros = divmod(base_us + at, 1_000_000)
        event.occurred_at.seconds = seconds
        event.occurred_at.nanos = micros * 1_000
    return request


def seed_profiles(target: str, profiles: int, base_us: int) -> Position:
    """Gives every ordinary profile one to five followers, so that reads of them read something. Returns what to wait for."""
    presses = [
        Press(f"neighbour-{(profile * 7 + k) % profiles}", 1, f"profile-{profile}", True, k)
        for profile in range(profiles)
        for k in range(1 + profile % 5)
    ]
    seeded = Position(1, {})
    with grpc.insecure_channel(target) as channel:
        stub = writer_pb2_grpc.EngagementWriterStub(channel)
        for start in range(0, len(presses), CALL_EVENTS):
            response = stub.RecordEvents(_request(presses[start : start + CALL_EVENTS], base_us), timeout=CALL_TIMEOUT_S)
            seeded = seeded.merged(decode_position(response.write_token))
    return seeded
