"""Many seeds, and what came out of them."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from itertools import islice
from multiprocessing import get_context
from typing import Any

from watertower.clock import SystemClock
from watertower.testing.simulator.run import CALLS, Outcome, Scenario, simulate
from watertower.testing.simulator.shrink import shrink

FAILURES_SHRUNK_MAX = 5
"""Failing seeds that are made smaller; the others are reported as they are."""


def run(
    start: int,
    seeds: int,
    calls: int | None = None,
    without: Sequence[str] = (),
    jobs: int = 1,
    show: Callable[[str], object] | None = None,
    progress: Callable[[int, int], object] | None = None,
) -> dict[str, Any]:
    """Runs the seeds from `start` on. Returns what `watertower simulate --json` prints: seeds, events, simulated_hours, faults (by kind),
    failures (each with its seed, the invariant that broke, and how to replay it), took_s."""
    clock = SystemClock()
    began = clock.monotonic_s()
    faults: Counter[str] = Counter()
    failures: list[Outcome] = []
    events, simulated_s = 0, 0.0
    scenarios = [Scenario(seed, calls or CALLS, tuple(without)) for seed in range(start, start + seeds)]
    for number, outcome in enumerate(_outcomes(scenarios, jobs, show), 1):
        faults += outcome.faults
        events += outcome.events
        simulated_s += outcome.simulated_s
        if outcome.invariant:
            failures.append(outcome if show is not None or len(failures) >= FAILURES_SHRUNK_MAX else shrink(outcome))
        if progress is not None:
            progress(number, seeds)
    return {
        "seeds": seeds,
        "events": events,
        "simulated_hours": round(simulated_s / 3_600, 3),
        "faults": dict(sorted(faults.items())),
        "failures": [_failure(outcome) for outcome in failures],
        "took_s": round(clock.monotonic_s() - began, 1),
    }


def _outcomes(scenarios: list[Scenario], jobs: int, show: Callable[[str], object] | None) -> Iterator[Outcome]:
    if jobs == 1 or show is not None:
        yield from map(partial(simulate, show=show), scenarios)
        return
    with ProcessPoolExecutor(jobs, get_context("spawn")) as pool:
        # A few at a time, so that an interrupted campaign ends soon.
        remaining = iter(scenarios)
        while part := list(islice(remaining, 50 * jobs)):
            yield from pool.map(simulate, part, chunksize=5)


def _failure(outcome: Outcome) -> dict[str, Any]:
    scenario = outcome.scenario
    without = "".join(f" --without {kind}" for kind in scenario.without)
    return {
        "seed": scenario.seed,
        "invariant": outcome.invariant,
        "detail": outcome.detail,
        "calls": scenario.calls,
        "without": list(scenario.without),
        "replay": f"watertower simulate --seed {scenario.seed} --calls {scenario.calls}{without} --trace",
    }
