"""`watertower debut` when it cannot be run to its end. (That it counts exactly is in tests/docs: the README's command is run.)"""

import json
from pathlib import Path
from typing import Any, NoReturn

import grpc
import pytest

from tests.cli.conftest import Watertower
from watertower.cli.debut import LOG_LINES_SHOWN
from watertower.debut import DebutFailed, run


class Refused(grpc.RpcError):
    """A call that the service refused."""

    def code(self) -> grpc.StatusCode:
        return grpc.StatusCode.INVALID_ARGUMENT

    def details(self) -> str:
        return "must have 1 to 1000 events"


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (DebutFailed("the readers failed"), "the readers failed"),
        (Refused(), "INVALID_ARGUMENT: must have 1 to 1000 events"),
    ],
)
@pytest.mark.parametrize("options", [[], ["--json"]])
def test_a_debut_that_fails_says_why_in_one_line(
    watertower: Watertower, monkeypatch: pytest.MonkeyPatch, error: Exception, text: str, options: list[str]
) -> None:
    """With the end of the service's log, which is in a folder that is gone by then."""

    def fail(plan: Any, speed: Any, reads_per_s: Any, options: Any, log: Path, *others: Any) -> NoReturn:
        log.write_text("".join(f"line {n}\n" for n in range(1, 11)))
        raise error

    monkeypatch.setattr(run, "run", fail)
    result = watertower("debut", *options)
    assert result.code == 1
    assert len(result.err.splitlines()) == 1
    message = json.loads(result.err)["error"] if options else result.err
    assert text in message
    assert message.rstrip().endswith("line 10")
    assert message.count("line ") == LOG_LINES_SHOWN


def test_a_service_that_does_not_start_is_quoted(watertower: Watertower, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A real one, on a setting that it refuses. With --keep its log stays."""
    monkeypatch.setenv("WATERTOWER_PARTITIONS", "65")
    result = watertower("debut", "--json", "--keep", tmp_path / "kept")
    assert result.code == 1
    assert "the service did not start (exit code 3)" in result.err
    assert "partitions: " in result.err
    assert "partitions: " in (tmp_path / "kept" / "service.log").read_text()
