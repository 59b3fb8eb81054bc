"""How fresh a request wants its answer: `min_position` and `max_staleness`, which every request of EngagementReader may carry."""

from contextlib import suppress
from typing import Protocol

from google.protobuf.duration_pb2 import Duration

from watertower.core.positions import MalformedToken, decode_position
from watertower.errors import CallRefused, Reason, Violation
from watertower.query.tail import NO_NEED, Need


class Needy(Protocol):
    """A request with these two fields."""

    @property
    def min_position(self) -> bytes: ...

    @property
    def max_staleness(self) -> Duration: ...

    def HasField(self, field_name: str) -> bool:  # noqa: N802 - protobuf's name
        ...


def need_of(request: Needy, partitions: int) -> Need:
    """What a request needs, of a log with so many partitions. Raises CallRefused: MIN_POSITION_INVALID, MAX_STALENESS_INVALID."""
    token = request.min_position
    asks_for_age = request.HasField("max_staleness")
    if not token and not asks_for_age:
        return NO_NEED
    violations = []
    position = staleness_us_max = None
    if token:
        with suppress(MalformedToken):
            position = decode_position(token)
        if position is None or max(position.offsets, default=0) >= partitions:
            violations.append(Violation("min_position", Reason.MIN_POSITION_INVALID))
    if asks_for_age:
        staleness_us_max = positive_us(request.max_staleness)
        if staleness_us_max is None:
            violations.append(Violation("max_staleness", Reason.MAX_STALENESS_INVALID))
    if violations:
        raise CallRefused.of(violations)
    return Need(position, staleness_us_max)


def positive_us(duration: Duration) -> int | None:
    """Microseconds of a valid Duration of at least one; None for any other."""
    if not 0 <= duration.nanos <= 999_999_999 or duration.seconds < 0:
        return None
    return duration.seconds * 1_000_000 + duration.nanos // 1_000 or None
