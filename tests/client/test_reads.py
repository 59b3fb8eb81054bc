"""Reads and sessions, against a scripted server."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.client.fake import AWAY, SHED, Never, Refusal, refused, run, served, until
from watertower.client import ALL_METRICS, ClientClosed, Counts, InvalidRequest, Kind, Metric, Overloaded, Refused, Session, TooManyWaiting
from watertower.client.ahead import Ahead
from watertower.client.answers import Freshness, position_of
from watertower.client.batches import CountsKey, CountsQuestion, EntityBatch
from watertower.client.calls import Answer, Calls
from watertower.client.channels import ANSWER_BYTES_MAX
from watertower.client.seen import Seen
from watertower.core.positions import Position, decode_position, encode_position
from watertower.errors import Reason, Violation

EARLIER, LATER = encode_position(Position(1, {0: 1})), encode_position(Position(1, {0: 5}))


def test_counts() -> None:
    """By metric, by name, with whether the entity is known and how fresh that is."""

    async def test() -> None:
        async with served() as (_, client):
            await client.follow("ann", "bob")
            bob = await client.counts("bob", [Metric.FOLLOWERS])
            assert (bob.entity, bob.values, bob.followers, bob.known) == ("bob", {Metric.FOLLOWERS: 1}, 1, True)
            assert bob.freshness.as_of is not None
            assert bob.freshness.as_of.isoformat() == "2023-11-14T22:13:20+00:00"
            assert bob.freshness.satisfied
            nobody = await client.counts("nobody")
            assert (nobody.known, set(nobody.values.values()), list(nobody.values)) == (False, {0}, list(ALL_METRICS))

    run(test)


def test_many_counts_come_in_order() -> None:
    """Also over the bounds of a request; an entity asked for twice is answered twice."""

    async def test() -> None:
        async with served() as (fake, client):
            fake.followers.update({f"e{n}": n for n in range(1, 2_500)})
            entities = [f"e{n}" for n in range(2_499, 0, -1)] + ["e7", "e7"]
            found = await client.counts_many(entities)
            assert [one.entity for one in found] == entities
            assert [one.followers for one in found] == [*range(2_499, 0, -1), 7, 7]
            assert sorted(len(request.entities) for request in fake.reads) == [499, 1_000, 1_000]

    run(test)


def test_the_same_reads_share_a_place() -> None:
    """5,000 callers that read one star ask for it once; each has its answer."""

    async def test() -> None:
        async with served() as (fake, client):
            fake.followers["star"] = 9
            found = await asyncio.gather(*(client.counts("star") for _ in range(5_000)))
            assert [list(request.entities) for request in fake.reads] == [["star"]]
            assert {one.followers for one in found} == {9}

    run(test)


class _Places(dict[str, int]):
    """Is looked up in, and never walked."""

    def keys(self) -> Any:
        raise AssertionError("all of the batch was walked for one call")

    __iter__ = keys


def test_a_call_looks_at_its_own_entities_only() -> None:
    """Whether it fits into a batch costs what it asks for, not what the batch holds. One that is there already needs no room."""
    batch = EntityBatch(CountsKey((Metric.LIKES,), None), 4)
    batch._places = _Places(a=0, b=1, c=2)
    asked = ["a"], ["d"], ["d", "d", "a"], ["d", "e"], ["a", "b", "c", "d", "e"]
    assert [batch.fits(CountsQuestion(entities, None)) for entities in asked] == [True, True, True, False, False]


def test_only_equal_questions_share_a_request() -> None:
    """Reads of other metrics, or that want another freshness, have requests of their own."""

    async def test() -> None:
        async with served() as (fake, client):
            await asyncio.gather(
                client.counts("a"),
                client.counts("b"),
                client.counts("c", [Metric.LIKES]),
                client.counts("d", max_staleness_s=2.5),
            )
            asked = sorted((list(r.entities), len(r.metrics), r.max_staleness.ToMicroseconds()) for r in fake.reads)
            assert asked == [(["a", "b"], 6, 0), (["c"], 1, 0), (["d"], 6, 2_500_000)]

    run(test)


def test_one_readers_mistake_is_not_anothers() -> None:
    """A named entity fails whoever asked for it, at its place in that caller's list; the others are asked for again."""

    async def test() -> None:
        async with served() as (fake, client):

            def refuse_x(number: int, request: Any) -> Refusal | None:
                if "x" not in request.entities:
                    return None
                return refused(Reason.ID_LENGTH, violations=[Violation(f"entities[{list(request.entities).index('x')}]", Reason.ID_LENGTH)])

            fake.on_read = refuse_x
            results = await asyncio.gather(
                client.counts("a"),
                client.counts_many(["b", "a", "x"]),
                client.counts("x"),
                client.counts_many(["b", "c"]),
                return_exceptions=True,
            )
            assert isinstance(results[0], Counts)
            assert isinstance(results[1], InvalidRequest)
            assert isinstance(results[2], InvalidRequest)
            assert [v.field for v in results[1].violations] == ["entities[2]"]
            assert [v.field for v in results[2].violations] == ["entities[0]"]
            assert isinstance(results[3], list)
            assert [one.entity for one in results[3]] == ["b", "c"]
            assert len(fake.reads) == 2

    run(test)


