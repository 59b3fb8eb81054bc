"""Whether what was acknowledged is there, once: the recount at the end, by the service's own reads."""

import asyncio
import random
from array import array
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime, timedelta
from functools import partial
from itertools import islice
from typing import Any, TypeVar

from watertower.client import Client, ClientError, Event, Kind, Metric, Session
from watertower.client.seen import Seen
from watertower.load.schedule import Names
from watertower.ports import Clock
from watertower.validation import ENTITIES_MAX, EVENTS_MAX, PAGE_SIZE_MAX

T = TypeVar("T")

LISTED_MAX = 1_000_000
"""Rows of lists that are looked at, of all profiles together, newest first; the rest is not."""

PROFILES_CHECKED_MAX = 1_000
"""Followed profiles whose count and list are looked at; of more, so many at random."""

ACTORS_CHECKED_MAX = 20_000
"""Actors whose own count is looked at; of more, so many at random."""

VISIBLE_S_MAX = 300.0
"""Seconds that what is acknowledged may take to be seen before the recount goes on without."""

SETTLE_S_MAX = 60.0
"""Seconds for which follows that failed are repeated, so that it is known whether they count."""

_PATIENCE_S, _PAUSE_S = 60.0, 0.5
_NAMED_MAX = 5
_NOT_SENT, _UNKNOWN, _ACKNOWLEDGED = range(3)
_LOOKED_AT = ("profiles_followed", "profiles_checked", "counted", "listed", "actors_checked")
_DIFFERENCES = ("lost", "doubled", "strangers", "count_off", "actors_wrong", "behind")


class _Behind(Exception):
    """No answer includes what was acknowledged."""


class Ledger:
    """What became of each follow of the run, by the follower's number."""

    def __init__(self, started_us: int) -> None:
        self._started = datetime.fromtimestamp(started_us / 1e6, UTC)
        self._state = bytearray()
        self._places: dict[str, int] = {}  # of each subject, in the order in which they were first followed
        self._subject = array("I")  # the place of whom each number follows
        self._failed: dict[int, tuple[str, float]] = {}  # subject and moment of those whose fate is not known
        self._seen, self._last = Seen(), b""

    def moment(self, pressed_s: float) -> datetime:
        """The wall clock at a moment of the schedule: what a follow and its repetitions carry."""
        return self._started + timedelta(microseconds=int(pressed_s * 1e6))

    def acknowledged(self, number: int, subject: str, token: bytes) -> None:
        """The follow is durable."""
        self._set(number, subject, _ACKNOWLEDGED)
        self._failed.pop(number, None)
        if token != self._last:  # callers that shared a request share a token
            self._seen.add(token)
            self._last = token

    def failed(self, number: int, subject: str, pressed_s: float) -> None:
        """The follow failed: it may have been recorded."""
        if self.state(number) != _ACKNOWLEDGED:
            self._set(number, subject, _UNKNOWN)
            self._failed[number] = (subject, pressed_s)

    def state(self, number: int) -> int:
        return self._state[number] if 0 <= number < len(self._state) else _NOT_SENT

    def numbers(self) -> list[int]:
        """Of those that are acknowledged."""
        return [number for number, state in enumerate(self._state) if state == _ACKNOWLEDGED]

    def follows(self, number: int, subject: str) -> bool:
        """Whether a follow of this subject was sent by this number."""
        return self.state(number) != _NOT_SENT and self._subject[number] == self._places.get(subject)

    def followed(self) -> list[str]:
        """Everybody who is followed for certain."""
        places = {self._subject[number] for number in self.numbers()}
        return [subject for subject, place in self._places.items() if place in places]

    def followers(self, subjects: Sequence[str]) -> dict[str, list[int]]:
        """By subject, the numbers that are acknowledged."""
        found: dict[str, list[int]] = {subject: [] for subject in subjects}
        by_place = {self._places[subject]: numbers for subject, numbers in found.items()}
        for number in self.numbers():
            numbers = by_place.get(self._subject[number])
            if numbers is not None:
                numbers.append(number)
        return found

    @property
    def any(self) -> bool:
        """Whether there was a follow."""
        return bool(self._state)

    @property
    def count(self) -> int:
        return self._state.count(_ACKNOWLEDGED)

    @property
    def unknown(self) -> int:
        return self._state.count(_UNKNOWN)

    def token(self) -> bytes:
        """Where in the log everything is that was acknowledged."""
        return self._seen.token

    async def settle(self, client: Client, names: Names, clock: Clock) -> int:
        """Repeats what failed, to the letter, until it is acknowledged or the time is over; how many were."""
        deadline_s, before = clock.monotonic_s() + SETTLE_S_MAX, self.count
        while self._failed:
            some = list(islice(self._failed.items(), EVENTS_MAX))
            events = [
                Event(names.fan(number), Kind.FOLLOW, subject, occurred_at=self.moment(pressed_s)) for number, (subject, pressed_s) in some
            ]
            try:
                written = await patiently(partial(client.record_many, events), clock, deadline_s)
            except ClientError:
                break
            for number, (subject, _) in some:
                self.acknowledged(number, subject, written.token)
        return self.count - before

    def _set(self, number: int, subject: str, state: int) -> None:
        if number >= len(self._state):
            missing = number + 1 - len(self._state)
            self._state.extend(bytes(missing))
            self._subject.extend([0] * missing)
        self._state[number] = state
        self._subject[number] = self._places.setdefault(subject, len(self._places))


