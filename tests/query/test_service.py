"""EngagementReader over real gRPC, on every server that can be set."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import grpc
import pytest

from tests.deadlines import half_of_the_time_left
from tests.query.fakes import FakeClock, FakeStore, unavailable
from tests.query.serving import Refusal, Served, refusal, served, until
from watertower.core.positions import decode_position
from watertower.errors import BackendRefused
from watertower.ports import ListCursor
from watertower.v1 import reader_pb2 as pb

pytestmark = pytest.mark.usefixtures("each_server")

NOW = FakeClock().us
FOLLOWERS, FOLLOWING, LIKES = 1, 2, 3
FOLLOW, LIKE, COMMENT = 1, 2, 3


def serving(test: Callable[[Served], Coroutine[Any, Any, None]], store: FakeStore | None = None, **settings: Any) -> None:
    """Runs a test against a service of its own."""

    async def run() -> None:
        async with served(store, **settings) as s:
            await test(s)

    asyncio.run(run())


def filled() -> FakeStore:
    """A star with followers from two partitions, and a fan."""
    store = FakeStore()
    store.write("star", FOLLOWERS, 0, 30, 10, NOW)
    store.write("star", FOLLOWERS, 1, 12, 11, NOW)
    store.write("star", LIKES, 1, 5, 12, NOW)
    store.write("fan", FOLLOWING, 0, 1, 13, NOW)
    store.write("gone", FOLLOWERS, 0, 0, 14, NOW)
    return store


def test_counts_are_sums_of_shards_in_the_order_of_the_request() -> None:
    """One value per metric, whatever their order; zero where there is nothing."""

    async def test(s: Served) -> None:
        answer = await s.stub.GetCounts(pb.GetCountsRequest(entity="star", metrics=[LIKES, FOLLOWERS, FOLLOWING]))
        assert (list(answer.values), answer.known) == ([5, 42, 0], True)
        assert answer.freshness.as_of.ToMicroseconds() == NOW
        assert dict(decode_position(answer.freshness.position).offsets) == {0: 14, 1: 12}
        assert not answer.freshness.stale
        one = await s.stub.GetCounts(pb.GetCountsRequest(entity="star", metrics=[FOLLOWERS]))
        assert list(one.values) == [42]

    serving(test, filled())


def test_an_unknown_entity_is_zero_and_says_so() -> None:
    """Not an error; an entity whose count has returned to zero is known."""

    async def test(s: Served) -> None:
        nobody = await s.stub.GetCounts(pb.GetCountsRequest(entity="nobody", metrics=[FOLLOWERS]))
        assert (list(nobody.values), nobody.known) == ([0], False)
        gone = await s.stub.GetCounts(pb.GetCountsRequest(entity="gone", metrics=[FOLLOWERS]))
        assert (list(gone.values), gone.known) == ([0], True)

    serving(test, filled())


def test_a_batch_is_answered_in_place_and_order_duplicates_too() -> None:
    """A row per entity of the request; exceptions name the unknown ones."""

    async def test(s: Served) -> None:
        for _ in ("cold", "cached"):
            request = pb.BatchGetCountsRequest(entities=["fan", "nobody", "star", "fan", "nobody"], metrics=[FOLLOWERS, FOLLOWING])
            answer = await s.stub.BatchGetCounts(request)
            assert [list(row.values) for row in answer.counts] == [[0, 1], [0, 0], [42, 0], [0, 1], [0, 0]]
            assert [(e.index, e.known) for e in answer.exceptions] == [(1, False), (4, False)]
        assert sorted(s.store.reads) == ["fan", "nobody", "star"]

    serving(test, filled())


def test_a_batch_of_a_thousand_cold_entities() -> None:
    """The largest batch, from the store and then from memory; a cache that is smaller answers it all the same."""

    async def test(s: Served) -> None:
        names = [f"e{number}" for number in range(1_000)]
        for number, name in enumerate(names):
            s.store.write(name, FOLLOWERS, 0, number, 100 + number, NOW, publish=False)
        for _ in range(2):
            answer = await s.stub.BatchGetCounts(pb.BatchGetCountsRequest(entities=names, metrics=[FOLLOWERS]))
            assert [row.values[0] for row in answer.counts] == list(range(1_000))
            assert not answer.exceptions

    serving(test)
    serving(test, cache_bytes_max=10_000)


def test_the_feed_keeps_a_cached_count_up_to_date() -> None:
    """A hot entity is read from the store once, and shows what is written afterwards."""

    async def test(s: Served) -> None:
        request = pb.GetCountsRequest(entity="star", metrics=[FOLLOWERS])
        assert (await s.stub.GetCounts(request)).values[0] == 42
        s.store.write("star", FOLLOWERS, 0, 31, 15, NOW + 1)
        async with asyncio.timeout(20):
            while (answer := await s.stub.GetCounts(request)).values[0] != 43:
                assert decode_position(answer.freshness.position).offsets[0] < 15
        assert s.store.reads == ["star"]

    serving(test, filled())


def test_counts_expire_by_the_clock() -> None:
    """cache_age_ms_max bounds what a lost message can do."""

    async def test(s: Served) -> None:
        request = pb.GetCountsRequest(entity="star", metrics=[FOLLOWERS])
        await s.stub.GetCounts(request)
        s.store.rows["star"][FOLLOWERS, 0] = s.store.rows["star"][FOLLOWERS, 0]._replace(value=40, offset=99)
        assert (await s.stub.GetCounts(request)).values[0] == 42
        s.clock.sleep(60.0)
        assert (await s.stub.GetCounts(request)).values[0] == 52

    serving(test, filled())


def test_old_answers_are_marked_stale() -> None:
    """as_of stands still when the feed falls silent; after stale_after_ms it is said."""

    async def test(s: Served) -> None:
        request = pb.CheckEdgesRequest(actor="fan", kind=FOLLOW, subjects=["star"])
        assert not (await s.stub.CheckEdges(request)).freshness.stale
        s.clock.sleep(10.1)
        answer = await s.stub.CheckEdges(request)
        assert answer.freshness.stale
        assert answer.freshness.as_of.ToMicroseconds() == NOW

    serving(test, filled())


def test_the_last_known_counts_are_served_stale_when_the_store_fails() -> None:
    """Known counts stay readable; unknown ones, edges and lists are UNAVAILABLE and worth repeating."""

    async def test(s: Served) -> None:
        known = pb.BatchGetCountsRequest(entities=["star"], metrics=[FOLLOWERS])
        await s.stub.BatchGetCounts(known)
        s.store.broken = unavailable()
        assert not (await s.stub.BatchGetCounts(known)).freshness.stale
        s.clock.sleep(60.0)
        answer = await s.stub.BatchGetCounts(known)
        assert answer.counts[0].values[0] == 42
        assert answer.freshness.stale
        assert answer.freshness.as_of.ToMicroseconds() == NOW
        for call in (
            s.stub.BatchGetCounts(pb.BatchGetCountsRequest(entities=["star", "fan"], metrics=[FOLLOWERS])),
            s.stub.CheckEdges(pb.CheckEdgesRequest(actor="fan", kind=FOLLOW, subjects=["star"])),
            s.stub.ListActors(pb.ListActorsRequest(subject="star", kind=FOLLOW)),
        ):
            refused = await refusal(call)
            assert refused[:3] == (grpc.StatusCode.UNAVAILABLE, "STORE_UNAVAILABLE", [])
            s.assert_to_come_back(refused, 500)
        s.store.broken = None
        assert (await s.stub.GetCounts(pb.GetCountsRequest(entity="fan", metrics=[FOLLOWING]))).values[0] == 1

    serving(test, filled())


def test_the_last_known_counts_are_served_when_the_store_takes_long() -> None:
    """load_wait_ms_max: what memory knows is not waited for any longer, and the answer says that it is stale."""

    async def test(s: Served) -> None:
        known = pb.GetCountsRequest(entity="star", metrics=[FOLLOWERS])
        await s.stub.GetCounts(known)
        s.clock.sleep(60.0)
        s.store.open.clear()
        answer = await s.stub.GetCounts(known, timeout=60)
        assert (answer.values[0], answer.freshness.stale) == (42, True)

    serving(test, filled(), load_wait_ms_max=50)


def test_counts_from_before_a_gap_claim_nothing() -> None:
    """When the feed lost messages and the store fails, the last known counts come without as_of."""

    async def test(s: Served) -> None:
        request = pb.GetCountsRequest(entity="star", metrics=[FOLLOWERS])
        await s.stub.GetCounts(request)
        epoch = s.service._cache.epoch
        s.store.write("star", FOLLOWERS, 0, 31, 20, NOW, publish=False)
        s.store.beat(0, NOW)
        await until(lambda: s.service._cache.epoch > epoch)
        s.store.broken = unavailable()
        answer = await s.stub.GetCounts(request)
        assert answer.values[0] == 42
        assert answer.freshness.stale
        assert not answer.freshness.HasField("as_of")
        assert dict(decode_position(answer.freshness.position).offsets) == {}
        s.store.broken = None
        assert (await s.stub.GetCounts(request)).values[0] == 43

    serving(test, filled())


def test_edges_are_checked_in_place() -> None:
    """An answer per subject, duplicates too."""
    store = filled()
    store.lists["ListSubjects", "fan", FOLLOW] = [ListCursor(NOW, "star", "")]

    async def test(s: Served) -> None:
        answer = await s.stub.CheckEdges(pb.CheckEdgesRequest(actor="fan", kind=FOLLOW, subjects=["nobody", "star", "star"]))
        assert list(answer.active) == [False, True, True]
        assert answer.freshness.as_of.ToMicroseconds() == NOW
        other_kind = await s.stub.CheckEdges(pb.CheckEdgesRequest(actor="fan", kind=LIKE, subjects=["star"]))
        assert list(other_kind.active) == [False]

    serving(test, store)


async def pages(s: Served, method: str, of: str, size: int, between: Callable[[int], None] = lambda page: None) -> list[list[str]]:
    """All pages of a list; `between` is called after each."""
    got: list[list[str]] = []
    token = ""
    while True:
        if method == "ListActors":
            answer = await s.stub.ListActors(pb.ListActorsRequest(subject=of, kind=FOLLOW, page_size=size, page_token=token))
            got.append([item.actor for item in answer.items])
        else:
            answer = await s.stub.ListSubjects(pb.ListSubjectsRequest(actor=of, kind=FOLLOW, page_size=size, page_token=token))
            got.append([item.subject for item in answer.items])
        between(len(got))
        token = answer.next_page_token
        if not token:
            return got


@pytest.mark.parametrize("method", ["ListActors", "ListSubjects"])
@pytest.mark.parametrize(("rows", "size", "lengths"), [(0, 2, [0]), (1, 2, [1]), (2, 2, [2]), (3, 2, [2, 1]), (250, 0, [100, 100, 50])])
def test_lists_come_in_pages_newest_first(method: str, rows: int, size: int, lengths: list[int]) -> None:
    """Every row once, in order; no empty page at the end; page_size 0 is 100."""
    store = filled()
    store.lists[method, "star", FOLLOW] = [ListCursor(NOW - number // 3, f"a{number:03d}", "") for number in range(rows)]

    async def test(s: Served) -> None:
        got = await pages(s, method, "star", size)
        assert [len(page) for page in got] == lengths
        assert [name for page in got for name in page] == [f"a{number:03d}" for number in range(rows)]

    serving(test, store)


def test_items_carry_ref_and_time() -> None:
    """To the microsecond; the comment's own id."""
    store = filled()
    store.lists["ListActors", "post", COMMENT] = [ListCursor(NOW + 123_456, "fan", "c-1")]
    store.lists["ListSubjects", "fan", COMMENT] = [ListCursor(NOW + 123_456, "post", "c-1")]

    async def test(s: Served) -> None:
        actors = await s.stub.ListActors(pb.ListActorsRequest(subject="post", kind=COMMENT))
        subjects = await s.stub.ListSubjects(pb.ListSubjectsRequest(actor="fan", kind=COMMENT))
        assert (actors.items[0].actor, subjects.items[0].subject) == ("fan", "post")
        for item in (actors.items[0], subjects.items[0]):
            assert (item.ref, item.occurred_at.ToMicroseconds()) == ("c-1", NOW + 123_456)

    serving(test, store)