def test_a_refused_metric_is_no_entitys() -> None:
    """A service that does not know a metric names its place in the metrics: every caller hears that, and not who has asked for the entity
    at the same place."""

    async def test() -> None:
        async with served() as (fake, client):
            wrong = refused(Reason.METRIC_UNKNOWN, violations=[Violation("metrics[1]", Reason.METRIC_UNKNOWN)])
            fake.on_read = lambda number, request: wrong
            results = await asyncio.gather(*(client.counts(entity) for entity in "abc"), return_exceptions=True)
            for result in results:
                assert isinstance(result, InvalidRequest)
                assert [v.field for v in result.violations] == ["metrics[1]"]

    run(test)


def test_mistakes_that_need_no_service_cost_no_request() -> None:
    """Ids, kinds, metrics and sizes are looked at before anything is sent."""

    async def test() -> None:
        async with served() as (fake, client):
            calls: list[tuple[Any, str, str]] = [
                (client.counts(""), "entities[0]", "ID_LENGTH"),
                (client.counts("\udcff"), "entities[0]", "MESSAGE_MALFORMED"),
                (client.counts_many([]), "entities", "ENTITIES_COUNT"),
                (client.counts("a", []), "metrics", "METRICS_COUNT"),
                (client.check("", ["b"]), "actor", "ID_LENGTH"),
                (client.check("a", []), "subjects", "SUBJECTS_COUNT"),
                (client.check("a", ["b"] * 1_001), "subjects", "SUBJECTS_COUNT"),
                (client.check("a", ["b", ""]), "subjects[1]", "ID_LENGTH"),
                (client.check("a", ["b"], 9), "kind", "KIND_UNKNOWN"),  # type: ignore[arg-type] # what a caller without types may do
                (client.list_actors("", Kind.LIKE), "subject", "ID_LENGTH"),
                (client.list_subjects("a", page_size=1_001), "page_size", "PAGE_SIZE"),
                (anext(client.watch(["a"] * 1_001)), "entities", "ENTITIES_COUNT"),
            ]
            for call, field, reason in calls:
                with pytest.raises(InvalidRequest) as caught:
                    await call
                assert [(v.field, v.reason) for v in caught.value.violations] == [(field, reason)]
            assert not fake.reads

    run(test)


def test_one_id_is_not_several() -> None:
    """A str where ids are asked for is refused, and not taken for its letters."""

    async def test() -> None:
        async with served() as (fake, client):
            calls: list[Any] = [client.counts_many("bob"), client.check("ann", "bob"), anext(client.watch("bob"))]
            for call in calls:
                with pytest.raises(TypeError, match=r"\['bob'\]"):
                    await call
            assert not fake.reads
            assert not fake.watches

    run(test)


def test_edges_and_lists() -> None:
    """In the order of the question; a page has its items, the next page's token and a freshness."""

    async def test() -> None:
        async with served() as (fake, client):
            await client.follow("ann", "bob")
            checked = await client.check("ann", ["cid", "bob"])
            assert checked.active == (False, True)
            assert [item.id for item in (await client.list_subjects("ann")).items] == ["bob"]
            page = await client.list_actors("bob", page_size=10)
            assert ([item.id for item in page.items], page.next_page_token) == (["ann"], "")
            assert fake.reads[-1].page_size == 10
            assert page.freshness.satisfied

    run(test)


