"""Every error that leaves Watertower, in one catalogue.

Back ends raise BackendUnavailable or BackendRefused; processes refuse to start with StartRefused; backups are
refused with BackupRefused; calls are refused with CallRefused,
whose Reason decides the gRPC status. docs/reference/errors.md lists every Reason, and a test holds the two together.
"""

from collections.abc import Sequence
from enum import Enum
from typing import NamedTuple

MESSAGE_VIOLATIONS_MAX = 5
"""Broken rules that the message of a refusal spells out."""


class BackendUnavailable(Exception):
    """The log or the store did not do it now; trying again may help."""


class BackendRefused(Exception):
    """The log or the store will not do it; trying again cannot help."""


class StartRefused(Exception):
    """A condition that must hold before a process starts does not. The message says what to do."""


class AddressTaken(StartRefused):
    """A process cannot listen on its address. Unlike other refusals this one may pass: whoever holds the port may let go of it."""


class BackupRefused(Exception):
    """A backup cannot be made, or not there. The message says which rule the target breaks and what to do; nothing is left behind."""


class Status(Enum):
    """The gRPC status codes that Watertower uses (values as in grpc.StatusCode)."""

    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    RESOURCE_EXHAUSTED = 8
    UNAVAILABLE = 14


class _Entry(NamedTuple):
    status: Status
    rule: str


class Reason(Enum):
    """Why a call was refused: the `reason` of google.rpc.ErrorInfo. Names are part of the API: never changed or reused."""

    # the message as a whole
    MESSAGE_MALFORMED = _Entry(Status.INVALID_ARGUMENT, "the bytes must be a valid message of this method, with strings in UTF-8")
    EVENTS_COUNT = _Entry(Status.INVALID_ARGUMENT, "must have 1 to 1000 events")
    ENTITIES_COUNT = _Entry(Status.INVALID_ARGUMENT, "must have 1 to 1000 entities")
    SUBJECTS_COUNT = _Entry(Status.INVALID_ARGUMENT, "must have 1 to 1000 subjects")
    # ids
    ID_LENGTH = _Entry(Status.INVALID_ARGUMENT, "must be 1 to 128 bytes of UTF-8")
    ID_CONTROL_CHARACTER = _Entry(Status.INVALID_ARGUMENT, "must not contain control characters (U+0000 to U+001F, U+007F to U+009F)")
    SELF_NOT_ALLOWED = _Entry(Status.INVALID_ARGUMENT, "must differ from actor: an account cannot follow itself")
    REF_NOT_ALLOWED = _Entry(Status.INVALID_ARGUMENT, "must be empty for this kind")
    REF_REQUIRED = _Entry(Status.INVALID_ARGUMENT, "is required for COMMENT: the comment's own id, 1 to 128 bytes of UTF-8")
    # enums
    KIND_UNKNOWN = _Entry(Status.INVALID_ARGUMENT, "must be a kind that this version knows, and not UNSPECIFIED")
    STATE_UNKNOWN = _Entry(Status.INVALID_ARGUMENT, "must be ACTIVE or REMOVED")
    METRICS_COUNT = _Entry(Status.INVALID_ARGUMENT, "must name at least one metric, each at most once")
    METRIC_UNKNOWN = _Entry(Status.INVALID_ARGUMENT, "must be a metric of this version")
    # time
    OCCURRED_AT_REQUIRED = _Entry(Status.INVALID_ARGUMENT, "is required: when the user acted, fixed before the first attempt")
    OCCURRED_AT_INVALID = _Entry(Status.INVALID_ARGUMENT, "must be a valid Timestamp: nanos from 0 to 999999999")
    OCCURRED_AT_FUTURE = _Entry(Status.INVALID_ARGUMENT, "must not be ahead of the service's clock by more than the service allows")
    OCCURRED_AT_PAST = _Entry(Status.INVALID_ARGUMENT, "must not be before 2000-01-01T00:00:00Z")
    # pages
    PAGE_SIZE = _Entry(Status.INVALID_ARGUMENT, "must be 0 (the default, 100) to 1000")
    PAGE_TOKEN_INVALID = _Entry(Status.INVALID_ARGUMENT, "must be the unchanged next_page_token of the same request")
    # how fresh, how often
    MIN_POSITION_INVALID = _Entry(Status.INVALID_ARGUMENT, "must be a write token, or the position of an answer, of this service")
    MAX_STALENESS_INVALID = _Entry(Status.INVALID_ARGUMENT, "must be a valid Duration of at least 1 microsecond")
    INTERVAL_INVALID = _Entry(Status.INVALID_ARGUMENT, "must be a valid Duration of 1 microsecond to 60 s")
    # not the caller's fault
    QUEUE_FULL = _Entry(Status.RESOURCE_EXHAUSTED, "the queue for the log is full; repeat the call later")
    READS_FULL = _Entry(Status.RESOURCE_EXHAUSTED, "too many store reads are waiting; repeat the call later")
    OVERLOADED = _Entry(Status.RESOURCE_EXHAUSTED, "the process cannot keep up with its calls; repeat the call later")
    CALLS_FULL = _Entry(Status.RESOURCE_EXHAUSTED, "too many calls are under way or waiting; repeat the call later")
    WATCHES_FULL = _Entry(Status.RESOURCE_EXHAUSTED, "too many watches are open, of this caller or of all; repeat the call later")
    LOG_UNAVAILABLE = _Entry(Status.UNAVAILABLE, "the log cannot be written now; repeat the call later")
    STORE_UNAVAILABLE = _Entry(Status.UNAVAILABLE, "the store cannot be read now; repeat the call later")
    DEADLINE_PASSED = _Entry(Status.DEADLINE_EXCEEDED, "the deadline passed while the call waited; repeat the call with more time")
    REQUEST_LATE = _Entry(Status.DEADLINE_EXCEEDED, "the request did not arrive in time; send it without pauses")
    STOPPING = _Entry(Status.UNAVAILABLE, "the service is stopping; repeat the call, it will reach another process")

    @property
    def status(self) -> Status:
        return self.value.status

    @property
    def rule(self) -> str:
        """The rule, as a sentence without its subject (the field)."""
        return self.value.rule


class Violation(NamedTuple):
    """One broken rule."""

    field: str  # path in the request, as in "events[3].actor"; empty for the message as a whole
    reason: Reason


class CallRefused(Exception):
    """A call that changes nothing (or, for reasons that are not the caller's fault, may have changed something and can be repeated).

    `violations` are empty exactly for reasons that are not the caller's fault; `retry_after_s` is given exactly for those.
    """

    def __init__(self, reason: Reason, violations: Sequence[Violation] = (), retry_after_s: float | None = None) -> None:
        self.reason = reason
        self.violations = tuple(violations)
        self.retry_after_s = retry_after_s
        if self.violations:
            # Bounded, because it travels in a header: a peer drops headers of more than 8 KiB.
            message = "; ".join(f"{v.field} {v.reason.rule}".lstrip() for v in self.violations[:MESSAGE_VIOLATIONS_MAX])
            if len(self.violations) > MESSAGE_VIOLATIONS_MAX:
                message += f"; and {len(self.violations) - MESSAGE_VIOLATIONS_MAX} more"
        else:
            message = reason.rule
        super().__init__(message)

    @classmethod
    def of(cls, violations: Sequence[Violation]) -> "CallRefused":
        """The refusal that names every broken rule; its reason is the first one's."""
        return cls(violations[0].reason, violations)
