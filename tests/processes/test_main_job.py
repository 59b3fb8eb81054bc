"""The main job on real input: 578,006 follows between 37,700 accounts go in through the service; degrees counted from the file come out."""

import csv
import gzip
import json
import os
from collections import Counter
from collections.abc import Iterator
from itertools import groupby, islice
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.calls import reading
from tests.commands import assert_audit_is_clean, exported_counts, watertower
from tests.needs import skip_or_fail
from watertower.cli.options import opened_scanner
from watertower.testing.service import Service
from watertower.v1 import common_pb2, reader_pb2

FILE = "github-mutual-follows.csv.gz"
FOLLOWS, ACCOUNTS = 578_006, 37_700
REMOVED_ROWS = 5_000
IMPORT_S = 240.0
PAGE = 1_000

Follow = tuple[str, str]
"""(actor, subject)"""


class Job(NamedTuple):
    """A service, and what it is fed."""

    service: Service
    file: Path
    rows: list[Follow]

    def importing(self, file: Path, *options: str) -> dict[str, object]:
        """Runs `watertower import`, which waits until all is counted; its summary."""
        arguments = ("--kind", "follow", "--mutual", "--json", *options)
        state = ("--state", self.service.data.with_name("state.json"), "--rejects", self.service.data.with_name("rejects.csv"))
        targets = ("--write-target", self.service.write_target, "--read-target", self.service.read_target)
        ran = watertower("import", file, *arguments, *state, *targets, timeout_s=IMPORT_S)
        assert ran.code == 0, ran.err
        summary: dict[str, object] = json.loads(ran.out)
        print({name: summary[name] for name in ("events", "accepted_per_s", "visible_per_s")})
        return summary

    def listed(self, which: str, account: str) -> list[str]:
        """The whole list, page by page."""
        members: list[str] = []
        token = ""
        with reading(self.service.read_target) as reader:
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


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Job]:
    folder = os.environ.get("WATERTOWER_TEST_DATA")
    file = (Path(folder) if folder else Path(__file__).parents[3] / "shared" / "data") / FILE
    if not file.exists():
        skip_or_fail(f"{FILE} is not there: name its folder in WATERTOWER_TEST_DATA")
    with gzip.open(file, "rt", newline="") as text:
        rows = [(one, other) for one, other in islice(csv.reader(text), 1, None)]
    with Service(tmp_path_factory.mktemp("job") / "data") as service:
        service.start()
        job = Job(service, file, rows)
        summary = job.importing(file)
        assert (summary["rows"], summary["events"], summary["rejected"]) == (FOLLOWS // 2, FOLLOWS, 0)
        yield job
        assert service.events("role_died") == []
        assert service.stop() == 0


def degrees(rows: list[Follow]) -> Counter[str]:
    """Of each account, in how many rows it is."""
    return Counter(account for row in rows for account in row)


def stored_lists(data: Path) -> Lists:
    with opened_scanner(data) as scanner:
        followers = {
            subject: [actor for _, _, _, _, _, actor, _ in sorted(rows, key=lambda row: -row[4])]  # stable: ties stay as they lie
            for subject, rows in groupby(scanner.subject_lists(), key=lambda row: row[0])
        }
        following = {
            actor: {subject for _, _, subject, _ in rows} for actor, rows in groupby(scanner.actor_lists(), key=lambda row: row[0])
        }
    return Lists(followers, following)


def assert_counts_are(data: Path, accounts: Counter[str]) -> None:
    """`export counts` says of every account that it has as many followers and follows as many."""
    counts = exported_counts({"data": data})
    expected = {(account, metric): degree for account, degree in accounts.items() for metric in ("followers", "following")}
    differ = {key: (counts.get(key), expected.get(key)) for key in counts.keys() | expected.keys() if counts.get(key) != expected.get(key)}
    assert not differ, f"{len(differ)} counts differ (found, expected): {dict(list(differ.items())[:5])}"


def assert_lists_are(job: Job, rows: list[Follow], accounts: Counter[str]) -> Lists:
    """Every list has the members that the rows say, and the length of its count; so have the largest ones page by page."""
    lists = stored_lists(job.service.data)
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


def test_the_file_is_what_it_is_said_to_be(job: Job) -> None:
    """What the expectations below rest on: no row twice, no account with itself."""
    assert (2 * len(job.rows), len(degrees(job.rows))) == (FOLLOWS, ACCOUNTS)
    assert len({frozenset(row) for row in job.rows}) == len(job.rows)
    assert all(one != other for one, other in job.rows)


def test_counts_and_lists_are_exact_twice_over_and_after_removals(job: Job, tmp_path: Path) -> None:
    """After the import every account has as many followers and follows as many as it has rows in the file, and its lists have these
    members. A second import changes no count and no list. Removing some rows lowers exactly those."""
    data, accounts = job.service.data, degrees(job.rows)
    assert_counts_are(data, accounts)
    first = assert_lists_are(job, job.rows, accounts)
    assert assert_audit_is_clean({"data": data})["active_edges"] == FOLLOWS
    most, _ = accounts.most_common(1)[0]
    ran = watertower("list", "actors", most, "--json", "--read-target", job.service.read_target)
    assert [json.loads(line)["actor"] for line in ran.out.splitlines()[:-1]] == first.followers[most]

    summary = job.importing(job.file)
    assert (summary["events"], summary["resumed_after_rows"]) == (FOLLOWS, 0)
    assert_counts_are(data, accounts)
    assert stored_lists(data) == first

    removed = job.rows[1_000 : 1_000 + REMOVED_ROWS]
    part = tmp_path / "part.csv"
    with part.open("w", newline="") as text:
        csv.writer(text).writerows([("id_1", "id_2"), *removed])
    assert job.importing(part, "--remove")["events"] == 2 * REMOVED_ROWS
    accounts.subtract(degrees(removed))
    gone = set(removed)
    left = [row for row in job.rows if row not in gone]
    assert_counts_are(data, accounts)
    after = assert_lists_are(job, left, accounts)
    assert assert_audit_is_clean({"data": data})["active_edges"] == 2 * len(left)
    for subject, actors in after.followers.items():
        stay = set(actors)
        assert actors == [actor for actor in first.followers[subject] if actor in stay], "those that stay keep their order"
