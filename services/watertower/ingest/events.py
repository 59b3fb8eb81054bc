"""From the message of a call to columns per partition, with every rule checked.

The hot path of the service: an event costs about a microsecond here. So events become columns at once, and each rule is checked on a
whole column; only a call that breaks a rule is looked at event by event, to name what is wrong with it.
"""

from collections.abc import Sequence
from operator import eq

from watertower.core.model import KINDS, EventBatch
from watertower.core.sharding import partitions_of
from watertower.errors import CallRefused, Reason, Violation
from watertower.v1.writer_pb2 import Event, RecordEventsRequest
from watertower.validation import (
    EVENTS_MAX,
    OCCURRED_AT_MIN_US,
    STATES,
    all_ids,
    all_nanos,
    count_violation,
    id_violation,
    kind_violation,
    microseconds,
    occurred_at_violation,
    ref_violation,
    self_violation,
    state_violation,
    violations_of,
)

# Tables for bytes.translate and bytes.strip: what a whole column of kinds or states says, without a loop.
_KINDS = bytes(KINDS)
_STATES = bytes(STATES)
_NEEDS_REF = bytes(kind in KINDS and KINDS[kind].needs_ref for kind in range(256))  # type: ignore[index] # Kind is an int
_NOT_SELF = frozenset(kind for kind, rule in KINDS.items() if not rule.allows_self)
_ACTIVES = bytes(state == STATES[0] for state in range(256))


def events_of(request: RecordEventsRequest, partitions: int, latest_us: int) -> dict[int, EventBatch]:
    """The events of a call, by partition, in the order of the call.

    `latest_us`: occurred_at may not be after this, microseconds. Raises CallRefused naming every broken rule of every event.
    """
    reason = count_violation(len(request.events), EVENTS_MAX, Reason.EVENTS_COUNT)
    if reason is not None:
        raise CallRefused.of([Violation("events", reason)])
    batch = _columns(request.events, latest_us)
    if batch is None:
        violations = [violation for index, event in enumerate(request.events) for violation in event_violations(index, event, latest_us)]
        if not violations:
            raise RuntimeError("the rules for columns and for single events differ")
        raise CallRefused.of(violations)
    return _by_partition(batch, partitions)


def event_violations(index: int, event: Event, latest_us: int) -> list[Violation]:
    """Every rule that one event of a call breaks."""
    kind_known = kind_violation(event.kind) is None
    if event.HasField("occurred_at"):
        time = occurred_at_violation(event.occurred_at.seconds, event.occurred_at.nanos, latest_us)
    else:
        time = Reason.OCCURRED_AT_REQUIRED
    path = f"events[{index}]"
    return violations_of(
        (f"{path}.actor", id_violation(event.actor)),
        (f"{path}.kind", kind_violation(event.kind)),
        (
            f"{path}.subject",
            id_violation(event.subject) or (self_violation(event.kind, event.actor, event.subject) if kind_known else None),
        ),
        (f"{path}.ref", ref_violation(event.kind, event.ref) if kind_known else None),
        (f"{path}.state", state_violation(event.state)),
        (f"{path}.occurred_at", time),
    )


def _columns(events: Sequence[Event], latest_us: int) -> EventBatch | None:
    """At least one event as columns; None if any of them breaks a rule."""
    rows = [
        (event.actor, event.kind, event.subject, event.ref, event.state, (time := event.occurred_at).seconds, time.nanos)
        for event in events
    ]
    actors, kind_numbers, subjects, refs, state_numbers, seconds, nanos = zip(*rows, strict=True)
    try:
        kinds, states = bytes(kind_numbers), bytes(state_numbers)
    except ValueError:  # negative, or above 255
        return None
    # An absent occurred_at reads as 1970 and is refused with what lies before 2000.
    occurred_at = tuple(map(microseconds, seconds, nanos))
    if (
        all_ids(actors)
        and all_ids(subjects)
        and not kinds.strip(_KINDS)
        and not states.strip(_STATES)
        and _refs_allowed(kinds, refs)
        and _selves_allowed(actors, kinds, subjects)
        and all_nanos(nanos)
        and min(occurred_at) >= OCCURRED_AT_MIN_US
        and max(occurred_at) <= latest_us
    ):
        return EventBatch(actors, kinds, subjects, refs, states.translate(_ACTIVES), occurred_at)
    return None


def _refs_allowed(kinds: bytes, refs: Sequence[str]) -> bool:
    needed = kinds.translate(_NEEDS_REF)
    if not any(refs):
        return not any(needed)
    return bytes(map(bool, refs)) == needed and all_ids(list(filter(None, refs)))


def _selves_allowed(actors: Sequence[str], kinds: bytes, subjects: Sequence[str]) -> bool:
    if not any(map(eq, actors, subjects)):
        return True
    return not any(actor == subject and kind in _NOT_SELF for actor, kind, subject in zip(actors, kinds, subjects, strict=True))


def _by_partition(batch: EventBatch, partitions: int) -> dict[int, EventBatch]:
    if partitions == 1:
        return {0: batch}
    rows: list[list[tuple[str, int, str, str, int, int]]] = [[] for _ in range(partitions)]
    for partition, row in zip(partitions_of(batch.actors, partitions), zip(*batch, strict=True), strict=True):
        rows[partition].append(row)
    parts = {}
    for partition, own in enumerate(rows):
        if own:
            actors, kinds, subjects, refs, actives, occurred_at = zip(*own, strict=True)
            parts[partition] = EventBatch(actors, bytes(kinds), subjects, refs, bytes(actives), occurred_at)
    return parts
