"""The two kinds of batches: events for RecordEvents, entities for BatchGetCounts."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple, TypeAlias

from watertower.client.answers import Counts, covers, freshness_of, position_of, values_of
from watertower.client.batching import Batch, Entry
from watertower.client.requests import metric_names
from watertower.core.model import Metric
from watertower.core.positions import Position, encode_position
from watertower.v1 import reader_pb2, writer_pb2

Events: TypeAlias = Sequence[writer_pb2.Event]


class EventBatch(Batch[Events, bytes]):
    """Events of many callers. Each gets the write token of all: it includes its own."""

    field = "events"

    def __init__(self, items_max: int) -> None:
        super().__init__(items_max)
        self._items = 0

    @property
    def items(self) -> int:
        return self._items

    def fits(self, payload: Events) -> bool:
        return self._items + len(payload) <= self.items_max

    def add(self, entry: Entry[Events, bytes]) -> None:
        super().add(entry)
        self._items += len(entry.payload)

    def keep(self, entries: list[Entry[Events, bytes]]) -> None:
        super().keep(entries)
        self._items = sum(len(entry.payload) for entry in entries)

    def request(self) -> writer_pb2.RecordEventsRequest:
        return writer_pb2.RecordEventsRequest(events=[event for entry in self.entries for event in entry.payload])

    def deliver(self, answer: writer_pb2.RecordEventsResponse) -> None:
        for entry in self.entries:
            entry.succeed(answer.write_token)

    def owners(self, index: int) -> Iterable[tuple[Entry[Events, bytes], int]]:
        for entry in self.entries:
            if index < len(entry.payload):
                return [(entry, index)]
            index -= len(entry.payload)
        return []


class CountsKey(NamedTuple):
    """What reads of counts must have in common to share a request."""

    metrics: tuple[Metric, ...]
    max_staleness_us: int | None
    waits_s: float | None = None
    """Of reads that ask for a position: the time that their callers gave them, so that none is cut short for another one."""
    together: int | bytes = 0
    """Of these, too: which positions are asked for as one. Those of one generation; only equal ones where max_staleness is asked for, too,
    since the service says in one word whether both are satisfied."""


class CountsQuestion(NamedTuple):
    """One caller's read of counts."""

    entities: Sequence[str]
    min_position: Position | None


class EntityBatch(Batch[CountsQuestion, list[Counts]]):
    """Entities of many callers; one that several ask for has one place.

    Positions that are asked for are merged: what includes all of them includes each. Whether it does is decided for each caller.
    """

    field = "entities"

    def __init__(self, key: CountsKey, items_max: int) -> None:
        super().__init__(items_max)
        self._key = key
        self._places: dict[str, int] = {}

    @property
    def items(self) -> int:
        return len(self._places)

    def fits(self, payload: CountsQuestion) -> bool:
        places = self._places
        new = sum(entity not in places for entity in set(payload.entities))  # a difference of sets would walk all of the places
        return len(places) + new <= self.items_max

    def add(self, entry: Entry[CountsQuestion, list[Counts]]) -> None:
        super().add(entry)
        self._take_places(entry)

    def keep(self, entries: list[Entry[CountsQuestion, list[Counts]]]) -> None:
        if len(entries) == len(self.entries):
            return
        super().keep(entries)
        self._places = {}
        for entry in entries:
            self._take_places(entry)

    def request(self) -> reader_pb2.BatchGetCountsRequest:
        request = reader_pb2.BatchGetCountsRequest(entities=self._places, metrics=metric_names(self._key.metrics))
        wanted: Position | None = None
        for entry in self.entries:
            position = entry.payload.min_position
            if position is not None:
                wanted = position if wanted is None else wanted.merged(position)
        if wanted is not None:
            request.min_position = encode_position(wanted)
        if self._key.max_staleness_us is not None:
            request.max_staleness.FromMicroseconds(self._key.max_staleness_us)
        return request

    def deliver(self, answer: reader_pb2.BatchGetCountsResponse) -> None:
        unknown = {exception.index for exception in answer.exceptions if not exception.known}
        fresh_enough = self._key.max_staleness_us is None or answer.freshness.satisfied
        position = position_of(answer.freshness.position)
        freshnesses = [freshness_of(answer.freshness, satisfied) for satisfied in (False, True)]
        metrics = self._key.metrics
        values = [values_of(metrics, row.values) for row in answer.counts]
        for entry in self.entries:
            freshness = freshnesses[fresh_enough and covers(position, entry.payload.min_position)]
            places = [self._places[entity] for entity in entry.payload.entities]
            entry.succeed(
                [
                    Counts(entity, values[place], place not in unknown, freshness)
                    for entity, place in zip(entry.payload.entities, places, strict=True)
                ]
            )

    def owners(self, index: int) -> Iterable[tuple[Entry[CountsQuestion, list[Counts]], int]]:
        for entry in self.entries:
            for own, entity in enumerate(entry.payload.entities):
                if self._places[entity] == index:
                    yield entry, own

    def _take_places(self, entry: Entry[CountsQuestion, list[Counts]]) -> None:
        for entity in entry.payload.entities:
            self._places.setdefault(entity, len(self._places))
