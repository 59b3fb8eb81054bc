"""From what a caller says to messages, with the rules that need no service: so that most mistakes cost no request, and no other caller."""

from collections.abc import Iterable, Sequence

from watertower.client.answers import Event, microseconds_of
from watertower.client.errors import InvalidRequest, Violation
from watertower.core.model import Kind, Metric
from watertower.errors import Reason
from watertower.ports import Clock
from watertower.v1 import common_pb2, writer_pb2
from watertower.validation import (
    ENTITIES_MAX,
    OCCURRED_AT_MIN_US,
    SUBJECTS_MAX,
    count_violation,
    id_violation,
    kind_violation,
    metrics_violations,
    page_size_violation,
    ref_violation,
    self_violation,
)

STAMP_AHEAD_US_MAX = 1_000_000
"""µs that a stamp may be ahead of the clock, so that a clock that is set back a little does not change the order of an actor's events."""


class Stamps:
    """Moments for events that bring none: each later than the one before."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._last = 0

    def next(self) -> int:
        """Microseconds since 1970."""
        now = self._clock.now_us()
        # A tie would be decided by the kind of event, a step back by the clock: neither is what the user did last.
        self._last = self._last + 1 if 0 <= self._last - now < STAMP_AHEAD_US_MAX else now
        return self._last


def event_messages(events: Iterable[Event], stamps: Stamps) -> tuple[list[writer_pb2.Event], list[int]]:
    """The messages of one call's events, and their moments in microseconds since 1970. Raises InvalidRequest, ValueError."""
    messages: list[writer_pb2.Event] = []
    moments: list[int] = []
    broken: list[Violation] = []
    for index, event in enumerate(events):
        at = stamps.next() if event.occurred_at is None else microseconds_of(event.occurred_at)
        violations = _event_violations(f"events[{index}]", event, at)
        if violations:
            broken += violations
            continue
        message = writer_pb2.Event(
            actor=event.actor,
            kind=kind_name(event.kind),
            subject=event.subject,
            ref=event.ref,
            state=common_pb2.STATE_ACTIVE if event.active else common_pb2.STATE_REMOVED,
        )
        message.occurred_at.FromMicroseconds(at)
        messages.append(message)
        moments.append(at)
    if not messages and not broken:
        broken.append(_broken("events", Reason.EVENTS_COUNT))
    _refuse_if_any(broken)
    return messages, moments


def refuse_counts(entities: Sequence[str], metrics: Sequence[int]) -> None:
    """Raises InvalidRequest for what BatchGetCounts would refuse of its entities (any number of at least one) or its metrics; TypeError
    for one str in place of them."""
    _refuse_str("entities", entities)
    broken = [] if entities else [_broken("entities", Reason.ENTITIES_COUNT)]
    _refuse_if_any(broken + _ids("entities", entities) + _metrics(metrics))


def refuse_watch(entities: Sequence[str], metrics: Sequence[int]) -> None:
    """Raises InvalidRequest for what WatchCounts would refuse of its entities or its metrics; TypeError for one str in place of them."""
    _refuse_str("entities", entities)
    reason = count_violation(len(entities), ENTITIES_MAX, Reason.ENTITIES_COUNT)
    broken = _ids("entities", entities) if reason is None else [_broken("entities", reason)]
    _refuse_if_any(broken + _metrics(metrics))


def refuse_check(actor: str, kind: int, subjects: Sequence[str]) -> None:
    """Raises InvalidRequest for what CheckEdges would refuse; TypeError for one str in place of subjects."""
    _refuse_str("subjects", subjects)
    reason = count_violation(len(subjects), SUBJECTS_MAX, Reason.SUBJECTS_COUNT)
    broken = _ids("subjects", subjects) if reason is None else [_broken("subjects", reason)]
    _refuse_if_any(_id("actor", actor) + _one("kind", kind_violation(kind)) + broken)


def refuse_page(field: str, of: str, kind: int, page_size: int) -> None:
    """Raises InvalidRequest for what ListActors and ListSubjects would refuse, but for the page token."""
    _refuse_if_any(_id(field, of) + _one("kind", kind_violation(kind)) + _one("page_size", page_size_violation(page_size)))


def kind_name(kind: Kind) -> str:
    """The kind in the words of the API."""
    return f"KIND_{Kind(kind).name}"


def metric_names(metrics: Sequence[Metric]) -> list[str]:
    """Metrics in the words of the API."""
    return [f"METRIC_{Metric(metric).name}" for metric in metrics]


def _refuse_str(field: str, values: Sequence[str]) -> None:
    # To the type checker it is a sequence of str as well as any other: that of its letters.
    if isinstance(values, str):
        raise TypeError(f"{field} are several ids, as in [{values!r}], and not one str")


def _event_violations(path: str, event: Event, at_us: int) -> list[Violation]:
    broken = _id(f"{path}.actor", event.actor) + _one(f"{path}.kind", kind_violation(event.kind))
    subject = _id(f"{path}.subject", event.subject)
    if kind_violation(event.kind) is None:
        if not subject:
            subject = _one(f"{path}.subject", self_violation(event.kind, event.actor, event.subject))
        try:
            subject += _one(f"{path}.ref", ref_violation(event.kind, event.ref))
        except UnicodeEncodeError:
            subject.append(_not_utf8(f"{path}.ref"))
    broken += subject
    # Whether it is in the future is for the clock of the service to say.
    return broken + _one(f"{path}.occurred_at", Reason.OCCURRED_AT_PAST if at_us < OCCURRED_AT_MIN_US else None)


def _metrics(metrics: Sequence[int]) -> list[Violation]:
    return [_broken(violation.field, violation.reason) for violation in metrics_violations("metrics", metrics)]


def _ids(field: str, values: Sequence[str]) -> list[Violation]:
    return [violation for index, value in enumerate(values) for violation in _id(f"{field}[{index}]", value)]


def _id(field: str, value: str) -> list[Violation]:
    try:
        return _one(field, id_violation(value))
    except UnicodeEncodeError:
        return [_not_utf8(field)]


def _one(field: str, reason: Reason | None) -> list[Violation]:
    return [] if reason is None else [_broken(field, reason)]


def _broken(field: str, reason: Reason) -> Violation:
    return Violation(field, reason.rule, reason.name)


def _not_utf8(field: str) -> Violation:
    return Violation(field, "must be valid UTF-8", Reason.MESSAGE_MALFORMED.name)


def _refuse_if_any(violations: Sequence[Violation]) -> None:
    if violations:
        raise InvalidRequest(violations)
