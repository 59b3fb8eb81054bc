"""Who calls what and when: the same for the same seed, in order, at the rate that was asked for."""

import random
from collections import Counter
from itertools import pairwise

import pytest

from watertower.load import schedule
from watertower.load.scenarios import BEFORE_S, SCENARIOS, Options
from watertower.load.schedule import CHECK, COUNTS, FOLLOW, LIST, Arrival, Names, Population

NAMES = Names("run")


def options(scenario: str, **changed: object) -> Options:
    given = Options(scenario, "w:1", "r:1", 20.0, 200.0, 50.0, 5_000, 20.0, 100, 10, 5.0, 7)
    return given._replace(**changed)  # type: ignore[arg-type]


def arrivals(scenario: str, **changed: object) -> list[Arrival]:
    return list(SCENARIOS[scenario](options(scenario, **changed), NAMES, Population(100)).arrivals)


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_a_schedule_is_fixed_by_its_seed(scenario: str) -> None:
    """And in order, within its phases but for presses that arrive a second time."""
    sent = arrivals(scenario)
    assert sent == arrivals(scenario)
    assert sent != arrivals(scenario, seed=8)
    assert all(one.at_s <= other.at_s for one, other in pairwise(sent))
    end = SCENARIOS[scenario](options(scenario), NAMES, Population(100)).phases[-1].end_s
    assert all(one.pressed_s <= one.at_s for one in sent)
    assert all(one.at_s < end or one.at_s - one.pressed_s <= schedule.DUPLICATE_DELAY_S_MAX for one in sent)


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_phases_follow_each_other(scenario: str) -> None:
    """Without gaps, from 0; the one that is judged is one of them."""
    plan = SCENARIOS[scenario](options(scenario), NAMES, Population(100))
    assert plan.phases[0].start_s == 0.0
    assert all(one.end_s == other.start_s for one, other in pairwise(plan.phases))
    assert plan.main in {phase.name for phase in plan.phases}


def test_rates_are_those_that_were_asked_for() -> None:
    """Within four standard deviations."""
    calls = Counter(arrival.call for arrival in arrivals("steady"))
    reads, follows = sum(calls[call] for call in schedule.READS), calls[FOLLOW]
    assert abs(reads - 4_000) < 4 * 4_000**0.5
    assert abs(follows - 1_000) < 4 * 1_000**0.5
    assert abs(calls[CHECK] / reads - schedule.CHECKS) < 0.03
    assert abs(calls[LIST] / reads - schedule.LISTS) < 0.03
    assert calls[COUNTS]


def test_a_debut_is_the_curve_of_2019_so_many_times_as_fast() -> None:
    """Every follower presses once, some presses arrive twice, to the letter; steepest at the start; nobody presses before it."""
    presses = [arrival for arrival in arrivals("debut") if arrival.call == FOLLOW]
    first = {arrival.actor: arrival for arrival in reversed(presses)}
    assert sorted(arrival.follower for arrival in first.values()) == list(range(5_000))
    assert {arrival.subject for arrival in presses} == {NAMES.star}
    assert 0.5 * schedule.DUPLICATES < (len(presses) - 5_000) / 5_000 < 1.5 * schedule.DUPLICATES
    assert all(arrival.pressed_s == first[arrival.actor].pressed_s for arrival in presses)
    seconds = schedule.debut_seconds(5_000, 20.0)
    assert seconds == pytest.approx(5_000 / (52.74 * 20.0), rel=1e-3)
    moments = [arrival.pressed_s - BEFORE_S for arrival in first.values()]
    assert min(moments) >= 0.0
    assert seconds * 0.98 < max(moments) <= seconds
    assert sum(moment < seconds / 2 for moment in moments) > 0.7 * 5_000


def test_some_profiles_are_read_more_than_others() -> None:
    """By Zipf's law the first one twice as much as the second, ten times as much as the tenth."""
    rng, population = random.Random(1), Population(100)
    reads = Counter(population.by_zipf(rng) for _ in range(50_000))
    assert reads[population.name(0)] / reads[population.name(1)] == pytest.approx(2.0, rel=0.1)
    assert reads[population.name(0)] / reads[population.name(9)] == pytest.approx(10.0, rel=0.15)
    assert len(reads) == 100


def test_a_storm_is_mostly_about_a_few() -> None:
    rng, population = random.Random(1), Population(10_000)
    reads = Counter(population.hot_or_cold(rng) for _ in range(20_000))
    hot = sum(reads[population.name(number)] for number in range(schedule.HOT_PROFILES))
    assert hot / 20_000 == pytest.approx(schedule.HOT_SHARE + 0.1 * schedule.HOT_PROFILES / 10_000, abs=0.01)
    assert len(reads) > 1_500


def test_every_profile_has_followers() -> None:
    """One to five, none of them twice."""
    edges = list(Population(100).neighbours())
    assert len(edges) == len(set(edges))
    assert set(Counter(subject for _, subject in edges).values()) == {1, 2, 3, 4, 5}


def test_a_fan_is_known_by_name() -> None:
    """Only those of the same run."""
    assert NAMES.number(NAMES.fan(12)) == 12
    assert [NAMES.number(name) for name in (NAMES.star, "load-other-fan-12", "load-run-fan-x", "ann", "load-run-fan-²")] == [-1] * 5
