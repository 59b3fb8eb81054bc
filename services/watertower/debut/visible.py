"""Reads the star, and waits until what was acknowledged can be read."""

from collections.abc import Callable

import grpc

from watertower.core.positions import Position, decode_position
from watertower.debut import DebutFailed
from watertower.debut.plan import STAR
from watertower.ports import Clock
from watertower.v1 import common_pb2, reader_pb2, reader_pb2_grpc

WATCH_S = 0.05
"""Seconds between two looks at the star: how finely lag is measured."""

_TIMEOUT_S = 600.0
_CALL_TIMEOUT_S = 10.0


class StarReader:
    """A client of the reader that asks for one count at a time."""

    def __init__(self, target: str) -> None:
        self._channel = grpc.insecure_channel(target)
        self._stub = reader_pb2_grpc.EngagementReaderStub(self._channel)
        self.followers = 0
        """The star's, at the last look."""

    def look(self) -> Position:
        """Reads the star. Returns how far the answer reaches. Raises grpc.RpcError."""
        response = self._get(STAR, common_pb2.METRIC_FOLLOWERS)
        self.followers = response.values[0]
        return decode_position(response.freshness.position)

    def count(self, entity: str, metric: common_pb2.Metric) -> int:
        """One count of any entity. Raises grpc.RpcError."""
        return self._get(entity, metric).values[0]

    def close(self) -> None:
        """Ends the connection."""
        self._channel.close()

    def _get(self, entity: str, metric: common_pb2.Metric) -> reader_pb2.GetCountsResponse:
        request = reader_pb2.GetCountsRequest(entity=entity, metrics=[metric])
        response: reader_pb2.GetCountsResponse = self._stub.GetCounts(request, timeout=_CALL_TIMEOUT_S)
        return response


def until_visible(look: Callable[[], Position], wanted: Position, clock: Clock) -> None:
    """Looks until what is seen includes `wanted`. Raises DebutFailed when that takes too long, and whatever `look` raises."""
    deadline = clock.monotonic_s() + _TIMEOUT_S
    while not look().covers(wanted):
        if clock.monotonic_s() > deadline:
            raise DebutFailed("what was acknowledged did not become visible in time")
        clock.sleep(WATCH_S)
