"""`watertower counts`, `edges` and `list`, and how calls are repeated and fail."""

import json
import random
import time
from collections.abc import Iterator
from typing import Any

import grpc
import pytest

from tests.cli.conftest import Watertower
from tests.cli.fakes import Event, FakeService, Refusal
from watertower.cli import connection
from watertower.cli.connection import CallFailed, RetryPolicy
from watertower.core.positions import Position, decode_position, encode_position
from watertower.v1 import common_pb2, reader_pb2, reader_pb2_grpc

T = 1_767_323_045_000_006


@pytest.fixture(autouse=True)
def recorded(service: FakeService) -> None:
    """2,500 followers of star; ann also likes and comments; one id begins with a dash."""
    service.recorded.append([Event(f"fan{n:04}", 1, "star", "", 1, T + n) for n in range(2_500)])
    service.recorded.append([Event("ann", 2, "post", "", 1, T), Event("ann", 3, "post", "c1", 1, T), Event("-x", 1, "star", "", 1, T - 1)])
    service.offset = 2


def test_counts(client: Watertower) -> None:
    """A row per id, in order, with all metrics and whether the id is known; freshness below."""
    result = client("counts", "star", "ann", "nobody")
    assert result.code == 0
    lines = result.out.splitlines()
    assert lines[0].split() == [
        "entity",
        "followers",
        "following",
        "likes",
        "likes_given",
        "comments",
        "comments_written",
        "known",
    ]
    assert [line.split() for line in lines[2:5]] == [
        ["star", "2,501", "0", "0", "0", "0", "0", "yes"],
        ["ann", "0", "0", "0", "1", "0", "1", "yes"],
        ["nobody", "0", "0", "0", "0", "0", "0", "no"],
    ]
    assert lines[-1] == "as of 2023-11-14T22:13:20.000000Z"


def test_counts_for_machines(client: Watertower) -> None:
    """--json is one object; --metric chooses, in order; ids that begin with a dash stand after --."""
    result = client("counts", "--json", "--metric", "following", "--metric", "followers", "--", "-x", "star")
    assert result.json["entities"] == [
        {"entity": "-x", "known": True, "following": 1, "followers": 0},
        {"entity": "star", "known": True, "following": 0, "followers": 2_501},
    ]
    assert result.json["freshness"]["stale"] is False
    assert bytes.fromhex(result.json["freshness"]["position"])


def test_counts_of_many(client: Watertower, service: FakeService) -> None:
    """More than 1,000 ids are asked for in several calls and answered in one table."""
    result = client("counts", "--json", "--metric", "following", *(f"fan{n:04}" for n in range(1_001)))
    assert [len(request.entities) for request in service.reads] == [1_000, 1]
    assert [row["following"] for row in result.json["entities"]] == [1] * 1_001


def freshness(as_of: int | None, offsets: dict[int, int], stale: bool = False) -> common_pb2.Freshness:
    message = common_pb2.Freshness(position=encode_position(Position(1, offsets)), stale=stale)
    if as_of is not None:
        message.as_of.FromMicroseconds(as_of)
    return message


def test_the_freshness_of_several_answers_holds_for_each(client: Watertower, service: FakeService) -> None:
    """The earlier as_of, and per partition the earlier offset: neither answer's position may be the smaller one everywhere."""
    service.freshnesses = [freshness(T + 1, {0: 5, 1: 9, 2: 4}), freshness(T, {0: 7, 1: 8}, stale=True)]
    found = client("counts", "--json", *(f"fan{n:04}" for n in range(1_001))).json["freshness"]
    assert decode_position(bytes.fromhex(found["position"])) == Position(1, {0: 5, 1: 8})
    assert (found["as_of"], found["stale"]) == ("2026-01-02T03:04:05.000006Z", True)


