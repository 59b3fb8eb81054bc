"""`watertower import`: which events a file becomes, what is rejected, and how an import that was cut off goes on."""

import contextlib
import fcntl
import gzip
import json
import os
import pty
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import grpc
import pytest

from tests.cli.conftest import Watertower
from tests.cli.fakes import Event, FakeService, Refusal, serving
from watertower.cli import import_run, import_state
from watertower.cli.import_source import LINE_BYTES_MAX
from watertower.cli.output import CommandFailed
from watertower.core.positions import Position, encode_position
from watertower.errors import Reason
from watertower.v1 import common_pb2, writer_pb2

ACTIVE, REMOVED = 1, 2
FOLLOW, LIKE, COMMENT = 1, 2, 3


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def edges(service: FakeService) -> list[tuple[str, int, str, str, int]]:
    return sorted(event[:5] for event in service.events)


def rejects(path: Path) -> list[str]:
    return Path(f"{path}.rejects.csv").read_text(encoding="utf-8").splitlines()


def test_the_first_two_columns_are_actor_and_subject(tmp_path: Path, service: FakeService, client: Watertower) -> None:
    """A csv needs no options: its first two columns become follows, all of one time, and the summary says how many."""
    file = write(tmp_path / "f.csv", "actor,subject,other\n0,1,x\n0,2,y\n")
    before_us = time.time_ns() // 1000
    result = client("import", file, "--json")
    assert result.code == 0
    assert edges(service) == [("0", FOLLOW, "1", "", ACTIVE), ("0", FOLLOW, "2", "", ACTIVE)]
    (at,) = {event.occurred_at for event in service.events}
    assert before_us <= at <= time.time_ns() // 1000
    summary = result.json
    assert (summary["rows"], summary["events"], summary["rejected"]) == (2, 2, 0)
    assert summary["visible_s"] is not None
    assert not Path(f"{file}.rejects.csv").exists()


def test_mutual_rows_are_two_edges(tmp_path: Path, service: FakeService, client: Watertower) -> None:
    """--mutual makes each row two edges, one each way."""
    result = client("import", write(tmp_path / "f.csv", "actor,subject\nann,bob\n"), "--mutual", "--json")
    assert edges(service) == [("ann", FOLLOW, "bob", "", ACTIVE), ("bob", FOLLOW, "ann", "", ACTIVE)]
    assert (result.json["rows"], result.json["events"]) == (1, 2)


def test_remove_sets_edges_to_removed(tmp_path: Path, service: FakeService, client: Watertower) -> None:
    """--remove says REMOVED, for the kind that was named."""
    client("import", write(tmp_path / "f.csv", "actor,subject\nann,post\n"), "--remove", "--kind", "like")
    assert edges(service) == [("ann", LIKE, "post", "", REMOVED)]


def test_columns_are_chosen_by_name(tmp_path: Path, service: FakeService, client: Watertower) -> None:
    """Columns may be anywhere, under any name; a comment's ref too."""
    file = write(tmp_path / "f.csv", "ref,who,at,what\nc1,ann,2026-01-02T03:04:05.000006Z,post\n")
    client(
        "import",
        file,
        "--kind",
        "comment",
        "--actor-column",
        "who",
        "--subject-column",
        "what",
        "--ref-column",
        "ref",
        "--time-column",
        "at",
    )
    assert service.events == [Event("ann", COMMENT, "post", "c1", ACTIVE, 1_767_323_045_000_006)]


def test_a_comment_takes_its_ref_from_the_third_column(tmp_path: Path, service: FakeService, client: Watertower) -> None:
    """For comments, the third column is the ref unless another one is named."""
    client("import", write(tmp_path / "f.csv", "actor,subject,ref\nann,post,c1\n"), "--kind", "comment")
    assert edges(service) == [("ann", COMMENT, "post", "c1", ACTIVE)]


def test_a_csv_without_a_header(tmp_path: Path, service: FakeService, client: Watertower) -> None:
    """--no-header takes the first line as a row, and columns by number from 1."""
    client("import", write(tmp_path / "f.csv", "x,bob,ann\n"), "--no-header", "--actor-column", "3", "--subject-column", "2")
    assert edges(service) == [("ann", FOLLOW, "bob", "", ACTIVE)]


def test_columns_are_found_by_name_in_any_order(tmp_path: Path, service: FakeService, client: Watertower) -> None:
    """A header decides by its names, not by its order; columns that nobody asked for are left alone."""
    assert client("import", write(tmp_path / "f.csv", "subject,since,actor\nbob,2020,ann\n")).code == 0
    assert edges(service) == [("ann", FOLLOW, "bob", "", ACTIVE)]


