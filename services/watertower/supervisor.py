"""`watertower serve` and `watertower query --workers`: processes of one command. Starts them, restarts what dies, and ends them in order.

Separate processes, so that a surge of writes never holds the query process's interpreter lock.
"""

import json
import os
import random
import selectors
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from types import FrameType
from typing import Any, NamedTuple

import structlog

from watertower.config import ServiceSettings
from watertower.core.backoff import full_jitter
from watertower.ports import Clock
from watertower.role import EXIT_ADDRESS_TAKEN, EXIT_REFUSED, NOTIFY_VARIABLE
from watertower.shared_port import SHARED_PORT_VARIABLE, WORKER_VARIABLE

EXIT_KILLED = 1
"""Exit code when a role did not end by itself and was killed."""

EXIT_INTERRUPTED = 130
"""Exit code of Ctrl-C before the service was ready."""

CLOSE_S = 5.0
"""Seconds that a process has on top of its grace for what comes after it: reads under way, the warm list, closing its back ends."""

STABLE_S = 30.0
"""Seconds after which a role counts as well again: its next restart waits as short as its first."""


class Part(NamedTuple):
    """One process: the role that it runs, and the name under which the log speaks of it."""

    role: str
    name: str
    environment: Mapping[str, str] = {}


def query_parts(workers: int, port: int) -> list[Part]:
    """The query process, or several on one port that is held for them."""
    if workers == 1:
        return [Part("query", "query")]
    return [Part("query", f"query-{n + 1}", {SHARED_PORT_VARIABLE: str(port), WORKER_VARIABLE: str(n)}) for n in range(workers)]


class _Child:
    """One process, what it last said, and when it may start again."""

    def __init__(self, part: Part) -> None:
        self.part = part
        self.name = part.name
        self.process: subprocess.Popen[bytes] | None = None
        self.notify_fd = -1
        self.buffer = b""
        self.state: dict[str, Any] = {}
        self.failures = 0
        self.started_at = 0.0
        self.restart_at = 0.0
        self.starts = 0
        self.was_ready = False  # ever, also before a restart

    @property
    def ready(self) -> bool:
        return self.process is not None and self.state.get("state") == "ready"


