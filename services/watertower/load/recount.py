"""Whether what was acknowledged is there, once: the recount at the end, by the service's own reads."""

import asyncio
import random
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
"""Rows of the star's list that are looked at, newest first; of a longer list the rest is not."""

ACTORS_CHECKED_MAX = 20_000
"""Actors whose own count is looked at; of more, so many at random."""

VISIBLE_S_MAX = 300.0
"""Seconds that what is acknowledged may take to be seen before the recount goes on without."""

SETTLE_S_MAX = 60.0
"""Seconds for which follows that failed are repeated, so that it is known whether they count."""

_PATIENCE_S, _PAUSE_S = 60.0, 0.5
_NAMED_MAX = 5
_NOT_SENT, _UNKNOWN, _ACKNOWLEDGED = range(3)


class Ledger:
    """What became of each follow of the run, by the follower's number."""

    def __init__(self, started_us: int) -> None:
        self._started = datetime.fromtimestamp(started_us / 1e6, UTC)
        self._state = bytearray()
        self._failed: dict[int, tuple[str, float]] = {}  # subject and moment of those whose fate is not known
        self._tokens: set[bytes] = set()

    def moment(self, pressed_s: float) -> datetime:
        """The wall clock at a moment of the schedule: what a follow and its repetitions carry."""
        return self._started + timedelta(microseconds=int(pressed_s * 1e6))

    def acknowledged(self, number: int, token: bytes) -> None:
        """The follow is durable."""
        self._set(number, _ACKNOWLEDGED)
        self._failed.pop(number, None)
        self._tokens.add(token)  # callers that shared a request share a token

    def failed(self, number: int, subject: str, pressed_s: float) -> None:
        """The follow failed: it may have been recorded."""
        if self.state(number) != _ACKNOWLEDGED:
            self._set(number, _UNKNOWN)
            self._failed[number] = (subject, pressed_s)

    def state(self, number: int) -> int:
        return self._state[number] if 0 <= number < len(self._state) else _NOT_SENT

    def numbers(self) -> list[int]:
        """Of those that are acknowledged."""
        return [number for number, state in enumerate(self._state) if state == _ACKNOWLEDGED]

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

    def is_unknown(self, number: int) -> bool:
        return self.state(number) == _UNKNOWN

    def is_acknowledged(self, number: int) -> bool:
        return self.state(number) == _ACKNOWLEDGED

    def token(self) -> bytes:
        """Where in the log everything is that was acknowledged."""
        seen = Seen()
        for token in self._tokens:
            seen.add(token)
        return seen.token

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
            for number, _ in some:
                self.acknowledged(number, written.token)
        return self.count - before

    def _set(self, number: int, state: int) -> None:
        if number >= len(self._state):
            self._state.extend(bytes(number + 1 - len(self._state)))
        self._state[number] = state


class Recount:
    """Compares a ledger with what the service says. Every difference is counted, and the first few are named."""

    def __init__(self, client: Client, ledger: Ledger, names: Names, clock: Clock) -> None:
        self._session = client.session(ledger.token())
        self._ledger, self._names, self._clock = ledger, names, clock
        self._found: dict[str, Any] = {
            "acknowledged": ledger.count,
            "unknown": ledger.unknown,
            "visible_s": None,
            "lost": 0,
            "doubled": 0,
            "strangers": 0,
        }
        self._named: list[str] = []

    async def run(self, star: str | None, rng: random.Random) -> dict[str, Any]:
        """The recount for the report: `exact`, and what it stands on. Raises ClientError where the service cannot be asked."""
        found = self._found
        found["visible_s"] = await until_seen(self._session, star or self._names.fan(0), self._clock, VISIBLE_S_MAX)
        if star is not None:
            await self._star(star)
        await self._actors(rng)
        count_off = found.get("count_off", 0)
        found["differences"] = found["lost"] + found["doubled"] + found["strangers"] + count_off + found["actors_wrong"]
        if found["visible_s"] is None:
            found["differences"] += 1
        return {"exact": not found["differences"], **found, "examples": self._named}

    async def _ask(self, call: Callable[[], Awaitable[T]]) -> T:
        return await patiently(call, self._clock, self._clock.monotonic_s() + _PATIENCE_S)

    async def _star(self, star: str) -> None:
        """The star's count is the length of its list, and the list is who was acknowledged."""
        found, ledger = self._found, self._ledger
        counted = (await self._ask(partial(self._session.counts, star, [Metric.FOLLOWERS]))).followers
        listed, seen = 0, bytearray()
        token, ended = "", False
        while listed < LISTED_MAX and not ended:
            page = await self._ask(partial(self._session.list_actors, star, page_size=PAGE_SIZE_MAX, page_token=token))
            for item in page.items:
                listed += 1
                number = self._names.number(item.id)
                if not (ledger.is_acknowledged(number) or ledger.is_unknown(number)):
                    self._differs("strangers", f"{item.id} is listed and was not sent")
                    continue
                if number >= len(seen):
                    seen.extend(bytes(number + 1 - len(seen)))
                if seen[number]:
                    self._differs("doubled", f"{item.id} is listed twice")
                seen[number] = 1
            token = page.next_page_token
            ended = not token
        found |= {"counted": counted, "listed": listed, "listed_all": ended}
        if ended:
            for number in ledger.numbers():
                if number >= len(seen) or not seen[number]:
                    self._differs("lost", f"{self._names.fan(number)} was acknowledged and is not listed")
            off = abs(counted - listed)
        else:
            off = max(0, ledger.count - counted, counted - ledger.count - ledger.unknown)
        found["count_off"] = off
        if off:
            self._named.append(f"{star} has {counted} followers, {listed} are listed, {ledger.count} were acknowledged")

    async def _actors(self, rng: random.Random) -> None:
        """Each actor follows one account: the run's."""
        numbers = self._ledger.numbers()
        checked: Sequence[int] = numbers if len(numbers) <= ACTORS_CHECKED_MAX else rng.sample(numbers, ACTORS_CHECKED_MAX)
        self._found |= {"actors_checked": len(checked), "actors_wrong": 0}
        for start in range(0, len(checked), ENTITIES_MAX):
            names = [self._names.fan(number) for number in checked[start : start + ENTITIES_MAX]]
            for counts in await self._ask(partial(self._session.counts_many, names, [Metric.FOLLOWING])):
                if counts.following != 1:
                    self._differs("actors_wrong", f"{counts.entity} follows {counts.following} accounts, 1 was acknowledged")

    def _differs(self, what: str, example: str) -> None:
        self._found[what] += 1
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


async def until_seen(session: Session, entity: str, clock: Clock, seconds: float) -> float | None:
    """Seconds until an answer about `entity` includes everything that the session has written; None if none did in time. Raises
    ClientError."""
    started_s = clock.monotonic_s()
    while True:
        counts = await patiently(partial(session.counts, entity, [Metric.FOLLOWERS]), clock, started_s + seconds)
        took_s = clock.monotonic_s() - started_s
        if counts.freshness.satisfied:
            return round(took_s, 3)
        if took_s + _PAUSE_S > seconds:
            return None
        await asyncio.sleep(_PAUSE_S)
