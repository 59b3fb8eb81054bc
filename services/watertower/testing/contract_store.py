"""What ports.Store, StoreReader and StoreScanner promise, as tests. A back end subclasses StoreContract, FeedContract of
contract_feed.py and, of contract_owners.py, the contract for its number of owners, and says how its handles are opened."""

import random
import threading
from collections.abc import Sequence
from typing import NamedTuple, Protocol

import pytest

from watertower.core import buckets
from watertower.core.fold import fold, touched
from watertower.core.model import Edge, Kind, ListChange, Metric, Progress, Record, Shard
from watertower.ports import CountsFeed, FeedReader, ListCursor, Store, StoreIdentity, StoreReader, StoreScanner
from watertower.testing.replay import STEPS, Event, apply, at_ends, expected_rows, random_log, record, rows_of, write

PARTITIONS = 3
WAIT_S = 60.0

LONG = "x" * 128
WIDE = "💧" * 32  # 128 bytes
IDS = ["a", "ab", "abc", "b", "ü", "日本", "a b", "\N{DIGIT ZERO}", LONG, LONG[:-1], WIDE]


class Owner(NamedTuple):
    """An owner's two handles."""

    store: Store
    feed: CountsFeed


class Reading(NamedTuple):
    """A reader's two handles."""

    store: StoreReader
    feed: FeedReader


class StoreHarness(Protocol):
    """How a test opens the store of one back end. Closing what is still open at the end is the harness's business."""

    identity: StoreIdentity
    feed_messages_max: int

    def owner(self) -> Owner:
        """A new owner. Raises StartRefused while another one is open, if the store takes only one."""
        ...

    def reader(self) -> Reading:
        """A new reader, as of now."""
        ...

    def scanner(self) -> StoreScanner:
        """All rows as of now."""
        ...


