"""What came back: by phase and call, by second, and of every single attempt."""

from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any

import grpc

from watertower.client import Attempt, ClientError
from watertower.load.histogram import Histogram
from watertower.load.schedule import FOLLOW, Phase

PERCENTILES = {"p50_ms": 0.5, "p90_ms": 0.9, "p99_ms": 0.99, "p999_ms": 0.999}
SIDES = ("read", "write")
WRITES = ("RecordEvents",)
"""Methods of the writer; the others are the reader's."""


def side_of(call: str) -> str:
    """`write` for what goes to the writer, `read` for the rest."""
    return "write" if call == FOLLOW else "read"


class Calls:
    """Calls as their callers saw them, retries included: how long from the moment at which each was due, and how it ended."""

    def __init__(self) -> None:
        self.latencies = Histogram()  # of those that were answered
        self.errors: Counter[str] = Counter()
        self.unsent = 0

    def add(self, other: "Calls") -> None:
        self.latencies.add(other.latencies)
        self.errors.update(other.errors)
        self.unsent += other.unsent

    @property
    def failed(self) -> int:
        return self.errors.total() + self.unsent

    @property
    def count(self) -> int:
        return self.latencies.count + self.failed

    def figures(self, seconds: float) -> dict[str, Any]:
        """For the report."""
        return {
            "calls": self.count,
            "failed": self.failed,
            "failed_percent": percent(self.failed, self.count),
            "per_s": round(self.count / seconds, 1) if seconds else None,
            **{name: ms(self.latencies.percentile_s(share)) for name, share in PERCENTILES.items()},
            "max_ms": ms(self.latencies.max_s) if self.latencies.count else None,
            "errors": dict(self.errors.most_common()),
        }


class Attempts:
    """Single requests, before any retry."""

    def __init__(self) -> None:
        self.sent = self.retries = self.failed = self.items_failed = 0
        self.errors: Counter[str] = Counter()

    def add(self, attempt: Attempt) -> None:
        self.sent += 1
        self.retries += attempt.number > 0
        if attempt.status is not grpc.StatusCode.OK:
            self.failed += 1
            self.items_failed += attempt.items
            self.errors[_name(attempt.status, attempt.reason)] += 1

    def figures(self) -> dict[str, Any]:
        """For the report."""
        return {
            "attempts": self.sent,
            "retries": self.retries,
            "raw_failed": self.failed,
            "raw_failed_items": self.items_failed,
            "raw_failed_percent": percent(self.failed, self.sent),
            "raw_errors": dict(self.errors.most_common()),
        }


class Tally:
    """The requests of one client to one of its servers: what its retry budget is held against."""

    def __init__(self) -> None:
        self.first = self.retries = 0
        self._failed_s = self._retried_s = 0.0

    def add(self, at_s: float, attempt: Attempt) -> None:
        """A request ended at `at_s`."""
        if attempt.number == 0:
            self.first += 1
        else:
            self.retries += 1
            self._retried_s = max(self._retried_s, at_s - attempt.took_s)
        if attempt.status is not grpc.StatusCode.OK and not self._failed_s:
            self._failed_s = at_s

    @property
    def retried_for_s(self) -> float:
        """Seconds within which all retries were taken: none is before the first failure, nor after the last one was sent."""
        return max(0.0, self._retried_s - self._failed_s)


class Second:
    """One second of the timeline, by when calls were due."""

    def __init__(self) -> None:
        self.calls = {side: Calls() for side in SIDES}
        self.raw_failed = 0
        self.late_s = 0.0


class Recorder:
    """Takes down everything that happens, by the seconds since the start."""

    def __init__(self, phases: Sequence[Phase]) -> None:
        self.phases = tuple(phases)
        self._starts = [phase.start_s for phase in phases]
        self.calls: dict[tuple[str, str], Calls] = defaultdict(Calls)  # by phase and call
        self.attempts: dict[tuple[str, str], Attempts] = defaultdict(Attempts)  # by phase and side
        self.tallies: dict[tuple[int, str], Tally] = defaultdict(Tally)  # by client and side
        self.seconds: dict[int, Second] = defaultdict(Second)
        self.late = Histogram()
        """How long after it was due each call was sent."""
        self.unsent = 0

    def phase(self, at_s: float) -> str:
        """Whose moment it is."""
        return self.phases[max(0, bisect_right(self._starts, at_s) - 1)].name

    def sent(self, at_s: float, late_s: float) -> None:
        """A call that was due at `at_s` was sent so much later."""
        self.late.record(late_s)
        second = self.seconds[int(at_s)]
        second.late_s = max(second.late_s, late_s)

    def answered(self, call: str, at_s: float, took_s: float) -> None:
        """The call that was due at `at_s` ended well, so long after that moment."""
        for calls in self._both(call, at_s):
            calls.latencies.record(took_s)

    def failed(self, call: str, at_s: float, error: ClientError) -> None:
        """The call that was due at `at_s` failed for good."""
        for calls in self._both(call, at_s):
            calls.errors[_error_name(error)] += 1

    def not_sent(self, call: str, at_s: float) -> None:
        """Too many calls were under way for this one."""
        self.unsent += 1
        for calls in self._both(call, at_s):
            calls.unsent += 1

    def attempt(self, at_s: float, attempt: Attempt, client: int = 0) -> None:
        """A request of the client with this number ended at `at_s`."""
        side = "write" if attempt.method in WRITES else "read"
        self.attempts[self.phase(at_s), side].add(attempt)
        self.tallies[client, side].add(at_s, attempt)
        if attempt.status is not grpc.StatusCode.OK:
            self.seconds[int(at_s)].raw_failed += 1

    def of_side(self, phase: str, side: str) -> Calls:
        """All calls of a phase to one of the two servers."""
        total = Calls()
        for (name, call), calls in self.calls.items():
            if name == phase and side_of(call) == side:
                total.add(calls)
        return total

    def timeline(self) -> list[dict[str, Any]]:
        """One row a second, without gaps."""
        rows = []
        for number in range(max(self.seconds, default=-1) + 1):
            second = self.seconds.get(number) or Second()
            row: dict[str, Any] = {"second": number, "phase": self.phase(number)}
            for side, calls in second.calls.items():
                row |= {f"{side}s": calls.count, f"{side}s_failed": calls.failed, f"{side}_p99_ms": ms(calls.latencies.percentile_s(0.99))}
            rows.append(row | {"raw_failed": second.raw_failed, "late_max_ms": ms(second.late_s)})
        return rows

    def _both(self, call: str, at_s: float) -> tuple[Calls, Calls]:
        return self.calls[self.phase(at_s), call], self.seconds[int(at_s)].calls[side_of(call)]


def ms(seconds: float | None) -> float | None:
    """Milliseconds, to the microsecond."""
    return None if seconds is None else round(seconds * 1e3, 3)


def percent(part: int, whole: int) -> float:
    return round(100.0 * part / whole, 4) if whole else 0.0


def _error_name(error: ClientError) -> str:
    kind = type(error).__name__
    return kind if error.status is None else f"{kind} {_name(error.status, error.reason)}"


def _name(status: grpc.StatusCode, reason: str) -> str:
    return f"{status.name}/{reason}" if reason else status.name
