"""Who presses what and when: pure, the same for the same seed.

The milestones are published facts. 2019: a new account reached 1,000,000 followers in 5 h 16 min. 2021: 1,000,000 in 43 min and
10,000,000 in 4 h 52 min. The shape between the milestones is ours: steepest at the start, with a rate that falls to 1/e**2 of its
first value by the end of each stretch.
"""

import random
from collections.abc import Iterator
from heapq import heappop, heappush
from math import exp, log
from typing import NamedTuple

from watertower.core.model import Kind

STAR, POST = "star", "star-first-post"
PROFILES = 10_000
"""Ordinary profiles that are read meanwhile."""

DUPLICATES, UNFOLLOWS, LIKES = 0.02, 0.05, 0.10
"""Shares of the followers: whose press arrives twice, who leave again, who like the first post."""

REPEATED_CALLS = 0.01
"""Share of the calls that are sent a second time, to the letter, as after a lost answer."""

CALL_EVENTS = 500
"""Events per call: what a busy caller's micro-batching gives."""

_STEEPNESS = 2.0


class Preset(NamedTuple):
    """A debut that happened: (followers, seconds since the start), in order."""

    title: str
    milestones: tuple[tuple[int, float], ...]

    @property
    def followers(self) -> int:
        return self.milestones[-1][0]

    @property
    def seconds(self) -> float:
        return self.milestones[-1][1]


PRESETS = {
    "2019": Preset("1,000,000 followers in 5 h 16 min", ((1_000_000, 5 * 3600 + 16 * 60.0),)),
    "2021": Preset("1,000,000 in 43 min, 10,000,000 in 4 h 52 min", ((1_000_000, 43 * 60.0), (10_000_000, 4 * 3600 + 52 * 60.0))),
}


class Press(NamedTuple):
    """One press of a button, as sent."""

    actor: str
    kind: int
    subject: str
    active: bool
    at_us: int  # microseconds since the debut's start


class Plan(NamedTuple):
    """A debut to run."""

    preset: Preset
    followers: int
    seed: int

    def moment_s(self, follower: int) -> float:
        """Seconds after the start at which the follower with this number presses."""
        share = (follower + 0.5) / self.followers * self.preset.followers
        before, start = 0, 0.0
        for reached, end in self.preset.milestones:
            if share <= reached:
                within = (share - before) / (reached - before)
                # The inverse of a cumulative curve whose rate falls exponentially over the stretch.
                return start - (end - start) / _STEEPNESS * log(1 - within * (1 - exp(-_STEEPNESS)))
            before, start = reached, end
        return start

    def presses(self) -> Iterator[Press]:
        """Every press in the order of sending: times rise, but for the duplicates, which carry the time of the first press."""
        rng = random.Random(self.seed)  # noqa: S311 - a reproducible load, not secrets
        later: list[tuple[int, int, Press]] = []  # due at, tie-break, press
        for follower in range(self.followers):
            at = int(self.moment_s(follower) * 1e6)
            while later and later[0][0] <= at:
                yield heappop(later)[2]
            press = Press(f"fan-{follower}", int(Kind.FOLLOW), STAR, True, at)
            yield press
            chance = rng.random()
            delay = int(rng.expovariate(1.0) * 60e6) + 1
            if chance < DUPLICATES:
                heappush(later, (at + delay, follower, press))
            elif chance < DUPLICATES + UNFOLLOWS:
                heappush(later, (at + delay, follower, Press(press.actor, int(Kind.FOLLOW), STAR, False, at + delay)))
            elif chance < DUPLICATES + UNFOLLOWS + LIKES:
                heappush(later, (at + delay, follower, Press(press.actor, int(Kind.LIKE), POST, True, at + delay)))
        while later:
            yield heappop(later)[2]


class Expected(NamedTuple):
    """What an independent recount of the presses gives."""

    followers: int
    likes: int
    presses: int


def recount(plan: Plan) -> Expected:
    """Counts the plan's presses without any of the service's rules: per button the newest press decides, a leave on a tie."""
    newest: dict[tuple[str, int], tuple[int, bool]] = {}
    presses = 0
    for press in plan.presses():
        presses += 1
        key = (press.actor, press.kind)
        state = (press.at_us, not press.active)
        if key not in newest or state > newest[key]:
            newest[key] = state
    followers = sum(1 for (_, kind), (_, left) in newest.items() if kind == Kind.FOLLOW and not left)
    likes = sum(1 for (_, kind), (_, left) in newest.items() if kind == Kind.LIKE and not left)
    return Expected(followers, likes, presses)
