"""The command line, run as a process of its own."""

import csv
import io
import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from watertower.testing.service import clean_environment

Settings = Mapping[str, object]
"""Settings by name, as in `--set`. `{"data": folder}` is a service on that data folder."""


class Ran(NamedTuple):
    """What a command left."""

    code: int
    out: str
    err: str


def watertower(*arguments: object, environment: Mapping[str, str] | None = None, timeout_s: float = 120.0) -> Ran:
    """Runs `watertower ARGUMENTS` as a process of its own, without settings from this one's environment."""
    done = subprocess.run(
        [sys.executable, "-m", "watertower", *map(str, arguments)],
        capture_output=True,
        text=True,
        env=clean_environment(environment),
        timeout=timeout_s,
        check=False,
    )
    return Ran(done.returncode, done.stdout, done.stderr)


def options(settings: Settings) -> Iterator[str]:
    """The settings as options of any command that takes them. `data` has an option of its own, whose default would win over `--set`."""
    for name, value in settings.items():
        yield from ("--data", str(value)) if name == "data" else ("--set", f"{name}={value}")


def exported_counts(settings: Settings) -> dict[tuple[str, str], int]:
    """(entity, metric) -> value, of `watertower export counts`."""
    ran = watertower("export", "counts", *options(settings))
    assert ran.code == 0, ran.err
    rows = list(csv.reader(io.StringIO(ran.out)))
    assert rows[0] == ["entity", "metric", "value"]
    counts = {(entity, metric): int(value) for entity, metric, value in rows[1:]}
    assert len(counts) == len(rows) - 1, "an entity's metric is exported twice"
    return counts


def assert_audit_is_clean(settings: Settings) -> dict[str, Any]:
    """`watertower audit` finds nothing. Its totals."""
    ran = watertower("audit", *options(settings), "--json")
    assert ran.code == 0, f"audit found differences: {ran.out}{ran.err}"
    totals: dict[str, Any] = json.loads(ran.out)
    assert totals["clean"] is True
    return totals
