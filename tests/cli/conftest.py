"""What the tests of the command line share: a fake service, and commands run inside this process."""

import json
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pytest

from tests.cli.fakes import FakeService, serving
from watertower.cli import run


class Result(NamedTuple):
    """What a command left."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    @property
    def rows(self) -> list[Any]:
        return [json.loads(line) for line in self.out.splitlines()]


Watertower = Callable[..., Result]


@pytest.fixture
def service() -> FakeService:
    return FakeService()


@pytest.fixture
def target(service: FakeService) -> Iterator[str]:
    with serving(service) as address:
        yield address


@pytest.fixture
def watertower(capsys: pytest.CaptureFixture[str]) -> Watertower:
    """Runs one command line."""

    def command(*arguments: object) -> Result:
        code = run([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return Result(code, captured.out, captured.err)

    return command


@pytest.fixture
def client(watertower: Watertower, target: str) -> Watertower:
    """Runs one command line against the fake service."""

    def command(name: str, *arguments: object) -> Result:
        targets: list[object] = ["--read-target", target]
        if name == "import":
            targets += ["--write-target", target]
        words = name.split()
        return watertower(*words, *targets, *arguments)

    return command
