"""The audit: finds nothing where nothing is wrong, and every single wrong row, by name."""

import dataclasses
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.cli.conftest import Watertower
from tests.cli.stored import Scanner, data_folder, ends_of, store_of
from tests.core.histories import PARTITIONS, Happening, Rows, apply_all, happenings, records_of
from watertower import audit as audit_module
from watertower.audit import (
    ACTOR_LIST,
    COUNT,
    DIFFERENCE_KINDS,
    EDGE_AHEAD_OF_SHARD,
    EDGE_BEYOND_PROGRESS,
    NEGATIVE,
    SUBJECT_LIST,
    Difference,
    Totals,
)
from watertower.backends.rocksdb import RocksDbStore
from watertower.bootstrap.scratch import scratch
from watertower.cli.options import opened_scanner
from watertower.core.model import Kind, ListChange, Metric, Shard
from watertower.core.sharding import partition_of
from watertower.datafolder import open_or_create
from watertower.ports import StoreIdentity
from watertower.role import EXIT_REFUSED

T = 1_700_000_000_000_000
EVENTS = [
    Happening("ann", Kind.FOLLOW, "star", "", True, T),
    Happening("bob", Kind.FOLLOW, "star", "", True, T + 1),
    Happening("cem", Kind.FOLLOW, "star", "", True, T + 2),
    Happening("cem", Kind.FOLLOW, "star", "", False, T + 3),
    Happening("ann", Kind.LIKE, "post", "", True, T + 4),
    Happening("ann", Kind.COMMENT, "post", "c1", True, T + 5),
    Happening("star", Kind.FOLLOW, "ann", "", True, T + 6),
]


def scanner_of(events: list[Happening]) -> Scanner:
    records = records_of(events, [3, 2])
    return Scanner(apply_all(records, [1, 2]), ends_of(records), PARTITIONS)


def audited(scanner: Scanner) -> tuple[Totals, list[Difference]]:
    found: list[Difference] = []
    return audit_module.audit(scanner, found.append), found


@given(st.lists(happenings(), max_size=40), st.lists(st.integers(1, 5), max_size=10))
def test_what_the_fold_wrote_is_clean(events: list[Happening], sizes: list[int]) -> None:
    """Whatever happened, in whatever flushes, the audit finds nothing and has looked at everything."""
    records = records_of(events, sizes)
    rows = apply_all(records, sizes)
    totals, found = audited(Scanner(rows, ends_of(records), PARTITIONS))
    assert found == []
    active = sum(edge.active for edge in rows.edges.values())
    assert totals == Totals(len(rows.edges), active, len(rows.shards), len(rows.lists), active)
    assert len(rows.lists) == active


def test_an_empty_store_is_clean() -> None:
    """No rows, no differences."""
    assert audited(Scanner(Rows({}, {}, set()), {}, PARTITIONS)) == (Totals(0, 0, 0, 0, 0), [])


@dataclasses.dataclass
class Planted:
    """One thing wrong, and what the audit must say."""

    plant: Callable[[Scanner], None]
    expected: list[Difference]


ANN = partition_of("ann", PARTITIONS)
BOB_ROW_KEY = {"actor": "bob", "kind": "follow", "subject": "star", "ref": ""}
BOB = partition_of("bob", PARTITIONS)


def bobs_row(rows: Rows) -> Any:
    return next(row for row in rows.lists if row[5] == "bob")


def change_shard(scanner: Scanner, key: tuple[str, int, int], **changes: Any) -> None:
    scanner.rows.shards[key] = scanner.rows.shards.get(key, Shard(0, 0, (), 99))._replace(**changes)


def move_row(scanner: Scanner, **changes: int) -> None:
    row = bobs_row(scanner.rows)
    subject, kind, shard, bucket, at, actor, ref = row
    scanner.rows.lists.remove(row)
    scanner.rows.lists.add((subject, kind, changes.get("shard", shard), changes.get("bucket", bucket), changes.get("at", at), actor, ref))


