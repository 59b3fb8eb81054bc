"""Users of the Python client in a run: sessions that write and read, over channels that lose calls and answers."""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any, TypeVar

import grpc

from watertower.client import Client, ClientError, ClientOptions, Event, Kind, Session
from watertower.core.positions import decode_position
from watertower.core.sharding import partition_of
from watertower.errors import BackendRefused, BackendUnavailable, CallRefused, Reason
from watertower.rpc import status_of
from watertower.testing.simulator.clients import ACTORS, ENTITIES, POSTS, Deadline
from watertower.testing.simulator.processes import IngestNode, Node, QueryNode
from watertower.testing.simulator.watchers import heard
from watertower.testing.simulator.world import Broken, World

T = TypeVar("T")

LOOK_S = 0.1
"""Between two looks whether a server is there, of a call that waits for one."""

BUDGET_WINDOW_S, BUDGET_STEP_S = 10.0, 0.5
"""In which the client counts its retries, and how coarse it forgets."""

RETRY_WAIT_S_MAX = 2.6
"""Between the moments at which the client counts a retry and makes it: what a server asks for, and full jitter up to 2 s."""

LATE_S_MAX = 1.0
"""How long after its deadline a call may end."""

LAST_S = 60.0
"""That calls have when the faults are over."""


class CallFailed(grpc.RpcError):
    """As much of a failed call as a client looks at."""

    def __init__(self, status: grpc.StatusCode, refusal: CallRefused | None = None) -> None:
        super().__init__(status)
        self._status, self._refusal = status, refusal

    def code(self) -> grpc.StatusCode:
        return self._status

    def details(self) -> str:
        return str(self._refusal or self._status)

    def trailing_metadata(self) -> Any:
        refusal = self._refusal
        return [] if refusal is None else [("grpc-status-details-bin", status_of(refusal).SerializeToString())]


class Attempts:
    """Holds a client's retries against its budget.

    It sees them when they are made, the client counts them before it waits: so it looks at those only that the client has counted in the
    window of the last one, however long they waited, and at all requests that may have been in it.
    """

    def __init__(self, world: World, options: ClientOptions) -> None:
        self._world, self._options = world, options
        self._made: deque[tuple[float, bool]] = deque()  # when, and whether it was a retry

    def made(self, retry: bool) -> None:
        now_s = self._world.loop.now_s
        self._made.append((now_s, retry))
        while self._made[0][0] < now_s - BUDGET_WINDOW_S - RETRY_WAIT_S_MAX:
            self._made.popleft()
        if not retry:
            return  # the requests that allowed the last retry may be forgotten by now
        retries = sum(again for at_s, again in self._made if at_s > now_s - BUDGET_WINDOW_S + BUDGET_STEP_S + RETRY_WAIT_S_MAX)
        first = sum(not again for _, again in self._made)
        if retries > self._options.retry_reserve_max + first * self._options.retry_percent_max / 100:
            raise Broken("retries keep to their budget", f"{retries} retries in {BUDGET_WINDOW_S:.0f} s, {first} requests")


class SimulatedChannel:
    """A grpc.aio.Channel to any of some processes, as the generated stubs use it."""

    def __init__(self, world: World, nodes: list[Any], attempts: Attempts, rng: Any) -> None:
        self._world, self._nodes, self._attempts, self._rng = world, nodes, attempts, rng

    def unary_unary(self, path: str, response_deserializer: Callable[[bytes], Any], **_: Any) -> Callable[..., Any]:
        name = path.rpartition("/")[2]

        async def call(request: Any, timeout: float, wait_for_ready: bool = False) -> Any:  # noqa: ASYNC109 - gRPC's name
            try:
                async with asyncio.timeout(timeout):
                    answer = await self._attempt(name, request, timeout, wait_for_ready)
            except TimeoutError:
                raise CallFailed(grpc.StatusCode.DEADLINE_EXCEEDED) from None
            return response_deserializer(answer) if isinstance(answer, bytes) else answer

        return call

    def unary_stream(self, path: str, response_deserializer: Callable[[bytes], Any], **_: Any) -> Callable[..., Any]:
        def call(request: Any, **_: Any) -> AsyncGenerator[Any, None]:
            return self._watch(request, response_deserializer)

        return call

    async def close(self) -> None:
        """Nothing to close."""

    async def _attempt(self, name: str, request: Any, seconds: float, wait_for_ready: bool) -> Any:
        world, faults = self._world, self._world.faults
        self._attempts.made(wait_for_ready)
        await asyncio.sleep(self._rng.uniform(0.001, 0.01))
        node = await self._ready(wait_for_ready)
        if faults.strikes("call_lost"):
            raise CallFailed(grpc.StatusCode.UNAVAILABLE)
        context: Any = Deadline(world, seconds)
        task = node.spawn(getattr(node.service, _METHODS[name])(request, context))
        try:
            await asyncio.wait({task})
        finally:
            task.cancel()
        if task.cancelled():
            raise CallFailed(grpc.StatusCode.UNAVAILABLE)  # the server died
        try:
            answer = task.result()
        except CallRefused as refused:
            status = next(code for code in grpc.StatusCode if code.value[0] == refused.reason.status.value)
            raise CallFailed(status, refused) from None
        except (BackendUnavailable, BackendRefused):
            raise CallFailed(grpc.StatusCode.UNAVAILABLE, CallRefused(Reason.STORE_UNAVAILABLE, retry_after_s=0.5)) from None
        if faults.strikes("answer_lost"):
            raise CallFailed(grpc.StatusCode.UNAVAILABLE)
        return answer

    async def _ready(self, wait: bool) -> Any:
        while True:
            ready = [node for node in self._nodes if node.service is not None]
            if ready:
                return self._rng.choice(ready)
            if not wait:
                raise CallFailed(grpc.StatusCode.UNAVAILABLE)
            await asyncio.sleep(LOOK_S)

    async def _watch(self, request: Any, deserializer: Callable[[bytes], Any]) -> AsyncGenerator[Any, None]:
        node = await self._ready(wait=True)
        on_its_way: asyncio.Queue[Any] = asyncio.Queue(maxsize=1)
        context: Any = Deadline(self._world)

        async def send() -> None:
            async for message in node.service.watch_counts(request, context):
                await on_its_way.put(message)

        sending = node.spawn(send())
        try:
            while True:
                try:
                    message = await heard(on_its_way, sending)
                except Exception as unexpected:
                    self._world.fail(unexpected)  # the client would take it for its own, and go on without its near cache
                    raise CallFailed(grpc.StatusCode.UNAVAILABLE) from unexpected
                if message is None:
                    raise CallFailed(grpc.StatusCode.UNAVAILABLE)
                yield deserializer(message)
        finally:
            sending.cancel()


