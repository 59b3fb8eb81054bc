"""The command line: `watertower COMMAND`.

Tables for people, `--json` for machines. Results go to standard output; progress and errors go to standard error. An error is one
line that says what happened and what to do (with `--json`: one object), never a traceback. Exit codes:

    0    done                           1    not done, the error says why (`audit`: differences were found)
    2    bad usage                      3    `import`: done, but rows were rejected; others: the data folder or a setting was refused
    130  interrupted
"""

from collections.abc import Sequence
from typing import Annotated

import typer

from watertower.cli import auditing as auditing
from watertower.cli import backup as backup
from watertower.cli import cluster as cluster
from watertower.cli import dead_letters as dead_letters
from watertower.cli import debut as debut
from watertower.cli import export as export
from watertower.cli import importer as importer
from watertower.cli import load as load
from watertower.cli import output as output
from watertower.cli import reads as reads
from watertower.cli import roles as roles
from watertower.cli import simulate as simulate

app = typer.Typer(
    name="watertower",
    help="Counts follows, likes and comments: takes the surge on a log, serves exact counts from memory.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    add_completion=False,
    pretty_exceptions_enable=False,
)
for _module in (roles, cluster, dead_letters, importer, reads, export, auditing, backup, debut, load, simulate):
    _module.register(app)


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        output.print_lines([f"watertower {version('watertower')}"])
        raise typer.Exit


@app.callback()
def _options_of_all(
    version: Annotated[bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")] = False,
) -> None:
    pass


def run(arguments: Sequence[str]) -> int:
    """Runs one command and returns its exit code. Every expected error becomes one line on standard error."""
    as_json = output.wants_json(arguments)
    try:
        code = app(list(arguments), prog_name="watertower", standalone_mode=False)
    except (BrokenPipeError, SystemExit):  # the latter is what typer makes of the former, and of nothing else here
        return output.quiet_broken_pipe()
    except Exception as error:
        failure = output.explain(error)
        if failure is None:
            raise
        return output.report_failure(failure, as_json)
    if code == output.EXIT_INTERRUPTED:  # what typer makes of Ctrl-C
        return output.report_failure(output.CommandFailed("interrupted", code=code), as_json)
    return code if isinstance(code, int) else 0