def count(entity: str, metric: str, shard: int, expected: int, found: int) -> Difference:
    return Difference(COUNT, {"entity": entity, "metric": metric, "shard": shard}, expected, found)


BOB_PLACE = {"shard": BOB, "bucket": 0, "occurred_at": T + 1}
LATER_PLACE = {**BOB_PLACE, "occurred_at": T + 9}
STRANGER = {"actor": "eve", "kind": "follow", "subject": "star", "ref": ""}

PLANTED = {
    "a subject's count is too high": Planted(
        lambda s: change_shard(s, ("post", Metric.LIKES, ANN), value=2), [count("post", "likes", ANN, 1, 2)]
    ),
    "an actor's count is too low": Planted(
        lambda s: change_shard(s, ("ann", Metric.FOLLOWING, ANN), value=0), [count("ann", "following", ANN, 1, 0)]
    ),
    "a count of nobody": Planted(
        lambda s: change_shard(s, ("ghost", Metric.FOLLOWERS, 0), value=5), [count("ghost", "followers", 0, 0, 5)]
    ),
    "an actor's count in a shard that is not its own": Planted(
        lambda s: change_shard(s, ("ann", Metric.FOLLOWING, (ANN + 1) % PARTITIONS), value=1),
        [count("ann", "following", (ANN + 1) % PARTITIONS, 0, 1)],
    ),
    "a count of an actor without edges": Planted(
        lambda s: change_shard(s, ("zoe", Metric.LIKES_GIVEN, 1), value=1), [count("zoe", "likes_given", 1, 0, 1)]
    ),
    "a negative count": Planted(
        lambda s: change_shard(s, ("ghost", Metric.LIKES, 2), value=-1),
        [
            count("ghost", "likes", 2, 0, -1),
            Difference(NEGATIVE, {"entity": "ghost", "metric": "likes", "shard": 2}, 0, -1),
        ],
    ),
    "a subject's shard is lost": Planted(
        lambda s: s.rows.shards.pop(("post", Metric.LIKES, ANN)) and None,
        [
            count("post", "likes", ANN, 1, 0),
            Difference(EDGE_AHEAD_OF_SHARD, {"entity": "post", "metric": "likes", "shard": ANN}, 1, -1),
        ],
    ),
    "an actor's shards are lost": Planted(
        lambda s: s.rows.shards.pop(("ann", Metric.LIKES_GIVEN, ANN)) and None,
        [
            count("ann", "likes_given", ANN, 1, 0),
            Difference(EDGE_AHEAD_OF_SHARD, {"entity": "ann", "metric": "likes_given", "shard": ANN}, 1, -1),
        ],
    ),
    "a shard is behind an edge": Planted(
        lambda s: change_shard(s, ("ann", Metric.COMMENTS_WRITTEN, ANN), offset=0),
        [Difference(EDGE_AHEAD_OF_SHARD, {"entity": "ann", "metric": "comments_written", "shard": ANN}, 2, 0)],
    ),
    "progress is behind an edge": Planted(
        lambda s: s.ends.update({ANN: s.ends[ANN]._replace(end=1)}),
        [Difference(EDGE_BEYOND_PROGRESS, {"actor": "ann", "kind": "comment", "subject": "post", "ref": "c1"}, 1, 2)],
    ),
    "a list row is missing": Planted(
        lambda s: s.rows.lists.remove(bobs_row(s.rows)), [Difference(SUBJECT_LIST, BOB_ROW_KEY, BOB_PLACE, None)]
    ),
    "a list row has no edge": Planted(
        lambda s: s.rows.lists.add(("star", Kind.FOLLOW, 1, 0, T, "eve", "")),
        [Difference(SUBJECT_LIST, STRANGER, None, {"shard": 1, "bucket": 0, "occurred_at": T})],
    ),
    "a list row has another time": Planted(
        lambda s: move_row(s, at=T + 9),
        [
            Difference(SUBJECT_LIST, BOB_ROW_KEY, BOB_PLACE, None),
            Difference(SUBJECT_LIST, BOB_ROW_KEY, None, LATER_PLACE),
        ],
    ),
    "a list row is in another bucket": Planted(
        lambda s: move_row(s, bucket=1),
        [Difference(SUBJECT_LIST, BOB_ROW_KEY, BOB_PLACE, None), Difference(SUBJECT_LIST, BOB_ROW_KEY, None, {**BOB_PLACE, "bucket": 1})],
    ),
    "a list row is in another shard": Planted(
        lambda s: move_row(s, shard=7),
        [Difference(SUBJECT_LIST, BOB_ROW_KEY, BOB_PLACE, None), Difference(SUBJECT_LIST, BOB_ROW_KEY, None, {**BOB_PLACE, "shard": 7})],
    ),
    "an actor's list lacks a row": Planted(
        lambda s: s.actor_rows.remove(("bob", Kind.FOLLOW, "star", "")), [Difference(ACTOR_LIST, BOB_ROW_KEY, 1, 0)]
    ),
    "an actor's list has a row twice": Planted(
        lambda s: s.actor_rows.append(("bob", Kind.FOLLOW, "star", "")), [Difference(ACTOR_LIST, BOB_ROW_KEY, 1, 2)]
    ),
    "an actor's list shows a removed edge": Planted(
        lambda s: s.actor_rows.append(("cem", Kind.FOLLOW, "star", "")),
        [Difference(ACTOR_LIST, {**BOB_ROW_KEY, "actor": "cem"}, 0, 1)],
    ),
}