class Supervisor:
    """Runs the parts until it is told to stop."""

    def __init__(
        self,
        stages: Sequence[Sequence[Part]],
        settings: ServiceSettings,
        options: Mapping[str, Any],
        clock: Clock,
        rng: random.Random,
        on_ready: Callable[[dict[str, dict[str, Any]]], None],
    ) -> None:
        """`stages` are the parts in the order in which they stop; those of one stage stop together. `options` are the settings given as
        options, for the children's command lines. `on_ready` is called once, when all are ready, with what each said, by its name."""
        self._settings, self._clock, self._rng = settings, clock, rng
        self._arguments = [argument for name, value in options.items() if value is not None for argument in ("--set", f"{name}={value}")]
        self._on_ready = on_ready
        self._said_ready = False
        self._stages = [[_Child(part) for part in stage] for stage in stages]
        self._children = [child for stage in self._stages for child in stage]
        self._selector = selectors.DefaultSelector()
        self._signals = 0
        self._interrupted = False
        self._killed = False
        self.refusal = ""
        """Which role refused to run, and why; empty when none did."""
        self._wake_r, self._wake_w = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._logger = structlog.get_logger("watertower.supervisor")

    def run(self) -> int:
        """Until SIGTERM or SIGINT, or until a role refuses to run. Returns the exit code."""
        signal.set_wakeup_fd(self._wake_w)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)
        self._selector.register(self._wake_r, selectors.EVENT_READ)
        try:
            while not self._signals and not self.refusal:
                self._step()
        finally:
            self._stop_all()
            signal.set_wakeup_fd(-1)
        if self.refusal:
            return EXIT_REFUSED
        if self._killed:
            return EXIT_KILLED
        return EXIT_INTERRUPTED if self._interrupted else 0

    def _step(self) -> None:
        now = self._clock.monotonic_s()
        for child in self._children:
            if child.process is None and now >= child.restart_at:
                self._start(child)
            elif child.process is not None and child.process.poll() is not None:
                self._died(child)
        self._wait(0.2)
        if not self._said_ready and all(child.ready for child in self._children):
            self._said_ready = True
            self._on_ready({c.name: {**c.state, "pid": c.process.pid if c.process else None} for c in self._children})

    def _wait(self, seconds: float) -> None:
        """Until something happens, at most so long; takes in what the children said."""
        for key, _ in self._selector.select(seconds):
            child: _Child | None = key.data
            if child is None:
                os.read(self._wake_r, 1024)
                continue
            data = os.read(child.notify_fd, 65_536)
            if not data:
                self._selector.unregister(child.notify_fd)
                continue
            *lines, child.buffer = (child.buffer + data).split(b"\n")
            for line in lines:
                child.state = json.loads(line)
                child.was_ready = child.was_ready or child.ready
                if child.state["state"] != "refused":  # that is said when it has ended
                    self._logger.info(
                        "role_" + child.state["state"], child=child.name, **{k: v for k, v in child.state.items() if k != "state"}
                    )

    def _start(self, child: _Child) -> None:
        read_fd, write_fd = os.pipe()
        environment = {**os.environ, **child.part.environment, NOTIFY_VARIABLE: str(write_fd)}
        if child.starts:
            environment.pop("WATERTOWER_FAILPOINTS", None)  # a planned death happens once
        # Ctrl-C reaches the whole foreground group. The child inherits the mask: it waits for its turn (SIGTERM) from its first moment on.
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            child.process = subprocess.Popen(  # noqa: S603 - our own command line
                [sys.executable, "-m", "watertower", child.part.role, *self._arguments],
                stdin=subprocess.PIPE,  # held open: its end tells the child that we are gone
                pass_fds=[write_fd],
                env=environment,
            )
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        os.close(write_fd)
        child.notify_fd, child.buffer, child.state = read_fd, b"", {}
        child.starts += 1
        child.started_at = self._clock.monotonic_s()
        self._selector.register(read_fd, selectors.EVENT_READ, child)
        self._logger.info("role_started", child=child.name, pid=child.process.pid, starts=child.starts)

    def _died(self, child: _Child) -> None:
        self._wait(0)  # for its last word
        reason = child.state["reason"] if child.state.get("state") == "refused" else "its log says why"
        code = self._reap(child)
        # An address that was ours before is taken for a while only. The usual holder is a client: it goes on connecting to the port of a
        # role that is down, is given that very port for its own end, and is connected with itself.
        if code == EXIT_REFUSED or (code == EXIT_ADDRESS_TAKEN and not child.was_ready):
            self.refusal = f"{child.name} refused to run: {reason}"
            self._logger.error("role_refused", child=child.name, reason=reason)
            return
        now = self._clock.monotonic_s()
        child.failures = 0 if now - child.started_at > STABLE_S else child.failures + 1
        wait_s = full_jitter(
            max(0, child.failures - 1), self._settings.restart_base_ms / 1e3, self._settings.restart_cap_ms / 1e3, self._rng.random()
        )
        child.restart_at = now + wait_s
        self._logger.error("role_died", child=child.name, exit_code=code, restart_in_s=round(wait_s, 3))

    def _reap(self, child: _Child) -> int:
        process = child.process
        if process is None:
            return 0
        code = process.wait()
        if child.notify_fd in self._selector.get_map():
            self._selector.unregister(child.notify_fd)
        os.close(child.notify_fd)
        if process.stdin is not None:
            process.stdin.close()
        child.process, child.state = None, {}
        return code

    def _stop_all(self) -> None:
        """One stage after the other, each with the grace of the settings; a second signal ends the patience."""
        patience = self._signals + 1
        grace_s = (self._settings.drain_ms + self._settings.shutdown_grace_ms) / 1e3 + CLOSE_S
        for stage in self._stages:
            running = [(child, child.process) for child in stage if child.process is not None]
            for _, process in running:
                process.terminate()
            deadline = self._clock.monotonic_s() + grace_s
            for child, process in running:
                while process.poll() is None and self._clock.monotonic_s() < deadline and self._signals < patience:
                    self._wait(0.05)
                if process.poll() is None:
                    self._logger.error("role_killed", child=child.name, pid=process.pid)
                    process.kill()
                    self._killed = True
                code = self._reap(child)
                self._logger.info("role_stopped", child=child.name, exit_code=code)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._signals += 1
        self._interrupted = self._interrupted or (number == signal.SIGINT and not self._said_ready)
