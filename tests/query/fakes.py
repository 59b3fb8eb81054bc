"""A store with a feed that tests can hold up, break and look into, and a clock that they own."""

import threading
from collections.abc import Sequence
from typing import Any

from watertower.core.model import Progress, Shard
from watertower.errors import BackendUnavailable
from watertower.ports import FeedMessage, ListCursor, LogIdentity, StoreIdentity


class FakeClock:
    """Stands still until it is moved."""

    def __init__(self, now_us: int = 1_700_000_000_000_000) -> None:
        self.us = now_us

    def now_us(self) -> int:
        return self.us

    def monotonic_s(self) -> float:
        return self.us / 1e6

    def sleep(self, seconds: float) -> None:
        self.us += round(seconds * 1e6)


class _Patient:
    """As much of a gRPC context as the service looks at."""

    def time_remaining(self) -> None:
        """No deadline."""


PATIENT: Any = _Patient()


class FakeStore:
    """StoreReader and FeedReader over plain dicts. `write` changes a shard and publishes it, unless told not to."""

    def __init__(self, partitions: int = 2, log_id: str = "log-1") -> None:
        self.identity = StoreIdentity(LogIdentity(log_id, partitions), 1)
        self.rows: dict[str, dict[tuple[int, int], Shard]] = {}
        self.progress: dict[int, Progress] = {}
        self.lists: dict[tuple[str, str, int], list[ListCursor]] = {}  # newest first
        self.feed: list[FeedMessage] = []
        self.reads: list[str] = []  # entities, as they were read
        self.hops: set[int] = set()  # threads that read
        self.concurrent = self.concurrent_seen_max = 0
        self.open = threading.Event()  # reads wait for it
        self.open.set()
        self.broken: Exception | None = None
        self._lock = threading.Lock()

    def write(self, entity: str, metric: int, partition: int, value: int, offset: int, as_of: int, publish: bool = True) -> FeedMessage:
        before = self.progress[partition].end if partition in self.progress else -1
        self.rows.setdefault(entity, {})[metric, partition] = Shard(value, value, (), offset)
        self.progress[partition] = Progress(offset, b"", as_of)
        message = FeedMessage(partition, before, offset, as_of, [entity], bytes([metric]), [value], [offset])
        if publish:
            self.feed.append(message)
        return message

    def beat(self, partition: int, as_of: int) -> None:
        """Publishes that nothing happened."""
        end = self.progress[partition].end if partition in self.progress else -1
        self.feed.append(FeedMessage(partition, end, end, as_of, [], b"", [], []))

    def catch_up(self) -> None:
        self._check()

    def read_entities(self, entities: Sequence[str]) -> list[dict[tuple[int, int], Shard]]:
        return [self._read_entity(entity) for entity in entities]

    def _read_entity(self, entity: str) -> dict[tuple[int, int], Shard]:
        with self._lock:
            self.reads.append(entity)
        self._read()
        return dict(self.rows.get(entity, {}))

    def read_progress(self) -> dict[int, Progress]:
        self._check()
        return dict(self.progress)

    def check_edges(self, actor: str, kind: int, subjects: Sequence[str]) -> list[bool]:
        self._read()
        following = {row.other for row in self.lists.get(("ListSubjects", actor, kind), [])}
        return [subject in following for subject in subjects]

    def list_actors(self, subject: str, kind: int, after: ListCursor | None, limit: int) -> list[ListCursor]:
        return self._list("ListActors", subject, kind, after, limit)

    def list_subjects(self, actor: str, kind: int, after: ListCursor | None, limit: int) -> list[ListCursor]:
        return self._list("ListSubjects", actor, kind, after, limit)

    def poll(self) -> list[FeedMessage]:
        self._check()
        messages, self.feed = self.feed, []
        return messages

    def close(self) -> None:
        pass

    def _list(self, method: str, of: str, kind: int, after: ListCursor | None, limit: int) -> list[ListCursor]:
        self._read()
        rows = sorted(self.lists.get((method, of, kind), []), key=_newest_first)
        return [row for row in rows if after is None or _newest_first(row) > _newest_first(after)][:limit]

    def _read(self) -> None:
        with self._lock:
            self.concurrent += 1
            self.concurrent_seen_max = max(self.concurrent_seen_max, self.concurrent)
        try:
            if not self.open.wait(timeout=30):
                raise RuntimeError("the test forgot to open the store")
            self._check()
        finally:
            with self._lock:
                self.concurrent -= 1

    def _check(self) -> None:
        if self.broken is not None:
            raise self.broken


def unavailable() -> Exception:
    return BackendUnavailable("broken by the test")


def _newest_first(row: ListCursor) -> tuple[int, str, str]:
    return -row.occurred_at, row.other, row.ref
