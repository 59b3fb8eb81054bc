"""What a herd did to the service: how long until reads were as before, and whether the retries kept to their budget."""

from math import ceil
from typing import Any

from watertower.client import ClientOptions
from watertower.client.retries import BUDGET_WINDOW_S
from watertower.load.measure import SIDES, Recorder, ms
from watertower.load.scenarios import AFTER, BEFORE, Options

NORMAL_FACTOR, NORMAL_MS_LEAST = 2.0, 20.0
"""As before is a p99 of reads of at most so many times that of before, or of so many ms where that is more."""

CALM_S = 3
"""Seconds on end that must be as before."""


def herd_figures(recorder: Recorder, options: Options) -> dict[str, Any]:
    """For the report."""
    normal_ms = max(NORMAL_MS_LEAST, NORMAL_FACTOR * (ms(recorder.of_side(BEFORE, "read").latencies.percentile_s(0.99)) or 0.0))
    back_s = next(phase.start_s for phase in recorder.phases if phase.name == AFTER)
    retries = sum(attempts.retries for attempts in recorder.attempts.values())
    budget = _budget(recorder, options)
    return {
        "clients": options.clients,
        "outage_s": options.outage_s,
        "normal_ms": round(normal_ms, 3),
        "recovered_s": recovered_s(recorder.timeline(), ceil(back_s), normal_ms),
        "retries": retries,
        "retries_budget": budget,
        "retries_over_budget": max(0, retries - budget),
    }


def recovered_s(timeline: list[dict[str, Any]], back: int, normal_ms: float) -> int | None:
    """Whole seconds from `back` to the first of CALM_S that are as before, without a read that failed; None if there are none."""
    calm = 0
    for row in timeline[back:]:
        p99 = row["read_p99_ms"]
        is_calm = not row["reads_failed"] and (p99 is not None and p99 <= normal_ms)
        calm = calm + 1 if is_calm else 0
        if calm == CALM_S:
            return int(row["second"]) - back - CALM_S + 1
    return None


def _budget(recorder: Recorder, options: Options) -> int:
    """Retries that all clients together may have made: of each, and for each of its two servers, a share of its requests and its reserve
    in every window."""
    rules = ClientOptions()
    first = sum(attempts.sent - attempts.retries for attempts in recorder.attempts.values())
    windows = ceil(recorder.phases[-1].end_s / BUDGET_WINDOW_S) + 1
    return first * rules.retry_percent_max // 100 + options.clients * len(SIDES) * rules.retry_reserve_max * windows
