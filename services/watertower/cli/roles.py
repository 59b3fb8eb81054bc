"""`watertower serve`, its roles one by one, and `watertower config`."""

import contextlib
from pathlib import Path
from typing import Annotated, Any

import typer

from watertower.cli import output
from watertower.cli.options import Set, assigned

Data = Annotated[Path | None, typer.Option("--data", help="Data folder (default: watertower-data).")]
WritePort = Annotated[int | None, typer.Option("--write-port", help="Port of the writer (default 50051; 0 takes a free one).")]
ReadPort = Annotated[int | None, typer.Option("--read-port", help="Port of the reader (default 50052; 0 takes a free one).")]
Workers = Annotated[int | None, typer.Option("--workers", help="Query processes on the one port (default 1).")]


def register(app: typer.Typer) -> None:
    for name, command in (("serve", serve), ("ingest", ingest), ("projector", projector), ("query", query)):
        app.command(name)(command)
    app.command("config")(config)


def _options(data: Path | None, write_port: int | None, read_port: int | None, assignments: list[str] | None) -> dict[str, Any]:
    """The settings given as options, by name. Options of their own win over `--set`."""
    options = assigned(assignments)
    own = {"data": str(data.absolute()) if data else None, "write_port": write_port, "read_port": read_port}
    options.update({name: value for name, value in own.items() if value is not None})
    return options


def serve(data: Data = None, write_port: WritePort = None, read_port: ReadPort = None, set_: Set = None, json: output.Json = False) -> None:
    """Run the whole service: ingest, projector and query as processes of this command, on one data folder by default.

    Ctrl-C or SIGTERM stops it: nothing more is accepted, what was accepted is applied, then it ends. A second one kills what is left.
    Exit code: 0 stopped, 1 a role had to be killed, 3 refused to run, 130 Ctrl-C before it was ready.
    """
    import random

    from watertower import config as settings_module
    from watertower import datafolder, logs
    from watertower.clock import SystemClock
    from watertower.errors import StartRefused
    from watertower.shared_port import held_port
    from watertower.supervisor import Part, Supervisor, query_parts

    options = _options(data, write_port, read_port, set_)
    settings = settings_module.load(options)
    service = settings.service
    if service.write_port and (service.write_host, service.write_port) == (service.read_host, service.read_port):
        raise StartRefused(f"settings: write_port and read_port are both {service.write_port}: give each server a port of its own")
    logs.configure(settings.service, "supervisor")
    embedded = settings.service.log == "sqlite"

    def on_ready(roles: dict[str, dict[str, Any]]) -> None:
        write, read = roles["ingest"]["address"], roles[readers[0].name]["address"]
        pids = {name: state["pid"] for name, state in roles.items()}
        if json:
            output.print_json({"event": "ready", "write": write, "read": read, "data": where, "pids": pids})
        else:
            output.print_lines([f"watertower is ready: writes at {write}, reads at {read}, data in {where}"])

    with contextlib.ExitStack() as held:
        if embedded:
            folder = datafolder.open_or_create(settings.service.data, settings.service.partitions)
            held.callback(folder.lock("serve").release)
            where = str(folder.path)
        else:
            where = f"Cassandra keyspace {settings.cassandra.keyspace}"
        workers = settings.query.workers
        readers = query_parts(workers, held.enter_context(held_port(service.read_host, service.read_port)) if workers > 1 else 0)
        # First nothing more comes in, then what came in is applied, then reads end.
        stages = [[Part("ingest", "ingest")], [Part("projector", "projector")], readers]
        supervisor = Supervisor(stages, service, options, SystemClock(), random.Random(), on_ready)  # noqa: S311 - jitter
        code = supervisor.run()
    if supervisor.refusal:  # once more, as the last line: its own is somewhere in the log
        raise output.CommandFailed(supervisor.refusal, code=code)
    raise typer.Exit(code)


def ingest(data: Data = None, write_port: WritePort = None, set_: Set = None) -> None:
    """Run only the write side: validates events and appends them to the log."""
    from watertower import bootstrap

    _run("ingest", bootstrap.ingest, _options(data, write_port, None, set_))


def projector(data: Data = None, set_: Set = None) -> None:
    """Run only the projector: applies the log to the store, exactly once."""
    from watertower import bootstrap

    _run("projector", bootstrap.projector, _options(data, None, None, set_))