def test_reads_are_retried_and_shed_as_writes_are() -> None:
    """Batched or not: what passes is repeated, and a time to come back is kept to."""

    async def test() -> None:
        async with served(rng=Never(), attempts_max=2) as (fake, client):
            for call in (lambda: client.counts("a"), lambda: client.check("a", ["b"])):
                fake.reads.clear()
                fake.on_read = lambda number, request: refused(Reason.READS_FULL, 0.01) if number == 0 else None
                await call()
                assert len(fake.reads) == 2
                fake.reads.clear()
                fake.on_read = lambda number, request: SHED
                with pytest.raises(Overloaded):
                    await call()
                assert len(fake.reads) == 2

    run(test)


def test_waiting_reads_are_bounded() -> None:
    """Counts, counts that wait for a write, and other calls, each for itself: one above waiting_items_max is refused at once. When others
    have their answers there is room again, also after a failure or a cancellation."""

    async def test() -> None:
        async with served(waiting_items_max=3, batch_items_max=3) as (fake, client):
            gate = asyncio.Event()
            fake.on_read = lambda number, request: _wait_for(gate)
            session = client.session(EARLIER)
            calls: list[Callable[[], Awaitable[Any]]] = [lambda: client.check("a", ["b"]), lambda: client.list_actors("b")]
            calls.append(lambda: client.list_subjects("a"))
            waiting: list[asyncio.Future[Any]] = []
            for sort in ([lambda: client.counts("a")], [lambda: session.counts("a")], calls):
                waiting += [asyncio.ensure_future(sort[number % len(sort)]()) for number in range(3)]
                await asyncio.sleep(0)
                for call in sort:
                    with pytest.raises(TooManyWaiting, match="waiting_items_max"):
                        await call()
            waiting[-1].cancel()
            await asyncio.wait(waiting[-1:])
            fourth = asyncio.ensure_future(client.check("a", ["b"]))
            await client.follow("a", "b")  # the events' own bound
            gate.set()
            await asyncio.gather(*waiting[:-1], fourth)
            fake.on_read = lambda number, request: Refusal(grpc.StatusCode.INTERNAL)
            for _ in range(4):
                with pytest.raises(Refused):
                    await client.check("a", ["b"])

    run(test)


def test_an_answer_has_a_bound() -> None:
    """A larger one is refused by this end, and not asked for again."""

    async def test() -> None:
        async with served() as (fake, client):
            fake.edges = {("x" * ANSWER_BYTES_MAX, "bob")}
            with pytest.raises(Refused, match="RESOURCE_EXHAUSTED"):
                await client.list_actors("bob")
            assert len(fake.reads) == 1

    run(test)


def test_a_session_reads_its_own_writes() -> None:
    """After a write it asks for an answer that includes it; when one did, it asks for nothing."""

    async def test() -> None:
        async with served() as (fake, client):
            session = client.session()
            await session.counts("bob")
            written = await session.follow("ann", "bob")
            assert (await session.counts("bob")).followers == 1
            await session.counts("bob")
            await client.counts("bob")
            wanted = [request.min_position for request in fake.reads]
            assert decode_position(wanted[1]).covers(decode_position(written.token))
            assert [wanted[0], *wanted[2:]] == [b"", b"", b""]
            await session.follow("ann", "cid")
            await session.check("ann", ["cid"])
            await session.follow("ann", "dan")
            await session.list_actors("dan")
            assert all(request.min_position for request in fake.reads[-2:])

    run(test)


def test_a_session_never_goes_backwards() -> None:
    """An answer that is older than what the session has seen is asked for again, with the position that it must include."""

    async def test() -> None:
        async with served() as (fake, client):
            session = client.session()
            fake.positions = [LATER, EARLIER, LATER]
            await session.counts("bob")
            found = await session.counts("bob")
            assert (found.freshness.position, found.freshness.satisfied) == (LATER, True)
            assert [request.min_position for request in fake.reads] == [b"", b"", LATER]
            fake.positions = [EARLIER, LATER]
            page = await session.list_actors("bob")
            assert page.freshness.satisfied
            assert fake.reads[-1].min_position == LATER

    run(test)


