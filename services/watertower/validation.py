"""The rules for what a caller may send: one function a rule, returning the Reason that it breaks, or None.

The `all_*` functions say of whole columns that nothing is wrong, at a few nanoseconds per value, without saying what is; only a call
in which something is wrong pays for looking at each value.
"""

import re
from collections.abc import Sequence

from watertower.core.model import KINDS, Kind, Metric
from watertower.errors import CallRefused, Reason, Violation

EVENTS_MAX = 1_000
"""Events of one call."""

ENTITIES_MAX = 1_000
"""Entities of one call."""

SUBJECTS_MAX = 1_000
"""Subjects of one call."""

ID_BYTES_MAX = 128
"""Bytes of one id in UTF-8; it has at least one."""

PAGE_SIZE_MAX = 1_000
"""Items of one page."""

PAGE_SIZE_DEFAULT = 100
"""Items of one page, when the caller says 0."""

OCCURRED_AT_MIN_US = 946_684_800_000_000
"""2000-01-01T00:00:00Z, in microseconds since 1970."""

STATES = (1, 2)
"""ACTIVE and REMOVED, as in the API."""

_UTF8_BYTES_PER_CHARACTER_MAX = 4
_NANOS_MAX = 999_999_999
_METRICS = frozenset(int(metric) for metric in Metric)
_CONTROL_CHARACTER = re.compile("[\u0000-\u001f\u007f-\u009f]")


def id_violation(value: str) -> Reason | None:
    """ID_LENGTH, ID_CONTROL_CHARACTER, or None for an id."""
    if not value or len(value) > ID_BYTES_MAX or len(value.encode()) > ID_BYTES_MAX:
        return Reason.ID_LENGTH
    return Reason.ID_CONTROL_CHARACTER if has_control_character(value) else None


def has_control_character(text: str) -> bool:
    """Whether there is one of U+0000 to U+001F, U+007F to U+009F."""
    # No control character is printable, and isprintable() is several times faster than the expression.
    return not text.isprintable() and _CONTROL_CHARACTER.search(text) is not None


def all_ids(values: Sequence[str]) -> bool:
    """Whether id_violation is None for every one of `values`."""
    if not values:
        return True
    if not all(values) or has_control_character("".join(values)):
        return False
    longest = max(map(len, values))
    if longest * _UTF8_BYTES_PER_CHARACTER_MAX <= ID_BYTES_MAX:
        return True
    return longest <= ID_BYTES_MAX and max(map(len, map(str.encode, values))) <= ID_BYTES_MAX


def id_violations(field: str, values: Sequence[str]) -> list[Violation]:
    """A violation for each of `values` that is no id, with the path `field[index]`."""
    if all_ids(values):
        return []
    reasons = map(id_violation, values)
    return [Violation(f"{field}[{index}]", reason) for index, reason in enumerate(reasons) if reason is not None]


def kind_violation(kind: int) -> Reason | None:
    """KIND_UNKNOWN, or None for a Kind of this version."""
    return None if kind in KINDS else Reason.KIND_UNKNOWN


def state_violation(state: int) -> Reason | None:
    """STATE_UNKNOWN, or None for ACTIVE and REMOVED."""
    return None if state in STATES else Reason.STATE_UNKNOWN


def ref_violation(kind: int, ref: str) -> Reason | None:
    """Of a known kind's ref: REF_REQUIRED, REF_NOT_ALLOWED, a reason of id_violation, or None."""
    if not KINDS[Kind(kind)].needs_ref:
        return Reason.REF_NOT_ALLOWED if ref else None
    return id_violation(ref) if ref else Reason.REF_REQUIRED


def self_violation(kind: int, actor: str, subject: str) -> Reason | None:
    """Of a known kind: SELF_NOT_ALLOWED where actor and subject must differ and don't."""
    return Reason.SELF_NOT_ALLOWED if actor == subject and not KINDS[Kind(kind)].allows_self else None


def occurred_at_violation(seconds: int, nanos: int, latest_us: int) -> Reason | None:
    """Of a Timestamp that is present: OCCURRED_AT_INVALID, _PAST, _FUTURE (after `latest_us`, microseconds), or None."""
    if not 0 <= nanos <= _NANOS_MAX:
        return Reason.OCCURRED_AT_INVALID
    occurred_at = microseconds(seconds, nanos)
    if occurred_at < OCCURRED_AT_MIN_US:
        return Reason.OCCURRED_AT_PAST
    return Reason.OCCURRED_AT_FUTURE if occurred_at > latest_us else None


def all_nanos(nanos: Sequence[int]) -> bool:
    """Whether each of (at least one) `nanos` is one of a valid Timestamp."""
    return min(nanos) >= 0 and max(nanos) <= _NANOS_MAX


def microseconds(seconds: int, nanos: int) -> int:
    """A Timestamp as microseconds since 1970, truncated."""
    return seconds * 1_000_000 + nanos // 1_000


def metrics_violations(field: str, metrics: Sequence[int]) -> list[Violation]:
    """METRICS_COUNT for none or a repeated one, else METRIC_UNKNOWN (with the path `field[index]`) for each that is not of this version."""
    if not 1 <= len(metrics) <= len(_METRICS) or len(set(metrics)) < len(metrics):
        return [Violation(field, Reason.METRICS_COUNT)]
    return [Violation(f"{field}[{index}]", Reason.METRIC_UNKNOWN) for index, metric in enumerate(metrics) if metric not in _METRICS]


def page_size_violation(page_size: int) -> Reason | None:
    """PAGE_SIZE, or None for 0 to PAGE_SIZE_MAX."""
    return None if 0 <= page_size <= PAGE_SIZE_MAX else Reason.PAGE_SIZE


def count_violation(count: int, count_max: int, reason: Reason) -> Reason | None:
    """`reason` unless `count` is 1 to `count_max`."""
    return None if 1 <= count <= count_max else reason


def violations_of(*found: tuple[str, Reason | None]) -> list[Violation]:
    """The violations among pairs of a field's path and what a rule said of it: `violations_of(("actor", id_violation(actor)))`."""
    return [Violation(field, reason) for field, reason in found if reason is not None]


def refuse_if_any(violations: Sequence[Violation]) -> None:
    """Raises CallRefused with every broken rule, if there is any."""
    if violations:
        raise CallRefused.of(violations)
