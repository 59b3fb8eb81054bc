"""The main job on the embedded back ends: 578,006 follows between 37,700 accounts."""

from pathlib import Path

from tests.main_job import ACCOUNTS, FOLLOWS, Job, degrees, do_it, the_file
from watertower.testing.service import Service


def test_the_file_is_what_it_is_said_to_be() -> None:
    """What the expectations rest on: no row twice, no account with itself."""
    _, rows = the_file()
    assert (2 * len(rows), len(degrees(rows))) == (FOLLOWS, ACCOUNTS)
    assert len({frozenset(row) for row in rows}) == len(rows)
    assert all(one != other for one, other in rows)


def test_counts_and_lists_are_exact_twice_over_and_after_removals(tmp_path: Path) -> None:
    """The whole file."""
    file, rows = the_file()
    with Service(tmp_path / "data") as service:
        service.start()
        do_it(Job({"data": service.data}, service.write_target, service.read_target, tmp_path, file, rows), removed_rows=5_000)
        assert service.events("role_died") == []
        assert service.stop() == 0
