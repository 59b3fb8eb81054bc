"""Makes a failing scenario small: fewer calls, fewer kinds of faults, the same invariant broken."""

from watertower.testing.simulator.run import Outcome, Scenario, simulate
from watertower.testing.simulator.world import Parts

RUNS_MAX = 120
"""Runs that one shrinking takes at most."""


def shrink(failed: Outcome, parts: Parts | None = None) -> Outcome:
    """The smallest outcome found that breaks the same invariant."""
    best, runs = failed, 0

    def breaks(scenario: Scenario) -> bool:
        nonlocal best, runs
        runs += 1
        outcome = simulate(scenario, parts)
        if outcome.invariant != failed.invariant:
            return False
        best = outcome
        return True

    def fewer_calls() -> None:
        step = best.scenario.calls // 2
        while step and runs < RUNS_MAX:
            calls = best.scenario.calls - step
            if calls < 1 or not breaks(best.scenario._replace(calls=calls)):
                step //= 2

    fewer_calls()
    for kind in sorted(failed.faults):
        if runs < RUNS_MAX and best.faults[kind] and " " not in kind:
            breaks(best.scenario._replace(without=(*best.scenario.without, kind)))
    fewer_calls()
    return best
