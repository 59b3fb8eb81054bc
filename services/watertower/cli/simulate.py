"""`watertower simulate`: the real code on simulated disasters, by seed."""

from typing import Annotated, Any

import typer

from watertower.cli import output


def register(app: typer.Typer) -> None:
    app.command("simulate")(simulate)


def simulate(
    seeds: Annotated[int, typer.Option("--seeds", min=1, help="How many seeds.")] = 100,
    start: Annotated[int, typer.Option("--start", min=0, help="The first of them.")] = 0,
    seed: Annotated[int | None, typer.Option("--seed", min=0, help="Only this one.")] = None,
    trace: Annotated[bool, typer.Option("--trace", help="With --seed: print what happens, line by line.")] = False,
    calls: Annotated[int | None, typer.Option("--calls", min=1, help="Calls to ingest in a run, as a shrunk failure says.")] = None,
    without: Annotated[list[str] | None, typer.Option("--without", help="A kind of fault to leave out. Repeatable.")] = None,
    jobs: Annotated[int, typer.Option("--jobs", min=1, max=64, help="Processes side by side.")] = 1,
    json: output.Json = False,
) -> None:
    """Run the real ingest, projector, fold and query on a simulated log, store, feed, network and clock, and let everything fail.

    Each seed is one bad day; afterwards every edge, count and list is compared with a naive replay of the log. A seed that fails is made
    smaller before it is shown. Needs the package's extra `simulator`. Exit code 1 when a seed failed.
    """
    try:
        from watertower.testing.simulator import campaign
    except ModuleNotFoundError as error:
        if error.name != "greenlet":
            raise
        raise output.CommandFailed("the simulator needs greenlet: install watertower[simulator]") from error
    from watertower.testing.simulator.faults import KINDS

    left_out = tuple(without or ())
    for kind in left_out:
        if kind not in KINDS:
            raise output.usage(f"--without {kind}: there is no such fault, only {', '.join(KINDS)}")
    if trace and seed is None:
        raise output.usage("--trace needs --seed")
    if trace and json:
        raise output.usage("--trace is for people: leave --json out")
    first, count = (start, seeds) if seed is None else (seed, 1)
    show = typer.echo if trace else None
    result = campaign.run(first, count, calls, left_out, jobs, show, None if json else _say)
    if json:
        output.print_json(result)
    else:
        _summary(result)
    raise typer.Exit(1 if result["failures"] else 0)


def _say(done: int, count: int) -> None:
    if done % 100 == 0 and done < count:
        output.note(f"{done:,} of {count:,} seeds")


def _summary(result: dict[str, Any]) -> None:
    hours, took = result["simulated_hours"], result["took_s"]
    print_lines = [f"{result['seeds']:,} seeds, {result['events']:,} events, {hours:,.1f} simulated hours in {took:,.0f} s"]
    rows = [(kind, f"{count:,}") for kind, count in sorted(result["faults"].items(), key=lambda row: -row[1])]
    output.print_lines(print_lines)
    output.print_table(("fault", "times"), rows, numbers=("times",))
    for failure in result["failures"]:
        output.print_lines([f"FAILED {failure['replay']}: {failure['invariant']}: {failure['detail']}"])
    if not result["failures"]:
        output.print_lines(["every invariant held"])