def test_pages_are_stable_under_writes() -> None:
    """Rows that stay are seen once, whatever is added, removed (the token's own row too) or moved up in between."""
    store = filled()
    rows = store.lists["ListActors", "star", FOLLOW] = [ListCursor(NOW - number, f"a{number:02d}", "") for number in range(12)]

    def between(page: int) -> None:
        rows.insert(0, ListCursor(NOW + page, f"new{page}", ""))
        rows.remove(next(row for row in rows if row.other == f"a{page * 3 - 1:02d}"))  # the last row of the page just read

    async def test(s: Served) -> None:
        got = await pages(s, "ListActors", "star", 3, between)
        assert [name for page in got for name in page] == [f"a{number:02d}" for number in range(12)]

    serving(test, store)


BAD_INPUT = [
    ("GetCounts", pb.GetCountsRequest(entity="", metrics=[1]), [("entity", "ID_LENGTH")]),
    ("GetCounts", pb.GetCountsRequest(entity="é" * 64 + "x", metrics=[1]), [("entity", "ID_LENGTH")]),
    ("GetCounts", pb.GetCountsRequest(entity="a\nb", metrics=[1]), [("entity", "ID_CONTROL_CHARACTER")]),
    ("GetCounts", pb.GetCountsRequest(entity="a"), [("metrics", "METRICS_COUNT")]),
    ("GetCounts", pb.GetCountsRequest(entity="a", metrics=[1, 2, 1]), [("metrics", "METRICS_COUNT")]),
    ("GetCounts", pb.GetCountsRequest(entity="a", metrics=[0]), [("metrics[0]", "METRIC_UNKNOWN")]),
    ("GetCounts", pb.GetCountsRequest(entity="", metrics=[1, 99]), [("entity", "ID_LENGTH"), ("metrics[1]", "METRIC_UNKNOWN")]),
    ("BatchGetCounts", pb.BatchGetCountsRequest(metrics=[1]), [("entities", "ENTITIES_COUNT")]),
    ("BatchGetCounts", pb.BatchGetCountsRequest(entities=["a"] * 1_001, metrics=[1]), [("entities", "ENTITIES_COUNT")]),
    (
        "BatchGetCounts",
        pb.BatchGetCountsRequest(entities=["a", "", "b", "\x7f"], metrics=[]),
        [("entities[1]", "ID_LENGTH"), ("entities[3]", "ID_CONTROL_CHARACTER"), ("metrics", "METRICS_COUNT")],
    ),
    ("CheckEdges", pb.CheckEdgesRequest(actor="", subjects=["a"]), [("actor", "ID_LENGTH"), ("kind", "KIND_UNKNOWN")]),
    ("CheckEdges", pb.CheckEdgesRequest(actor="a", kind=1), [("subjects", "SUBJECTS_COUNT")]),
    ("CheckEdges", pb.CheckEdgesRequest(actor="a", kind=1, subjects=["b"] * 1_001), [("subjects", "SUBJECTS_COUNT")]),
    ("CheckEdges", pb.CheckEdgesRequest(actor="a", kind=1, subjects=["b", "x" * 129]), [("subjects[1]", "ID_LENGTH")]),
    (
        "ListActors",
        pb.ListActorsRequest(page_size=1_001, page_token="?"),  # a token is looked at when the rest is valid
        [("subject", "ID_LENGTH"), ("kind", "KIND_UNKNOWN"), ("page_size", "PAGE_SIZE")],
    ),
    ("ListActors", pb.ListActorsRequest(subject="a", kind=-1, page_token="AAAA"), [("kind", "KIND_UNKNOWN")]),  # type: ignore[arg-type] # as above
    ("ListActors", pb.ListActorsRequest(subject="x" * 70_000, kind=1, page_token="AAAA"), [("subject", "ID_LENGTH")]),
    ("ListActors", pb.ListActorsRequest(subject="a", kind=99), [("kind", "KIND_UNKNOWN")]),  # type: ignore[arg-type] # what a newer caller may send
    ("ListSubjects", pb.ListSubjectsRequest(actor="", kind=1), [("actor", "ID_LENGTH")]),
    ("ListSubjects", pb.ListSubjectsRequest(actor="a", kind=1, page_size=-1), [("page_size", "PAGE_SIZE")]),
    ("ListSubjects", pb.ListSubjectsRequest(actor="a", kind=1, page_token="A" * 500), [("page_token", "PAGE_TOKEN_INVALID")]),
]


