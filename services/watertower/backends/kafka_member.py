"""Membership of the projectors' consumer group: which partitions are this process's now.

The group only spreads the work; nothing depends on it being right at every moment (two owners at once do no harm: design, section 4).
The member reads nothing and commits what it is told, as a convenience for whoever looks at the lag with another tool: a projector
resumes from the store's progress.

It has a thread of its own, so that it answers the group while its projector is busy in a flush. A projector that does not ask for
longer than `group_poll_ms_max` what it owns is taken for stuck: the member leaves the group until it asks again.

Cooperative-sticky: when a member comes or goes, only the partitions that move are let go.
"""

import threading
from collections.abc import Mapping
from typing import Any

import structlog
from kafka import ConsumerRebalanceListener, KafkaConsumer, TopicPartition, errors
from kafka.coordinator.assignors.cooperative_sticky import CooperativeStickyAssignor
from kafka.structs import OffsetAndMetadata

from watertower.backends.kafka_client import KafkaSettings, meaning, opened
from watertower.errors import BackendRefused, BackendUnavailable
from watertower.ports import Clock

STEP_MS = 100
"""ms between two looks at the group."""

RETRY_S = 1.0
"""Seconds before the next look after one that failed."""


class Member:
    """One member of the group."""

    def __init__(self, settings: KafkaSettings, clock: Clock) -> None:
        """Joins; owns nothing yet. Raises StartRefused, BackendUnavailable."""
        self._clock, self._topic = clock, settings.log_topic
        self._patience_s = settings.group_poll_ms_max / 1e3
        self._close_ms = settings.request_timeout_ms
        self._logger = structlog.get_logger("watertower.log")
        self._client: KafkaConsumer = opened(
            settings,
            clock,
            KafkaConsumer,
            group_id=settings.group,
            enable_auto_commit=False,
            auto_offset_reset="none",
            partition_assignment_strategy=[CooperativeStickyAssignor],
            session_timeout_ms=settings.group_session_timeout_ms,
            heartbeat_interval_ms=settings.group_heartbeat_ms,
            max_poll_interval_ms=settings.group_poll_ms_max,
            fetch_max_wait_ms=1,
            allow_auto_create_topics=False,
            metrics_enabled=False,
        )
        self._lock = threading.Lock()
        self._owned: frozenset[int] = frozenset()
        self._refusal: BackendRefused | None = None
        self._asked_at_s = clock.monotonic_s()
        self._uncommitted: dict[int, int] = {}
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="log-member", daemon=True)
        self._thread.start()

    def owned(self) -> frozenset[int]:
        """The partitions that the group has given to this member, as far as it knows. Raises BackendRefused where it cannot join."""
        with self._lock:
            self._asked_at_s = self._clock.monotonic_s()
            if self._refusal is not None:
                raise self._refusal
            return self._owned

    def commit(self, ends: Mapping[int, int]) -> None:
        """Takes inclusive offsets to the group soon. Never fails: the next one says it all again."""
        with self._lock:
            self._uncommitted.update(ends)

    def close(self) -> None:
        """Commits, leaves the group. Bounded. Idempotent."""
        self._closing.set()
        self._thread.join()

    # --- the thread

    def _run(self) -> None:
        joined = False
        while not self._closing.is_set():
            try:
                if joined and self._stuck():
                    self._logger.warning("group_left", reason="the projector does not ask what it owns", seconds=self._patience_s)
                    self._client.unsubscribe()
                    joined = False
                elif not joined and not self._stuck():
                    self._client.subscribe([self._topic], listener=_Parked(self._client))
                    joined = True
                self._step(joined)
                self._found(None)
            except errors.KafkaError as error:
                self._found(meaning(error, "the group of projectors cannot be joined"))
                self._closing.wait(RETRY_S)
        self._leave()

    def _found(self, problem: BackendRefused | BackendUnavailable | None) -> None:
        with self._lock:
            self._refusal = problem if isinstance(problem, BackendRefused) else None
        if problem is not None:
            self._logger.warning("group_unavailable", error=str(problem))

    def _stuck(self) -> bool:
        with self._lock:
            return self._clock.monotonic_s() - self._asked_at_s > self._patience_s

    def _step(self, joined: bool) -> None:
        if joined:
            self._client.poll(STEP_MS)
            self._finish_join()
        else:
            self._closing.wait(STEP_MS / 1e3)
        owned = frozenset(place.partition for place in self._client.assignment()) if joined else frozenset()
        with self._lock:
            if owned != self._owned:
                self._logger.info("partitions_owned", partitions=sorted(owned))
            self._owned = owned
            offsets = self._offsets()
        if offsets:
            self._client.commit_async(offsets, self._committed)

    def _finish_join(self) -> None:
        """Makes the driver look again at a join that a poll left on its way.

        A leader joins again where it has learned of partitions since it assigned them. The driver (kafka-python 3.0.12) forgets that
        wish once it assigns anew: if the poll ends before the brokers answer, the next one does not wait for the answer, and a member
        that neither joins nor gives a sign of life stays so for good. It has no public way to be told.
        """
        coordinator = self._client._coordinator
        if coordinator.rebalance_in_progress() and not coordinator.need_rejoin():
            coordinator.request_rejoin()

    def _leave(self) -> None:
        with self._lock:
            offsets = self._offsets()
            self._owned = frozenset()
        try:
            if offsets:
                self._client.commit(offsets, timeout_ms=self._close_ms)
        except errors.KafkaError as error:
            self._committed(offsets, error)
        self._client.close(autocommit=False, timeout_ms=self._close_ms)

    def _offsets(self) -> dict[TopicPartition, OffsetAndMetadata]:
        """What is to be committed of what is owned, in the driver's words: the next offset. Under the lock."""
        ends, self._uncommitted = self._uncommitted, {}
        return {TopicPartition(self._topic, p): OffsetAndMetadata(end + 1, "", -1) for p, end in ends.items() if p in self._owned}

    def _committed(self, offsets: object, response: Any) -> None:
        if isinstance(response, Exception):
            self._logger.info("group_commit_failed", error=str(response))


class _Parked(ConsumerRebalanceListener):  # type: ignore[misc] # the driver has no types
    """Keeps the member from fetching: what it is given is paused, at an offset that is never looked at."""

    def __init__(self, client: KafkaConsumer) -> None:
        self._client = client

    def on_partitions_assigned(self, assigned: set[TopicPartition]) -> None:
        for place in assigned:
            self._client.seek(place, 0)
            self._client.pause(place)

    def on_partitions_revoked(self, revoked: set[TopicPartition]) -> None:
        """Nothing to do: whoever applies them asks."""

    def on_partitions_lost(self, lost: set[TopicPartition]) -> None:
        """Nothing to do."""
