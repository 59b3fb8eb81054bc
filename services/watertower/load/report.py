"""The report: one JSON object with a version, and the same for people."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from watertower.client.answers import datetime_of_us
from watertower.load.measure import SIDES, Recorder, ms, side_of
from watertower.load.scenarios import Options, Plan
from watertower.load.schedule import Names
from watertower.load.thresholds import judge, verdict

VERSION = 1
"""Of the report's form: a field that is taken away or means something else makes it one more."""

_BARS = "▁▂▃▄▅▆▇█"
SPARKLINE_COLUMNS_MAX = 80
"""Columns of a timeline in text; of a longer one, several seconds share a column."""


class Run(NamedTuple):
    """What a run left."""

    options: Options
    names: Names
    plan: Plan
    recorder: Recorder
    started_us: int
    recount: dict[str, Any] | None
    settled: int
    herd: dict[str, Any] | None


def report_of(run: Run, limits: Mapping[str, float]) -> dict[str, Any]:
    """The whole report."""
    figures = _figures(run)
    judged = judge(limits, figures)
    exact = None if run.recount is None else bool(run.recount["exact"])
    found = verdict(judged, exact)
    return {
        "version": VERSION,
        "scenario": run.options.scenario,
        "started_at": datetime_of_us(run.started_us).isoformat(),
        "verdict": found,
        "passed": found == "pass",
        "exact": exact,
        "acknowledged": None if run.recount is None else run.recount["acknowledged"],
        "thresholds": [one.figures() for one in judged],
        "figures": figures,
        "phases": {phase.name: _phase(run.recorder, phase.name, phase.start_s, phase.end_s) for phase in run.recorder.phases},
        "recount": None if run.recount is None else {"star": run.plan.star, "settled": run.settled, **run.recount},
        "herd": run.herd,
        "options": run.options.figures() | {"run": run.names.run},
        "timeline": run.recorder.timeline(),
    }


def one_line(report: Mapping[str, Any]) -> dict[str, Any]:
    """The report without its timeline: short enough for a line of a log."""
    return {name: value for name, value in report.items() if name != "timeline"}


def _figures(run: Run) -> dict[str, float | None]:
    """By the names that thresholds have: of the phase that is judged, of the generator, and of the end."""
    recorder, figures = run.recorder, dict[str, float | None]()
    main = next(phase for phase in recorder.phases if phase.name == run.plan.main)
    for side in SIDES:
        of_side = _side(recorder, main.name, side, main.end_s - main.start_s)
        figures |= {f"{side}.{name}": value for name, value in of_side.items() if not isinstance(value, dict)}
    figures["generator.late_p99_ms"] = ms(recorder.late.percentile_s(0.99))
    figures["generator.late_max_ms"] = ms(recorder.late.max_s)
    figures["generator.unsent"] = recorder.unsent
    if run.recount is not None:
        figures["recount.differences"], figures["recount.visible_s"] = run.recount["differences"], run.recount["visible_s"]
    if run.herd is not None:
        figures |= {f"herd.{name}": run.herd[name] for name in ("recovered_s", "retries_over_budget")}
    return figures


def _phase(recorder: Recorder, name: str, start_s: float, end_s: float) -> dict[str, Any]:
    seconds = end_s - start_s
    sides = {side: _side(recorder, name, side, seconds) for side in SIDES}
    calls = {call: found.figures(seconds) for (phase, call), found in sorted(recorder.calls.items()) if phase == name}
    return {"seconds": round(seconds, 3), **sides, "calls": {call: {"side": side_of(call), **found} for call, found in calls.items()}}


def _side(recorder: Recorder, phase: str, side: str, seconds: float) -> dict[str, Any]:
    return recorder.of_side(phase, side).figures(seconds) | recorder.attempts[phase, side].figures()


def recounted(recount: Mapping[str, Any]) -> str:
    """One line for people: what the recount found, and what it has looked at."""
    lists = "to the end" if recount["listed_all"] else "not to the end"
    return (
        f"{'EXACT' if recount['exact'] else 'NOT EXACT'}: {recount['acknowledged']:,} follows acknowledged, {recount['lost']:,} lost, "
        f"{recount['doubled']:,} doubled; looked at: {recount['listed']:,} followers of {recount['profiles_checked']:,} of "
        f"{recount['profiles_followed']:,} followed profiles ({lists}), the own counts of {recount['actors_checked']:,} followers"
    )


