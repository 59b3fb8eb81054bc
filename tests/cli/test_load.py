"""`watertower load` on a service that counts right, and on some that do not: the recount finds every planted difference."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import pytest

from tests.cli.conftest import Watertower
from tests.cli.fakes import Event, FakeService, Refusal, serving
from tests.docs.pages import ROOT
from watertower.core.positions import Position, encode_position
from watertower.load import recount, run, scenarios
from watertower.load.limits import CLIENTS_MAX, FOLLOWERS_MAX, OUTAGE_S_MAX, PROFILES_MAX, RATE_MAX, SECONDS_MAX, TIMES_MAX
from watertower.v1 import reader_pb2
from watertower.validation import PAGE_SIZE_MAX

FOLLOWERS = 120
DEBUT = ("debut", "--followers", FOLLOWERS, "--times", 20, "--profiles", 10, "--rate", 20, "--seed", 7)
STEADY = ("steady", "--seconds", 1, "--follow-rate", 50, "--profiles", 10, "--rate", 20, "--seed", 7)
LENIENT = [part for name in ("read.p99_ms", "write.p99_ms", "generator.late_p99_ms") for part in ("--threshold", f"{name}=off")]
"""The fake is slow, in the same process: what is looked at here are the counts."""


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scenarios, "BEFORE_S", 0.2)


@pytest.fixture
def load(watertower: Watertower, target: str) -> Watertower:
    """Runs one load test of the fake service."""

    def command(*arguments: object) -> Any:
        return watertower("load", *arguments, "--write-target", target, "--read-target", target)

    return command


def is_fan(name: str, number: int) -> bool:
    return name.endswith(f"-fan-{number}")


class Loses(FakeService):
    """Acknowledges a follow that it forgets."""

    @property
    def events(self) -> list[Event]:
        return [event for event in super().events if not is_fan(event.actor, 7)]


class CountsOneTooMany(FakeService):
    """The star has a follower more than are on its list."""

    def BatchGetCounts(self, request: Any, context: grpc.ServicerContext) -> reader_pb2.BatchGetCountsResponse:  # noqa: N802
        answer = super().BatchGetCounts(request, context)
        for entity, row in zip(request.entities, answer.counts, strict=True):
            if entity.endswith("-star"):
                row.values[0] += 1
        return answer


class CountsAnActorTwice(FakeService):
    """One actor follows two accounts, it says."""

    def BatchGetCounts(self, request: Any, context: grpc.ServicerContext) -> reader_pb2.BatchGetCountsResponse:  # noqa: N802
        answer = super().BatchGetCounts(request, context)
        for entity, row in zip(request.entities, answer.counts, strict=True):
            if is_fan(entity, 7):
                row.values[0] += 1
        return answer


class ListsTwice(FakeService):
    """One follower is on the list twice, and counted twice."""

    def ListActors(self, request: Any, context: grpc.ServicerContext) -> reader_pb2.ListActorsResponse:  # noqa: N802
        answer = super().ListActors(request, context)
        for item in list(answer.items):
            if is_fan(item.actor, 7):
                answer.items.add().CopyFrom(item)
        return answer


class ListsAStranger(FakeService):
    """Somebody is on the list who never pressed."""

    def ListActors(self, request: Any, context: grpc.ServicerContext) -> reader_pb2.ListActorsResponse:  # noqa: N802
        answer = super().ListActors(request, context)
        if request.subject.endswith("-star"):
            answer.items.add(actor="ann")
        return answer


class LosesAProfilesFollower(FakeService):
    """One follower is neither on the profile's list nor in its count; that the follower follows somebody is not forgotten."""

    def ListActors(self, request: Any, context: grpc.ServicerContext) -> reader_pb2.ListActorsResponse:  # noqa: N802
        answer = super().ListActors(request, context)
        kept = [item for item in answer.items if not is_fan(item.actor, 7)]
        del answer.items[:]
        answer.items.extend(kept)
        return answer

    def BatchGetCounts(self, request: Any, context: grpc.ServicerContext) -> reader_pb2.BatchGetCountsResponse:  # noqa: N802
        answer = super().BatchGetCounts(request, context)
        forgotten = [event.subject for event in self.events if is_fan(event.actor, 7)]
        for entity, row in zip(request.entities, answer.counts, strict=True):
            row.values[0] -= entity in forgotten
        return answer