class Recount:
    """Compares a ledger with what the service says. Every difference is counted, and the first few are named."""

    def __init__(self, client: Client, ledger: Ledger, names: Names, clock: Clock) -> None:
        self._session = client.session(ledger.token())
        self._ledger, self._names, self._clock = ledger, names, clock
        self._found: dict[str, Any] = {
            "acknowledged": ledger.count,
            "unknown": ledger.unknown,
            "visible_s": None,
            **dict.fromkeys(_LOOKED_AT, 0),
            "listed_all": False,
            **dict.fromkeys(_DIFFERENCES, 0),
        }
        self._named: list[str] = []
        self._marks = bytearray()  # of the numbers that were on the list where they belong

    async def run(self, star: str | None, rng: random.Random, sent_s: float) -> dict[str, Any]:
        """The recount for the report: `exact`, and what it stands on; `sent_s`: when sending was over, on the monotonic clock. A service
        that cannot be asked is one difference more: what the run has measured until then is not lost with it."""
        found, unasked = self._found, False
        try:
            found["visible_s"] = await until_seen(self._session, star or self._names.fan(0), self._clock, VISIBLE_S_MAX, sent_s)
            if found["visible_s"] is not None:  # otherwise every difference would be one of time
                await self._profiles(star, rng)
                await self._actors(rng)
        except _Behind:
            self._differs("behind", f"after {_PATIENCE_S:g} s an answer still left out some of what was acknowledged: the recount ended")
        except ClientError as error:
            unasked, found["listed_all"] = True, False
            self._named.insert(0, f"the recount ended: {error}")
        found["differences"] = sum(found[name] for name in _DIFFERENCES) + (unasked or found["visible_s"] is None)
        return {"exact": not found["differences"], **found, "examples": self._named[:_NAMED_MAX]}

    async def _ask(self, call: Callable[[], Awaitable[T]]) -> T:
        """An answer that includes everything that was acknowledged: of several processes, one may be behind the one that was asked
        before. Raises ClientError, and _Behind when there is none in time."""
        deadline_s = self._clock.monotonic_s() + _PATIENCE_S
        while True:
            answer = await patiently(call, self._clock, deadline_s)
            parts: list[Any] = answer if isinstance(answer, list) else [answer]
            if all(part.freshness.satisfied for part in parts):
                return answer
            if self._clock.monotonic_s() + _PAUSE_S > deadline_s:
                raise _Behind
            await asyncio.sleep(_PAUSE_S)

    async def _profiles(self, star: str | None, rng: random.Random) -> None:
        """The count of whoever was followed is the length of the list, and those who were acknowledged are on it."""
        found = self._found
        followed = self._ledger.followed()
        found["profiles_followed"], found["listed_all"] = len(followed), True
        some = followed if len(followed) <= PROFILES_CHECKED_MAX else rng.sample(followed, PROFILES_CHECKED_MAX)
        followers = self._ledger.followers(some)
        for subject in some:
            if found["listed"] >= LISTED_MAX:
                found["listed_all"] = False
                break
            await self._profile(subject, followers[subject], subject == star)

    async def _profile(self, subject: str, wanted: Sequence[int], only_ours: bool) -> None:
        """Others may follow a profile, before and meanwhile; `only_ours` of one that nobody else knows."""
        found, counted = self._found, partial(self._session.counts, subject, [Metric.FOLLOWERS])
        before = (await self._ask(counted)).followers
        listed, ended = await self._list(subject, only_ours)
        after = (await self._ask(counted)).followers
        found["profiles_checked"] += 1
        found["counted"] += after
        found["listed"] += listed
        if ended:
            for number in wanted:
                if not self._is_marked(number):
                    self._differs("lost", f"{self._names.fan(number)} was acknowledged and is not listed at {subject}")
            off = max(0, before - listed, listed - after)  # another load test may have added followers meanwhile
        else:
            found["listed_all"] = False
            off = max(0, len(wanted) - after, after - len(wanted) - self._ledger.unknown if only_ours else 0)
        if off:
            said = f"{subject} has {after} followers, {listed} are listed, {len(wanted)} were acknowledged"
            self._differs("count_off", said, off)

    async def _list(self, subject: str, only_ours: bool) -> tuple[int, bool]:
        """Looks at a list: how many rows, and whether those were all."""
        listed, token = 0, ""
        while self._found["listed"] + listed < LISTED_MAX:
            page = await self._ask(partial(self._session.list_actors, subject, page_size=PAGE_SIZE_MAX, page_token=token))
            for item in page.items:
                self._row(subject, item.id, only_ours)
            listed += len(page.items)
            token = page.next_page_token
            if not token:
                return listed, True
        return listed, False

    def _row(self, subject: str, name: str, only_ours: bool) -> None:
        number = self._names.number(name)
        if not self._ledger.follows(number, subject):
            if only_ours or number >= 0:
                self._differs("strangers", f"{name} is listed at {subject} and was not sent")
        elif self._is_marked(number):
            self._differs("doubled", f"{name} is listed twice at {subject}")
        else:
            if number >= len(self._marks):
                self._marks.extend(bytes(number + 1 - len(self._marks)))
            self._marks[number] = 1

    def _is_marked(self, number: int) -> bool:
        return number < len(self._marks) and bool(self._marks[number])

    async def _actors(self, rng: random.Random) -> None:
        """Each actor follows one account: the run's."""
        numbers = self._ledger.numbers()
        checked: Sequence[int] = numbers if len(numbers) <= ACTORS_CHECKED_MAX else rng.sample(numbers, ACTORS_CHECKED_MAX)
        for start in range(0, len(checked), ENTITIES_MAX):
            names = [self._names.fan(number) for number in checked[start : start + ENTITIES_MAX]]
            for counts in await self._ask(partial(self._session.counts_many, names, [Metric.FOLLOWING])):
                self._found["actors_checked"] += 1
                if counts.following != 1:
                    self._differs("actors_wrong", f"{counts.entity} follows {counts.following} accounts, 1 was acknowledged")

    def _differs(self, what: str, example: str, times: int = 1) -> None:
        self._found[what] += times
        if len(self._named) < _NAMED_MAX:
            self._named.append(example)


async def patiently(call: Callable[[], Awaitable[T]], clock: Clock, deadline_s: float) -> T:
    """What a call gives, made anew while that may help, beyond the client's own retries: a rollout is no reason to lose a run. Raises
    ClientError."""
    while True:
        try:
            return await call()
        except ClientError as error:
            if not error.retryable or clock.monotonic_s() + _PAUSE_S > deadline_s:
                raise
        await asyncio.sleep(_PAUSE_S)


async def until_seen(session: Session, entity: str, clock: Clock, seconds: float, since_s: float | None = None) -> float | None:
    """Seconds since a moment of the monotonic clock (default: now) until an answer about `entity` includes everything that the session
    has written; None if none did within so many seconds from now. Raises ClientError."""
    started_s = clock.monotonic_s()
    while True:
        counts = await patiently(partial(session.counts, entity, [Metric.FOLLOWERS]), clock, started_s + seconds)
        now_s = clock.monotonic_s()
        if counts.freshness.satisfied:
            return round(now_s - (started_s if since_s is None else since_s), 3)
        if now_s - started_s + _PAUSE_S > seconds:
            return None
        await asyncio.sleep(_PAUSE_S)