def test_bad_input_is_refused_with_field_and_rule() -> None:
    """INVALID_ARGUMENT, every broken rule by its field, nothing to wait for, and the store is not asked."""

    async def test(s: Served) -> None:
        for method, request, violations in BAD_INPUT:
            refused = await refusal(getattr(s.stub, method)(request))
            assert refused == Refusal(grpc.StatusCode.INVALID_ARGUMENT, violations[0][1], violations, None, None), (method, request)
        assert s.store.reads == []
        assert len(s.service._cache) == 0

    serving(test)


def test_a_thousand_bad_ids_still_reach_the_caller_as_a_refusal() -> None:
    """The details stay within what a transport carries."""

    async def test(s: Served) -> None:
        refused = await refusal(s.stub.BatchGetCounts(pb.BatchGetCountsRequest(entities=[""] * 1_000, metrics=[1])))
        assert (refused.code, refused.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "ID_LENGTH")
        assert refused.violations[0] == ("entities[0]", "ID_LENGTH")

    serving(test)


def test_garbage_bytes_are_the_callers_fault() -> None:
    """Bytes that are no message, and strings that are no UTF-8: INVALID_ARGUMENT, not INTERNAL."""

    async def test(s: Served) -> None:
        for method in ("GetCounts", "BatchGetCounts", "CheckEdges", "ListActors", "ListSubjects"):
            call = s.channel.unary_unary(f"/watertower.v1.EngagementReader/{method}")
            for garbage in (b"\xff\xff\xff\xff", b"\x0a\x02\xc3\x28", b"\x0a\x7fshort"):
                refused = await refusal(call(garbage))
                assert (refused.code, refused.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "MESSAGE_MALFORMED")

    serving(test)