class CountsOneTooManyOfAProfile(FakeService):
    """A profile has a follower more than are on its list."""

    def BatchGetCounts(self, request: Any, context: grpc.ServicerContext) -> reader_pb2.BatchGetCountsResponse:  # noqa: N802
        answer = super().BatchGetCounts(request, context)
        for entity, row in zip(request.entities, answer.counts, strict=True):
            row.values[0] += entity == "load-profile-0"
        return answer


class ListsElsewhere(FakeService):
    """A follower of one profile is on the list of another one."""

    def ListActors(self, request: Any, context: grpc.ServicerContext) -> reader_pb2.ListActorsResponse:  # noqa: N802
        answer = super().ListActors(request, context)
        fans = [event for event in self.events if is_fan(event.actor, 7)]
        if request.subject == "load-profile-1" and fans and fans[0].subject != request.subject:
            answer.items[-1].actor = fans[0].actor
        return answer


def test_a_service_that_counts_right_passes(load: Watertower) -> None:
    """Presses that arrive twice included. The last line is the report, without its timeline."""
    ran = load(*DEBUT, *LENIENT, "--json")
    assert ran.code == 0, ran.out
    assert (ran.json["verdict"], ran.json["passed"], ran.json["exact"], ran.json["acknowledged"]) == ("pass", True, True, FOLLOWERS)
    found = ran.json["recount"]
    assert (found["counted"], found["listed"], found["actors_checked"]) == (FOLLOWERS, FOLLOWERS, FOLLOWERS)
    assert ran.json["phases"]["surge"]["write"]["calls"] > FOLLOWERS
    assert "timeline" not in ran.json


@pytest.mark.parametrize(
    ("scenario", "lying", "figure", "example"),
    [
        (DEBUT, Loses, "lost", "fan-7 was acknowledged and is not listed"),
        (DEBUT, CountsOneTooMany, "count_off", "-star has 121 followers, 120 are listed, 120 were acknowledged"),
        (DEBUT, CountsAnActorTwice, "actors_wrong", "fan-7 follows 2 accounts, 1 was acknowledged"),
        (DEBUT, ListsTwice, "doubled", "fan-7 is listed twice"),
        (DEBUT, ListsAStranger, "strangers", "ann is listed at load-"),
        (STEADY, Loses, "lost", "fan-7 was acknowledged and is not listed at load-profile-"),
        (STEADY, LosesAProfilesFollower, "lost", "fan-7 was acknowledged and is not listed at load-profile-"),
        (STEADY, CountsOneTooManyOfAProfile, "count_off", "load-profile-0 has "),
        (STEADY, CountsAnActorTwice, "actors_wrong", "fan-7 follows 2 accounts, 1 was acknowledged"),
        (STEADY, ListsTwice, "doubled", "fan-7 is listed twice at load-profile-"),
        (STEADY, ListsElsewhere, "strangers", "fan-7 is listed at load-profile-1 and was not sent"),
    ],
)
def test_every_planted_difference_is_found(
    watertower: Watertower, scenario: tuple[object, ...], lying: Callable[[], FakeService], figure: str, example: str
) -> None:
    """Exit code 1, and the report says which."""
    with serving(lying()) as target:
        ran = watertower("load", *scenario, *LENIENT, "--json", "--write-target", target, "--read-target", target)
    assert ran.code == 1
    assert (ran.json["verdict"], ran.json["exact"]) == ("not exact", False)
    assert ran.json["recount"][figure] == 1
    assert any(example in said for said in ran.json["recount"]["examples"])


def test_steady_is_recounted_at_the_profiles(load: Watertower, service: FakeService) -> None:
    """At all that were followed; a second run, whose profiles have the followers of the first one, is exact, too."""
    for number in range(2):
        ran = load(*STEADY, *LENIENT, "--json")
        assert ran.code == 0, ran.out
        found = ran.json["recount"]
        followed = {event.subject for event in service.events if f"-{ran.json['options']['run']}-fan-" in event.actor}
        assert found["profiles_checked"] == found["profiles_followed"] == len(followed) > 1
        assert found["counted"] == found["listed"] >= ran.json["acknowledged"] * (number + 1)
        assert found["listed_all"] is True