def sparkline(values: Sequence[float | None]) -> str:
    """One character a column, its height by the largest value; a dot where nothing was measured."""
    per_column = -(-len(values) // SPARKLINE_COLUMNS_MAX) or 1
    groups = [[value for value in values[at : at + per_column] if value is not None] for at in range(0, len(values), per_column)]
    largest = max((max(group) for group in groups if group), default=0.0)
    return "".join("·" if not group else _BARS[round(max(group) / largest * (len(_BARS) - 1))] if largest else _BARS[0] for group in groups)


def markdown(report: Mapping[str, Any]) -> str:
    """The report for people."""
    options = report["options"]
    lines = [
        f"# Load test: {report['scenario']}",
        "",
        f"**{report['verdict']}**, {report['started_at']}, seed {options['seed']}, run {options['run']}.",
        "",
        "## Thresholds",
        "",
        *_table(
            ("figure", "at most", "measured", ""),
            [(one["name"], shown(one["limit"]), shown(one["value"]), "ok" if one["ok"] else "**missed**") for one in report["thresholds"]],
        ),
        "",
        "## Latency",
        "",
        "In milliseconds, from the moment at which a call was due to the end of its last attempt.",
        "",
        *_table(LATENCY_COLUMNS, latency_rows(report)),
        "",
        "## Failures",
        "",
        "Raw: single requests that failed. Final: calls that had failed when the client's own retries were over.",
        "",
        *_table(FAILURE_COLUMNS, failure_rows(report)),
        "",
    ]
    for title, part in (("Recount", report["recount"]), ("Herd", report["herd"])):
        if part is not None:
            lines += [f"## {title}", "", *_table(("figure", "value"), [(name, shown(value)) for name, value in part.items()]), ""]
    lines += ["## Timeline", "", "The first column is the first second; the height is that of the largest value of the row.", "", "```text"]
    lines += [f"{name:<14} {line}  max {shown(largest)}" for name, line, largest in timelines(report["timeline"])]
    lines += ["```", "", "## Options", "", *_table(("option", "value"), [(name, shown(value)) for name, value in options.items()]), ""]
    return "\n".join(lines)


LATENCY_COLUMNS = ("phase", "call", "calls", "per second", "p50", "p90", "p99", "p99.9", "max")
FAILURE_COLUMNS = ("phase", "side", "requests", "retries", "raw failed", "calls", "final failed", "what")


def latency_rows(report: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """By phase and call."""
    measures = ("calls", "per_s", "p50_ms", "p90_ms", "p99_ms", "p999_ms", "max_ms")
    return [
        (phase, call, *(shown(figures[measure]) for measure in measures))
        for phase, found in report["phases"].items()
        for call, figures in found["calls"].items()
    ]


def failure_rows(report: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """By phase and server."""
    rows = []
    for phase, found in report["phases"].items():
        for side in SIDES:
            figures = found[side]
            what = "; ".join(f"{count:,} {name}" for name, count in (*figures["raw_errors"].items(), *figures["errors"].items()))
            counts = (figures[name] for name in ("attempts", "retries", "raw_failed", "calls", "failed"))
            rows.append((phase, side, *(shown(count) for count in counts), what))
    return rows


def timelines(timeline: Sequence[Mapping[str, Any]]) -> list[tuple[str, str, float]]:
    """Name, sparkline and largest value of what is worth a line."""
    lines = []
    for name in ("reads", "read_p99_ms", "writes", "write_p99_ms", "raw_failed", "late_max_ms"):
        values = [row[name] for row in timeline]
        lines.append((name, sparkline(values), max((value for value in values if value is not None), default=0)))
    return lines


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    escaped = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    return ["| " + " | ".join(cells) + " |" for cells in (columns, ["---"] * len(columns), *escaped)]


def shown(value: Any) -> str:
    """A value in a table."""
    if value is None:
        return "-"
    if isinstance(value, list):
        return "; ".join(map(str, value)) or "-"
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    return f"{value:,}" if isinstance(value, int) or value >= 100 else f"{value:.4g}"
