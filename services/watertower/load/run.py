"""Puts a load test together: connects, makes the population, sends the schedule on time, recounts, and judges."""

import asyncio
import gc
import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from functools import partial
from itertools import cycle, islice
from typing import Any

from watertower.client import Attempt, Client, ClientError, ClientOptions, Event, Kind, Metric
from watertower.load import LoadFailed
from watertower.load.gate import Gate
from watertower.load.generator import Generator
from watertower.load.herd import herd_figures
from watertower.load.measure import Recorder
from watertower.load.recount import Ledger, Recount, patiently, until_seen
from watertower.load.report import Run, report_of
from watertower.load.scenarios import OUTAGE, SCENARIOS, Options, Plan
from watertower.load.schedule import CHECK, COUNTS, FOLLOW, Arrival, Names, Population
from watertower.ports import Clock
from watertower.validation import EVENTS_MAX

READY_S_MAX = 15.0
"""Seconds for which a service that does not answer is asked again, before anything is sent."""

POPULATED_S_MAX = 300.0
"""Seconds until the population must be written and seen."""

PROFILE_METRICS = (Metric.FOLLOWERS, Metric.FOLLOWING)
"""What the page of a profile shows."""

_AHEAD_S = 0.2

POPULATION_MOMENT = datetime(2020, 1, 1, tzinfo=UTC)
"""When the profiles' followers pressed: a second run writes the same again, which counts nothing."""

Say = Callable[[str], None]


async def run(options: Options, limits: Mapping[str, float], clock: Clock, say: Say) -> dict[str, Any]:
    """The report of one run, as docs/load-testing.md describes it. `say` is told what happens. Raises LoadFailed."""
    names, population = Names(f"{clock.now_us():x}"), Population(options.profiles)
    async with AsyncExitStack() as opened:
        direct = await opened.enter_async_context(Client(options.write_target, options.read_target))
        try:
            await _wait_ready(options, population, clock)
            await _populate(direct, population, clock, say)
            plan = SCENARIOS[options.scenario](options, names, population)
            test = _Test(plan, population, options, clock, opened)
            await test.send(say)
            sent_s = clock.monotonic_s()
            recount, settled = None, 0
            if test.ledger.any:
                say("recounting")
                settled = await test.ledger.settle(direct, names, clock)
                rng = random.Random(options.seed)  # noqa: S311 - what is looked at, not secrets
                recount = await Recount(direct, test.ledger, names, clock).run(plan.star, rng, sent_s)
        except ClientError as error:
            raise LoadFailed(str(error)) from error
    herd = herd_figures(test.recorder, options) if options.scenario == "herd" else None
    done = Run(options, names, plan, test.recorder, test.started_us, recount, settled, herd)
    return report_of(done, limits)


async def _wait_ready(options: Options, population: Population, clock: Clock) -> None:
    """Waits until both servers answer, but not for long: an address may be wrong. Raises ClientError."""
    deadline_s = clock.monotonic_s() + READY_S_MAX
    # Without retries of its own, which would wait for a connection instead of saying that there is none.
    async with Client(options.write_target, options.read_target, ClientOptions(attempts_max=1)) as client:
        await patiently(partial(client.counts, population.name(0)), clock, deadline_s)
        actor, subject = next(population.neighbours())
        await patiently(partial(client.follow, actor, subject, occurred_at=POPULATION_MOMENT), clock, deadline_s)


async def _populate(client: Client, population: Population, clock: Clock, say: Say) -> None:
    """Gives every profile its followers, and waits until they are seen. Raises ClientError."""
    started_s = clock.monotonic_s()
    say(f"{population.size:,} profiles are given their followers")
    session = client.session()
    neighbours: Iterator[tuple[str, str]] = population.neighbours()
    while some := list(islice(neighbours, EVENTS_MAX)):
        events = [Event(actor, Kind.FOLLOW, subject, occurred_at=POPULATION_MOMENT) for actor, subject in some]
        await patiently(partial(session.record_many, events), clock, started_s + POPULATED_S_MAX)
    if await until_seen(session, population.name(0), clock, POPULATED_S_MAX) is None:
        raise LoadFailed(f"the profiles are not seen {POPULATED_S_MAX:g} s after they were written: is the projector running?")