@pytest.mark.parametrize(
    ("arguments", "text", "message"),
    [
        (
            ("--actor-column", "a"),
            "ann,bob\ncid,bob\n",
            "it has 'ann', 'bob': name the columns with --actor-column, --subject-column, or say --no-header if",
        ),
        ((), "id_1,actor\ncid,bob\n", "names no column 'subject'; it has 'id_1', 'actor'"),
        (
            ("--kind", "comment"),
            "actor,subject\nann,p\n",
            "no column 'ref'; it has 'actor', 'subject': name the columns with --actor-column, ",
        ),
        ((), "actor;subject\nann;bob\n", "columns must be separated by commas, and here seem to be by ';'"),
        ((), "actor\tsubject\nann\tbob\n", r"columns must be separated by commas, and here seem to be by '\t'"),
    ],
)
def test_a_first_line_that_names_other_columns(
    tmp_path: Path, service: FakeService, client: Watertower, arguments: tuple[str, ...], text: str, message: str
) -> None:
    """Where some of the names are there, or asked for, the rest is not guessed: the message names what is there and the options."""
    result = client("import", write(tmp_path / "f.csv", text), *arguments)
    assert (result.code, len(result.err.splitlines())) == (2, 1)
    assert message in result.err
    assert service.calls == []


def test_a_first_line_with_names_of_its_own_is_taken_by_place(tmp_path: Path, service: FakeService, client: Watertower) -> None:
    """None of the names is there, and no option names any: the first two columns, and that is said."""
    result = client("import", write(tmp_path / "f.csv", "id_1,id_2,since\nann,bob,2020\n"))
    assert result.code == 0
    assert "names no columns actor and subject: taken by place, 'id_1' as actor, 'id_2' as subject (--actor-column" in result.err
    assert edges(service) == [("ann", FOLLOW, "bob", "", ACTIVE)]


def test_a_column_that_is_not_there(tmp_path: Path, service: FakeService, client: Watertower) -> None:
    """A wrong column name is bad usage, and the message names the columns that there are."""
    file = write(tmp_path / "f.csv", "actor,subject\nann,bob\n")
    result = client("import", file, "--actor-column", "who")
    assert result.code == 2
    assert f"the first line of {file} names no column 'who'; it has 'actor', 'subject': " in result.err
    assert service.events == []
    assert client("import", tmp_path / "f.csv").code == 0  # nothing was begun, so nothing is in the way


@pytest.mark.parametrize(
    ("unit", "text", "micros"),
    [
        ("rfc3339", "2026-01-02T03:04:05+01:00", 1_767_319_445_000_000),
        ("rfc3339", "2026-01-02 03:04:05.1234567Z", 1_767_323_045_123_456),
        ("s", "1767323045", 1_767_323_045_000_000),
        ("s", "1767323045.25", 1_767_323_045_250_000),
        ("ms", "1767323045250", 1_767_323_045_250_000),
        ("us", "1767323045250001", 1_767_323_045_250_001),
    ],
)
def test_times(tmp_path: Path, service: FakeService, client: Watertower, unit: str, text: str, micros: int) -> None:
    """A time column is RFC 3339, or a number in the unit that was named; microseconds are kept, what is finer is cut off."""
    client("import", write(tmp_path / "f.csv", f"actor,subject,at\nann,bob,{text}\n"), "--time-column", "at", "--time-unit", unit)
    assert [event.occurred_at for event in service.events] == [micros]


def test_rows_without_a_time_take_the_one_given(tmp_path: Path, service: FakeService, client: Watertower) -> None:
    """--at is the time of every row that has none of its own."""
    file = write(tmp_path / "f.csv", "actor,subject,at\nann,bob,\nann,cem,2026-01-02T03:04:06Z\n")
    client("import", file, "--at", "2026-01-02T03:04:05Z", "--time-column", "at")
    assert [e.occurred_at for e in sorted(service.events, key=lambda e: e.subject)] == [1_767_323_045_000_000, 1_767_323_046_000_000]


def test_ndjson(tmp_path: Path, service: FakeService, client: Watertower) -> None:
    """ndjson has keys actor, subject, ref; numbers are taken as ids; compressed or not."""
    file = tmp_path / "f.ndjson.gz"
    with gzip.open(file, "wt") as out:
        out.write('{"actor": 7, "subject": "post", "ref": "c1"}\n\n{"actor": "ann", "subject": "post", "ref": "c2", "more": [1]}\n')
    client("import", file, "--kind", "comment")
    assert edges(service) == [("7", COMMENT, "post", "c1", ACTIVE), ("ann", COMMENT, "post", "c2", ACTIVE)]


