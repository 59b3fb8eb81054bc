"""A real Watertower service as a child of a test: its own process group, its addresses and pids, its log, and its certain end."""

import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from watertower.clock import SystemClock

ROLES = ("ingest", "projector", "query")
START_S = 30.0
"""Seconds that a service may take to be ready on a busy machine."""

STOP_S = 30.0
"""Seconds that a service may take to end after a signal."""

LOG_LINES_SHOWN = 200
_POLL_S = 0.01
_PORTS = range(20_000, 32_000)
"""Below the ports that systems give to outgoing connections: a client that tries to reach a service that is down cannot take its port."""

_clock = SystemClock()


class NotInTime(AssertionError):
    """A condition did not come true before its deadline."""


def wait_until(condition: Callable[[], Any], what: str, seconds: float = START_S) -> Any:
    """The first true value of `condition`. Raises NotInTime after `seconds`."""
    deadline = _clock.monotonic_s() + seconds
    while True:
        value = condition()
        if value:
            return value
        if _clock.monotonic_s() > deadline:
            raise NotInTime(f"not within {seconds:g} s: {what}")
        _clock.sleep(_POLL_S)


def free_port(rng: random.Random | None = None) -> int:
    """A port of 127.0.0.1 that nobody holds now."""
    chosen = rng or random.SystemRandom()
    while True:
        port = chosen.choice(_PORTS)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port


def alive(pid: int) -> bool:
    """Whether the process runs. One that has ended and was not waited for does not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state not in "ZX"


def group_alive(group: int) -> bool:
    """Whether a process of the process group runs."""
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, of_group = stat.read_text().rpartition(")")[2].split()[:3]
        except (FileNotFoundError, ProcessLookupError):
            continue  # ended meanwhile
        if int(of_group) == group and state not in "ZX":
            return True
    return False


def children(pid: int) -> list[int]:
    """The processes that a process has started and that run."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, parent = stat.read_text().rpartition(")")[2].split()[:2]
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(parent) == pid and state not in "ZX":
            found.append(int(stat.parent.name))
    return found


def clean_environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """This process's environment without settings of Watertower, so that only what the test says counts."""
    return {name: value for name, value in os.environ.items() if not name.startswith("WATERTOWER_")} | dict(extra or {})


