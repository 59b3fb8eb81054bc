"""`watertower debut`: see the idea work on this machine."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from watertower.cli import output
from watertower.cli.options import Set, assigned

LOG_LINES_SHOWN = 5
"""Last lines of the service's log in the message of a debut that failed: without --keep the log is gone by then."""


def register(app: typer.Typer) -> None:
    app.command("debut")(debut)


def debut(
    preset: Annotated[
        str, typer.Option(help="2019: 1,000,000 in 5 h 16 min. 2021: 1,000,000 in 43 min, 10,000,000 in 4 h 52 min.")
    ] = "2019",
    followers: Annotated[int | None, typer.Option(min=1_000, max=100_000_000, help="How many (default: the preset's).")] = None,
    speed: Annotated[float | None, typer.Option(min=0.1, help="Times the speed of the preset (default: as fast as it goes).")] = None,
    reads_per_s: Annotated[float, typer.Option(min=1, max=5_000, help="Reads a second, open loop, throughout.")] = 100.0,
    seed: Annotated[int | None, typer.Option(help="For the same presses again (default: random, printed).")] = None,
    keep: Annotated[
        Path | None, typer.Option(help="Keep the data in KEEP/data, the log in KEEP/service.log (default: in a temporary folder, removed).")
    ] = None,
    set_: Set = None,
    json: output.Json = False,
) -> None:
    """A star joins and a million people press Follow at once: see it counted exactly while reads stay fast.

    A real service (separate processes, real gRPC, durable log), with 2 % duplicates, 1 % repeated calls, 5 % unfollows and likes on the
    first post mixed in, read throughout from another process, and recounted independently at the end. Exit code 0 when exact, 1 if not.
    """
    import secrets
    import tempfile

    import grpc

    from watertower import logs
    from watertower.clock import SystemClock
    from watertower.debut import DebutFailed
    from watertower.debut.plan import PRESETS, Plan
    from watertower.debut.run import Live, run

    if preset not in PRESETS:
        raise output.usage(f"--preset {preset}: choose {' or '.join(PRESETS)}")
    if keep is not None and keep.exists() and any(keep.iterdir()):
        raise typer.BadParameter("the folder is not empty", param_hint="--keep")
    chosen = PRESETS[preset]
    plan = Plan(chosen, followers or chosen.followers, secrets.randbelow(2**31) if seed is None else seed)
    live = Live()
    with tempfile.TemporaryDirectory(prefix="watertower-debut-") as temporary:
        home = keep or Path(temporary)
        home.mkdir(parents=True, exist_ok=True)

        def start() -> dict[str, Any]:
            options = {**assigned(set_), "data": str(home / "data")}
            logs.configure_command()  # the recount opens the store
            return run(plan, speed, reads_per_s, options, home / "service.log", live, SystemClock())

        try:
            result = start() if json else _show(start, plan, live)
        except DebutFailed as error:
            raise _failure(str(error), home) from error
        except grpc.RpcError as error:
            raise _failure(f"the service failed a call with {error.code().name}: {error.details()}", home) from error
    if json:
        output.print_json(result)
    raise typer.Exit(0 if result["exact"] and not result["read_errors"] else 1)


def _show(start: Callable[[], dict[str, Any]], plan: Any, live: Any) -> dict[str, Any]:
    """Runs it with a live view, then prints the verdict."""
    from rich.console import Console, Group
    from rich.live import Live as Screen
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
    from rich.table import Table

    console = Console()
    console.print(f"[bold]A debut:[/] {plan.preset.title}; here {plan.followers:,} followers, seed {plan.seed}")
    console.print("[dim]The milestones are published; the shape between them is ours, steepest at the start.[/]")
    bar = Progress(TextColumn("{task.fields[phase]}"), BarColumn(), TextColumn("{task.completed:,} counted"), TimeElapsedColumn())
    task = bar.add_task("", total=plan.followers, phase="")

    class View:
        def __rich__(self) -> Group:
            bar.update(task, completed=live.counted, phase=live.phase)
            table = Table.grid(padding=(0, 3))
            table.add_row(
                "accepted/s", f"{live.accepted_per_s:,.0f}", "visible/s", f"{live.visible_per_s:,.0f}", "lag", f"{live.lag_ms:,.0f} ms"
            )
            table.add_row(
                "read p50/p99 before",
                _reads(live.read_before),
                "read p50/p99 now",
                _reads(live.read_now),
                "acknowledged",
                f"{live.acknowledged:,}",
            )
            return Group(bar, table)

    with Screen(View(), console=console, refresh_per_second=4):
        result = start()
    if not console.is_terminal:
        console.print()  # there the live view is printed once, without the end of its line
    table = Table(title="recounted independently", show_header=True)
    for column in ("", "expected", "served", "edges in the store"):
        table.add_column(column, justify="right")
    for what in ("followers", "likes"):
        table.add_row(what, *(f"{result[f'{what}_{kind}']:,}" for kind in ("expected", "counted", "edges")))
    console.print(table)
    console.print(
        f"accepted {result['accepted_per_s']:,}/s, visible {result['visible_per_s']:,}/s; lag p50 {result['lag_p50_ms']:,} ms, p99 "
        f"{result['lag_p99_ms']:,} ms"
    )
    console.print(
        f"reads: p50 {result['read_p50_ms_idle']} ms before, {result['read_p50_ms_surge']} ms during; "
        f"p99 {result['read_p99_ms_idle']} ms before, {result['read_p99_ms_surge']} ms during; "
        f"{result['read_errors']} errors in {result['reads']:,}"
    )
    if result["exact"]:
        console.print("[bold green]EXACT[/]: every follow counted once, none lost, none doubled.")
    else:
        console.print("[bold red]NOT EXACT[/]: see the table above.")
    return result


def _failure(message: str, home: Path) -> output.CommandFailed:
    """What went wrong, with the end of what the service said."""
    try:
        lines = (home / "service.log").read_text("utf-8", "replace").splitlines()
    except FileNotFoundError:  # it went wrong before
        lines = []
    said = "; the service's log ends with: " + " | ".join(lines[-LOG_LINES_SHOWN:]) if lines else ""
    return output.CommandFailed(f"the debut ended early: {message}{said}")


def _reads(summary: dict[str, Any]) -> str:
    return f"{summary['p50_ms']} / {summary['p99_ms']} ms" if summary.get("p50_ms") is not None else "-"
