"""The page of the load test says what its code says: scenarios, figures with their default thresholds, fields of the report."""

import re
from pathlib import Path

from watertower.load.report import VERSION
from watertower.load.scenarios import SCENARIOS
from watertower.load.thresholds import DEFAULTS, NAMES

PAGE = (Path(__file__).parents[2] / "docs" / "load-testing.md").read_text("utf-8")


def rows(heading: str) -> list[list[str]]:
    """The cells of the tables of a section."""
    section = PAGE.partition(f"\n## {heading}")[2].partition("\n## ")[0]
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in section.splitlines() if line.startswith("| ")]


def test_every_scenario_is_documented() -> None:
    assert {re.findall(r"`([\w-]+)`", row[0])[0] for row in rows("Scenarios")[1:]} == set(SCENARIOS)


def test_every_figure_is_documented_with_its_thresholds() -> None:
    """By scenario, in the order of the columns."""
    head, *table = rows("Thresholds")
    documented: dict[str, dict[str, float]] = {scenario: {} for scenario in head[2:]}
    names = [name for row in table for name in re.findall(r"`([\w.]+)`", row[0])]
    assert sorted(names) == sorted(NAMES)
    for row in table:
        for scenario, value in zip(head[2:], row[2:], strict=True):
            if value:
                documented[scenario][re.findall(r"`([\w.]+)`", row[0])[0]] = float(value.replace(",", ""))
    assert documented == DEFAULTS


def test_the_version_of_the_report_is_documented() -> None:
    """That its fields are is looked at where there is one: tests/load/test_scenarios.py."""
    assert f"| `version` | {VERSION} |" in PAGE


def fields() -> dict[str, str]:
    """The fields of the report, with what the page says of each."""
    return {name: row[1] for row in rows("The report")[1:] for name in re.findall(r"`(\w+)`", row[0])}
