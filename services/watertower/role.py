"""What every role process does around its work: signals, niceness, word to a supervisor, and noticing that the supervisor is gone."""

import gc
import json
import os
import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

import structlog

EXIT_REFUSED = 3
"""Exit code of a process that refused to start or to go on (StartRefused, BackendRefused): a restart cannot help."""

GC_THRESHOLDS = (100_000, 50, 50)
"""Container objects allocated before Python looks for cycles, and how often the older generations take part (default 700, 10, 10).

A flush or a call is tens of thousands of tuples that live for milliseconds and hold no cycle; at the default a fifth of the projector's
time went into walking them."""

NOTIFY_VARIABLE = "WATERTOWER_NOTIFY_FD"


class Role:
    """The process's side towards whoever started it."""

    def __init__(self, niceness: int) -> None:
        self._stop_callbacks: list[Callable[[], object]] = []
        self.stopping = threading.Event()
        self._logger = structlog.get_logger("watertower.role")
        self._notify_fd: int | None = None
        notify = os.environ.pop(NOTIFY_VARIABLE, None)  # not for the children's children
        if notify is not None:
            self._notify_fd = int(notify)
            os.set_inheritable(self._notify_fd, False)
            threading.Thread(target=self._watch_supervisor, daemon=True, name="supervisor-watch").start()
        if niceness:
            os.nice(niceness)
        gc.freeze()  # what was imported stays
        gc.set_threshold(*GC_THRESHOLDS)
        signal.signal(signal.SIGTERM, self._on_signal)
        # Ctrl-C reaches the whole foreground group; a supervised role waits for its turn (SIGTERM) instead.
        signal.signal(signal.SIGINT, self._on_signal if notify is None else signal.SIG_IGN)

    def on_stop(self, callback: Callable[[], object]) -> None:
        """Calls `callback` once, from any thread, when the process should stop (at once if it already should)."""
        self._stop_callbacks.append(callback)
        if self.stopping.is_set():
            callback()

    def stop(self) -> None:
        """Asks the process to stop: drain and end."""
        if not self.stopping.is_set():
            self.stopping.set()
            for callback in self._stop_callbacks:
                callback()

    def ready(self, **fields: Any) -> None:
        """Says that the role does its work; `fields` say where (its address, if it has one)."""
        self._logger.info("ready", pid=os.getpid(), **fields)
        self._notify({"state": "ready", **fields})

    def not_ready(self, reason: str) -> None:
        """Says that the role does not do its work now, and why."""
        self._logger.info("not_ready", reason=reason)
        self._notify({"state": "not_ready", "reason": reason})

    def _notify(self, message: dict[str, Any]) -> None:
        if self._notify_fd is not None:
            try:
                os.write(self._notify_fd, json.dumps(message).encode() + b"\n")
            except OSError:
                self.stop()  # nobody reads any more

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self.stop()

    def _watch_supervisor(self) -> None:
        """Standard input is a pipe that the supervisor holds open: its end means that the supervisor is gone, however it went."""
        while os.read(0, 64):
            pass
        self._logger.warning("supervisor_gone")
        self.stop()