def test_a_token_of_another_list_is_refused() -> None:
    """Bound to method, subject and kind; changed ones too."""
    store = filled()
    for method in ("ListActors", "ListSubjects"):
        store.lists[method, "star", FOLLOW] = [ListCursor(NOW - number, f"a{number}", "") for number in range(3)]

    async def test(s: Served) -> None:
        token = (await s.stub.ListActors(pb.ListActorsRequest(subject="star", kind=FOLLOW, page_size=1))).next_page_token
        changed = ("B" if token[0] == "A" else "A") + token[1:]
        for call in (
            s.stub.ListActors(pb.ListActorsRequest(subject="fan", kind=FOLLOW, page_token=token)),
            s.stub.ListActors(pb.ListActorsRequest(subject="star", kind=LIKE, page_token=token)),
            s.stub.ListSubjects(pb.ListSubjectsRequest(actor="star", kind=FOLLOW, page_token=token)),
            s.stub.ListActors(pb.ListActorsRequest(subject="star", kind=FOLLOW, page_token=changed)),
        ):
            refused = await refusal(call)
            assert refused.violations == [("page_token", "PAGE_TOKEN_INVALID")]
        more = await s.stub.ListActors(pb.ListActorsRequest(subject="star", kind=FOLLOW, page_token=token))
        assert [item.actor for item in more.items] == ["a1", "a2"]

    serving(test, store)