def test_bad_rows_are_rejected_and_the_rest_goes_in(tmp_path: Path, service: FakeService, client: Watertower) -> None:
    """Each bad row goes to the rejects file with its line and the rule that it breaks; the others go in; the exit code is 3."""
    lines = [
        b"actor,subject,at",
        b"ann,bob,",
        b",bob,",
        b"ann,ann,",
        b"ann",
        b"ann," + b"x" * 129 + b",",
        b"ann,b\x01b,",
        b"ann,\xff,",
        b"ann,dan,yesterday",
        b"ann,dan,1999-12-31T23:59:59Z",
        b"ann,dan,2999-01-01T00:00:00Z",
        b'ann,"eve"x,',
        b"ann,cem,",
    ]
    file = tmp_path / "f.csv"
    file.write_bytes(b"\n".join(lines) + b"\n")
    result = client("import", file, "--time-column", "at", "--json")
    assert result.code == 3
    assert edges(service) == [("ann", FOLLOW, "bob", "", ACTIVE), ("ann", FOLLOW, "cem", "", ACTIVE)]
    assert (result.json["rows"], result.json["rejected"]) == (12, 10)
    assert result.json["rejects_file"] == f"{file}.rejects.csv"
    found = rejects(file)
    assert found[0] == "line,reason,row"
    assert [line.split(",")[0] for line in found[1:]] == [str(n) for n in range(3, 13)]
    expected = [
        "actor must be 1 to 128 bytes",
        "subject must differ from actor",
        "has only 1 columns",
        "subject must be 1 to 128 bytes",
        "subject must not contain control characters",
        "is not valid UTF-8",
        "time is no time with an offset",
        "time must not be before 2000",
        "time must not be ahead of the service's clock",
        "is no valid csv",
    ]
    for line, reason in zip(found[1:], expected, strict=True):
        assert reason in line


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("{", "is no valid JSON"),
        ("[1]", "is no JSON object"),
        ("[" * 60_000, "is no valid JSON"),
        ('{"actor": "ann"}', "has no 'subject'"),
        ('{"actor": null, "subject": "x"}', "actor: must be a string or a number"),
        ('{"actor": "\\ud800", "subject": "x"}', "actor is not valid UTF-8"),
        ('{"actor": "ann", "subject": "x", "ref": "r"}', "ref must be empty for this kind"),
    ],
)
def test_bad_ndjson_rows(tmp_path: Path, service: FakeService, client: Watertower, row: str, reason: str) -> None:
    """Whatever a line of ndjson holds, it is a row with a reason, and the next one goes in."""
    file = write(tmp_path / "f.ndjson", row + '\n{"actor": "ann", "subject": "bob"}\n')
    result = client("import", file)
    assert result.code == 3
    assert reason in rejects(file)[1]
    assert edges(service) == [("ann", FOLLOW, "bob", "", ACTIVE)]


def test_a_missing_ref_of_a_comment(tmp_path: Path, client: Watertower) -> None:
    """A comment without an id of its own is rejected."""
    file = write(tmp_path / "f.csv", "actor,subject,ref\nann,post,\n")
    assert client("import", file, "--kind", "comment").code == 3
    assert "ref is required for COMMENT" in rejects(file)[1]


def test_a_line_over_the_limit(tmp_path: Path, service: FakeService, client: Watertower) -> None:
    """A line of LINE_BYTES_MAX bytes goes in, a longer one is rejected, and the next line is read right."""
    fits = "ann,bob,".ljust(LINE_BYTES_MAX - 1, "x") + "\n"
    long = "ann,dan,".ljust(3 * LINE_BYTES_MAX, "x") + "\n"
    one_more = "ann,dan,".ljust(LINE_BYTES_MAX, "x") + "\n"
    file = write(tmp_path / "f.csv", "actor,subject,c\n" + fits + long + one_more + "ann,cem,\n")
    assert client("import", file).code == 3
    assert edges(service) == [("ann", FOLLOW, "bob", "", ACTIVE), ("ann", FOLLOW, "cem", "", ACTIVE)]
    for number, line in zip((3, 4), rejects(file)[1:], strict=True):
        assert line.startswith(f'{number},line is longer than 65536 bytes,"ann,dan,x')


def test_quoted_fields(tmp_path: Path, service: FakeService, client: Watertower) -> None:
    """Quoted fields may hold commas, quotation marks and, in other columns, line ends; line numbers count lines of the file."""
    file = write(tmp_path / "f.csv", 'actor,subject,bio\r\n"ann, a.","b""ob",x\r\ncem,dan,"one\r\nfay,gus,""two"""\r\n,eve,\r\n')
    assert client("import", file).code == 3
    assert edges(service) == [("ann, a.", FOLLOW, 'b"ob', "", ACTIVE), ("cem", FOLLOW, "dan", "", ACTIVE)]
    assert rejects(file)[1].startswith("5,actor must be")