def test_a_session_is_told_when_it_cannot_have_what_it_asks_for() -> None:
    """The service has waited and is still behind: the answer it gives says that it is not satisfied. The next read asks again."""

    async def test() -> None:
        async with served() as (fake, client):
            session = client.session(LATER)
            fake.positions = [EARLIER, EARLIER, EARLIER, LATER]
            assert not (await session.counts("bob")).freshness.satisfied
            assert not (await session.check("ann", ["bob"])).freshness.satisfied
            assert not (await session.list_subjects("ann")).freshness.satisfied
            assert (await session.counts("bob")).freshness.satisfied
            assert [request.min_position for request in fake.reads] == [LATER] * 4

    run(test)


@pytest.mark.parametrize("call", ["counts_many", "check", "list_actors"])
def test_a_session_that_moves_on_while_it_reads(call: str) -> None:
    """An answer is asked for twice, not until the session holds still; what came in between is not in it, and it says so."""

    async def test() -> None:
        async with served() as (fake, client):
            session = client.session()
            fake.on_read = lambda number, request: session._wrote(encode_position(Position(1, {0: 10 + number})))
            fake.positions = [EARLIER, *(encode_position(Position(1, {0: 10 + number})) for number in range(100))]
            answer = await {
                "counts_many": lambda: session.counts_many(["bob"]),
                "check": lambda: session.check("ann", ["bob"]),
                "list_actors": lambda: session.list_actors("bob"),
            }[call]()
            freshness = (answer[0] if isinstance(answer, list) else answer).freshness
            assert (len(fake.reads), freshness.satisfied) == (2, False)

    run(test)


def test_a_session_without_time_to_ask_again() -> None:
    """The answer that it has is given, and says that it is behind: nothing fails for that."""

    async def test() -> None:
        async with served() as (fake, client):
            session, gate = client.session(), asyncio.Event()
            fake.positions = [LATER, EARLIER]
            await session.counts("bob")

            async def hold(number: int, request: Any) -> None:
                if request.min_position:
                    await gate.wait()

            fake.on_read = hold
            found = await session.counts("bob", timeout_s=2.0)
            assert (found.freshness.position, found.freshness.satisfied) == (EARLIER, False)
            gate.set()

    run(test)


@pytest.mark.parametrize("refusal", [SHED, AWAY, refused(Reason.STORE_UNAVAILABLE, 0.1)], ids=["shed", "away", "store away"])
@pytest.mark.parametrize("call", ["counts", "check", "list_actors"])
def test_a_session_whose_second_question_fails(call: str, refusal: Refusal) -> None:
    """The answer that it has is given, and says that it is behind."""

    async def test() -> None:
        async with served(attempts_max=1) as (fake, client):
            session = client.session()
            fake.positions = [LATER, EARLIER]
            await session.counts("bob")
            fake.on_read = lambda number, request: refusal if request.min_position else None
            freshness = (await ask_bob(session, call)).freshness
            assert (len(fake.reads), freshness.position, freshness.satisfied) == (3, EARLIER, False)

    run(test)


@pytest.mark.parametrize("call", ["counts", "check", "list_actors"])
def test_a_session_that_cannot_ask_again_says_so(call: str) -> None:
    """A refusal that repeating cannot help is an error, and so is the client's end, also where there is an answer that is behind."""

    async def test() -> None:
        async with served() as (fake, client):
            session, gate = client.session(), asyncio.Event()
            fake.positions = [LATER, EARLIER, EARLIER]
            await session.counts("bob")
            invalid = refused(Reason.MIN_POSITION_INVALID, violations=[Violation("min_position", Reason.MIN_POSITION_INVALID)])
            fake.on_read = lambda number, request: invalid if request.min_position else None
            with pytest.raises(InvalidRequest):
                await ask_bob(session, call)
            fake.on_read = lambda number, request: _wait_for(gate) if request.min_position else None
            waiting = asyncio.create_task(ask_bob(session, call))
            await until(lambda: len(fake.reads) == 5, "it asks again")
            await client.close()
            with pytest.raises(ClientClosed):
                await waiting
            gate.set()

    run(test)


async def ask_bob(calls: Calls, call: str) -> Any:
    """One read about bob."""
    if call == "check":
        return await calls.check("ann", ["bob"])
    return await getattr(calls, call)("bob")


async def _wait_for(event: asyncio.Event) -> None:
    await event.wait()


def test_a_session_goes_on_elsewhere() -> None:
    """Its token opens one in another process; a token that is none is refused."""

    async def test() -> None:
        async with served() as (fake, client):
            session = client.session()
            await session.follow("ann", "bob")
            other = client.session(session.token)
            await other.counts("bob")
            assert fake.reads[-1].min_position == session.token
            with pytest.raises(ValueError, match="position"):
                client.session(b"no token")

    run(test)