class StoreContract:
    """The promises. Every back end passes all of them."""

    # --- rows

    def test_every_handle_knows_which_rows_these_are(self, stores: StoreHarness) -> None:
        """Owner, reader and scanner say the identity they were opened with."""
        assert stores.owner().store.identity == stores.identity
        assert stores.reader().store.identity == stores.scanner().identity == stores.identity

    @pytest.mark.parametrize("name", IDS)
    def test_rows_come_back_as_they_were_written(self, stores: StoreHarness, name: str) -> None:
        """Ids of 1 to 128 bytes of any UTF-8, ids that begin like each other, and the largest numbers: nothing is cut or confused."""
        store = stores.owner().store
        edges = {
            (name, int(Kind.FOLLOW), other, ""): Edge(n % 2 == 0, 2**62 + n, 2**20, 2**50 + n)
            for n, other in enumerate(IDS)
            if other != name
        }
        edges[name, int(Kind.COMMENT), name, name] = Edge(True, 946_684_800_000_000, 0, 0)
        shards = {
            (name, int(metric), partition): Shard(metric, 2**40, ((2**50, 99_999), (2**51, 0))[:partition], 2**52)
            for metric in Metric
            for partition in range(PARTITIONS)
        }
        # Shard 2 of the metric has two crossings, so its lists may have rows in buckets 0 to 2.
        lists = {(name, int(Kind.LIKE), 2, n % 3, 5, other, ""): ListChange(True, 1) for n, other in enumerate(IDS)}
        progress = {0: Progress(0, b"\0" * 8, 0), 2: Progress(2**52, b"\xff" * 8, 2**60)}
        store.write_derived(shards, lists)
        store.write_edges(edges)
        store.write_progress(progress)
        store.sync()
        assert store.read_edges([*edges, ("nobody", 1, name, "")]) == edges
        assert store.read_shards([*shards, ("nobody", 1, 0)]) == shards
        assert store.read_progress() == progress
        found = rows_of(stores.scanner())
        assert (found.edges, found.shards, found.progress) == (edges, shards, progress)
        assert found.subject_lists == sorted(lists)
        reader = stores.reader().store
        assert reader.read_entities([name])[0] == {key[1:]: shard for key, shard in shards.items()}
        assert reader.read_progress() == progress
        assert sorted(row.other for row in reader.list_actors(name, Kind.LIKE, None, 1_000)) == sorted(IDS)

    def test_an_empty_store_is_empty(self, stores: StoreHarness) -> None:
        """What was never written is absent, not zero and not an error."""
        store = stores.owner().store
        assert store.read_edges([]) == store.read_edges([("a", 1, "b", "")]) == {}
        assert store.read_shards([]) == store.read_shards([("a", 1, 0)]) == {}
        assert store.read_progress() == {}
        reader = stores.reader().store
        assert reader.read_entities(["a"])[0] == {}
        assert reader.read_progress() == {}
        assert reader.check_edges("a", Kind.FOLLOW, ["b", "c"]) == [False, False]
        assert reader.list_actors("a", Kind.FOLLOW, None, 10) == reader.list_subjects("a", Kind.FOLLOW, None, 10) == []
        assert rows_of(stores.scanner()) == expected_rows([])

    def test_an_entity_is_not_the_one_that_begins_like_it(self, stores: StoreHarness) -> None:
        """read_entities gives the shards of each id alone, of all metrics and partitions, in the order of the question."""
        owner = stores.owner()
        shards = {(e, int(m), p): Shard(len(e) * 100 + m * 10 + p, 0, (), 1) for e in IDS for m in Metric for p in range(PARTITIONS)}
        owner.store.write_derived(shards, {})
        owner.store.sync()
        reader = stores.reader().store
        expected = {entity: {(m, p): shard for (e, m, p), shard in shards.items() if e == entity} for entity in IDS}
        asked = [*reversed(IDS), "nobody", IDS[0]]
        assert reader.read_entities(asked) == [expected.get(entity, {}) for entity in asked]
        assert reader.read_entities([]) == []

    def test_a_value_is_replaced_not_added(self, stores: StoreHarness) -> None:
        """Writes are absolute: the last position's value stands, crossings included, for owner and reader."""
        store = stores.owner().store
        reader = stores.reader().store
        for offset in (1, 5, 9):
            shard = Shard(offset * 10, offset, ((offset, 0),) * (offset % 3), offset)
            store.write_derived({("a", 1, 0): shard}, {})
            store.sync()
            assert store.read_shards([("a", 1, 0)]) == {("a", 1, 0): shard}
            reader.catch_up()
            assert reader.read_entities(["a"])[0] == {(1, 0): shard}

    def test_a_removed_edge_exists(self, stores: StoreHarness) -> None:
        """Its row stays, for the rule of the last writer; no check and no list shows it."""
        owner = stores.owner()
        apply(*owner, [record(0, 0, [("a", Kind.FOLLOW, "b", "", True, 5)])])
        apply(*owner, [record(0, 1, [("a", Kind.FOLLOW, "b", "", False, 6)])])
        key = ("a", int(Kind.FOLLOW), "b", "")
        assert owner.store.read_edges([key]) == {key: Edge(False, 6, 0, 1)}
        reader = stores.reader().store
        assert reader.check_edges("a", Kind.FOLLOW, ["b"]) == [False]
        assert reader.list_actors("b", Kind.FOLLOW, None, 10) == reader.list_subjects("a", Kind.FOLLOW, None, 10) == []

    def test_checks_answer_in_order_and_with_any_ref(self, stores: StoreHarness) -> None:
        """One answer per asked subject, duplicates too; a comment counts whatever its ref, as long as one is active."""
        owner = stores.owner()
        events: list[Event] = [("a", Kind.COMMENT, "b", ref, True, 5) for ref in ("1", "2", LONG)]
        events += [
            ("a", Kind.COMMENT, "b", "1", False, 6),
            ("a", Kind.COMMENT, "bb", "1", True, 5),
            ("a", Kind.COMMENT, "bb", "1", False, 6),
        ]
        events += [("a", Kind.LIKE, "b", "", True, 5), ("aa", Kind.LIKE, "c", "", True, 5)]
        apply(*owner, [record(0, 0, events)])
        reader = stores.reader().store
        assert reader.check_edges("a", Kind.COMMENT, ["b", "bb", "c", "b"]) == [True, False, False, True]
        assert reader.check_edges("a", Kind.LIKE, ["c", "b", "bb"]) == [False, True, False]
        assert reader.check_edges("a", Kind.FOLLOW, []) == []

    # --- lists

    def test_lists_are_newest_first_and_ties_never_change_places(self, stores: StoreHarness) -> None:
        """Both lists, in one order for every reader, page size and call; of one kind and one id alone."""
        owner = stores.owner()
        rng = random.Random(3)
        events: list[Event] = [
            (f"{name}{n}", Kind.FOLLOW, "s", "", True, rng.randint(1, 9)) for name in ("a", "bb", "ü") for n in range(20)
        ]
        events += [("s", Kind.FOLLOW, actor, "", True, at) for actor, _, _, _, _, at in events]
        events += [("z", Kind.FOLLOW, "ss", "", True, 5), ("z", Kind.LIKE, "s", "", True, 5), ("s", Kind.LIKE, "z", "", True, 5)]
        apply(*owner, [record(0, 0, events)])
        one, other = stores.reader().store, stores.reader().store
        for names, others in ((one.list_actors, other.list_actors), (one.list_subjects, other.list_subjects)):
            whole = names("s", Kind.FOLLOW, None, 1_000)
            assert [row.occurred_at for row in whole] == sorted((row.occurred_at for row in whole), reverse=True)
            assert sorted(row.other for row in whole) == sorted(actor for actor, kind, subject, *_ in events if (kind, subject) == (1, "s"))
            assert others("s", Kind.FOLLOW, None, 1_000) == whole
            paged: list[ListCursor] = []
            while page := others("s", Kind.FOLLOW, paged[-1] if paged else None, 7):
                assert len(page) == min(7, len(whole) - len(paged))
                paged += page
            assert paged == whole

    @pytest.mark.parametrize("seed", range(5))
    def test_paging_while_the_list_changes_repeats_nothing_and_hides_nothing(self, stores: StoreHarness, seed: int) -> None:
        """Rows come, go, and move up between two pages, the row of the cursor too: what stayed in place is met exactly once."""
        rng = random.Random(seed)
        owner = stores.owner()
        reader = stores.reader().store
        actors = [f"actor{n}" for n in range(40)]
        apply(*owner, [record(0, 0, [(actor, Kind.FOLLOW, "s", "", True, rng.randint(1, 30)) for actor in actors])])
        reader.catch_up()
        stayed = {row.other for row in reader.list_actors("s", Kind.FOLLOW, None, 1_000)}
        met: list[ListCursor] = []
        offset = 1
        while page := reader.list_actors("s", Kind.FOLLOW, met[-1] if met else None, 4):
            met += page
            changed = {rng.choice(actors) for _ in range(3)} | ({page[-1].other} if rng.random() < 0.5 else set())
            stayed -= changed
            events: list[Event] = [(actor, Kind.FOLLOW, "s", "", rng.random() < 0.5, 30 + offset) for actor in sorted(changed)]
            events += [(f"new{offset}", Kind.FOLLOW, "s", "", True, rng.randint(1, 30))]
            apply(*owner, [record(0, offset, events)])
            offset += 1
            reader.catch_up()
        assert len(set(met)) == len(met)
        assert [row.occurred_at for row in met] == sorted((row.occurred_at for row in met), reverse=True)
        assert stayed <= {row.other for row in met}
        assert len(stayed) > 3

    def test_comments_of_one_actor_are_rows_of_their_own(self, stores: StoreHarness) -> None:
        """Edges that differ only by their ref are listed each, and removed each."""
        owner = stores.owner()
        events: list[Event] = [("a", Kind.COMMENT, "s", ref, True, 5) for ref in ("1", "2", "12")]
        events.append(("a", Kind.COMMENT, "s", "2", False, 6))
        apply(*owner, [record(0, 0, events)])
        reader = stores.reader().store
        assert {row.ref for row in reader.list_actors("s", Kind.COMMENT, None, 10)} == {"1", "12"}
        assert {row.ref for row in reader.list_subjects("a", Kind.COMMENT, None, 10)} == {"1", "12"}

    # --- flushes

    def test_a_later_step_never_shows_without_the_earlier_ones(self, stores: StoreHarness) -> None:
        """Whatever a reader sees of a flush that is under way, it sees the steps before it too; after sync, all of it."""
        owner = stores.owner()
        reader = stores.reader().store
        for offset in range(3):
            log = [record(0, offset, [(f"a{offset}", Kind.FOLLOW, "s", "", True, 5)])]
            keys = touched(log)
            flush = fold(log, owner.store.read_edges(keys.edges), owner.store.read_shards(keys.shards))
            for step in range(len(STEPS)):
                write(*owner, flush, [step])
                reader.catch_up()
                derived = reader.read_entities(["s"])[0].get((Metric.FOLLOWERS, 0), Shard(0, 0, (), -1)).value == offset + 1
                listed = len(reader.list_actors("s", Kind.FOLLOW, None, 10)) == offset + 1
                edges = reader.check_edges(f"a{offset}", Kind.FOLLOW, ["s"]) == [True]
                progress = reader.read_progress().get(0, Progress(-1, b"", 0)).end == offset
                assert derived == listed
                assert (derived, edges, progress) in [(False, False, False), (True, False, False), (True, True, False), (True, True, True)]
            owner.store.sync()
            reader.catch_up()
            assert reader.read_progress()[0].end == offset
            assert len(reader.list_actors("s", Kind.FOLLOW, None, 10)) == offset + 1

    def test_what_was_synced_outlives_its_owner(self, stores: StoreHarness) -> None:
        """The next owner, and a reader without any owner, find every row."""
        log = random_log(7, PARTITIONS, 12)
        owner = stores.owner()
        for one in log:
            apply(*owner, [one])
        owner.store.close()
        assert rows_of(stores.scanner()) == expected_rows(log)
        assert stores.reader().store.read_progress() == expected_rows(log).progress
        assert stores.owner().store.read_progress() == expected_rows(log).progress

    @pytest.mark.parametrize("synced", [True, False])
    @pytest.mark.parametrize("steps", range(len(STEPS) + 1))
    def test_a_flush_that_broke_off_is_made_up_for(
        self, stores: StoreHarness, monkeypatch: pytest.MonkeyPatch, steps: int, synced: bool
    ) -> None:
        """An owner dies after any step, that step durable or not: the replay, with other boundaries, ends in the same rows."""
        small_buckets(monkeypatch)
        log = random_log(steps, PARTITIONS, 16)
        owner = stores.owner()
        apply(*owner, log[:5])
        apply(*owner, log[5:11], steps, sync=synced)
        owner.store.abandon()
        owner.store.close()
        owner = stores.owner()
        for part in unapplied(owner.store, log, [9, 3, 4]):
            apply(*owner, part)
        assert at_ends(rows_of(stores.scanner())) == at_ends(expected_rows(log))

    @pytest.mark.parametrize("seed", range(8))
    def test_any_boundaries_and_any_breaks_end_in_the_same_rows(
        self, stores: StoreHarness, monkeypatch: pytest.MonkeyPatch, seed: int
    ) -> None:
        """Random flushes, abandoned or broken off at random: rows, buckets and crossings are those of the log."""
        small_buckets(monkeypatch)
        rng = random.Random(seed)
        log = random_log(100 + seed, PARTITIONS, 40)
        owner = stores.owner()
        while parts := unapplied(owner.store, log, [rng.randint(1, 6)]):
            fate = rng.random()
            apply(*owner, parts[0], rng.randint(0, len(STEPS)) if fate < 0.4 else len(STEPS), sync=fate > 0.2)
            if fate < 0.4:
                owner.store.abandon()
            if fate < 0.1:
                owner.store.close()
                owner = stores.owner()
        assert at_ends(rows_of(stores.scanner())) == at_ends(expected_rows(log))

    # --- several at once

    def test_any_thread_may_read_while_the_owner_writes(self, stores: StoreHarness) -> None:
        """No shard of an entity goes back."""
        owner = stores.owner()
        reader = stores.reader().store
        done = threading.Event()
        problems: list[str] = []

        def read() -> None:
            last: dict[tuple[int, int], int] = {}
            while not done.is_set():
                reader.catch_up()
                for key, shard in reader.read_entities(["a"])[0].items():
                    if shard.value < last.get(key, 0):
                        problems.append(f"{key}: {shard.value} after {last[key]}")
                    last[key] = shard.value

        threads = [threading.Thread(target=read) for _ in range(3)]
        for thread in threads:
            thread.start()
        for offset in range(200):
            owner.store.write_derived({("a", metric, 0): Shard(offset, 0, (), offset) for metric in Metric}, {})
            owner.store.sync()
        done.set()
        for thread in threads:
            thread.join(WAIT_S)
        assert problems == []
        reader.catch_up()
        assert {shard.value for shard in reader.read_entities(["a"])[0].values()} == {199}

    def test_closing_twice_is_closing_once(self, stores: StoreHarness) -> None:
        """Every handle may be closed again."""
        for handle in (stores.scanner, stores.owner().store, stores.reader().store):
            closing = handle() if callable(handle) else handle
            closing.close()
            closing.close()


def small_buckets(monkeypatch: pytest.MonkeyPatch) -> None:
    """Buckets that a short log fills."""
    monkeypatch.setattr(buckets, "SHARED_GAINED_MAX", 1)
    monkeypatch.setattr(buckets, "BUCKET_GAINED_MAX", 2)


def unapplied(store: Store, log: Sequence[Record], sizes: Sequence[int]) -> list[list[Record]]:
    """The records after the store's progress, in parts of these sizes (the last size again and again)."""
    ends = {partition: row.end for partition, row in store.read_progress().items()}
    rest = [one for one in log if one.offset > ends.get(one.partition, -1)]
    parts = []
    for number in range(len(rest)):
        if rest:
            size = sizes[min(number, len(sizes) - 1)]
            parts.append(rest[:size])
            rest = rest[size:]
    return parts
