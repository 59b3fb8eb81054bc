"""A reader who asks for what it has seen, and for what was written, and looks whether it gets that."""

from typing import Any

from google.protobuf.duration_pb2 import Duration

from watertower.core.positions import Position, decode_position, encode_position
from watertower.testing.simulator.processes import LATENCY_US
from watertower.testing.simulator.world import Broken, World
from watertower.v1 import common_pb2, reader_pb2


class Session:
    """One user, who goes from process to process: asks for answers that include what came before, and looks whether they do."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._position = Position(1, {})

    def need(self, rng: Any) -> dict[str, Any]:
        """The fields of a request: nothing, what was seen or acknowledged so far, an age, or both."""
        need: dict[str, Any] = {}
        if rng.random() < 0.6:
            if self._world.acknowledged and rng.random() < 0.5:
                self._position = self._position.merged(rng.choice(self._world.acknowledged)[1])
            need["min_position"] = encode_position(self._position)
        if rng.random() < 0.3:
            staleness = Duration()
            staleness.FromMilliseconds(rng.choice((300, 2_000, 60_000)))
            need["max_staleness"] = staleness
        return need

    def saw(self, request: reader_pb2.BatchGetCountsRequest, freshness: common_pb2.Freshness, now_us: int) -> None:
        """Holds an answer's word against what it claims."""
        position = decode_position(freshness.position)
        if freshness.satisfied:
            if request.min_position and not position.covers(decode_position(request.min_position)):
                raise Broken("a satisfied answer has what was asked for", f"{position}, not {decode_position(request.min_position)}")
            if request.HasField("max_staleness"):
                age_us = now_us - freshness.as_of.ToMicroseconds() if freshness.HasField("as_of") else None
                if age_us is None or age_us > request.max_staleness.ToMicroseconds() + LATENCY_US:
                    raise Broken("a satisfied answer has what was asked for", f"{age_us} us old")
            if request.min_position:
                self._position = self._position.merged(position)
        elif not request.min_position and not request.HasField("max_staleness"):
            raise Broken("a satisfied answer has what was asked for", "nothing was asked for, and it is not satisfied")
