"""The main job on real input: follows between the accounts of a file go in through a service; degrees counted from the file come out."""

import csv
import gzip
import json
import os
from collections import Counter
from itertools import islice
from operator import itemgetter
from pathlib import Path
from typing import NamedTuple

from tests.calls import reading
from tests.commands import Settings, assert_audit_is_clean, exported_counts, watertower
from tests.needs import skip_or_fail
from watertower import bootstrap, config
from watertower.v1 import common_pb2, reader_pb2

FILE = "github-mutual-follows.csv.gz"
FOLLOWS, ACCOUNTS = 578_006, 37_700
IMPORT_S = 600.0
PAGE = 1_000

Follow = tuple[str, str]
"""(actor, subject)"""


def the_file() -> tuple[Path, list[Follow]]:
    """Where it is, and its rows."""
    folder = os.environ.get("WATERTOWER_TEST_DATA")
    file = (Path(folder) if folder else Path(__file__).parents[2] / "shared" / "data") / FILE
    if not file.exists():
        skip_or_fail(f"{FILE} is not there: name its folder in WATERTOWER_TEST_DATA")
    with gzip.open(file, "rt", newline="") as text:
        return file, [(one, other) for one, other in islice(csv.reader(text), 1, None)]


def written(rows: list[Follow], path: Path) -> Path:
    """Such rows as a file of their own."""
    with path.open("w", newline="") as text:
        csv.writer(text).writerows([("id_1", "id_2"), *rows])
    return path


class Job(NamedTuple):
    """A service, and what it is fed."""

    settings: Settings
    write_target: str
    read_target: str
    scratch: Path
    file: Path
    rows: list[Follow]

    def importing(self, file: Path, *options: str) -> dict[str, object]:
        """Runs `watertower import`, which waits until all is counted; its summary."""
        arguments = ("--kind", "follow", "--mutual", "--json", *options)
        state = ("--state", self.scratch / "state.json", "--rejects", self.scratch / "rejects.csv")
        targets = ("--write-target", self.write_target, "--read-target", self.read_target)
        ran = watertower("import", file, *arguments, *state, *targets, timeout_s=IMPORT_S)
        assert ran.code == 0, ran.err
        summary: dict[str, object] = json.loads(ran.out)
        print({name: summary[name] for name in ("events", "accepted_per_s", "visible_per_s")})
        return summary

    def listed(self, which: str, account: str) -> list[str]:
        """The whole list, page by page."""
        members: list[str] = []
        token = ""
        with reading(self.read_target) as reader:
            while True:
                if which == "followers":
                    actors = reader.ListActors(
                        reader_pb2.ListActorsRequest(subject=account, kind=common_pb2.KIND_FOLLOW, page_size=PAGE, page_token=token)
                    )
                    members += [item.actor for item in actors.items]
                    token = actors.next_page_token
                else:
                    subjects = reader.ListSubjects(
                        reader_pb2.ListSubjectsRequest(actor=account, kind=common_pb2.KIND_FOLLOW, page_size=PAGE, page_token=token)
                    )
                    members += [item.subject for item in subjects.items]
                    token = subjects.next_page_token
                if not token:
                    return members


class Lists(NamedTuple):
    """Every list of the store, in its order."""

    followers: dict[str, list[str]]
    following: dict[str, set[str]]


def degrees(rows: list[Follow]) -> Counter[str]:
    """Of each account, in how many rows it is."""
    return Counter(account for row in rows for account in row)


def stored_lists(settings: Settings) -> Lists:
    with bootstrap.opened_scanner(config.load(settings)) as scanner:
        rows: dict[str, list[tuple[int, str]]] = {}
        for subject, _, _, _, occurred_at, actor, _ in scanner.subject_lists():
            rows.setdefault(subject, []).append((-occurred_at, actor))
        following: dict[str, set[str]] = {}
        for actor, _, subject, _ in scanner.actor_lists():
            following.setdefault(actor, set()).add(subject)
    # Stable: what happened at the same moment stays as it lies, but for a list that lies in several parts, which goes by the actor.
    order = itemgetter(0) if settings.get("store", "rocksdb") == "rocksdb" else None
    return Lists({subject: [actor for _, actor in sorted(of, key=order)] for subject, of in rows.items()}, following)


def assert_counts_are(settings: Settings, accounts: Counter[str]) -> None:
    """`export counts` says of every account that it has as many followers and follows as many."""
    counts = exported_counts(settings)
    expected = {(account, metric): degree for account, degree in accounts.items() for metric in ("followers", "following")}
    differ = {key: (counts.get(key), expected.get(key)) for key in counts.keys() | expected.keys() if counts.get(key) != expected.get(key)}
    assert not differ, f"{len(differ)} counts differ (found, expected): {dict(list(differ.items())[:5])}"


def assert_lists_are(job: Job, rows: list[Follow], accounts: Counter[str]) -> Lists:
    """Every list has the members that the rows say, and the length of its count; so have the largest ones page by page."""
    lists = stored_lists(job.settings)
    neighbours: dict[str, set[str]] = {}
    for one, other in rows:
        neighbours.setdefault(one, set()).add(other)
        neighbours.setdefault(other, set()).add(one)
    assert {subject: set(actors) for subject, actors in lists.followers.items()} == neighbours
    assert {subject: len(actors) for subject, actors in lists.followers.items()} == {a: degree for a, degree in accounts.items() if degree}
    assert lists.following == neighbours
    for account, degree in accounts.most_common(5):
        assert job.listed("followers", account) == lists.followers[account]
        following = job.listed("following", account)
        assert (len(following), set(following)) == (degree, lists.following[account])
    return lists


def do_it(job: Job, removed_rows: int) -> None:
    """After the import every account has as many followers and follows as many as it has rows in the file, and its lists have these
    members. A second import changes no count and no list. Removing some rows lowers exactly those."""
    settings, accounts = job.settings, degrees(job.rows)
    summary = job.importing(job.file)
    assert (summary["rows"], summary["events"], summary["rejected"]) == (len(job.rows), 2 * len(job.rows), 0)
    assert_counts_are(settings, accounts)
    first = assert_lists_are(job, job.rows, accounts)
    assert assert_audit_is_clean(settings)["active_edges"] == 2 * len(job.rows)
    most, _ = accounts.most_common(1)[0]
    ran = watertower("list", "actors", most, "--json", "--read-target", job.read_target)
    assert [json.loads(line)["actor"] for line in ran.out.splitlines()[:-1]] == first.followers[most]

    summary = job.importing(job.file)
    assert (summary["events"], summary["resumed_after_rows"]) == (2 * len(job.rows), 0)
    assert_counts_are(settings, accounts)
    assert stored_lists(settings) == first

    removed = job.rows[1_000 : 1_000 + removed_rows]
    assert job.importing(written(removed, job.scratch / "part.csv"), "--remove")["events"] == 2 * removed_rows
    accounts.subtract(degrees(removed))
    gone = set(removed)
    left = [row for row in job.rows if row not in gone]
    assert_counts_are(settings, accounts)
    after = assert_lists_are(job, left, accounts)
    assert assert_audit_is_clean(settings)["active_edges"] == 2 * len(left)
    for subject, actors in after.followers.items():
        stay = set(actors)
        assert actors == [actor for actor in first.followers[subject] if actor in stay], "those that stay keep their order"
