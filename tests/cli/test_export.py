"""`watertower export`: what is written, in which form, and what happens when it cannot be."""

import csv
import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.conftest import Watertower
from tests.cli.stored import data_folder
from tests.core.histories import PARTITIONS, Happening
from watertower.core.model import Kind

T = 1_767_323_045_000_006  # 2026-01-02T03:04:05.000006Z


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Three fans of one star, one of whom left, and a comment with a name that csv must quote."""
    events = [
        *(Happening(f"fan{n}", Kind.FOLLOW, "star", "", True, T) for n in range(3)),
        Happening("fan1", Kind.FOLLOW, "star", "", False, T + 1),
        Happening('o"k, then', Kind.COMMENT, "post", "c1", True, T),
    ]
    data_folder(tmp_path / "data", events, PARTITIONS)
    return tmp_path / "data"


def test_counts(data: Path, watertower: Watertower) -> None:
    """entity,metric,value: the shards of a count are summed; a count that is zero now has a row as well."""
    result = watertower("export", "counts", "--data", data)
    assert result.code == 0
    header, *rows = list(csv.reader(result.out.splitlines()))
    assert header == ["entity", "metric", "value"]
    assert sorted(rows) == [
        ["fan0", "following", "1"],
        ["fan1", "following", "0"],
        ["fan2", "following", "1"],
        ['o"k, then', "comments_written", "1"],
        ["post", "comments", "1"],
        ["star", "followers", "2"],
    ]


def test_edges(data: Path, watertower: Watertower) -> None:
    """actor,kind,subject,ref,state,occurred_at: removed edges too, times to the microsecond."""
    result = watertower("export", "edges", "--data", data)
    header, *rows = list(csv.reader(result.out.splitlines()))
    assert header == ["actor", "kind", "subject", "ref", "state", "occurred_at"]
    assert sorted(rows) == [
        ["fan0", "follow", "star", "", "active", "2026-01-02T03:04:05.000006Z"],
        ["fan1", "follow", "star", "", "removed", "2026-01-02T03:04:05.000007Z"],
        ["fan2", "follow", "star", "", "active", "2026-01-02T03:04:05.000006Z"],
        ['o"k, then', "comment", "post", "c1", "active", "2026-01-02T03:04:05.000006Z"],
    ]


def test_ndjson_into_a_file(data: Path, tmp_path: Path, watertower: Watertower) -> None:
    """--format ndjson has the same names and types that fit; --output writes a file, whole or not at all."""
    file = tmp_path / "counts.ndjson"
    result = watertower("export", "counts", "--data", data, "--format", "ndjson", "--output", file)
    assert (result.code, result.out) == (0, "")
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert {"entity": "star", "metric": "followers", "value": 2} in rows
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith("counts")] == ["counts.ndjson"]


@pytest.mark.slow
def test_a_reader_that_goes_away_is_no_error(tmp_path: Path) -> None:
    """`watertower export edges | head` ends quietly."""
    data_folder(tmp_path / "data", [Happening(f"fan{n}", Kind.FOLLOW, "star", "", True, T) for n in range(5_000)], PARTITIONS)
    command = [sys.executable, "-m", "watertower", "export", "edges", "--data", str(tmp_path / "data")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stderr is not None
    assert process.stdout.readline() == "actor,kind,subject,ref,state,occurred_at\n"
    process.stdout.close()
    assert process.stderr.read() == ""
    process.stderr.close()
    assert process.wait(30) == 0


def test_bad_usage(data: Path, tmp_path: Path, watertower: Watertower) -> None:
    """Another format is bad usage; a folder that cannot be written to is an error that names the file."""
    result = watertower("export", "counts", "--data", data, "--format", "xml")
    assert (result.code, "must be csv or ndjson" in result.err) == (2, True)
    result = watertower("export", "counts", "--data", data, "--output", tmp_path / "none" / "out.csv")
    assert (result.code, "out.csv" in result.err) == (1, True)
