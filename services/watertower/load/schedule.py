"""Who calls what and when: pure, the same for the same seed, fixed before anything is sent."""

import heapq
import random
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import accumulate
from typing import NamedTuple

from watertower.debut.plan import PRESETS
from watertower.debut.plan import Plan as Curve

FOLLOW, COUNTS, CHECK, LIST = "follow", "counts", "check", "list"
READS = (COUNTS, CHECK, LIST)
"""The calls that the reader answers; FOLLOW is the writer's."""

RATE_2019 = 1_000_000 / PRESETS["2019"].seconds
"""Follows a second of the debut of 2019, on average: 52.7."""

DUPLICATES = 0.02
"""Share of a debut's followers whose press arrives a second time, to the letter."""

DUPLICATE_DELAY_S_MAX = 5.0
"""Seconds until that."""

CHECKS, LISTS = 0.15, 0.05
"""Shares of the profile reads that ask whether somebody follows the profile, and for the first page of its list; the rest is counts."""

STAR_SHARE = 0.2
"""Share of a debut's reads that ask for the star."""

HOT_SHARE, HOT_PROFILES = 0.9, 100
"""Share of a read storm's reads that go to so many profiles; the others go to all."""

_PREFIX = "load"


class Arrival(NamedTuple):
    """One call, and when it is due."""

    at_s: float  # after the start
    call: str
    subject: str
    actor: str = ""
    follower: int = -1  # of a FOLLOW: its number
    pressed_s: float = 0.0  # of a FOLLOW: its moment, earlier than at_s for one that arrives a second time


class Phase(NamedTuple):
    """A stretch of the run that is measured by itself."""

    name: str
    start_s: float
    end_s: float


def poisson(per_s: float, start_s: float, end_s: float, rng: random.Random) -> Iterator[float]:
    """Moments of independent callers: so many a second on average, with gaps that are distributed exponentially."""
    at = start_s + rng.expovariate(per_s)
    while at < end_s:
        yield at
        at += rng.expovariate(per_s)


class Population:
    """Ordinary profiles, some of which are read much more than others: Zipf's law, the one with number 0 the most."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._weights = list(accumulate(1.0 / rank for rank in range(1, size + 1)))

    def name(self, number: int) -> str:
        return f"{_PREFIX}-profile-{number}"

    def by_zipf(self, rng: random.Random) -> str:
        return self.name(rng.choices(range(self.size), cum_weights=self._weights)[0])

    def evenly(self, rng: random.Random) -> str:
        return self.name(rng.randrange(self.size))

    def hot_or_cold(self, rng: random.Random) -> str:
        """As a read storm: mostly the same few."""
        hot = rng.random() < HOT_SHARE
        return self.name(rng.randrange(min(HOT_PROFILES, self.size))) if hot else self.evenly(rng)

    def neighbours(self) -> Iterator[tuple[str, str]]:
        """(actor, subject): what gives every profile one to five followers, so that reads of it read something."""
        for number in range(self.size):
            for k in range(1 + number % 5):
                yield f"{_PREFIX}-neighbour-{(number * 7 + k) % self.size}", self.name(number)


class Names(NamedTuple):
    """The accounts of one run, which no other run has."""

    run: str

    @property
    def star(self) -> str:
        return f"{_PREFIX}-{self.run}-star"

    def fan(self, number: int) -> str:
        return f"{_PREFIX}-{self.run}-fan-{number}"

    def number(self, fan: str) -> int:
        """Of a fan's name; -1 for another's."""
        head, _, number = fan.rpartition("-")
        return int(number) if head == f"{_PREFIX}-{self.run}-fan" and number.isascii() and number.isdigit() else -1


def profile_reads(moments: Iterable[float], pick: Callable[[random.Random], str], rng: random.Random) -> Iterator[Arrival]:
    """What the page of a profile asks for."""
    for at in moments:
        subject, chance = pick(rng), rng.random()
        call = CHECK if chance < CHECKS else LIST if chance < CHECKS + LISTS else COUNTS
        yield Arrival(at, call, subject, f"{_PREFIX}-viewer-{rng.randrange(1_000)}" if call == CHECK else "")


def count_reads(moments: Iterable[float], pick: Callable[[random.Random], str], rng: random.Random) -> Iterator[Arrival]:
    """Counts only."""
    for at in moments:
        yield Arrival(at, COUNTS, pick(rng))


def star_or_profile(star: str, population: Population) -> Callable[[random.Random], str]:
    """Whom the readers of a debut ask for."""
    return partial(_star_or_profile, star, population)


def _star_or_profile(star: str, population: Population, rng: random.Random) -> str:
    return star if rng.random() < STAR_SHARE else population.by_zipf(rng)


def follows(moments: Iterable[float], names: Names, pick: Callable[[random.Random], str], rng: random.Random) -> Iterator[Arrival]:
    """One follow of each of the run's accounts."""
    for number, at in enumerate(moments):
        yield Arrival(at, FOLLOW, pick(rng), names.fan(number), number, at)


def debut_seconds(followers: int, times: float) -> float:
    """How long so many followers take at so many times the average rate of 2019."""
    return followers / (RATE_2019 * times)


def debut(followers: int, times: float, start_s: float, names: Names, rng: random.Random) -> Iterator[Arrival]:
    """The presses of a debut in order, duplicates included: the shape is that of `watertower debut`, steepest at the start."""
    curve = Curve(PRESETS["2019"], followers, 0)
    stretch = debut_seconds(followers, times) / curve.preset.seconds
    later: list[Arrival] = []
    for number in range(followers):
        at = start_s + curve.moment_s(number) * stretch
        while later and later[0].at_s <= at:
            yield heapq.heappop(later)
        press = Arrival(at, FOLLOW, names.star, names.fan(number), number, at)
        yield press
        if rng.random() < DUPLICATES:
            heapq.heappush(later, press._replace(at_s=at + rng.uniform(0.0, DUPLICATE_DELAY_S_MAX)))
    while later:
        yield heapq.heappop(later)


def merged(*streams: Iterable[Arrival]) -> Iterator[Arrival]:
    """All streams as one, in order."""
    return heapq.merge(*streams, key=lambda arrival: arrival.at_s)