def test_a_stray_quotation_mark_swallows_no_rows(tmp_path: Path, service: FakeService, client: Watertower) -> None:
    """A quoted field that never ends costs its own row only, not those behind it."""
    rows = "".join(f"ann,s{n}\n" for n in range(20_000))
    file = write(tmp_path / "f.csv", 'actor,subject\n"ann,bob\n' + rows)
    assert client("import", file, "--json").json["rejected"] == 1
    assert rejects(file)[1].startswith("2,is no valid csv")
    assert {event.subject for event in service.events} == {f"s{n}" for n in range(20_000)}


def test_batches_are_bounded(tmp_path: Path, service: FakeService, client: Watertower) -> None:
    """A call has at most 1,000 events, and at most about 1 MiB of rows is held for it."""
    file = write(tmp_path / "f.csv", "actor,subject\n" + "".join(f"a{n},b{n}\n" for n in range(1_250)))
    client("import", file, "--mutual")
    assert sorted(len(call.events) for call in service.calls) == [500, 1_000, 1_000]
    service.calls.clear()
    wide = write(tmp_path / "wide.csv", "actor,subject,c\n" + "".join(f"a{n},b,{'x' * 60_000}\n" for n in range(40)))
    client("import", wide)
    assert sorted(len(call.events) for call in service.calls) == [4, 18, 18]


def test_a_damaged_gzip_file(tmp_path: Path, service: FakeService, client: Watertower) -> None:
    """A gzip file that is cut off is said to be damaged: exit code 1, one line, no traceback."""
    file = tmp_path / "f.csv.gz"
    with gzip.open(file, "wt") as out:
        out.write("actor,subject\n" + "".join(f"a{n},b{n}\n" for n in range(100_000)))
    file.write_bytes(file.read_bytes()[:-100_000])
    result = client("import", file)
    assert result.code == 1
    assert "is damaged" in result.err
    assert len(result.err.splitlines()) == 1
    recorded = json.loads(Path(f"{file}.watertower-import.json").read_text())["events"]
    assert 0 < recorded <= len(service.events)
    assert f"before the damage, {recorded:,} rows were recorded; mend the file and import it with --restart" in result.err


def test_a_gzip_file_damaged_at_its_start(tmp_path: Path, service: FakeService, client: Watertower) -> None:
    """It is not said that rows were taken when none was; the mended file can be imported with the same command."""
    file = tmp_path / "f.csv.gz"
    with gzip.open(file, "wt") as out:
        out.write("actor,subject\nann,bob\n")
    whole = file.read_bytes()
    file.write_bytes(whole[:20])
    result = client("import", file)
    assert (result.code, service.events) == (1, [])
    assert "is damaged" in result.err
    assert "no row was recorded" in result.err
    file.write_bytes(whole)
    assert client("import", file).code == 0


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("f.csv.gz", b"actor,subject\n1,2\n", "is no gzip file: name it without .gz, if it is not compressed"),
        ("f.csv", gzip.compress(b"actor,subject\n1,2\n"), "is compressed with gzip: give it a name that ends in .gz"),
        ("f.ndjson", gzip.compress(b"{}"), "is compressed with gzip: give it a name that ends in .gz"),
        ("f.csv", b"actor,subject\rann,bob\r", "its lines end with CR alone, write them with LF"),
        ("f.csv", b"", "the first line must name the columns"),
    ],
)
def test_files_of_another_kind(tmp_path: Path, client: Watertower, name: str, content: bytes, message: str) -> None:
    """Compressed or not against its name, or with the line ends of another age: one line that says what to do, and nothing is left."""
    file = tmp_path / name
    file.write_bytes(content)
    result = client("import", file)
    assert (result.code, len(result.err.splitlines())) == (1, 1)
    assert message in result.err
    assert list(tmp_path.iterdir()) == [file]


def test_rows_that_the_service_refuses(tmp_path: Path, service: FakeService, client: Watertower) -> None:
    """Rows that only the service finds wrong are rejected with its rule; the rest of their call goes in."""

    def on_record(number: int, request: writer_pb2.RecordEventsRequest) -> Refusal | None:
        broken = tuple((f"events[{i}].actor", "must be nicer") for i, e in enumerate(request.events) if e.actor == "bad")
        return Refusal(grpc.StatusCode.INVALID_ARGUMENT, violations=broken, reason="ID_LENGTH") if broken else None

    service.on_record = on_record
    file = write(tmp_path / "f.csv", "actor,subject\nann,bob\nbad,bob\ncem,bob\n")
    result = client("import", file, "--mutual", "--json")
    assert result.code == 3
    assert (result.json["events"], result.json["rejected"]) == (4, 1)
    assert rejects(file)[1] == '3,actor must be nicer,"bad,bob"'
    assert {event.actor for event in service.events} == {"ann", "bob", "cem"}