def test_reads_above_the_limit_are_shed_and_cached_ones_are_not() -> None:
    """loads_waiting_max: RESOURCE_EXHAUSTED with a time to wait; what is in memory is served meanwhile."""

    async def test(s: Served) -> None:
        hot = pb.GetCountsRequest(entity="star", metrics=[FOLLOWERS])
        await s.stub.GetCounts(hot)
        s.store.open.clear()
        calls = [asyncio.ensure_future(s.stub.GetCounts(pb.GetCountsRequest(entity=f"e{n}", metrics=[1]))) for n in range(1)]
        await until(lambda: s.store.concurrent == 1)
        calls += [asyncio.ensure_future(s.stub.GetCounts(pb.GetCountsRequest(entity=f"w{n}", metrics=[1]))) for n in range(2)]
        await until(lambda: s.service._reads.counters.waiting == 2)
        for call in (
            s.stub.GetCounts(pb.GetCountsRequest(entity="late", metrics=[1])),
            s.stub.ListActors(pb.ListActorsRequest(subject="star", kind=FOLLOW)),
        ):
            refused = await refusal(call)
            assert refused[:3] == (grpc.StatusCode.RESOURCE_EXHAUSTED, "READS_FULL", [])
            s.assert_to_come_back(refused, 250)
        assert (await s.stub.GetCounts(hot)).values[0] == 42
        s.store.open.set()
        await asyncio.gather(*calls)

    serving(test, filled(), loads_concurrent_max=1, loads_waiting_max=2, retry_after_ms=250)