def test_the_recount_says_where_it_did_not_look(load: Watertower, monkeypatch: pytest.MonkeyPatch) -> None:
    """At no more profiles and rows than it may; the line for people tells of both."""
    monkeypatch.setattr(recount, "PROFILES_CHECKED_MAX", 2)
    ran = load(*STEADY, *LENIENT)
    assert ran.code == 0, ran.out
    assert re.search(r"looked at: \d+ followers of 2 of \d+ followed profiles \(to the end\), the own counts of \d+ followers", ran.out)
    monkeypatch.setattr(recount, "LISTED_MAX", 1)
    ran = load(*STEADY, *LENIENT)
    assert ran.code == 0, ran.out
    assert re.search(r"of 1 of \d+ followed profiles \(not to the end\)", ran.out)


def test_what_is_never_seen_is_not_exact(load: Watertower, service: FakeService, monkeypatch: pytest.MonkeyPatch) -> None:
    """A projector that stands still: the answers say that they do not include the writes."""
    monkeypatch.setattr(recount, "VISIBLE_S_MAX", 1.0)

    def stand_still(number: int, request: Any) -> None:
        if any(event.subject.endswith("-star") for event in request.events):
            service.visible_lag_reads = 1_000_000

    service.on_record = stand_still
    ran = load(*DEBUT, *LENIENT, "--json")
    assert ran.code == 1
    assert (ran.json["verdict"], ran.json["recount"]["visible_s"]) == ("not exact", None)


def test_what_failed_is_repeated_until_it_is_known_whether_it_counts(load: Watertower, service: FakeService) -> None:
    """A refusal that the client does not repeat fails the call; the count is exact all the same, and the failures are in the report."""
    refused: list[int] = []

    def some(number: int, request: Any) -> Refusal | None:
        if len(refused) < 3 and any(event.subject.endswith("-star") for event in request.events):
            refused.append(len(request.events))
            return Refusal(grpc.StatusCode.INTERNAL, "a fault")
        return None

    service.on_record = some
    ran = load(*DEBUT, *LENIENT, "--json")
    assert ran.code == 1
    assert (ran.json["verdict"], ran.json["exact"], ran.json["acknowledged"]) == ("thresholds missed", True, FOLLOWERS)
    assert ran.json["figures"]["write.failed"] == ran.json["figures"]["write.raw_failed_items"] == sum(refused)
    assert ran.json["figures"]["write.raw_failed"] == 3
    assert ran.json["phases"]["surge"]["write"]["errors"] == {"Refused INTERNAL": sum(refused)}
    assert ran.json["recount"]["settled"] >= 1


class OneLags(FakeService):
    """Every answer about lists comes from a process that is behind for its first reads: without the latest rows, and it says so."""

    lagging_reads = 0

    def ListActors(self, request: Any, context: grpc.ServicerContext) -> reader_pb2.ListActorsResponse:  # noqa: N802
        answer = super().ListActors(request, context)
        if request.subject.endswith("-star") and request.page_size == PAGE_SIZE_MAX and self.lagging_reads > 0:
            self.lagging_reads -= 1
            del answer.items[0]
            answer.freshness.position = encode_position(Position(self.generation, {0: self.offset - 1}))
        return answer


@pytest.mark.parametrize(("reads", "patience_s", "behind"), [(3, 60.0, 0), (1_000_000, 1.0, 1)])
def test_a_process_that_lags_is_asked_again(
    watertower: Watertower, monkeypatch: pytest.MonkeyPatch, reads: int, patience_s: float, behind: int
) -> None:
    """For a while; then that is what is wrong, and not the follows that it has not seen."""
    monkeypatch.setattr(recount, "_PATIENCE_S", patience_s)
    service = OneLags()
    service.lagging_reads = reads
    with serving(service) as target:
        ran = watertower("load", *DEBUT, *LENIENT, "--json", "--write-target", target, "--read-target", target)
    found = ran.json["recount"]
    assert (ran.json["exact"], found["behind"], found["lost"], found["count_off"]) == (not behind, behind, 0, 0)
    assert len(found["examples"]) == behind


