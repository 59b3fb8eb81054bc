"""What failed calls carry, and what can be set."""

import subprocess
import sys

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.client.fake import Refusal as Scripted
from tests.client.fake import refused
from watertower.client import ClientOptions
from watertower.client.errors import PUSHBACK_KEY, STATUS_KEY, Refusal, Violation, refusal_of
from watertower.config import QuerySettings
from watertower.errors import Reason
from watertower.errors import Violation as Broken


class Failed(grpc.RpcError):
    """A failed call as grpc gives it."""

    def __init__(self, scripted: Scripted) -> None:
        self._scripted = scripted

    def code(self) -> grpc.StatusCode:
        return self._scripted.status

    def details(self) -> str:
        return self._scripted.said

    def trailing_metadata(self) -> tuple[tuple[str, str | bytes], ...]:
        return self._scripted.trailing


def test_everything_that_a_server_says_is_read() -> None:
    """Reason, violations with their rules, and when to come back."""
    found = refusal_of(Failed(refused(Reason.ID_LENGTH, violations=[Broken("events[3].actor", Reason.ID_LENGTH)])))
    assert found.violations == (Violation("events[3].actor", Reason.ID_LENGTH.rule, "ID_LENGTH"),)
    assert (found.reason, found.retry_after_s, found.retryable) == ("ID_LENGTH", None, False)
    many = refusal_of(Failed(refused(Reason.ID_LENGTH, violations=[Broken(f"events[{n}].actor", Reason.ID_LENGTH) for n in range(30)])))
    assert (len(many.violations), many.violations_count) == (20, 30)
    shed = refusal_of(Failed(refused(Reason.QUEUE_FULL, 0.25)))
    assert (shed.reason, shed.retry_after_s, shed.shed, shed.retryable) == ("QUEUE_FULL", 0.25, True, True)


@given(st.binary(max_size=40) | st.text(max_size=10), st.text(max_size=10) | st.binary(max_size=10))
def test_details_that_cannot_be_read_are_as_if_absent(status: bytes | str, pushback: str | bytes) -> None:
    """Whatever a proxy puts there: the status is told, and a pushback that is no number means not to repeat."""
    found = refusal_of(Failed(Scripted(grpc.StatusCode.UNAVAILABLE, "x", ((STATUS_KEY, status), (PUSHBACK_KEY, pushback)))))
    assert (found.status, found.said) == (grpc.StatusCode.UNAVAILABLE, "x")
    text = pushback if isinstance(pushback, str) else pushback.decode("ascii", "replace")
    assert found.no_retry == (not (text.isascii() and text.isdigit() and len(text) < 10))


def test_a_call_without_details() -> None:
    """Is a status and a message on one line."""
    assert refusal_of(Failed(Scripted(grpc.StatusCode.INTERNAL, "a\n b"))) == Refusal(grpc.StatusCode.INTERNAL, "a b")


@pytest.mark.parametrize(
    ("option", "value"),
    [("timeout_ms", 0), ("batch_items_max", 1_001), ("batch_items_max", 0), ("near_entities_max", 1_001), ("retry_percent_max", 101)],
)
def test_options_have_bounds(option: str, value: int) -> None:
    """A value that cannot work is refused where it is set, by name."""
    with pytest.raises(ValueError, match=f"{option} is {value}"):
        ClientOptions(**{option: value})


def test_near_answers_outlast_the_silence_of_a_watch() -> None:
    """By default, what does not change is answered from near all the time: the service says a word of it twice as often."""
    assert ClientOptions().near_age_ms_max >= 2 * QuerySettings().watch_heartbeat_ms


def test_the_client_brings_no_back_end() -> None:
    """A service that calls Watertower imports no driver, no settings and no command line for that."""
    program = "import sys, watertower.client; print(*sorted({name.split('.')[0] for name in sys.modules}), *sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60).stdout.split()
    unwanted = {"rocksdict", "kafka", "cassandra", "fastavro", "pydantic", "structlog", "typer", "rich", "sqlite3"}
    assert not unwanted & set(loaded)
    ours = {name.split(".")[1] for name in loaded if name.startswith("watertower.")}
    assert ours <= {"client", "clock", "core", "errors", "ports", "v1", "validation"}