def query(data: Data = None, read_port: ReadPort = None, workers: Workers = None, set_: Set = None) -> None:
    """Run only the read side: answers counts, edges and lists from memory and the store.

    With several workers, each is a process; one that dies is started again. All of them listen on the one port, and the system spreads new
    connections over them.
    """
    import os

    from watertower import bootstrap
    from watertower import config as settings_module
    from watertower.shared_port import SHARED_PORT_VARIABLE, WORKER_VARIABLE

    options = _options(data, None, read_port, set_)
    if workers is not None:
        options["query_workers"] = workers
    shared_port = int(os.environ.pop(SHARED_PORT_VARIABLE, 0))
    worker = int(os.environ.pop(WORKER_VARIABLE, 0))
    if shared_port:  # this is one of the workers; calls of those that wait for the store must go to the others
        _run("query", lambda settings, _: bootstrap.query(settings, None, shared_port, worker), options, stands_in=False)
    elif settings_module.load(options).query.workers == 1:
        _run("query", bootstrap.query, options)
    else:
        _run_workers(options)


def _run_workers(options: dict[str, Any]) -> None:
    """The query role as several processes of this one."""
    import random

    import structlog

    from watertower import config as settings_module
    from watertower import logs
    from watertower.clock import SystemClock
    from watertower.errors import AddressTaken
    from watertower.role import EXIT_ADDRESS_TAKEN
    from watertower.shared_port import held_port
    from watertower.supervisor import Supervisor, query_parts

    settings = settings_module.load(options)
    logs.configure(settings.service, "query")
    log = structlog.get_logger("watertower.query")

    def on_ready(states: dict[str, dict[str, Any]]) -> None:
        log.info("workers_ready", address=next(iter(states.values()))["address"], pids=[state["pid"] for state in states.values()])

    try:
        with held_port(settings.service.read_host, settings.service.read_port) as port:
            stages = [query_parts(settings.query.workers, port)]
            supervisor = Supervisor(stages, settings.service, options, SystemClock(), random.Random(), on_ready)  # noqa: S311 - jitter
            code = supervisor.run()
    except AddressTaken as error:
        log.error("refused", reason=str(error))
        raise typer.Exit(EXIT_ADDRESS_TAKEN) from error
    raise typer.Exit(code)


def _run(name: str, build: Any, options: dict[str, Any], stands_in: bool = True) -> None:
    """One role as this process: waits for what it needs, runs, exits with its code. While it waits it answers for its health, unless it is
    not to stand in (`stands_in`). What it refuses, at its start or later, is a line of
    its log, for whoever reads only those, and the exit code that tells a supervisor that a restart cannot help."""
    import random

    from watertower import bootstrap, logs
    from watertower import config as settings_module
    from watertower.core.backoff import full_jitter
    from watertower.errors import AddressTaken, BackendRefused, BackendUnavailable, StartRefused
    from watertower.role import EXIT_ADDRESS_TAKEN, EXIT_REFUSED, GC_THRESHOLDS, GC_THRESHOLDS_SERVING, Role

    settings = settings_module.load(options)
    logs.configure(settings.service, name)
    niceness: int = {"ingest": settings.ingest, "projector": settings.projector, "query": settings.query}[name].nice  # type: ignore[attr-defined]
    role = Role(niceness, GC_THRESHOLDS if name == "projector" else GC_THRESHOLDS_SERVING)
    health = bootstrap.health(name, settings) if stands_in else None
    attempt = 0
    code = 0
    try:
        if name == "projector" and health is not None:  # no other server will have this port
            health.start()
        while not role.stopping.is_set():
            try:
                code = build(settings, health).run(role)
                break
            except BackendUnavailable as error:
                role.not_ready(f"waiting: {error}")
                if health is not None:
                    health.start()
                role.stopping.wait(full_jitter(attempt, 0.05, 2.0, random.random()))  # noqa: S311 - jitter
                attempt += 1
    except (StartRefused, BackendRefused) as error:
        role.refused(str(error))
        raise typer.Exit(EXIT_ADDRESS_TAKEN if isinstance(error, AddressTaken) else EXIT_REFUSED) from error
    finally:
        if health is not None:
            health.stop()
    raise typer.Exit(code)


def config(
    data: Data = None, write_port: WritePort = None, read_port: ReadPort = None, set_: Set = None, json: output.Json = False
) -> None:
    """Print every setting with its effective value and where it came from."""
    from watertower import config as settings_module

    options = _options(data, write_port, read_port, set_)
    rows = settings_module.effective(settings_module.load(options), options)
    if json:
        output.print_json({row.name: {"value": str(row.value), "source": row.source} for row in rows})
        return
    output.print_table(
        ("setting", "value", "from", "meaning"),
        [(row.name, str(row.value), row.source, row.description) for row in rows],
        whole=("setting", "from"),
    )