def test_visible_s_begins_when_sending_is_over(load: Watertower, service: FakeService, monkeypatch: pytest.MonkeyPatch) -> None:
    """Repeating what failed is part of it."""
    monkeypatch.setattr(recount, "SETTLE_S_MAX", 2.0)

    def never(number: int, request: Any) -> Refusal | None:
        refuses = any(is_fan(event.actor, 7) for event in request.events)
        return Refusal(grpc.StatusCode.UNAVAILABLE, "never") if refuses else None

    service.on_record = never
    assert load(*DEBUT, *LENIENT, "--json").json["recount"]["visible_s"] > 1.0


def test_a_ledger_keeps_one_position(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many tokens there are; one that callers share is decoded once."""
    decoded: list[bytes] = []
    add = recount.Seen.add
    monkeypatch.setattr(recount.Seen, "add", lambda seen, token: (decoded.append(token), add(seen, token)))
    ledger = recount.Ledger(0)
    tokens = [encode_position(Position(1, {number % 2: number})) for number in (1, 1, 2, 3)]
    for number, token in enumerate(tokens):
        ledger.acknowledged(number, "bob", token)
    assert decoded == [tokens[0], *tokens[2:]]
    assert ledger.token() == encode_position(Position(1, {0: 2, 1: 3}))


def test_what_stays_unknown_may_be_there_or_not(load: Watertower, service: FakeService, monkeypatch: pytest.MonkeyPatch) -> None:
    """Follows that fail to the end: neither is a difference, and nobody waits for them for ever."""
    monkeypatch.setattr(recount, "SETTLE_S_MAX", 1.0)

    def some(number: int, request: Any) -> Refusal | None:
        if any(is_fan(event.actor, 7) for event in request.events):
            return Refusal(grpc.StatusCode.UNAVAILABLE, "never", pushback="-1")
        return None

    service.on_record = some
    ran = load(*DEBUT, *LENIENT, "--json")
    assert ran.code == 1
    found = ran.json["recount"]
    assert found["unknown"] >= 1
    assert found["acknowledged"] == found["counted"] == FOLLOWERS - found["unknown"]
    assert (ran.json["verdict"], ran.json["exact"], found["settled"]) == ("thresholds missed", True, 0)


def test_raw_failures_are_told_from_final_ones(load: Watertower, service: FakeService) -> None:
    """The client repeats what may pass: no call fails, and the attempts that did are in the report, with the service's reason."""
    refused: list[str] = []

    def once(method: str) -> Refusal | None:
        if service.events and any("-fan-" in event.actor for event in service.events[-1:]) and not refused:
            refused.append(method)
            return Refusal(grpc.StatusCode.UNAVAILABLE, "stopping", reason="STOPPING", retry_after_s=0.01)
        return None

    service.on_read = once
    ran = load(*DEBUT, *LENIENT, "--json")
    assert ran.code == 0, ran.out
    figures = ran.json["figures"]
    assert (figures["read.raw_failed"], figures["read.failed"], figures["read.retries"]) == (1, 0, 1)
    assert ran.json["phases"]["surge"]["read"]["raw_errors"] == {"UNAVAILABLE/STOPPING": 1}


def test_a_missed_threshold_is_exit_code_1(load: Watertower) -> None:
    ran = load(*DEBUT, *LENIENT[2:], "--threshold", "read.p50_ms=0")
    assert ran.code == 1
    assert "read.p50_ms" in ran.out
    assert "MISSED" in ran.out
    assert "verdict: thresholds missed" in ran.out


def test_a_generator_that_is_behind_is_told_from_a_slow_service(load: Watertower) -> None:
    ran = load(*DEBUT, "--threshold", "generator.late_max_ms=0", "--threshold", "read.p50_ms=0")
    assert ran.code == 1
    assert "verdict: generator behind" in ran.out


def test_the_reports(load: Watertower, tmp_path: Path) -> None:
    """The folder has the whole report twice, for programs and for people; what is printed for people is a summary."""
    ran = load(*DEBUT, *LENIENT, "--report", tmp_path / "new" / "folder")
    assert ran.code == 0, ran.out
    assert (
        f"EXACT: {FOLLOWERS} follows acknowledged, 0 lost, 0 doubled; looked at: {FOLLOWERS} followers of 1 of 1 followed profiles"
        in ran.out
    )
    assert "verdict: pass" in ran.out
    assert "profiles are given their followers" in ran.err
    report = json.loads((tmp_path / "new" / "folder" / "report.json").read_text("utf-8"))
    assert report["timeline"][0]["second"] == 0
    assert "**pass**" in (tmp_path / "new" / "folder" / "report.md").read_text("utf-8")


def test_the_job_for_kubernetes_means_something(watertower: Watertower, target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its arguments, with fewer followers, and the names of its variables; its last line is the report."""
    job = (ROOT / "deploy" / "examples" / "load-job.yaml").read_text("utf-8")
    (arguments,) = re.findall(r"^ +args: \[(.+)\]$", job, re.MULTILINE)
    variables = re.findall(r"\{name: (\w+), value: \"[\w-]+:\d+\"\}", job)
    assert len(variables) == 2
    for variable in variables:
        monkeypatch.setenv(variable, target)
    words = [word.strip('"') for word in arguments.split(", ")]
    words[words.index("--followers") + 1] = str(FOLLOWERS)
    ran = watertower(*words, "--profiles", 10, *LENIENT)
    assert json.loads(ran.out.splitlines()[-1])["acknowledged"] == FOLLOWERS
    assert ran.code == 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["storm"], "storm: there is no such scenario, only steady, debut, read-storm, herd"),
        (["steady", "--threshold", "read.p98_ms=1"], "--threshold read.p98_ms: no such figure"),
        (["steady", "--threshold", "herd.recovered_s=1"], "--threshold herd.recovered_s: steady does not measure it"),
        (["steady", "--write-target", "nowhere"], "--write-target nowhere: must be HOST:PORT"),
        (["herd", "--read-target", "dns:///here:1"], "--read-target dns:///here:1: herd needs HOST:PORT"),
        (["steady", "--seconds", SECONDS_MAX + 1], "'--seconds'"),
        (["steady", "--rate", RATE_MAX + 1], "'--rate'"),
        (["steady", "--follow-rate", RATE_MAX + 1], "'--follow-rate'"),
        (["debut", "--followers", FOLLOWERS_MAX + 1], "'--followers'"),
        (["debut", "--times", TIMES_MAX + 1], "'--times'"),
        (["debut", "--profiles", PROFILES_MAX + 1], "'--profiles'"),
        (["herd", "--clients", CLIENTS_MAX + 1], "'--clients'"),
        (["herd", "--outage", OUTAGE_S_MAX + 1], "'--outage'"),
    ],
)
def test_bad_usage(watertower: Watertower, arguments: list[object], said: str) -> None:
    """Refused before anything is sent, with the option and the rule."""
    ran = watertower("load", *arguments)
    assert ran.code == 2
    assert said in ran.err
    assert len(ran.err.splitlines()) == 1


@pytest.mark.parametrize("missing", ["--write-target", "--read-target"])
def test_a_service_that_is_not_there(watertower: Watertower, target: str, missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is given a moment, and then one line says what is missing."""
    monkeypatch.setattr(run, "READY_S_MAX", 1.0)
    targets = {"--write-target": target, "--read-target": target, missing: "127.0.0.1:1"}
    ran = watertower("load", "steady", *(part for option in targets.items() for part in option), "--json")
    assert ran.code == 1
    assert "the load test ended early: nothing answers at 127.0.0.1:1" in json.loads(ran.err)["error"]


def test_a_folder_that_cannot_be_made_is_known_at_the_start(watertower: Watertower, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    ran = watertower("load", "steady", "--report", tmp_path / "file")
    assert ran.code == 1
    assert "file" in ran.err


def test_a_projector_that_never_catches_up_is_named(load: Watertower, service: FakeService, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before anything is measured."""
    monkeypatch.setattr(run, "POPULATED_S_MAX", 0.5)
    service.visible_lag_reads = 1_000_000
    ran = load(*DEBUT)
    assert ran.code == 1
    assert "is the projector running?" in ran.err
