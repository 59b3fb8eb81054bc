"""The programs of examples/ are built with the tool chains of their languages and run against a real service."""

import json
import re

import pytest

from tests.commands import Ran
from tests.languages.conftest import FOLLOWERS, wait_followers, waits_for_positions
from tests.languages.programs import BUILD_S, LANGUAGES, Language, Unavailable, built, run
from tests.languages.scripted import Refusal, passing_on
from tests.needs import skip_or_fail
from watertower.core.positions import decode_position
from watertower.errors import Reason
from watertower.testing.service import Service
from watertower.v1 import reader_pb2, writer_pb2

pytestmark = [pytest.mark.languages, pytest.mark.slow, pytest.mark.timeout(BUILD_S)]

ATTEMPTS_MAX = 5
PUSHBACK_MS = 300
"""More than a first backoff can be, and less than grpcurl's script waits."""

DEADLINE_S = {"go": 5.0, "grpcurl": 10.0, "java": 5.0, "typescript": 5.0}
"""Of a read: of the service config, or of the script's own option."""

REFUSED = """\
refused: SELF_NOT_ALLOWED: events[0].subject must differ from actor: an account cannot follow itself
  events[0].subject must differ from actor: an account cannot follow itself
"""


@pytest.fixture(params=sorted(LANGUAGES))
def language(request: pytest.FixtureRequest) -> Language:
    """Each language, its program built."""
    found = LANGUAGES[request.param]
    try:
        built(found)
    except Unavailable as error:
        skip_or_fail(f"examples/{found.name}: {error}")
    return found


def targets(service: Service, write: str | None = None) -> dict[str, str]:
    """What tells a program where the service is; `write` is in the place of its writer."""
    return {"WATERTOWER_WRITE_TARGET": write or service.write_target, "WATERTOWER_READ_TARGET": service.read_target}


def test_a_follow_is_recorded_read_and_listed(language: Language, service: Service) -> None:
    """The count includes the program's own write, both pages of the list come newest first, and the refusal is taken apart."""
    ran = run(language, targets(service))
    if not waits_for_positions(service):  # a read may then be some milliseconds behind the write
        assert ran.code == 0, ran
        wait_followers(service, FOLLOWERS)
        ran = run(language, targets(service))
    assert (ran.code, ran.err) == (0, "")
    if language.name == "grpcurl":
        assert_grpcurl_said(ran, waits_for_positions(service))
        return
    included = "true" if waits_for_positions(service) else "false"
    head, *followers, refused, violation = ran.out.splitlines(keepends=True)[1:]
    assert ran.out.startswith("recorded: ann follows bob\n")
    assert head == f"followers of bob: {FOLLOWERS}, the follow included: {included}\n"
    assert re.fullmatch(r"follower: ann since 20\d\d-\d\d-\d\dT\d\d:\d\d:\d\dZ\n", followers[0])
    assert followers[1:] == ["follower: dan since 2024-05-01T12:00:01Z\n", "follower: cid since 2024-05-01T12:00:00Z\n"]
    assert refused + violation == REFUSED


def assert_grpcurl_said(ran: Ran, waits: bool) -> None:
    """The same, as grpcurl prints it."""
    recorded, _, rest = ran.out.partition("\n")
    assert recorded == "recorded: ann follows bob"
    counts, end = json.JSONDecoder().raw_decode(rest)
    assert counts["values"] == [str(FOLLOWERS)]
    assert counts["freshness"]["satisfied"] is waits
    assert rest[end:].lstrip().startswith("follower: ann\nfollower: dan\nfollower: cid\n")
    for word in ("Code: InvalidArgument", REFUSED.splitlines()[1].strip(), '"reason": "SELF_NOT_ALLOWED"', "ended with 67"):
        assert word in rest[end:]


def test_reads_ask_for_the_write(language: Language, service: Service) -> None:
    """The count and every page are asked for with the write token, each within the deadline of its method."""
    with passing_on(service.read_target) as reader:
        ran = run(language, {**targets(service), "WATERTOWER_READ_TARGET": reader.target})
    assert ran.code == 0, ran
    kinds = {"GetCounts": reader_pb2.GetCountsRequest, "ListActors": reader_pb2.ListActorsRequest}
    asked = [kinds[seen.method.rpartition("/")[2]].FromString(seen.request).min_position for seen in reader.seen]
    assert [seen.method.rpartition("/")[2] for seen in reader.seen][:2] == ["GetCounts", "ListActors"]
    assert set(asked) == {asked[0]}
    assert len(decode_position(asked[0]).offsets) == 1, "one actor is in one partition"
    assert all(seen.left_s is not None and 0 < seen.left_s <= DEADLINE_S[language.name] for seen in reader.seen)


def test_a_shed_write_is_repeated_identically(language: Language, service: Service) -> None:
    """Refused twice, each attempt sends the bytes of the first one, occurred_at included, and comes no sooner than the service asked."""
    with passing_on(service.write_target) as writer:
        writer.refusals = [Refusal(Reason.QUEUE_FULL, PUSHBACK_MS), Refusal(Reason.LOG_UNAVAILABLE, PUSHBACK_MS)]
        ran = run(language, targets(service, writer.target))
        assert ran.code == 0, ran
        first, *repeated = [seen for seen in writer.seen if b"bob" in seen.request]
        assert [seen.request for seen in repeated] == [first.request] * 2
        assert all(gap >= PUSHBACK_MS / 1e3 for gap in writer.gaps_s()[:2])
        assert writer_pb2.RecordEventsRequest.FromString(first.request).events[0].occurred_at.seconds > 0
        assert all(seen.left_s is not None and 0 < seen.left_s <= 10.0 for seen in writer.seen), "every attempt has the deadline"


def test_a_refusal_that_lasts_is_explained(language: Language, service: Service) -> None:
    """After as many attempts as the service config allows, the program ends badly and says why, and when to come back."""
    with passing_on(service.write_target) as writer:
        writer.lasting = Refusal(Reason.QUEUE_FULL, 20)
        ran = run(language, targets(service, writer.target))
        assert len(writer.seen) == ATTEMPTS_MAX
    assert ran.code != 0
    assert ran.out == ""
    if language.name == "grpcurl":
        assert ran.code == 72
        assert "Code: ResourceExhausted" in ran.err
        assert '"retry_delay": "0.020s"' in ran.err
    else:
        refused, repeat = ran.err.splitlines()[-2:]
        assert refused.startswith("refused: QUEUE_FULL: ")
        assert refused.endswith(Reason.QUEUE_FULL.rule)  # Go says before it how often it tried
        assert repeat == "  repeat the identical call after 20 ms"