class _Test:
    """One schedule and what comes of it."""

    def __init__(self, plan: Plan, population: Population, options: Options, clock: Clock, opened: AsyncExitStack) -> None:
        """`population` is there already: connections are tried with it."""
        self._plan, self._population, self._options, self._clock, self._opened = plan, population, options, clock, opened
        self._clients: Iterator[Client] = iter(())
        self._begin()

    async def send(self, say: Say) -> None:
        """Sends everything, and waits until it has ended."""
        options = self._options
        write, read = options.write_target, options.read_target
        gates: list[Gate] = []
        if any(phase.name == OUTAGE for phase in self._plan.phases):
            gates = [await self._opened.enter_async_context(Gate(target)) for target in (write, read)]
            write, read = (gate.address for gate in gates)
        clients = [
            await self._opened.enter_async_context(Client(write, read, on_attempt=partial(self._attempted, number)))
            for number in range(options.clients if gates else 1)
        ]
        actor, subject = next(self._population.neighbours())
        for client in clients:  # connected before anything is measured, for writes by one that is written already
            await client.counts(subject)
            await client.follow(actor, subject, occurred_at=POPULATION_MOMENT)
        self._clients = cycle(clients)
        say(f"sending for {self._plan.phases[-1].end_s:.0f} s: " + ", ".join(phase.name for phase in self._plan.phases))
        gc.collect()
        gc.freeze()  # what is there by now stays there: nothing to look through during the run
        self._begin()
        generator = Generator(self._one, self.recorder, self._clock)
        try:
            async with asyncio.TaskGroup() as tasks:
                if gates:
                    tasks.create_task(self._outage(gates, say))
                tasks.create_task(generator.run(self._plan.arrivals, self._start_s))
        finally:
            gc.unfreeze()

    def _begin(self) -> None:
        """Moment 0, on both clocks."""
        self._start_s = self._clock.monotonic_s() + _AHEAD_S
        self.started_us = self._clock.now_us() + int(_AHEAD_S * 1e6)
        self.ledger = Ledger(self.started_us)
        self.recorder = Recorder(self._plan.phases)

    async def _outage(self, gates: list[Gate], say: Say) -> None:
        outage = next(phase for phase in self._plan.phases if phase.name == OUTAGE)
        await self._until(outage.start_s)
        say(f"outage of {outage.end_s - outage.start_s:g} s")
        for gate in gates:
            gate.shut()
        await self._until(outage.end_s)
        for gate in gates:
            gate.open()

    async def _until(self, at_s: float) -> None:
        await asyncio.sleep(max(0.0, self._start_s + at_s - self._clock.monotonic_s()))

    def _attempted(self, client: int, attempt: Attempt) -> None:
        self.recorder.attempt(max(0.0, self._clock.monotonic_s() - self._start_s), attempt, client)

    async def _one(self, arrival: Arrival) -> None:
        client = next(self._clients)
        if arrival.call == COUNTS:
            await client.counts(arrival.subject, PROFILE_METRICS)
        elif arrival.call == FOLLOW:
            await self._follow(client, arrival)
        elif arrival.call == CHECK:
            await client.check(arrival.actor, [arrival.subject])
        else:
            await client.list_actors(arrival.subject)

    async def _follow(self, client: Client, arrival: Arrival) -> None:
        ledger = self.ledger
        try:
            written = await client.follow(arrival.actor, arrival.subject, occurred_at=ledger.moment(arrival.pressed_s))
        except ClientError:
            ledger.failed(arrival.follower, arrival.subject, arrival.pressed_s)
            raise
        ledger.acknowledged(arrival.follower, arrival.subject, written.token)