@pytest.mark.parametrize("name", PLANTED)
def test_each_wrong_row_is_named(name: str) -> None:
    """Exactly what is wrong is reported: its kind, its key, what was expected and what was found."""
    scanner = scanner_of(EVENTS)
    assert audited(scanner)[1] == []
    PLANTED[name].plant(scanner)
    found = audited(scanner)[1]
    assert sorted(found, key=repr) == sorted(PLANTED[name].expected, key=repr)


def test_every_kind_of_difference_is_planted() -> None:
    """No kind of difference is without a test."""
    assert {difference.kind for planted in PLANTED.values() for difference in planted.expected} == set(DIFFERENCE_KINDS)


def test_many_differences_are_found_in_bounded_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    """When more list rows differ than are held at once, every one is still named, once."""
    events = [Happening(f"a{n}", Kind.FOLLOW, f"s{n % 5}", "", True, T + n) for n in range(300)]
    scanner = scanner_of(events)
    scanner.rows.lists.clear()
    scanner.actor_rows.clear()
    monkeypatch.setattr(audit_module, "ROWS_HELD_MAX", 7)
    found = audited(scanner)[1]
    assert sorted(d.key["actor"] for d in found if d.kind == SUBJECT_LIST) == sorted(e.actor for e in events)
    assert sorted(d.key["actor"] for d in found if d.kind == ACTOR_LIST) == sorted(e.actor for e in events)


def test_the_order_of_ids_does_not_matter(rng: random.Random) -> None:
    """A store may yield actors and entities in any order: that costs memory, not correctness."""
    scanner = scanner_of([Happening(f"a{n}", Kind.FOLLOW, f"a{n // 2}x", "", True, T + n) for n in range(100)])
    shards = list(scanner.shards())
    rng.shuffle(shards)
    shards.sort(key=lambda row: hash(row[0][0]))
    scanner.shards = lambda: iter(shards)  # type: ignore[method-assign]  # a scan in another order
    assert audited(scanner)[1] == []
    scanner.rows.edges.pop(("a7", Kind.FOLLOW, "a3x", ""))
    assert {d.kind for d in audited(scanner)[1]} == {COUNT, SUBJECT_LIST, ACTOR_LIST}