def test_sessions_that_wrote_share_requests() -> None:
    """What they wrote is asked for together; each is satisfied by its own write, not by those of the others."""

    async def test() -> None:
        async with served() as (fake, client):
            early, late = client.session(EARLIER), client.session(LATER)
            fake.positions = [EARLIER]
            found = await asyncio.gather(early.counts("bob"), late.counts("bob"))
            assert [one.freshness.satisfied for one in found] == [True, False]
            assert [request.min_position for request in fake.reads] == [LATER]
            wrote = [client.session(encode_position(Position(1, offsets))) for offsets in ({0: 3}, {1: 4}, {0: 2})]
            fake.positions = [encode_position(Position(1, {0: 3, 1: 4}))]
            found = await asyncio.gather(*(session.counts("bob") for session in wrote))
            assert all(one.freshness.satisfied for one in found)
            assert decode_position(fake.reads[-1].min_position) == Position(1, {0: 3, 1: 4})
            assert len(fake.reads) == 2

    run(test)


def test_one_sessions_token_is_not_anothers() -> None:
    """A position that the service does not know fails the session that brings it, on every read; those that were asked with it have
    their answers, in few more requests."""

    async def test() -> None:
        async with served() as (fake, client):

            def refuse_unknown_partition(number: int, request: Any) -> Refusal | None:
                if not request.min_position or 99 not in decode_position(request.min_position).offsets:
                    return None
                return refused(Reason.MIN_POSITION_INVALID, violations=[Violation("min_position", Reason.MIN_POSITION_INVALID)])

            fake.on_read = refuse_unknown_partition
            sessions = [client.session(encode_position(Position(1, {99 if n == 41 else 0: 0}))) for n in range(64)]
            for _ in range(2):
                fake.reads.clear()
                results = await asyncio.gather(*(session.counts("bob") for session in sessions), return_exceptions=True)
                assert isinstance(results[41], InvalidRequest)
                assert results[41].reason == "MIN_POSITION_INVALID"
                assert all(isinstance(result, Counts) for n, result in enumerate(results) if n != 41)
                assert len(fake.reads) <= 14

    run(test)


def test_what_waits_holds_up_nothing_else() -> None:
    """Reads of sessions that wait for their writes leave room for those that do not."""

    async def test() -> None:
        async with served(batch_calls_max=1) as (fake, client):
            gate = asyncio.Event()

            async def hold(number: int, request: Any) -> None:
                if request.min_position:
                    await gate.wait()

            fake.on_read = hold
            waiting = asyncio.create_task(client.session(EARLIER).counts("bob"))
            await until(lambda: fake.reads, "the session's read is there")
            await client.counts("bob")
            assert not waiting.done()
            gate.set()
            await waiting

    run(test)


def test_a_session_ahead_of_the_log_holds_up_no_other() -> None:
    """A position that an answer did not reach is asked for beside the others, however often, by however many sessions; when an answer has
    reached it, together with them."""

    async def test() -> None:
        async with served(batch_calls_max=2, batch_wait_ms_max=0, batch_items_max=1) as (fake, client):
            lost, gate = Position(1, {0: 900, 1: 2}), asyncio.Event()
            token = encode_position(lost)
            fake.positions = [LATER]
            assert not (await client.session(token).counts("bob")).freshness.satisfied

            async def hold(number: int, request: Any) -> None:
                if decode_position(request.min_position).covers(lost):
                    await gate.wait()

            fake.on_read = hold
            waiting = [asyncio.create_task(client.session(token).counts(f"e{number}")) for number in range(4)]
            await until(lambda: len(fake.reads) == 3, "as many of them as may be are on their way")
            async with asyncio.timeout(5):
                fake.written = Position(1, {0: 5, 1: 1})
                found = await asyncio.gather(*(client.session(EARLIER).counts(f"e{number}") for number in range(4)))
            assert all(one.freshness.satisfied for one in found)
            fake.written = lost
            gate.set()
            assert all(one.freshness.satisfied for one in await asyncio.gather(*waiting))
        async with served() as (fake, client):
            fake.written = decode_position(LATER)
            await client.session(token).counts("bob")
            await asyncio.gather(client.session(token).counts("bob"), client.session(EARLIER).counts("bob"))
            assert {request.min_position for request in fake.reads[1:]} == {token, EARLIER}
            fake.written = lost
            await client.session(token).counts("bob")
            fake.reads.clear()
            await asyncio.gather(client.session(token).counts("bob"), client.session(EARLIER).counts("bob"))
            assert [decode_position(request.min_position) for request in fake.reads] == [lost]

    run(test)