def test_a_clock_that_is_ahead_of_the_service(tmp_path: Path, service: FakeService, client: Watertower) -> None:
    """When the service refuses the one time of the import, no row is blamed: the import fails and says what to do."""
    violations = (("events[0].occurred_at", Reason.OCCURRED_AT_FUTURE.rule),)
    service.on_record = lambda number, request: Refusal(grpc.StatusCode.INVALID_ARGUMENT, violations=violations)
    file = write(tmp_path / "f.csv", "actor,subject\nann,bob\n")
    result = client("import", file)
    assert result.code == 1
    assert "set the clock, or give --at" in result.err
    assert not Path(f"{file}.rejects.csv").exists()


def test_a_shed_call_is_repeated_unchanged(tmp_path: Path, service: FakeService, client: Watertower) -> None:
    """A call that is shed is sent again, identical, not before the service's word, and counts once in the summary."""
    service.on_record = lambda number, request: (
        Refusal(grpc.StatusCode.RESOURCE_EXHAUSTED, reason="QUEUE_FULL", retry_after_s=0.2, pushback="200") if number <= 2 else None
    )
    result = client("import", write(tmp_path / "f.csv", "actor,subject\nann,bob\n"), "--json")
    assert result.json["events"] == 1
    assert len(service.calls) == 3
    assert service.calls[0] == service.calls[1] == service.calls[2]
    gaps = [later - earlier for earlier, later in zip(service.call_times, service.call_times[1:], strict=False)]
    assert min(gaps) >= 0.2


def test_an_import_that_failed_goes_on(tmp_path: Path, service: FakeService, client: Watertower) -> None:
    """An import that ends in the middle remembers what was acknowledged without a gap; the same command sends the rest, at the same
    time, and the rejects file has each row once."""
    rows = "".join(f"a{n},s\n" if n % 1_000 != 500 else f",bad{n}\n" for n in range(20_000))
    file = write(tmp_path / "f.csv", "actor,subject\n" + rows)
    service.on_record = lambda number, request: (
        Refusal(grpc.StatusCode.UNAVAILABLE, reason="LOG_UNAVAILABLE", retry_after_s=0.0) if number > 9 else None
    )
    failed = client("import", file, "--retry-for", 0)
    assert failed.code == 1
    before = set(service.events)
    state = json.loads(Path(f"{file}.watertower-import.json").read_text())
    assert not state["finished"]
    assert 0 < state["events"] <= len(before) < 19_980

    service.on_record = lambda number, request: None
    result = client("import", file, "--json")
    assert result.code == 3
    assert result.json["resumed_after_rows"] == state["rows"]
    assert (result.json["rows"], result.json["events"], result.json["rejected"]) == (20_000, 19_980, 20)
    assert len({event.actor for event in service.events}) == 19_980
    assert len({event.occurred_at for event in service.events}) == 1
    assert [line.split(",")[0] for line in rejects(file)[1:]] == [str(n + 2) for n in range(500, 20_000, 1_000)]


def test_a_finished_import_begins_anew(tmp_path: Path, service: FakeService, client: Watertower) -> None:
    """Importing a file again sends all rows again, at a new time, so that a removal in between is undone."""
    file = write(tmp_path / "f.csv", "actor,subject\nann,bob\n")
    client("import", file)
    client("import", file)
    first, second = service.events
    assert first[:5] == second[:5]
    assert first.occurred_at < second.occurred_at


def test_another_unfinished_import_is_not_forgotten(tmp_path: Path, service: FakeService, client: Watertower) -> None:
    """An unfinished import with other options, or of a changed file, is neither continued nor forgotten, unless --restart says so."""
    file = write(tmp_path / "f.csv", "actor,subject\n" + "".join(f"a{n},s\n" for n in range(20_000)))
    service.on_record = lambda number, request: Refusal(grpc.StatusCode.UNAVAILABLE) if number > 9 else None
    client("import", file, "--retry-for", 0)
    service.on_record = lambda number, request: None
    service.recorded.clear()
    result = client("import", file, "--remove")
    assert (result.code, "differs in remove" in result.err) == (1, True)
    file.write_text("actor,subject\nann,cem\ncem,dan\n")
    result = client("import", file)
    assert (result.code, "--restart" in result.err) == (1, True)
    assert service.events == []
    assert client("import", file, "--restart").code == 0
    assert len(service.events) == 2


