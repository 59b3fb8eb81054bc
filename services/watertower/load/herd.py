"""What a herd did to the service: how long until reads were as before, and whether the retries kept to their budget."""

from math import ceil
from typing import Any

from watertower.client import ClientOptions
from watertower.client.retries import BUDGET_WINDOW_S
from watertower.load.measure import Recorder, Tally, ms
from watertower.load.scenarios import AFTER, BEFORE, Options

NORMAL_FACTOR, NORMAL_MS_LEAST = 2.0, 20.0
"""As before is a p99 of reads of at most so many times that of before, or of so many ms where that is more."""

CALM_S = 3
"""Seconds on end that must be as before."""


def herd_figures(recorder: Recorder, options: Options) -> dict[str, Any]:
    """For the report."""
    normal_ms = max(NORMAL_MS_LEAST, NORMAL_FACTOR * (ms(recorder.of_side(BEFORE, "read").latencies.percentile_s(0.99)) or 0.0))
    back_s = next(phase.start_s for phase in recorder.phases if phase.name == AFTER)
    tallies = list(recorder.tallies.values())
    return {
        "clients": options.clients,
        "outage_s": options.outage_s,
        "normal_ms": round(normal_ms, 3),
        "recovered_s": recovered_s(recorder.timeline(), ceil(back_s), normal_ms),
        "retries": sum(tally.retries for tally in tallies),
        "retries_budget": sum(map(_budget, tallies)),
        "retries_over_budget": sum(max(0, tally.retries - _budget(tally)) for tally in tallies),
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


def _budget(tally: Tally) -> int:
    """Retries that a client may have made of one server: a share of its requests, and its reserve in every window in which it retried.
    A budget is nobody else's: what another client has left excuses no retry."""
    rules = ClientOptions()
    # A window forgets in steps of a twentieth, so it may be that much shorter.
    windows = int(tally.retried_for_s / (BUDGET_WINDOW_S * 0.95)) + 1
    return tally.first * rules.retry_percent_max // 100 + rules.retry_reserve_max * windows
