"""`watertower load`: a load test of a service that runs elsewhere."""

from pathlib import Path
from typing import Annotated, Any

import typer

from watertower.cli import output
from watertower.cli.options import ReadTarget, WriteTarget
from watertower.load.limits import CLIENTS_MAX, FOLLOWERS_MAX, OUTAGE_S_MAX, PROFILES_MAX, RATE_MAX, SECONDS_MAX, TIMES_MAX


def register(app: typer.Typer) -> None:
    app.command("load")(load)


def load(
    scenario: Annotated[str, typer.Argument(metavar="SCENARIO", help="steady, debut, read-storm or herd.")],
    write_target: WriteTarget = "127.0.0.1:50051",
    read_target: ReadTarget = "127.0.0.1:50052",
    seconds: Annotated[
        float, typer.Option(min=1, max=SECONDS_MAX, help="Of steady and read-storm; of herd before, and again after.")
    ] = 30.0,
    rate: Annotated[float, typer.Option(min=1, max=RATE_MAX, help="Reads a second.")] = 200.0,
    follow_rate: Annotated[float, typer.Option(min=1, max=RATE_MAX, help="Follows a second, of steady and herd.")] = 50.0,
    followers: Annotated[int, typer.Option(min=100, max=FOLLOWERS_MAX, help="Of a debut.")] = 100_000,
    times: Annotated[float, typer.Option(min=0.1, max=TIMES_MAX, help="Of a debut: times the rate of 2019, 52.7 follows a second.")] = 20.0,
    profiles: Annotated[int, typer.Option(min=10, max=PROFILES_MAX, help="Ordinary profiles that are read and followed.")] = 2_000,
    clients: Annotated[int, typer.Option(min=1, max=CLIENTS_MAX, help="Of a herd: clients with connections of their own.")] = 50,
    outage: Annotated[float, typer.Option(min=0.5, max=OUTAGE_S_MAX, help="Of a herd: seconds without the service.")] = 5.0,
    threshold: Annotated[
        list[str] | None, typer.Option("--threshold", help="NAME=NUMBER, at most so much, or NAME=off. Repeatable.")
    ] = None,
    report: Annotated[Path | None, typer.Option(help="Folder for report.json and report.md.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="For the same schedule again (default: random, in the report).")] = None,
    json: output.Json = False,
) -> None:
    """Send a service a load on a schedule fixed beforehand, recount what it acknowledged, and judge it by thresholds.

    Scenarios: `steady` (profile reads and follows), `debut` (a star joins, at N times the rate of 2019), `read-storm` (hot and cold
    profiles), `herd` (many clients come back at once after an outage). With --json the last line is the report without its timeline.
    Exit code 0 when it passed, 1 when a threshold was missed or a count was not exact.
    """
    import asyncio
    import secrets
    from json import dumps

    from watertower.cli.connection import reader, writer
    from watertower.clock import SystemClock
    from watertower.load import LoadFailed
    from watertower.load.report import markdown, one_line
    from watertower.load.run import run
    from watertower.load.scenarios import SCENARIOS, Options
    from watertower.load.thresholds import BadThreshold, chosen, parse

    if scenario not in SCENARIOS:
        raise output.usage(f"{scenario}: there is no such scenario, only {', '.join(SCENARIOS)}")
    try:
        limits = chosen(scenario, parse(threshold or []))
    except BadThreshold as error:
        raise output.usage(f"--threshold {error}") from error
    write, read = writer(write_target), reader(read_target)
    for server in (write, read):
        if scenario == "herd" and "/" in server.address:
            raise output.usage(f"{server.option} {server.address}: herd needs HOST:PORT, since it puts a door in front of the server")
    chosen_seed = secrets.randbelow(2**31) if seed is None else seed
    options = Options(
        scenario, write.address, read.address, seconds, rate, follow_rate, followers, times, profiles, clients, outage, chosen_seed
    )
    if report is not None:
        report.mkdir(parents=True, exist_ok=True)  # before the load: nobody wants to hear of it after an hour
    try:
        found = asyncio.run(run(options, limits, SystemClock(), lambda text: output.note(text, json)))
    except LoadFailed as error:
        raise output.CommandFailed(f"the load test ended early: {error}") from error
    if report is not None:
        (report / "report.json").write_text(dumps(found, indent=1) + "\n", "utf-8")
        (report / "report.md").write_text(markdown(found), "utf-8")
    if json:
        output.print_json(one_line(found))
    else:
        _show(found)
    raise typer.Exit(0 if found["passed"] else output.EXIT_FAILED)


def _show(report: dict[str, Any]) -> None:
    """The summary for people."""
    from watertower.load.report import FAILURE_COLUMNS, LATENCY_COLUMNS, failure_rows, latency_rows, recounted, shown, timelines

    output.print_table(LATENCY_COLUMNS, latency_rows(report), numbers=LATENCY_COLUMNS[2:])
    output.print_lines([""])
    output.print_table(FAILURE_COLUMNS, failure_rows(report), numbers=FAILURE_COLUMNS[2:-1])
    output.print_lines([""])
    thresholds = report["thresholds"]
    rows = [(one["name"], shown(one["limit"]), shown(one["value"]), "ok" if one["ok"] else "MISSED") for one in thresholds]
    output.print_table(("threshold", "at most", "measured", ""), rows, numbers=("at most", "measured"))
    output.print_lines(["", *(f"{name:<14} {line}  max {shown(largest)}" for name, line, largest in timelines(report["timeline"]))])
    recount = report["recount"]
    if recount is not None:
        output.print_lines(["", recounted(recount), *recount["examples"]])
    output.print_lines([f"verdict: {report['verdict']}"])