def test_an_import_that_recorded_nothing_is_in_nobodys_way(tmp_path: Path, service: FakeService, client: Watertower) -> None:
    """After an attempt that recorded no row, the corrected command begins anew; the same one takes the time of the first attempt, whose
    calls may have arrived. Neither speaks of going on."""
    file = write(tmp_path / "f.csv", "actor,subject\nann,bob\n")
    service.on_record = lambda number, request: Refusal(grpc.StatusCode.UNAVAILABLE)
    failed = client("import", file, "--retry-for", 0)
    assert failed.code == 1
    assert "no row was recorded; run the same command again to go on" in failed.err
    service.on_record = lambda number, request: None
    again = client("import", file)
    assert (again.code, again.err) == (0, "")
    assert {event.occurred_at for event in service.events} == {service.calls[0].events[0].occurred_at.ToMicroseconds()}

    service.on_record = lambda number, request: Refusal(grpc.StatusCode.UNAVAILABLE)
    client("import", file, "--retry-for", 0)
    service.on_record = lambda number, request: None
    corrected = client("import", file, "--at", "2026-01-02T03:04:05Z")
    assert (corrected.code, corrected.err) == (0, "")
    assert service.events[-1].occurred_at == 1_767_323_045_000_000


def test_a_service_that_is_lost(tmp_path: Path, service: FakeService, client: Watertower) -> None:
    """The message says how many rows are recorded and what to do; the import that went on speaks of the rate of its own part."""
    file = write(tmp_path / "f.csv", "actor,subject\n" + "".join(f"a{n},s\n" for n in range(20_000)))
    service.on_record = lambda number, request: Refusal(grpc.StatusCode.UNAVAILABLE) if number > 9 else None
    failed = client("import", file, "--retry-for", 0, "--json")
    error = json.loads(failed.err)
    state = json.loads(Path(f"{file}.watertower-import.json").read_text())
    assert f"{state['events']:,} rows were recorded; run the same command again to go on" in error["error"]
    assert error["status"] == "UNAVAILABLE"
    service.on_record = lambda number, request: None
    result = client("import", file)
    assert f"continuing the import that was cut off after {state['rows']:,} rows" in result.err
    assert result.out.startswith("20,000 rows read, 20,000 events recorded (")
    assert result.out.count(" a second in this run)") == 2


@pytest.mark.parametrize("link", ["same", "symbolic", "hard", "of the state"])
def test_rejects_do_not_overwrite_what_is_imported(tmp_path: Path, service: FakeService, client: Watertower, link: str) -> None:
    """A rejects file that is the input, under whatever name, or the state, is bad usage; nothing is touched."""
    file = write(tmp_path / "f.csv", "actor,subject\nann,ann\n")
    other = tmp_path / "other.csv"
    more: tuple[object, ...] = ()
    if link == "same":
        other = tmp_path / ".." / tmp_path.name / "f.csv"
    elif link == "symbolic":
        other.symlink_to(file)
    elif link == "hard":
        other.hardlink_to(file)
    else:
        more = ("--state", other)
    result = client("import", file, "--rejects", other, *more)
    assert (result.code, len(result.err.splitlines())) == (2, 1)
    assert "the file to import" in result.err
    assert client("import", file, "--state", file).code == 2
    assert file.read_text() == "actor,subject\nann,ann\n"


def test_one_import_of_a_state_at_a_time(tmp_path: Path, service: FakeService, client: Watertower) -> None:
    """A second import that would write the same state and rejects is refused while the first one runs; one with its own is not."""
    file = write(tmp_path / "f.csv", "actor,subject\nann,bob\n,bob\n")
    state = Path(f"{file}.watertower-import.json")
    with import_state.locked(state):
        result = client("import", file)
        assert (result.code, service.events) == (1, [])
        assert f"another import that keeps its state in {state} is running" in result.err
        assert client("import", file, "--state", tmp_path / "s", "--rejects", tmp_path / "r").code == 3
    assert client("import", file).code == 3
    assert sorted(path.name for path in tmp_path.iterdir()) == ["f.csv", f"{file.name}.rejects.csv", state.name, "r", "s"]