def test_a_store_that_does_not_answer_is_said_before_the_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not in memory, and the store hangs: UNAVAILABLE with a time to come back while the caller still listens; memory goes on."""
    half_of_the_time_left(monkeypatch)

    async def test(s: Served) -> None:
        hot = pb.GetCountsRequest(entity="star", metrics=[FOLLOWERS])
        await s.stub.GetCounts(hot)
        s.store.open.clear()
        for call in (
            s.stub.GetCounts(pb.GetCountsRequest(entity="late", metrics=[FOLLOWERS]), timeout=3.0),
            s.stub.BatchGetCounts(pb.BatchGetCountsRequest(entities=["star", "later"], metrics=[FOLLOWERS]), timeout=3.0),
            s.stub.CheckEdges(pb.CheckEdgesRequest(actor="fan", kind=FOLLOW, subjects=["star"]), timeout=3.0),
            s.stub.ListActors(pb.ListActorsRequest(subject="star", kind=FOLLOW), timeout=3.0),
            s.stub.ListSubjects(pb.ListSubjectsRequest(actor="fan", kind=FOLLOW), timeout=3.0),
        ):
            refused = await refusal(call)
            assert refused[:3] == (grpc.StatusCode.UNAVAILABLE, "STORE_UNAVAILABLE", [])
            s.assert_to_come_back(refused, 250)
        assert (await s.stub.GetCounts(hot, timeout=3.0)).values[0] == 42
        s.clock.sleep(100.0)  # what is in memory has to be loaded anew
        answer = await s.stub.GetCounts(hot, timeout=3.0)
        assert (answer.values[0], answer.freshness.stale) == (42, True)

    serving(test, filled(), retry_after_ms=250)


def test_it_is_ready_when_it_has_caught_up() -> None:
    """Not before its first look at the store; a store that fails then is the starter's to know."""

    async def run() -> None:
        async with served(filled(), started=False) as s:
            assert not s.service.ready
            s.store.broken = unavailable()
            with pytest.raises(type(s.store.broken)):
                await s.service.start()
            assert not s.service.ready
            s.store.broken = None
            await s.service.start()
            assert s.service.ready

    asyncio.run(run())


def test_a_feed_that_fails_for_good_ends_the_process() -> None:
    """An outage is waited out; anything else is told through `failed`, so that nothing goes on silently."""

    async def test(s: Served) -> None:
        s.store.broken = unavailable()
        await asyncio.sleep(0.02)
        assert not s.service.failed.done()
        s.store.broken = None
        s.store.write("star", FOLLOWERS, 0, 31, 15, NOW + 1)
        await until(lambda: not s.store.feed)
        s.store.broken = BackendRefused("the store is another one")
        async with asyncio.timeout(20):
            with pytest.raises(BackendRefused):
                await s.service.failed

    serving(test, filled())