@pytest.mark.parametrize("command", [("counts", "ann"), ("edges", "ann", "star")])
def test_freshness_that_is_not_known(client: Watertower, service: FakeService, command: tuple[str, ...]) -> None:
    """A service that cannot say how old its answer is does not make it one of 1970."""
    service.freshnesses = [freshness(None, {}, stale=True)]
    assert client(*command).out.splitlines()[-1] == "as of: unknown (stale: the service is behind)"
    service.freshnesses = [freshness(None, {}, stale=True)]
    assert client(*command, "--json").json["freshness"]["as_of"] is None


def test_freshness_is_unknown_where_one_answer_does_not_say(client: Watertower, service: FakeService) -> None:
    """Several answers are as of a moment only if each is."""
    for known, unknown in ((0, 1), (1, 0)):
        service.freshnesses = [freshness(T if i == known else None, {}, stale=i == unknown) for i in range(2)]
        assert client("counts", "--json", *(f"fan{n:04}" for n in range(1_001))).json["freshness"]["as_of"] is None


def test_markup_in_an_id_is_text(client: Watertower) -> None:
    """An id is printed as it is, also where the table's renderer would see markup."""
    assert "[bold]x[/bold]" in client("counts", "[bold]x[/bold]").out


def test_edges(client: Watertower) -> None:
    """A row per subject, in order; kinds are told apart."""
    result = client("edges", "ann", "post", "star", "--kind", "like", "--json")
    assert result.json["edges"] == [{"subject": "post", "active": True}, {"subject": "star", "active": False}]
    assert (result.json["actor"], result.json["kind"]) == ("ann", "like")
    table = client("edges", "fan0001", "star", "post").out.splitlines()
    assert [line.split() for line in table[2:4]] == [["fan0001", "follow", "star", "yes"], ["fan0001", "follow", "post", "no"]]


def test_lists_come_page_by_page(client: Watertower, service: FakeService) -> None:
    """A list is printed whole, newest first, in as many pages as it takes."""
    result = client("list actors", "star", "--json")
    assert len(service.reads) == 3
    *rows, last = result.rows
    assert [row["actor"] for row in rows] == [*(f"fan{n:04}" for n in reversed(range(2_500))), "-x"]
    assert rows[-2]["occurred_at"] == "2026-01-02T03:04:05.000006Z"
    assert last["freshness"]["as_of"] == "2023-11-14T22:13:20.000000Z"
    assert last["freshness"]["stale"] is False


def test_lists_end_at_their_limit(client: Watertower, service: FakeService) -> None:
    """--limit ends the list without asking for more than it prints."""
    result = client("list actors", "star", "--limit", 5, "--page-size", 3)
    assert [request.page_size for request in service.reads] == [3, 2]
    *lines, last = result.out.splitlines()
    assert [line.split()[1] for line in lines] == [f"fan{n}" for n in range(2_499, 2_494, -1)]
    assert last == "as of 2023-11-14T22:13:20.000000Z"


def test_a_list_says_when_a_page_is_stale(client: Watertower, service: FakeService) -> None:
    """One stale page makes the list stale; an empty list has a freshness, too."""
    stale = common_pb2.Freshness(stale=True, position=encode_position(Position(1, {0: 2})))
    stale.as_of.FromMicroseconds(1_700_000_000_000_000)
    service.freshnesses = [stale]
    assert client("list actors", "star").out.splitlines()[-1] == "as of 2023-11-14T22:13:20.000000Z (stale: the service is behind)"
    assert client("list actors", "nobody").out == "as of 2023-11-14T22:13:20.000000Z\n"


@pytest.mark.parametrize(
    ("arguments", "argument", "said"),
    [
        (["counts", "x", ""], "ID...", "'' must be 1 to 128 bytes of UTF-8"),
        (["counts", "a\nb"], "ID...", "must not contain control characters"),
        (["counts", "\udcff"], "ID...", "'\\udcff' must be valid UTF-8"),
        (["edges", "", "x"], "ACTOR", "'' must be"),
        (["edges", "x", "x" * 129], "SUBJECT...", "must be 1 to 128 bytes"),
        (["list", "actors", ""], "SUBJECT", "'' must be"),
        (["list", "subjects", "\udcff"], "ACTOR", "must be valid UTF-8"),
    ],
)
def test_an_id_that_is_none(watertower: Watertower, arguments: list[str], argument: str, said: str) -> None:
    """Is bad usage, and named as the argument that it is; nobody is asked."""
    result = watertower(*arguments, "--read-target", "127.0.0.1:1")
    assert (result.code, len(result.err.splitlines())) == (2, 1)
    assert f"Invalid value for '{argument}': " in result.err
    assert said in result.err