def test_a_lock_whose_file_is_removed_meanwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who gets the lock on a file that its last holder has just removed does not take it for the lock: others would not see it."""
    lock, flock = tmp_path / "state.lock", fcntl.flock

    def removed(descriptor: int, operation: int) -> None:
        lock.unlink()
        monkeypatch.setattr(fcntl, "flock", flock)
        flock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", removed)
    with import_state.locked(tmp_path / "state"):
        assert lock.exists()
        with pytest.raises(CommandFailed, match="is running"), import_state.locked(tmp_path / "state"):
            pass
    assert list(tmp_path.iterdir()) == []


def test_files_of_its_own_that_cannot_be_written(tmp_path: Path, client: Watertower) -> None:
    """The message names the file that is imported, the one that cannot be written, and the options for another one."""
    file = write(tmp_path / "f.csv", "actor,subject\nann,bob\n,bob\n")
    for option in ("--state", "--rejects"):
        result = client("import", file, option, tmp_path / "none" / "x")
        assert (result.code, len(result.err.splitlines())) == (1, 1)
        assert result.err.startswith(f"watertower: {file}: its import keeps its progress")
        assert f"{tmp_path / 'none' / 'x'}" in result.err
        assert "No such file or directory; name others with --state and --rejects" in result.err


def test_a_service_with_another_log(tmp_path: Path, service: FakeService, client: Watertower) -> None:
    """An import that goes on against another log would leave rows out: it is refused, and says to use --restart."""
    file = write(tmp_path / "f.csv", "actor,subject\n" + "".join(f"a{n},s\n" for n in range(20_000)))
    service.offset = 1_000
    service.on_record = lambda number, request: Refusal(grpc.StatusCode.UNAVAILABLE) if number > 9 else None
    client("import", file, "--retry-for", 0)
    service.on_record, service.offset = lambda number, request: None, 0
    result = client("import", file)
    assert (result.code, "another log" in result.err) == (1, True)
    assert client("import", file, "--restart").code == 0


def test_a_state_file_that_is_none(tmp_path: Path, client: Watertower) -> None:
    """A state file with other content is refused by name, not overwritten."""
    state = write(tmp_path / "state.json", "{}")
    result = client("import", write(tmp_path / "f.csv", "actor,subject\nann,bob\n"), "--state", state)
    assert (result.code, f"{state} is no import state" in result.err) == (1, True)
    assert state.read_text() == "{}"


def test_waits_until_the_reader_shows_it(tmp_path: Path, service: FakeService, client: Watertower) -> None:
    """By default the command ends only when the reader's position covers every write token; --no-wait does not ask the reader."""
    service.visible_lag_reads = 3
    result = client("import", write(tmp_path / "f.csv", "actor,subject\nann,bob\n"))
    assert "all of them are counted" in result.out
    assert len(service.reads) == 4
    service.reads.clear()
    result = client("import", tmp_path / "f.csv", "--no-wait", "--json")
    assert result.json["visible_s"] is None
    assert service.reads == []


def test_a_reader_that_stands_still(tmp_path: Path, service: FakeService, client: Watertower, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reader that comes no further is given up on, saying that the rows are recorded all the same."""
    monkeypatch.setattr(import_run, "WAIT_STALLED_S", 0.2)
    service.visible_lag_reads = 1_000_000
    result = client("import", write(tmp_path / "f.csv", "actor,subject\nann,bob\n"))
    assert result.code == 1
    assert "all rows are recorded, but the reader" in result.err


def test_a_partition_that_stands_still_while_another_goes_on(
    tmp_path: Path, service: FakeService, client: Watertower, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What others write, elsewhere, is no progress of this import."""
    monkeypatch.setattr(import_run, "WAIT_STALLED_S", 0.3)
    service.visible_lag_reads = 1_000_000
    service.freshnesses = [common_pb2.Freshness(position=encode_position(Position(1, {5: n}))) for n in range(10_000)]
    result = client("import", write(tmp_path / "f.csv", "actor,subject\nann,bob\n"))
    assert result.code == 1
    assert "all rows are recorded, but the reader" in result.err


def test_an_import_killed_between_its_last_row_and_its_end(tmp_path: Path, service: FakeService, client: Watertower) -> None:
    """The next run finds nothing left to send and ends it; the one after that begins anew."""
    file = write(tmp_path / "f.csv", "actor,subject\nann,bob\n")
    state = Path(f"{file}.watertower-import.json")
    client("import", file)
    state.write_text(json.dumps({**json.loads(state.read_text()), "finished": False}))
    assert client("import", file).code == 0
    assert json.loads(state.read_text())["finished"]
    assert len(service.events) == 1
    client("import", file, "--remove")
    assert len(service.events) == 2


def test_half_a_surrogate_pair_in_a_ref(tmp_path: Path, service: FakeService, client: Watertower) -> None:
    """JSON can write what UTF-8 cannot: the row is rejected."""
    rows = '{"actor": "ann", "subject": "post", "ref": "\\ud800"}\n{"actor": "ann", "subject": "post", "ref": "1"}\n'
    result = client("import", write(tmp_path / "f.ndjson", rows), "--kind", "comment", "--json")
    assert result.json["rejected"] == 1
    assert [event.ref for event in service.events] == ["1"]


def test_a_reader_that_is_not_there(tmp_path: Path, service: FakeService, client: Watertower) -> None:
    """What is recorded is said to be, when nobody can say whether it is counted."""
    service.on_read = lambda method: Refusal(grpc.StatusCode.INTERNAL)
    result = client("import", write(tmp_path / "f.csv", "actor,subject\nann,bob\n"))
    assert result.code == 1
    assert "all rows are recorded and need not be sent again, but whether they are counted is not known: " in result.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["f.txt"], "the name must end in .csv"),
        (["."], "the name must end in .csv, .ndjson, .jsonl (or that and .gz)"),
        (["f.csv", "--time-unit", "h"], "must be one of rfc3339, s, ms, us"),
        (["f.csv", "--at", "noon"], "--at noon: is no time"),
        (["f.csv", "--kind", "comment", "--mutual"], "--mutual: a comment has an id of its own"),
        (["f.csv", "--kind", "wave"], "'wave' is no kind: follow, like, comment"),
        (["f.csv", "--read-target", "x:0"], "--read-target x:0: must be HOST:PORT, as in 127.0.0.1:50052"),
        (["f.csv", "--write-target", "nowhere"], "--write-target nowhere: must be HOST:PORT, as in 127.0.0.1:50051"),
    ],
)
def test_bad_usage(tmp_path: Path, watertower: Watertower, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str) -> None:
    """Bad usage is one line that says what is wrong; exit code 2."""
    monkeypatch.chdir(tmp_path)
    for name in ("f.csv", "f.txt"):
        write(tmp_path / name, "actor,subject\nann,bob\n")
    result = watertower("import", *arguments)
    assert result.code == 2
    assert message in result.err
    assert len(result.err.splitlines()) == 1


