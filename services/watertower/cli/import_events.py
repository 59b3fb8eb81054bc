"""From rows to events: the checks that the service would make, so that one bad row does not cost its whole call, and the requests."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import NamedTuple

from google.protobuf.timestamp_pb2 import Timestamp

from watertower.cli.import_source import Row
from watertower.core.model import Kind
from watertower.v1 import common_pb2, writer_pb2
from watertower.validation import EVENTS_MAX, ID_BYTES_MAX, id_violation, occurred_at_violation, ref_violation, self_violation

BATCH_BYTES_MAX = 1_048_576
"""Bytes of rows that a batch may hold, so that rows with long other columns cannot fill the memory."""

TIME_UNITS = {"rfc3339": 0, "s": 1_000_000, "ms": 1_000, "us": 1}
"""How times are written: RFC 3339, or a number of seconds, milliseconds or microseconds since 1970 (value: microseconds of one)."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


class Reject(NamedTuple):
    """A row that does not go in."""

    line: int
    reason: str
    raw: bytes


class Batch(NamedTuple):
    """Consecutive rows: one call, the rows that it must reject already, and where the next batch begins."""

    request: writer_pb2.RecordEventsRequest
    rows: list[tuple[int, bytes]]  # (line, bytes) of the rows in the request, in order
    rejects: list[Reject]
    end: int
    last_line: int


def parse_time(text: str, unit: str) -> int:
    """Microseconds since 1970, truncated. Raises ValueError saying how to write a time."""
    scale = TIME_UNITS[unit]
    if not scale:
        try:
            moment = datetime.fromisoformat(text)
        except ValueError:
            moment = _EPOCH.replace(tzinfo=None)
        if moment.tzinfo is None or len(text) < 11:
            raise ValueError("is no time with an offset, as in 2026-01-31T23:59:59Z (or say --time-unit)")
        return (moment - _EPOCH) // _MICROSECOND
    if text.isascii() and text.isdigit() and len(text) <= 19:
        return int(text) * scale
    try:
        micros = Decimal(text) * scale
        if not micros.is_finite() or abs(micros) > 2**62:
            raise ValueError
        return int(micros)
    except (ArithmeticError, ValueError):
        raise ValueError(f"is no number of {unit} since 1970") from None


class EventMaker(NamedTuple):
    """How rows become events."""

    kind: Kind
    active: bool
    events_per_row: int  # 1; or 2, of a mutual edge: one each way
    has_time: bool
    time_unit: str
    base_time: int  # microseconds, for rows without a time
    latest_us: int  # rows may not be later

    def batches(self, rows: Iterator[Row]) -> Iterator[Batch]:
        """Consecutive rows, at most EVENTS_MAX events and about BATCH_BYTES_MAX bytes each."""
        kind = int(self.kind)
        state = common_pb2.STATE_ACTIVE if self.active else common_pb2.STATE_REMOVED
        rows_max = EVENTS_MAX // self.events_per_row
        base = _timestamp(self.base_time)
        request = writer_pb2.RecordEventsRequest()
        add = request.events.add
        good: list[tuple[int, bytes]] = []
        rejects: list[Reject] = []
        size = end = last_line = 0
        for line, last_line, end, raw, values, reason in rows:
            size += len(raw)
            if values is not None:
                actor, subject, ref, time = values
                reason = self._violation(actor, subject, ref)
                moment = base
                if not reason and self.has_time and time:
                    reason, moment = self._moment(time)
                if not reason:
                    add(actor=actor, kind=kind, subject=subject, ref=ref, state=state, occurred_at=moment)
                    if self.events_per_row == 2:
                        add(actor=subject, kind=kind, subject=actor, ref=ref, state=state, occurred_at=moment)
                    good.append((line, raw))
            if reason:
                rejects.append(Reject(line, reason, raw))
            if len(good) >= rows_max or size >= BATCH_BYTES_MAX:
                yield Batch(request, good, rejects, end, last_line)
                request = writer_pb2.RecordEventsRequest()
                add = request.events.add
                good, rejects, size = [], [], 0
        if good or rejects:
            yield Batch(request, good, rejects, end, last_line)

    def _moment(self, text: str) -> tuple[str, Timestamp]:
        """(why not, the time of a row)."""
        try:
            micros = parse_time(text, self.time_unit)
        except ValueError as error:
            return f"time {error}", Timestamp()
        seconds, fraction = divmod(micros, 1_000_000)
        broken = occurred_at_violation(seconds, fraction * 1_000, self.latest_us)
        if broken:
            return f"time {broken.rule}", Timestamp()
        return "", _timestamp(micros)

    def _violation(self, actor: str, subject: str, ref: str) -> str:
        """The rule that a row breaks; empty when it breaks none."""
        if not (_plain(actor) and _plain(subject)):
            for field, value in (("actor", actor), ("subject", subject)):
                try:
                    broken = id_violation(value)
                except UnicodeEncodeError:  # half a surrogate pair, as JSON can write it
                    return f"{field} is not valid UTF-8"
                if broken:
                    return f"{field} {broken.rule}"
        if actor == subject and (broken := self_violation(self.kind, actor, subject)):
            return f"subject {broken.rule}"
        try:
            broken = ref_violation(self.kind, ref)
        except UnicodeEncodeError:
            return "ref is not valid UTF-8"
        return f"ref {broken.rule}" if broken else ""


def _plain(value: str) -> bool:
    """Whether an id is good at a glance: 1 to ID_BYTES_MAX printable ASCII characters."""
    return 0 < len(value) <= ID_BYTES_MAX and value.isascii() and value.isprintable()


def _timestamp(micros: int) -> Timestamp:
    timestamp = Timestamp()
    timestamp.FromMicroseconds(micros)
    return timestamp
