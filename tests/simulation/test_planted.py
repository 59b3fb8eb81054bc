"""It can see: every bug that the design forbids is found, by the invariant that names it."""

import contextlib
import multiprocessing
import os
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from unittest.mock import patch

import pytest

from tests.simulation.planted import PLANTS, Caching, Plant
from watertower.testing.simulator.run import Outcome, Scenario, simulate
from watertower.testing.simulator.world import Parts

SEEDS = 500
"""Each bug is found within these."""

_BY_NAME = {plant.name: plant for plant in PLANTS}


def first_failure(name: str) -> Outcome | None:
    plant = _BY_NAME[name]
    with contextlib.ExitStack() as planted:
        for owner, attribute, replacement in plant.patches:
            planted.enter_context(patch.object(owner, attribute, replacement))
        return next((outcome for seed in range(SEEDS) if (outcome := simulate(Scenario(seed), plant.parts)).invariant), None)


@pytest.fixture(scope="module")
def searches(request: pytest.FixtureRequest) -> Iterator[dict[str, "Future[Outcome | None]"]]:
    """By the name of the bug, for those that are asked for: one is looked for on each core, as each takes seconds."""
    asked = [item.callspec.params["plant"].name for item in request.session.items if item.name.startswith("test_a_planted_bug_is_found[")]
    # Not forked: this process may have threads of tests before.
    with ProcessPoolExecutor(os.cpu_count(), multiprocessing.get_context("spawn")) as pool:
        yield {name: pool.submit(first_failure, name) for name in asked}
        pool.shutdown(cancel_futures=True)


@pytest.mark.slow
@pytest.mark.parametrize("plant", PLANTS, ids=[plant.name for plant in PLANTS])
def test_a_planted_bug_is_found(plant: Plant, searches: dict[str, "Future[Outcome | None]"]) -> None:
    """Within 500 seeds, and what breaks is what the bug breaks."""
    outcome = searches[plant.name].result()
    assert outcome is not None
    print(f"{plant.name}: seed {outcome.scenario.seed}: {outcome.invariant}: {outcome.detail}")
    assert plant.breaks(outcome.invariant)


def cached(seed: int) -> Outcome:
    return simulate(Scenario(seed), Parts(store=Caching))


@pytest.mark.slow
def test_cached_shards_are_right_by_the_rules() -> None:
    """Without a bug in it the cache of these tests passes: the plants find the missing rule, not the cache."""
    with ProcessPoolExecutor(os.cpu_count(), multiprocessing.get_context("spawn")) as pool:
        assert [outcome for outcome in pool.map(cached, range(60), chunksize=10) if outcome.invariant] == []
