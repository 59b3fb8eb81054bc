"""`watertower audit`: recounts everything from the edges."""

from collections import Counter
from typing import TYPE_CHECKING, Annotated, Any

import typer

from watertower.cli import output
from watertower.cli.options import DEFAULT_DATA, Data, Set, opened_scanner

if TYPE_CHECKING:
    from watertower.audit import Difference

DIFFERENCES_SHOWN = 100


def register(app: typer.Typer) -> None:
    app.command("audit")(audit)


def audit(
    data: Data = DEFAULT_DATA,
    set_: Set = None,
    limit: Annotated[int, typer.Option(min=0, help="Differences to print, at most; all are counted.")] = DIFFERENCES_SHOWN,
    json: output.Json = False,
) -> None:
    """Recount every count and every list from the edges, at one moment, and print each difference.

    Works beside a running service and without one; on Cassandra only while nothing is written (there is no moment to look at).
    Exit code: 0 nothing differs, 1 something does.
    """
    from rich.console import Console

    from watertower import audit as audit_module
    from watertower.clock import SystemClock

    clock = SystemClock()
    started_s = clock.monotonic_s()
    numbers: Counter[str] = Counter()
    shown: list[Difference] = []

    def on_difference(difference: "Difference") -> None:
        numbers[difference.kind] += 1
        if len(shown) < limit:
            shown.append(difference)

    with opened_scanner(data, set_) as scanner:
        console = Console(stderr=True, quiet=json)
        with console.status("recounting") as status:
            totals = audit_module.audit(scanner, on_difference, lambda edges: status.update(f"recounting: {edges:,} edges"))
    seconds = clock.monotonic_s() - started_s

    if json:
        output.print_json(
            {
                "clean": not numbers,
                **totals._asdict(),
                "seconds": round(seconds, 3),
                "differences": {kind: numbers[kind] for kind in audit_module.DIFFERENCE_KINDS},
                "shown": [difference._asdict() for difference in shown],
            }
        )
    else:
        _print(totals, seconds, numbers, shown)
    if numbers:
        raise typer.Exit(output.EXIT_FAILED)


def _print(totals: Any, seconds: float, numbers: "Counter[str]", shown: "list[Difference]") -> None:
    if shown:
        output.print_table(
            ("difference", "key", "expected", "found"),
            ((d.kind, " ".join(f"{k}={v}" for k, v in d.key.items()), _value(d.expected), _value(d.found)) for d in shown),
        )
    looked_at = (
        f"{totals.edges:,} edges ({totals.active_edges:,} active), {totals.shards:,} shards of counts, "
        f"{totals.subject_list_rows:,} + {totals.actor_list_rows:,} list rows in {seconds:.1f} s"
    )
    number = numbers.total()
    if number:
        more = f", {len(shown):,} of them shown (--limit)" if len(shown) < number else ""
        output.print_lines([f"{number:,} differences{more}: {', '.join(f'{n:,} {kind}' for kind, n in numbers.items())}", looked_at])
    else:
        output.print_lines([f"clean: every count and every list is what the edges say. {looked_at}"])


def _value(value: Any) -> str:
    if isinstance(value, dict):
        return " ".join(f"{k}={v}" for k, v in value.items())
    return "nothing" if value is None else str(value)
