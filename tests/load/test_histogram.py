"""Percentiles are those of a sorted list, within half a bucket."""

import random

import pytest

from watertower.load.histogram import GROWTH, Histogram


def of(values: list[float]) -> Histogram:
    histogram = Histogram()
    for value in values:
        histogram.record(value)
    return histogram


@pytest.mark.parametrize("seed", range(5))
def test_percentiles_against_a_sorted_list(seed: int) -> None:
    """Of microseconds to minutes."""
    rng = random.Random(seed)
    values = [rng.lognormvariate(-6.0, 2.0) for _ in range(rng.randrange(1, 3_000))]
    histogram, ordered = of(values), sorted(values)
    for share in (0.0, 0.01, 0.5, 0.9, 0.99, 0.999, 1.0):
        exact = ordered[max(0, -int(-share * len(values) // 1) - 1)]
        assert histogram.percentile_s(share) == pytest.approx(exact, rel=GROWTH - 1, abs=1e-6)
    assert histogram.max_s == ordered[-1]
    assert histogram.count == len(values)


def test_nothing_has_no_percentile() -> None:
    assert Histogram().percentile_s(0.5) is None


def test_no_percentile_is_above_what_was_recorded() -> None:
    """The middle of a bucket may be."""
    assert of([0.1]).percentile_s(0.99) == pytest.approx(0.1, rel=GROWTH - 1)
    assert (of([0.1]).percentile_s(0.99) or 1.0) <= 0.1


def test_two_together_are_one() -> None:
    rng = random.Random(1)
    values = [rng.expovariate(10.0) for _ in range(1_000)]
    together = of(values[:400])
    together.add(of(values[400:]))
    assert [together.percentile_s(share) for share in (0.5, 0.99)] == [of(values).percentile_s(share) for share in (0.5, 0.99)]
    assert (together.count, together.max_s) == (1_000, max(values))


def test_no_time_at_all_is_a_microsecond() -> None:
    assert of([0.0, 0.0]).percentile_s(0.5) == 0.0  # as the largest one, which is exact
    assert of([0.0, 1.0]).percentile_s(0.5) == pytest.approx(1e-6, rel=GROWTH - 1)