def test_a_file_that_is_not_there(tmp_path: Path, watertower: Watertower) -> None:
    """A missing file is one line on standard error; with --json, one object."""
    result = watertower("import", tmp_path / "none.csv", "--json")
    assert result.code == 1
    assert "No such file" in json.loads(result.err)["error"]


def test_a_terminal_shows_progress(tmp_path: Path, service: FakeService) -> None:
    """On a terminal, rows and events a second are shown while the import runs; results still go to standard output alone."""
    file = write(tmp_path / "f.csv", "actor,subject\n" + "".join(f"a{n},s\n" for n in range(3_000)))
    ours, theirs = pty.openpty()
    with serving(service) as target:
        command = [sys.executable, "-m", "watertower", "import", str(file), "--write-target", target, "--read-target", target]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=theirs, text=True, env={**os.environ, "TERM": "xterm"})
        os.close(theirs)
        shown = b""
        with contextlib.suppress(OSError):  # what a pseudo-terminal says at its end
            while piece := os.read(ours, 65_536):
                shown += piece
        out, _ = process.communicate(timeout=60)
    os.close(ours)
    assert process.returncode == 0
    assert out.startswith("3,000 rows read, 3,000 events recorded")
    assert b"3,000 rows, 0 rejected" in shown
    assert b"counting" in shown


class Killed:
    """A fake service that can hold calls up, so that a kill meets them on their way."""

    def __init__(self, service: FakeService, free: int) -> None:
        self.holding = threading.Event()
        self.release = threading.Event()

        def on_record(number: int, request: writer_pb2.RecordEventsRequest) -> Refusal | None:
            if number > free and not self.release.is_set():
                self.holding.set()
                self.release.wait(30)
            return None

        service.on_record = on_record


def import_process(file: Path, target: str, *more: str) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "watertower", "import", str(file), "--write-target", target, "--read-target", target, *more]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.slow
@pytest.mark.parametrize("kill", [signal.SIGKILL, signal.SIGINT])
def test_a_killed_import_sends_identical_events(tmp_path: Path, service: FakeService, kill: int) -> None:
    """An import killed in the middle, at whatever point, and run again has sent every row, each time as the identical event."""
    rows = [(f"a{n}", f"s{n % 7}") for n in range(20_000)]
    file = write(tmp_path / "f.csv", "actor,subject\n" + "".join(f"{a},{s}\n" for a, s in rows))
    killed = Killed(service, free=10)
    with serving(service) as target:
        process = import_process(file, target)
        assert killed.holding.wait(30)
        process.send_signal(kill)
        if kill == signal.SIGINT:
            killed.release.set()
        _, err = process.communicate(timeout=60)
        killed.release.set()
        if kill == signal.SIGINT:
            assert process.returncode == 130
            assert "run the same command again" in err
        state: dict[str, Any] = json.loads(Path(f"{file}.watertower-import.json").read_text())
        assert not state["finished"]

        again = import_process(file, target, "--json")
        out, err = again.communicate(timeout=60)
        assert again.returncode == 0, err
    assert json.loads(out)["rows"] == 20_000
    assert json.loads(out)["resumed_after_rows"] == state["rows"]
    assert len(set(service.events)) == 20_000
    assert {(event.actor, event.subject) for event in service.events} == set(rows)
    assert {event.occurred_at for event in service.events} == {state["base_time"]}