def test_lists_of_subjects(client: Watertower) -> None:
    """What an actor acted on; a comment shows its ref."""
    assert client("list subjects", "ann", "--kind", "comment", "--json").rows[:-1] == [
        {"subject": "post", "ref": "c1", "occurred_at": "2026-01-02T03:04:05.000006Z"}
    ]
    lines = client("list subjects", "ann", "--kind", "comment").out.splitlines()
    assert lines == ["2026-01-02T03:04:05.000006Z  post  c1", "as of 2023-11-14T22:13:20.000000Z"]


@pytest.mark.slow
def test_nothing_answers(watertower: Watertower) -> None:
    """Without a service: exit code 1 and one line that says how to start one; with --json the same as an object."""
    result = watertower("counts", "ann", "--read-target", "127.0.0.1:1")
    assert (result.code, result.out) == (1, "")
    assert "nothing answers at 127.0.0.1:1" in result.err
    assert "or name its address (--read-target)" in result.err
    assert "--write-target" not in result.err
    assert "watertower serve" in result.err
    assert len(result.err.splitlines()) == 1
    result = watertower("counts", "ann", "--read-target", "127.0.0.1:1", "--json")
    assert (result.code, json.loads(result.err)["status"]) == (1, "UNAVAILABLE")


def test_a_refused_call(client: Watertower, service: FakeService) -> None:
    """What the service refuses is said in its words, not repeated, and its reason is there for machines."""
    service.on_read = lambda method: Refusal(
        grpc.StatusCode.INVALID_ARGUMENT, "entities[0] must be 1 to 128 bytes of UTF-8", (("entities[0]", "…"),), "ID_LENGTH"
    )
    result = client("counts", "x", "--json")
    assert result.code == 1
    error = json.loads(result.err)
    assert "entities[0] must be 1 to 128 bytes of UTF-8" in error["error"]
    assert (error["status"], error["reason"]) == ("INVALID_ARGUMENT", "ID_LENGTH")
    assert len(service.reads) == 1


def test_the_address_of_another_service(client: Watertower, service: FakeService) -> None:
    """A server that does not have the call, as the writer has none of the reader's, is said to be another one."""
    service.on_read = lambda method: Refusal(grpc.StatusCode.UNIMPLEMENTED, "Method not found!")
    result = client("counts", "star")
    assert result.code == 1
    assert "is not the reader of Watertower: it is the writer, or another service" in result.err
    assert "name the address of the reader with --read-target, as in 127.0.0.1:50052" in result.err


