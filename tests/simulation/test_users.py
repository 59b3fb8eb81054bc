"""What the simulator holds against the client is what the client promises."""

from types import SimpleNamespace
from typing import Any

import pytest

from watertower.client import ClientOptions
from watertower.client.retries import RetryBudget
from watertower.testing.clock import FakeClock
from watertower.testing.simulator.users import Attempts
from watertower.testing.simulator.world import Broken

RESERVE = 3
LONG_S = 2.55
"""A wait of a retry that a server has asked for 0.5 s, nearly at its longest."""


def test_a_retry_that_waits_long_is_no_false_alarm() -> None:
    """One window's retries are made late and the next one's at once: the budget has given all of them, and that is what counts."""
    clock = FakeClock()
    budget = RetryBudget(0, RESERVE, clock)
    world: Any = SimpleNamespace(loop=SimpleNamespace(now_s=0.0))
    attempts = Attempts(world, ClientOptions(retry_percent_max=0, retry_reserve_max=RESERVE))
    made = []
    for second in range(60):
        while budget.take():
            made.append(second + (LONG_S if len(made) // RESERVE % 2 == 0 else 0.0))
        clock.advance(1.0)
    assert len(made) > 3 * RESERVE
    for world.loop.now_s in made:
        attempts.made(retry=True)


def test_a_retry_outlives_the_requests_that_allowed_it() -> None:
    """A request after it is no false alarm, though few others are left in its window."""
    world: Any = SimpleNamespace(loop=SimpleNamespace(now_s=0.0))
    attempts = Attempts(world, ClientOptions(retry_percent_max=10, retry_reserve_max=0))
    for _ in range(10):
        attempts.made(retry=False)
    for world.loop.now_s, retry in ((8.0, True), (13.5, False)):
        attempts.made(retry)


def test_too_many_retries_are_seen() -> None:
    """One above the budget, within a few seconds."""
    world: Any = SimpleNamespace(loop=SimpleNamespace(now_s=100.0))
    attempts = Attempts(world, ClientOptions(retry_percent_max=0, retry_reserve_max=RESERVE))
    for _ in range(RESERVE):
        attempts.made(retry=True)
        world.loop.now_s += 1.5
    with pytest.raises(Broken, match="budget"):
        attempts.made(retry=True)
