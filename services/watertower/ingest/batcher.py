"""What waits for the log, and what goes into its next record. Pure steps: no clock, no event loop, no log.

Each partition has at most one record in flight; what arrives meanwhile fills the next one. So a lone call is appended at once, and
under load records grow by themselves to what one round trip of the log can carry, without a timer.

    add(parts)  ->  next_record(partition)  ->  appended(partition, offset) or failed(partition, error)  ->  take_ended()

A call ends when all its parts are in the log, when the record of any of them failed, when its deadline passes before its last part
went into a record, when it is given up (a little before its deadline), or when it is dropped (its caller is gone). What still waited
of it is then forgotten; what was in flight stays in flight.
"""

from collections import OrderedDict
from collections.abc import Iterator, Mapping
from itertools import chain

from watertower.core.model import EventBatch
from watertower.errors import CallRefused, Reason


class Call:
    """One call on its way into the log. `offsets` (of the last record per partition) and `error` are final once it has ended."""

    __slots__ = ("deadline_s", "ended", "error", "in_flight", "offsets", "traceparent", "waiting")

    def __init__(self, deadline_s: float, traceparent: str = "") -> None:
        self.deadline_s = deadline_s  # seconds, monotonic
        self.traceparent = traceparent
        self.waiting: set[Piece] = set()
        self.in_flight = 0
        self.offsets: dict[int, int] = {}
        self.error: Exception | None = None
        self.ended = False


class Piece:
    """The events of one call that go into one record."""

    __slots__ = ("call", "events", "id_bytes", "partition", "size")

    def __init__(self, call: Call, partition: int, events: EventBatch) -> None:
        self.call = call
        self.partition = partition
        self.events = events
        self.size = len(events.actors)
        self.id_bytes = _id_bytes(events)