def test_targets_come_from_the_environment(watertower: Watertower, target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """WATERTOWER_READ_TARGET stands in for --read-target."""
    monkeypatch.setenv("WATERTOWER_READ_TARGET", target)
    assert watertower("counts", "star", "--json").json["entities"][0]["followers"] == 2_501


class SteppedClock:
    """A clock that only moves when somebody sleeps."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.sleeps: list[float] = []

    def now_us(self) -> int:
        return int(self.now_s * 1e6)

    def monotonic_s(self) -> float:
        return self.now_s

    def sleep(self, seconds: float) -> None:
        self.sleeps.append(seconds)
        self.now_s += seconds


@pytest.fixture
def stub(target: str) -> Iterator[Any]:
    channel = connection.open_channel(connection.reader(target))
    yield reader_pb2_grpc.EngagementReaderStub(channel)
    channel.close()


SERVER = connection.reader("t:1")
REQUEST = reader_pb2.GetCountsRequest(entity="star", metrics=[common_pb2.METRIC_FOLLOWERS])


def failing(service: FakeService, *refusals: Refusal) -> None:
    left = list(refusals)
    service.on_read = lambda method: left.pop(0) if left else None


@pytest.mark.parametrize("status", [grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.DEADLINE_EXCEEDED])
def test_what_may_help_is_repeated(service: FakeService, stub: Any, status: grpc.StatusCode) -> None:
    """UNAVAILABLE, DEADLINE_EXCEEDED and, where the service says when, RESOURCE_EXHAUSTED are repeated, with full jitter that grows."""
    when = 0.0 if status is grpc.StatusCode.RESOURCE_EXHAUSTED else None  # without it, it is the size of the request
    failing(service, *[Refusal(status, retry_after_s=when)] * 5)
    clock, policy = SteppedClock(), RetryPolicy(base_s=0.1, cap_s=1.0)
    connection.call(stub.GetCounts, REQUEST, SERVER, policy, clock, random.Random(1))
    assert len(service.reads) == 6
    assert all(0 <= wait <= min(1.0, 0.1 * 2**n) for n, wait in enumerate(clock.sleeps))
    assert len(set(clock.sleeps)) == 5


@pytest.mark.parametrize(
    ("refusal", "at_least_s"),
    [
        (Refusal(grpc.StatusCode.RESOURCE_EXHAUSTED, pushback="700"), 0.7),
        (Refusal(grpc.StatusCode.UNAVAILABLE, retry_after_s=0.6), 0.6),
        (Refusal(grpc.StatusCode.UNAVAILABLE, retry_after_s=0.6, pushback="800"), 0.8),
    ],
)
def test_the_service_says_how_long_to_wait(service: FakeService, stub: Any, refusal: Refusal, at_least_s: float) -> None:
    """Pushback metadata and RetryInfo are the least wait; jitter comes on top, so that shed callers do not come back together."""
    failing(service, refusal)
    clock = SteppedClock()
    connection.call(stub.GetCounts, REQUEST, SERVER, RetryPolicy(), clock, random.Random(1))
    assert at_least_s < clock.sleeps[0] < at_least_s + 0.05


@pytest.mark.parametrize(
    "refusal",
    [
        Refusal(grpc.StatusCode.UNAVAILABLE, pushback="-1"),
        Refusal(grpc.StatusCode.INVALID_ARGUMENT),
        Refusal(grpc.StatusCode.INTERNAL),
    ],
)
def test_what_cannot_help_is_not_repeated(service: FakeService, stub: Any, refusal: Refusal) -> None:
    """A negative pushback, and every other status, ends the call at once."""
    failing(service, refusal)
    with pytest.raises(CallFailed) as failed:
        connection.call(stub.GetCounts, REQUEST, SERVER, RetryPolicy(), SteppedClock(), random.Random(1))
    assert failed.value.status is refusal.status
    assert len(service.reads) == 1


def test_retries_are_bounded_in_number_and_time(service: FakeService, stub: Any) -> None:
    """A call ends after attempts_max attempts, and before it would wait beyond total_s."""
    service.on_read = lambda method: Refusal(grpc.StatusCode.UNAVAILABLE, retry_after_s=1.0)
    with pytest.raises(CallFailed):
        connection.call(stub.GetCounts, REQUEST, SERVER, RetryPolicy(attempts_max=3), SteppedClock(), random.Random(1))
    assert len(service.reads) == 3
    clock = SteppedClock()
    with pytest.raises(CallFailed):
        connection.call(stub.GetCounts, REQUEST, SERVER, RetryPolicy(total_s=5.5, cap_s=0.01), clock, random.Random(1))
    assert clock.now_s <= 5.5
    assert len(clock.sleeps) == 5


def test_a_deadline_bounds_an_attempt(service: FakeService, stub: Any) -> None:
    """An attempt that the service sits on ends at its deadline and is repeated."""
    slow = [0.5, 0.0]

    def on_read(method: str) -> None:
        time.sleep(slow.pop(0))

    service.on_read = on_read
    connection.call(stub.GetCounts, REQUEST, SERVER, RetryPolicy(deadline_s=0.2), SteppedClock(), random.Random(1))
    assert slow == []