_METHODS = {
    "RecordEvents": "record_events",
    "GetCounts": "get_counts",
    "BatchGetCounts": "batch_get_counts",
    "CheckEdges": "check_edges",
    "ListActors": "list_actors",
    "ListSubjects": "list_subjects",
}


class Users:
    """People behind one client, each with a session: they follow, and look at counts."""

    def __init__(self, world: World, ingests: list[IngestNode], queries: list[QueryNode]) -> None:
        self._world = world
        self._nodes: dict[str, list[Any]] = {"writer": list[Node](ingests), "reader": list[Node](queries)}

    async def run(self, number: int) -> None:
        world = self._world
        rng = world.rng(f"client {number}")
        options = ClientOptions(
            near_entities_max=rng.choice((0, 4)), batch_items_max=rng.choice((2, 1_000)), retry_reserve_max=rng.choice((0, 2, 10))
        )
        client = self._client(f"client {number}", options, rng)
        try:
            await asyncio.gather(*(self._use(client.session(), world.rng(f"user {number} {user}")) for user in range(3)))
        finally:
            await client.close()

    async def last(self) -> None:
        """When the faults are over: a new client's session writes, and reads what it wrote."""
        world = self._world
        client = self._client("last client", ClientOptions(), world.rng("last client"))
        actor = next((one for one in ACTORS if partition_of(one, world.partitions) not in world.undecodable), None)
        if actor is None:
            return  # nothing that is written will be read
        session = client.session()
        try:
            await self._in_time(session.like(actor, POSTS[0], timeout_s=LAST_S), LAST_S)
            counts = await self._in_time(session.counts(POSTS[0], timeout_s=LAST_S), LAST_S)
        except ClientError as error:
            raise Broken("a client gets through in the end", repr(error)) from error
        finally:
            await client.close()
        if not counts.freshness.satisfied:
            raise Broken("a client gets through in the end", f"{counts}, not at {decode_position(session.token)}")

    def _client(self, name: str, options: ClientOptions, rng: Any) -> Client:
        return Client(
            "writer",
            "reader",
            options,
            clock=self._world.clock(name),
            rng=rng,
            sleep=asyncio.sleep,
            connect=lambda target, _: SimulatedChannel(self._world, self._nodes[target], Attempts(self._world, options), rng),
        )

    async def _in_time(self, call: Awaitable[T], timeout_s: float) -> T:
        """What a call gives that has so much time."""
        try:
            async with asyncio.timeout(timeout_s + LATE_S_MAX):
                return await call
        except TimeoutError:
            raise Broken("a call of the client ends in time", f"it had {timeout_s:g} s") from None

    async def _use(self, session: Session, rng: Any) -> None:
        while True:
            await asyncio.sleep(rng.expovariate(1 / 3.0))
            try:
                if rng.random() < 0.4:
                    await self._write(session, rng)
                await self._read(session, rng.sample(ENTITIES, rng.randint(1, 3)))
            except ClientError as error:
                self._world.trace.say("user", f"hears {type(error).__name__}")

    async def _write(self, session: Session, rng: Any) -> None:
        world = self._world
        actor = rng.choice(ACTORS)
        events = [
            Event(actor, Kind.FOLLOW, subject, active=rng.random() < 0.7)
            for subject in rng.sample([entity for entity in ENTITIES if entity != actor], rng.randint(1, 3))
        ]
        timeout_s = rng.choice((0.5, 5.0, 20.0))
        written = await self._in_time(session.record_many(events, timeout_s=timeout_s), timeout_s)
        moments = [round(at.timestamp() * 1e6) for at in written.occurred_at]
        told = [(e.actor, int(e.kind), e.subject, e.ref, e.active, at) for e, at in zip(events, moments, strict=True)]
        world.acknowledge(told, lambda one: partition_of(one, world.partitions), decode_position(written.token))

    async def _read(self, session: Session, entities: list[str]) -> None:
        before = decode_position(session.token) if session.token else None
        for counts in await self._in_time(session.counts_many(entities), ClientOptions().timeout_ms / 1e3):
            position = decode_position(counts.freshness.position)
            if counts.freshness.satisfied and before is not None and not position.covers(before):
                raise Broken("a session never goes backwards", f"{position} after {before}")
            for metric, value in counts.values.items():
                self._world.check_count("answers are of their position", counts.entity, metric, value, position.offsets)
