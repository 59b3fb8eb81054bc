"""It can see: every bug that the design forbids is found, by the invariant that names it."""

import contextlib
from unittest.mock import patch

import pytest

from tests.simulation.planted import PLANTS, Caching, Plant
from watertower.testing.simulator.run import Outcome, Scenario, simulate
from watertower.testing.simulator.world import Parts

SEEDS = 500
"""Each bug is found within these."""


def first_failure(plant: Plant) -> Outcome | None:
    with contextlib.ExitStack() as planted:
        for owner, name, replacement in plant.patches:
            planted.enter_context(patch.object(owner, name, replacement))
        return next((outcome for seed in range(SEEDS) if (outcome := simulate(Scenario(seed), plant.parts)).invariant), None)


@pytest.mark.slow
@pytest.mark.parametrize("plant", PLANTS, ids=[plant.name for plant in PLANTS])
def test_a_planted_bug_is_found(plant: Plant) -> None:
    """Within 500 seeds, and what breaks is what the bug breaks."""
    outcome = first_failure(plant)
    assert outcome is not None
    print(f"{plant.name}: seed {outcome.scenario.seed}: {outcome.invariant}: {outcome.detail}")
    assert plant.breaks(outcome.invariant)


@pytest.mark.slow
def test_cached_shards_are_right_by_the_rules() -> None:
    """Without a bug in it the cache of these tests passes: the plants find the missing rule, not the cache."""
    assert [outcome for seed in range(60) if (outcome := simulate(Scenario(seed), Parts(store=Caching))).invariant] == []