def test_the_command_on_a_clean_folder(tmp_path: Path, watertower: Watertower) -> None:
    """A clean folder: exit code 0 and one sentence; --json says the same to machines."""
    data_folder(tmp_path / "data", EVENTS, PARTITIONS)
    result = watertower("audit", "--data", tmp_path / "data")
    assert result.code == 0
    assert result.out.startswith("clean: every count and every list is what the edges say. 6 edges (5 active)")
    found = watertower("audit", "--data", tmp_path / "data", "--json").json
    assert found["clean"]
    assert (found["edges"], found["active_edges"], found["subject_list_rows"], found["actor_list_rows"]) == (6, 5, 5, 5)


def test_the_command_on_a_folder_with_differences(tmp_path: Path, watertower: Watertower) -> None:
    """Differences are printed up to the limit and all counted; exit code 1."""
    data_folder(tmp_path / "data", EVENTS, PARTITIONS)
    store = store_of(tmp_path / "data", PARTITIONS)
    row = ("star", int(Kind.FOLLOW), BOB, 0, T + 1, "bob", "")
    store.write_derived({("post", int(Metric.LIKES), ANN): Shard(7, 7, (), 50)}, {row: ListChange(False, 50)})
    store.sync()
    store.close()
    result = watertower("audit", "--data", tmp_path / "data")
    assert result.code == 1
    assert "3 differences: 1 count, 1 subject_list, 1 actor_list" in result.out
    assert f"entity=post metric=likes shard={ANN}" in result.out
    limited = watertower("audit", "--data", tmp_path / "data", "--limit", 1)
    assert "3 differences, 1 of them shown" in limited.out
    found = watertower("audit", "--data", tmp_path / "data", "--json")
    assert found.code == 1
    assert not found.json["clean"]
    assert found.json["differences"] == {**dict.fromkeys(DIFFERENCE_KINDS, 0), COUNT: 1, SUBJECT_LIST: 1, ACTOR_LIST: 1}
    assert {d["kind"] for d in found.json["shown"]} == {COUNT, SUBJECT_LIST, ACTOR_LIST}


def test_a_folder_that_is_none(tmp_path: Path, watertower: Watertower) -> None:
    """A path without a data folder is one line that names it, not an empty audit."""
    result = watertower("audit", "--data", tmp_path / "none")
    assert result.code == EXIT_REFUSED  # 1 would say that differences were found
    assert str(tmp_path / "none") in result.err
    assert len(result.err.splitlines()) == 1


def test_scratch_of_the_dead_is_removed(tmp_path: Path) -> None:
    """What a killed query process, audit, export or backup left goes with the next start, whoever has its process id by now (1 is always
    there); what belongs to the living, or to others, stays."""
    folder = open_or_create(tmp_path / "data", PARTITIONS)
    RocksDbStore(folder.store_path, StoreIdentity(folder.identity, folder.generation), 1 << 20, 1 << 20, 10).close()
    dead = ["query-1", f"query-{os.getpid()}-x", "scan-1-x_1", "backup-1-x"]
    others = ["query-me", "1"]
    with scratch(folder.readers_path, "query") as alive:
        for name in (*dead, *others):
            (folder.readers_path / name / "within").mkdir(parents=True)
        with opened_scanner(folder.path):
            pass
        assert sorted(path.name for path in folder.readers_path.iterdir()) == sorted([*others, alive.name])
    assert sorted(path.name for path in folder.readers_path.iterdir()) == sorted(others)


def test_a_folder_without_a_store_is_left_as_it_was(tmp_path: Path, watertower: Watertower) -> None:
    """Ingest ran, the projector never did: said in one line, and nothing of the attempt stays."""
    open_or_create(tmp_path / "data", PARTITIONS)
    result = watertower("audit", "--data", tmp_path / "data")
    assert result.code == 1
    assert len(result.err.splitlines()) == 1
    assert list((tmp_path / "data" / "readers").iterdir()) == []