def test_what_is_ahead() -> None:
    """From the earliest offset of each partition that an answer did not reach, until one does; of the generation that answered last."""
    ahead = Ahead()
    assert not ahead.includes(Position(0, {0: 0}))
    ahead.answered(Position(1, {0: 9, 1: 9}), Position(1, {0: 4, 1: 9}))
    ahead.answered(Position(1, {0: 7}), Position(1, {0: 5}))
    ahead.answered(Position(1, {0: 8}), None)
    ahead.answered(Position(1, {0: 8}), Position(2, {0: 8}))
    wanted = [Position(1, {0: 7}), Position(1, {0: 12, 1: 0}), Position(1, {0: 6}), Position(1, {1: 12}), Position(2, {0: 12})]
    assert [ahead.includes(position) for position in wanted] == [True, True, False, False, False]
    ahead.answered(Position(1, {0: 7}), Position(1, {0: 7}))
    assert not ahead.includes(Position(1, {0: 7}))
    ahead.answered(Position(2, {0: 3}), Position(2, {}))
    assert ahead.includes(Position(2, {0: 3}))


def test_a_new_generation_is_told_once() -> None:
    """Rows made anew say nothing about old positions: one answer is not satisfied, then the session goes on from there."""

    async def test() -> None:
        async with served() as (fake, client):
            session = client.session(LATER)
            anew = encode_position(Position(2, {0: 1}))
            fake.positions = [anew, anew]
            assert not (await session.counts("bob")).freshness.satisfied
            assert (await session.counts("bob")).freshness.satisfied
            assert session.token == anew

    run(test)


offsets = st.dictionaries(st.integers(0, 3), st.integers(0, 20), min_size=1)


class _Answers:
    """A transport whose service answers at any position, and never waits."""

    def __init__(self, positions: list[dict[int, int]]) -> None:
        self.positions, self.clock = positions, self
        self.asked: list[Position | None] = []

    def monotonic_s(self) -> float:
        return 0.0

    async def answer(self, wanted: Position | None, timeout_s: float) -> Answer[Freshness]:
        self.asked.append(wanted)
        position = Position(1, self.positions.pop(0) if self.positions else dict.fromkeys(range(4), 20))
        token = encode_position(position)
        freshness = Freshness(None, token, False, wanted is None or position.covers(wanted))
        return Answer(freshness, {token}, lambda: freshness._replace(satisfied=False))


@given(st.lists(offsets, max_size=12), st.lists(st.none() | offsets, max_size=8))
def test_whatever_answers_a_session_gets(positions: list[dict[int, int]], steps: list[dict[int, int] | None]) -> None:
    """Every answer includes all writes of the session and every answer before it, or says that it is not satisfied; and what was seen only
    grows. (None is a read, offsets are a write there.)"""

    async def test() -> None:
        answers = _Answers(list(positions))
        session = Session(answers)  # type: ignore[arg-type] # as much of a transport as `_read` takes
        before: list[Position] = []
        for step in steps:
            if step is not None:
                session._wrote(encode_position(Position(1, step)))
                before.append(Position(1, step))
            else:
                freshness = await session._read(answers.answer, 1.0)
                position = decode_position(freshness.position)
                assert freshness.satisfied == all(position.covers(seen) for seen in before)
                before.append(position)
            assert all(decode_position(session.token).covers(seen) for seen in before)

    run(test)


def test_what_was_seen_only_grows() -> None:
    """An older generation, and what is no position, change nothing."""
    seen = Seen(encode_position(Position(2, {0: 3})))
    for token in (b"", b"garbage", encode_position(Position(1, {0: 9})), encode_position(Position(2, {0: 1}))):
        seen.add(token)
    assert position_of(seen.token) == Position(2, {0: 3})
    assert not seen.included_in(b"")
    assert Seen().included_in(b"")
    assert not seen.not_before(encode_position(Position(1, {0: 9})))
    assert seen.not_before(encode_position(Position(3, {0: 0})))