class Service:
    """`watertower serve`, or one role alone, on a data folder. Use with `with`: at its end every process is gone, and if the test
    failed, the log is printed.

    Ports are chosen once, so that a restarted role, or a second start of this object, has the same address.
    """

    def __init__(
        self,
        data: Path,
        command: str = "serve",
        *,
        write_port: int | None = None,
        read_port: int | None = None,
        settings: Mapping[str, object] | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        """`settings` by name as in `--set`; `environment` is added to a clean one."""
        self.data, self.command = data, command
        self.write_port = free_port() if write_port is None else write_port
        self.read_port = free_port() if read_port is None else read_port
        self.settings = dict(settings or {})
        self.environment = dict(environment or {})
        self.process: subprocess.Popen[bytes] | None = None
        self._folder = tempfile.TemporaryDirectory(prefix="watertower-service-")
        self._starts = 0

    @property
    def write_target(self) -> str:
        return f"127.0.0.1:{self.write_port}"

    @property
    def read_target(self) -> str:
        return f"127.0.0.1:{self.read_port}"

    # --- life

    def start(self, environment: Mapping[str, str] | None = None, *, ready: bool = True) -> "Service":
        """Starts it; with `ready`, waits until it says that it is. `environment` is for this start only."""
        if self.process is not None and self.process.poll() is None:
            raise RuntimeError("it runs already")
        self._starts += 1
        arguments = [sys.executable, "-m", "watertower", self.command, "--data", str(self.data)]
        if self.command in ("serve", "ingest"):
            arguments += ["--write-port", str(self.write_port)]
        if self.command in ("serve", "query"):
            arguments += ["--read-port", str(self.read_port)]
        if self.command == "serve":
            arguments.append("--json")
        for name, value in {"log_format": "json", **self.settings}.items():
            arguments += ["--set", f"{name}={value}"]
        with self._file("out").open("wb") as out, self._file("log").open("wb") as log:
            self.process = subprocess.Popen(
                arguments,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=log,
                env=clean_environment({**self.environment, **(environment or {})}),
                start_new_session=True,
            )
        if ready:
            self.wait_ready()
        return self

    def wait_ready(self, seconds: float = START_S) -> None:
        """Waits for the word of the service itself. Raises NotInTime, or AssertionError when it ended instead."""

        def ready() -> bool:
            if self.command == "serve":
                said = '"event": "ready"' in self._file("out").read_text()
            else:
                said = bool(self.events("ready"))
            if not said and self.process is not None and self.process.poll() is not None:
                raise AssertionError(f"{self.command} ended with {self.process.returncode} instead of becoming ready:\n{self.log_tail()}")
            return said

        wait_until(ready, f"{self.command} is ready", seconds)

    def send(self, number: signal.Signals) -> None:
        """A signal to the process itself, not to its roles."""
        if self.process is None:
            raise RuntimeError("it was never started")
        self.process.send_signal(number)

    def wait_ended(self, seconds: float = STOP_S) -> int:
        """The exit code."""
        if self.process is None:
            raise RuntimeError("it was never started")
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired as error:
            raise NotInTime(f"{self.command} did not end within {seconds:g} s:\n{self.log_tail()}") from error

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Asks it to end, and waits. The exit code."""
        self.send(number)
        return self.wait_ended()

    def kill_group(self) -> None:
        """SIGKILL to the supervisor and all its roles at once; waits until they are gone."""
        if self.process is None:
            return
        group = self.process.pid
        with suppress(ProcessLookupError):  # nobody is left
            os.killpg(group, signal.SIGKILL)
        self.process.wait()
        wait_until(lambda: not group_alive(group), "the roles are gone")

    # --- its roles (of `serve`)

    def pids(self) -> dict[str, int]:
        """The pid of each role that was started, of its last start."""
        return {event["child"]: event["pid"] for event in self.events("role_started")}

    def kill(self, role: str, number: signal.Signals = signal.SIGKILL) -> bool:
        """A signal to one role. False if it is not there at this moment."""
        pid = self.pids().get(role)
        if pid is None or not alive(pid):
            return False
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            return False
        return True

    def role_ready(self, role: str) -> bool:
        """Whether the role's last word is that it does its work, and it was not started anew since."""
        words = [e["event"] for e in self.events() if e.get("child") == role]
        return bool(words) and words[-1] == "role_ready"

    def wait_roles_ready(self, seconds: float = START_S) -> None:
        """Waits until every role does its work (again)."""

        def ready() -> bool:
            if self.process is None or self.process.poll() is not None:
                raise AssertionError(f"the service ended:\n{self.log_tail()}")
            return all(self.role_ready(role) for role in ROLES)

        wait_until(ready, "all roles are ready", seconds)

    # --- what it said

    def events(self, name: str | None = None, *, every_start: bool = False) -> list[dict[str, Any]]:
        """The lines of the log since the last start, or since the first, that are events (of this name), in order."""
        found = []
        for line in self.said(every_start=every_start).splitlines():
            try:
                event = json.loads(line)
            except ValueError:
                continue  # of a library, or not yet whole
            if isinstance(event, dict) and "event" in event and name in (None, event["event"]):
                found.append(event)
        return found

    def said(self, *, every_start: bool = False) -> str:
        """The log since the last start, or since the first."""
        starts = range(1 if every_start else self._starts, self._starts + 1)
        paths = [self._file("log", start) for start in starts]
        return "\n".join(path.read_text(errors="replace") for path in paths if path.exists())

    def log_tail(self, lines: int = LOG_LINES_SHOWN) -> str:
        """The end of the log since the last start."""
        return "\n".join(self.said().splitlines()[-lines:])

    def _file(self, kind: str, start: int | None = None) -> Path:
        return Path(self._folder.name) / f"{self._starts if start is None else start}.{kind}"

    def __enter__(self) -> "Service":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            if error is not None and self.process is not None:
                print(f"--- log of start {self._starts} of {self.command}\n{self.log_tail()}")
            self.kill_group()
        finally:
            self._folder.cleanup()
