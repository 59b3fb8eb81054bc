"""The reference says what the code says: every setting, command, option, reason, limit and failpoint, with its value."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.docs import tables
from watertower import config, failpoints
from watertower.core.model import KINDS, Kind, Metric
from watertower.errors import Reason
from watertower.metrics import CATALOGUE
from watertower.v1 import common_pb2

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
REFERENCE = DOCS / "reference"
SOURCES = ROOT / "services" / "watertower"

LIMIT_NAME = re.compile(r"[A-Z][A-Z0-9_]*_(MAX|MIN|DEFAULT|KEPT)(_[A-Z]{1,2})?")
"""How the code names a limit: `ID_BYTES_MAX`, `OCCURRED_AT_MIN_US`."""


def rows(page: str) -> list[list[str]]:
    """The cells of every row of every table of a page, heads left out."""
    lines = [line for line in (REFERENCE / page).read_text("utf-8").splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]


def named(text: str) -> set[str]:
    """What stands in backticks, outside of blocks."""
    return set(re.findall(r"`([^`]+)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL)))


def limits_in_code() -> Iterator[tuple[str, int]]:
    """Every public constant of the services that is a limit, with its value."""
    for path in sorted(SOURCES.rglob("*.py")):
        if {"v1", "testing", "debut"} & set(path.relative_to(SOURCES).parts):
            continue
        for node in ast.parse(path.read_text("utf-8")).body:
            target = node.targets[0] if isinstance(node, ast.Assign) else node.target if isinstance(node, ast.AnnAssign) else None
            if isinstance(target, ast.Name) and LIMIT_NAME.fullmatch(target.id):
                value = eval(compile(ast.Expression(node.value), str(path), "eval"), {})
                yield target.id, value


def logged_in_code() -> dict[str, set[str]]:
    """Every event that the services log under a name written out, with its levels."""
    levels: dict[str, set[str]] = {}
    for path in SOURCES.rglob("*.py"):
        for level, event in re.findall(r'\.(debug|info|warning|error|exception)\(\s*"([^"]+)"[,)]', path.read_text("utf-8")):
            levels.setdefault(event, set()).add("error" if level == "exception" else level)
    return levels


@pytest.mark.parametrize("name", sorted(tables.TABLES))
def test_generated_tables_are_up_to_date(name: str) -> None:
    """A setting, command or option cannot be added, changed or removed without its documentation."""
    file, table = tables.TABLES[name]
    page = (REFERENCE / file).read_text("utf-8")
    assert tables.section_of(name, page).group() == table(), "run: python -m tests.docs.tables"


def test_every_setting_is_documented() -> None:
    """By name, with its environment variable; and nothing else is documented as one."""
    documented = {name for row in rows("settings.md") for name in named(row[0]) if not name.startswith("-")}
    assert documented == set(config.catalogue())


def test_every_command_and_option_is_documented() -> None:
    """Every command has its heading, every option its row under it."""
    page = (REFERENCE / "cli.md").read_text("utf-8")
    for path, command in tables.commands():
        section = page.partition(f"### `{path}")[2].partition("\n### ")[0]
        for parameter in command.params:
            wanted = parameter.opts if parameter.param_type_name == "option" else [parameter.metavar or parameter.name.upper()]
            assert section, path
            assert all(f"`{name}`" in section for name in wanted), (path, wanted)


def test_every_reason_is_documented() -> None:
    """With its status and its rule, word for word, and what to do about it."""
    documented = {min(named(row[0])): row for row in rows("errors.md") if len(row) == 4 and named(row[0])}
    assert set(documented) == {reason.name for reason in Reason}
    for reason in Reason:
        _, status, rule, what_to_do = documented[reason.name]
        assert (status, rule) == (reason.status.name, reason.rule)
        assert what_to_do


def test_every_limit_in_the_code_is_documented() -> None:
    """With its value; and no other name is documented as one."""
    documented: dict[str, list[str]] = {}
    for row in rows("limits.md"):
        for name in named(row[-1]):
            if LIMIT_NAME.fullmatch(name):
                documented.setdefault(name, []).append(row[1])
    found = dict(limits_in_code())
    assert {name: [f"{value:,}"] for name, value in found.items()} == documented


def test_every_limit_that_can_be_set_is_documented() -> None:
    """Every setting with `max` in its name is listed with its default."""
    documented = {name: row[1] for row in rows("limits.md") for name in named(row[0]) if name in config.catalogue()}
    settings = {name: section.model_fields[field].default for name, (section, field) in config.catalogue().items()}
    assert documented == {name: f"{default:,}" for name, default in settings.items() if "max" in name.split("_")}


def test_the_numbers_in_reasons_are_those_of_the_limits() -> None:
    """A rule cannot promise another number than the one that the limits page, and so the code, has."""
    values = dict(limits_in_code())
    for reason, limit in (
        (Reason.EVENTS_COUNT, "EVENTS_MAX"),
        (Reason.ENTITIES_COUNT, "ENTITIES_MAX"),
        (Reason.SUBJECTS_COUNT, "SUBJECTS_MAX"),
    ):
        assert f"1 to {values[limit]} " in reason.rule
    assert f"1 to {values['ID_BYTES_MAX']} bytes" in Reason.ID_LENGTH.rule
    assert f"(the default, {values['PAGE_SIZE_DEFAULT']}) to {values['PAGE_SIZE_MAX']}" in Reason.PAGE_SIZE.rule


def test_every_failpoint_is_documented() -> None:
    """Whoever writes a crash test finds the points in one place."""
    documented = named((DOCS / "contributing.md").read_text("utf-8"))
    assert set(failpoints.POINTS) <= documented


def test_every_kind_and_metric_is_documented() -> None:
    """The concepts page has the one table, word for word."""
    page = (DOCS / "concepts.md").read_text("utf-8")
    for kind, rule in KINDS.items():
        ref = "its own id" if rule.needs_ref else "empty"
        assert f"| {kind.name} | {ref} | {rule.subject_metric.name} | {rule.actor_metric.name} |" in page


def test_the_api_has_the_same_kinds_and_metrics() -> None:
    """The enums of core/ and of proto/ are twins: the same names, the same numbers."""
    assert {kind.name: int(kind) for kind in Kind} | {"UNSPECIFIED": 0} == _of_api(common_pb2.Kind, "KIND_")
    assert {metric.name: int(metric) for metric in Metric} | {"UNSPECIFIED": 0} == _of_api(common_pb2.Metric, "METRIC_")


def test_log_events_in_the_operating_page_exist() -> None:
    """Whoever alerts on a line of the log must not wait for one that is never written, or is written at another level."""
    page = (DOCS / "operating.md").read_text("utf-8")
    documented = re.findall(r"^\| `([^`]+)` \| ([a-z]+) \|", page, re.MULTILINE)
    assert len(documented) > 5
    logged = logged_in_code()
    assert [(event, level) for event, level in documented if logged.get(event) != {level}] == []


def test_log_events_are_named_alike() -> None:
    """Lower case and underscores, so that nobody has to guess which."""
    assert [event for event in logged_in_code() if not re.fullmatch("[a-z]+(_[a-z]+)*", event)] == []


def test_alerts_are_about_metrics_that_exist() -> None:
    """With the labels that these have; and every reason and status in them is one of the API. An alert on another name never fires."""
    known = {name: of for described in CATALOGUE.values() for name, of in described.items()}
    rules = (ROOT / "deploy" / "prometheus" / "alerts.yml").read_text("utf-8")
    expressions = re.findall(r"expr: (?:>-\n)?(.*?)\n +(?:for|labels):", rules, re.DOTALL)
    assert len(expressions) == rules.count("- alert: ") > 5
    for expression in expressions:
        found = re.findall(r"(watertower_\w+)(?:\{(\w+)=~?\"([A-Za-z_|]+)\"\})?", expression)
        assert found, expression
        for name, label, values in found:
            of = known[name.removesuffix("_bucket")]
            assert (of.kind == "histogram") == name.endswith("_bucket"), name
            assert not label or label in of.labels, (name, label)
            if label == "reason":
                assert set(values.split("|")) <= {reason.name for reason in Reason}


def test_an_age_that_is_not_there_has_an_alert_of_its_own() -> None:
    """No comparison is true of it: where a partition was never heard of, WatertowerReadsBehind never fires."""
    rules = (ROOT / "deploy" / "prometheus" / "alerts.yml").read_text("utf-8")
    assert "not there until" in CATALOGUE["query"]["watertower_query_feed_age_seconds"].meaning
    assert re.search(r"expr: watertower_query_cached_entities unless on \(job, instance\) watertower_query_feed_age_seconds\n", rules)


@pytest.mark.parametrize("section", ["Backups", "When it refuses to start"])
def test_refusals_in_the_operating_page_exist(section: str) -> None:
    """Whoever searches for the message of a refused backup or start finds it as it is said."""
    page = (DOCS / "operating.md").read_text("utf-8").partition(f"## {section}\n")[2].partition("\n## ")[0]
    messages = re.findall(r"^\| `([^`]+)` \|", page, re.MULTILINE)
    code = "\n".join(path.read_text("utf-8") for path in SOURCES.rglob("*.py"))
    assert len(messages) > 5
    assert [message for message in messages if message not in code] == []


def test_proofs_of_decisions_exist() -> None:
    """A decision rests on its tests: every `path::test` that a page names is there. `::test` alone is in the file named before it."""
    for page in sorted((DOCS / "decisions").glob("0*.md")):
        proof = page.read_text("utf-8").partition("**Proof.**")[2]
        assert proof, page.name
        path = ""
        for file, test in re.findall(r"`([\w/.]*)::(\w+)`", proof):
            path = file or path
            assert f"def {test}(" in (ROOT / path).read_text("utf-8"), (page.name, path, test)


def _of_api(enum: object, prefix: str) -> dict[str, int]:
    return {name.removeprefix(prefix): number for name, number in enum.items()}  # type: ignore[attr-defined] # generated