class Batcher:
    """The queue in front of the log. Not thread-safe: one event loop (or simulator) drives it."""

    def __init__(
        self,
        partitions: int,
        *,
        record_events_max: int,
        record_bytes_max: int,
        queue_events_max: int,
        queue_bytes_max: int,
        retry_after_s: float,
    ) -> None:
        """`record_*` bound one record; `queue_*` bound what waits or is in flight, in events and in bytes of ids; calls that are shed
        are told to come back after `retry_after_s`."""
        self._record_events_max = record_events_max
        self._record_bytes_max = record_bytes_max
        self._queue_events_max = queue_events_max
        self._queue_bytes_max = queue_bytes_max
        self._retry_after_s = retry_after_s
        # Ordered dicts as queues from whose middle a call can be dropped: a log that hangs must not keep what nobody waits for.
        self._waiting: list[OrderedDict[Piece, None]] = [OrderedDict() for _ in range(partitions)]
        self._in_flight: dict[int, list[Piece]] = {}
        self._ready: set[int] = set()
        self._ended: list[Call] = []
        self.events = 0
        """Events that wait or are in flight."""
        self.id_bytes = 0
        """Bytes of their ids."""

    def refuse_if_full(self, events: int, id_bytes: int = 0) -> None:
        """Raises CallRefused(QUEUE_FULL) if so many more do not fit."""
        if self.events + events > self._queue_events_max or self.id_bytes + id_bytes > self._queue_bytes_max:
            raise CallRefused(Reason.QUEUE_FULL, retry_after_s=self._retry_after_s)

    def add(self, parts: Mapping[int, EventBatch], deadline_s: float, traceparent: str = "") -> Call:
        """Takes in the events of a call, by partition. Raises CallRefused(QUEUE_FULL), and then has taken nothing."""
        call = Call(deadline_s, traceparent)
        pieces = [piece for partition, events in parts.items() for piece in self._pieces(call, partition, events)]
        events, id_bytes = sum(piece.size for piece in pieces), sum(piece.id_bytes for piece in pieces)
        self.refuse_if_full(events, id_bytes)
        self.events += events
        self.id_bytes += id_bytes
        call.waiting.update(pieces)
        for piece in pieces:
            self._waiting[piece.partition][piece] = None
            if piece.partition not in self._in_flight:
                self._ready.add(piece.partition)
        return call

    def ready(self) -> list[int]:
        """The partitions for which next_record has something to give."""
        return sorted(self._ready)

    def next_record(self, partition: int, now_s: float) -> EventBatch | None:
        """The events of the partition's next record, which is in flight from now on. None if one is, or if nothing waits (any more).

        `now_s`: calls whose deadline lies before this end here with DEADLINE_PASSED, and nothing of them is in the record.
        """
        if partition in self._in_flight:
            return None
        self._ready.discard(partition)
        waiting = self._waiting[partition]
        taken: list[Piece] = []
        events = id_bytes = 0
        while waiting:
            piece = next(iter(waiting))
            if piece.call.deadline_s <= now_s:
                self._end(piece.call, CallRefused(Reason.DEADLINE_PASSED, retry_after_s=self._retry_after_s))
                continue
            events += piece.size
            id_bytes += piece.id_bytes
            if taken and (events > self._record_events_max or id_bytes > self._record_bytes_max):
                break
            waiting.popitem(last=False)
            piece.call.waiting.discard(piece)
            piece.call.in_flight += 1
            taken.append(piece)
        if not taken:
            return None
        self._in_flight[partition] = taken
        return _joined([piece.events for piece in taken])

    def traceparent(self, partition: int) -> str:
        """Of the record in flight: that of its first call that has one. A record has one header, and may be of many calls."""
        return next((piece.call.traceparent for piece in self._in_flight[partition] if piece.call.traceparent), "")

    def appended(self, partition: int, offset: int) -> None:
        """The record in flight is durable at `offset`."""
        for piece in self._landed(partition):
            call = piece.call
            call.offsets[partition] = offset
            if not call.in_flight and not call.waiting and not call.ended:
                self._end(call, None)

    def failed(self, partition: int, error: Exception) -> None:
        """The record in flight is not acknowledged: it may or may not be in the log. Its calls end with `error`."""
        for piece in self._landed(partition):
            if not piece.call.ended:
                self._end(piece.call, error)

    def give_up(self, call: Call, error: Exception) -> None:
        """Ends a call with `error`, if it has not ended: it cannot wait any longer. What is in flight of it stays in flight."""
        if not call.ended:
            self._end(call, error)

    def drop(self, call: Call) -> None:
        """Nobody waits for the call any more."""
        if not call.ended:
            self._forget(call)
            call.ended = True

    def take_ended(self) -> list[Call]:
        """The calls that have ended (were not dropped) since this was last asked."""
        ended, self._ended = self._ended, []
        return ended

    def _landed(self, partition: int) -> list[Piece]:
        pieces = self._in_flight.pop(partition)
        for piece in pieces:
            piece.call.in_flight -= 1
            self._uncount(piece)
        if self._waiting[partition]:
            self._ready.add(partition)
        return pieces

    def _end(self, call: Call, error: Exception | None) -> None:
        self._forget(call)
        call.error = error
        call.ended = True
        self._ended.append(call)

    def _forget(self, call: Call) -> None:
        for piece in call.waiting:
            waiting = self._waiting[piece.partition]
            del waiting[piece]
            if not waiting:
                self._ready.discard(piece.partition)
            self._uncount(piece)
        call.waiting.clear()

    def _uncount(self, piece: Piece) -> None:
        self.events -= piece.size
        self.id_bytes -= piece.id_bytes

    def _pieces(self, call: Call, partition: int, events: EventBatch) -> Iterator[Piece]:
        """The events as one piece, or as several of which each fits into a record."""
        piece = Piece(call, partition, events)
        if piece.size == 1 or (piece.size <= self._record_events_max and piece.id_bytes <= self._record_bytes_max):
            yield piece
        else:
            middle = piece.size // 2
            yield from self._pieces(call, partition, _part(events, 0, middle))
            yield from self._pieces(call, partition, _part(events, middle, piece.size))


def _id_bytes(events: EventBatch) -> int:
    text = "".join(chain(events.actors, events.subjects, events.refs))
    return len(text) if text.isascii() else len(text.encode())


def _part(events: EventBatch, start: int, end: int) -> EventBatch:
    return EventBatch(
        events.actors[start:end],
        events.kinds[start:end],
        events.subjects[start:end],
        events.refs[start:end],
        events.actives[start:end],
        events.occurred_at[start:end],
    )


def _joined(batches: list[EventBatch]) -> EventBatch:
    if len(batches) == 1:
        return batches[0]
    actors, kinds, subjects, refs, actives, occurred_at = zip(*batches, strict=True)
    return EventBatch(
        list(chain.from_iterable(actors)),
        b"".join(kinds),
        list(chain.from_iterable(subjects)),
        list(chain.from_iterable(refs)),
        b"".join(actives),
        list(chain.from_iterable(occurred_at)),
    )
