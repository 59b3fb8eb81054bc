"""What every role process does around its work: signals, niceness, word to a supervisor, and noticing that the supervisor is gone."""

import asyncio
import gc
import json
import os
import select
import signal
import threading
from contextlib import suppress
from typing import Any

import structlog

EXIT_REFUSED = 3
"""Exit code of a process that refused to start or to go on (StartRefused, BackendRefused): a restart cannot help."""

EXIT_ADDRESS_TAKEN = 4
"""Exit code of a process that cannot listen on its address: a restart helps once the address is free."""

GC_THRESHOLDS = (100_000, 50, 50)
"""Container objects allocated before Python looks for cycles, and how often the older generations take part (default 700, 10, 10).

A flush or a call is tens of thousands of tuples that live for milliseconds and hold no cycle; at the default a fifth of the projector's
time went into walking them."""

GC_THRESHOLDS_SERVING = (5_000, 50, 1_000)
"""The same where calls are answered: one of grpc.aio leaves cycles behind, and to look for them among 100,000 objects stopped every
read for 77 ms. All objects, the cache with them, are looked at as rarely as above."""

NOTIFY_VARIABLE = "WATERTOWER_NOTIFY_FD"


class Stopping:
    """Whether the process should stop, for those who wait.

    Without a lock: a signal handler sets it in the middle of whatever the main thread does, and a lock that the main thread holds
    there, as inside threading.Event.wait, would never be let go of.
    """

    def __init__(self) -> None:
        self._said = False
        self._wake_r, self._wake_w = os.pipe()  # what is written is never read: from then on every wait ends at once
        os.set_blocking(self._wake_w, False)

    def is_set(self) -> bool:
        return self._said

    def set(self) -> None:
        """From any thread, and from a signal handler."""
        self._said = True
        with suppress(BlockingIOError):  # full, so there is something to wake up from
            os.write(self._wake_w, b"\0")

    def set_on(self, *signals: signal.Signals) -> None:
        """Sets it when one of these signals comes. From the main thread; the process handles no other signals."""
        # The kernel's handler writes too: one that comes right before a wait begins, or to another thread, ends the wait all the same.
        signal.set_wakeup_fd(self._wake_w, warn_on_full_buffer=False)
        for number in signals:
            signal.signal(number, lambda *_: self.set())

    def wait(self, seconds: float) -> None:
        """Until it is set, `seconds` at most."""
        select.select([self._wake_r], [], [], seconds)

    def event(self) -> asyncio.Event:
        """The same for the running event loop, with which it ends."""
        loop, event = asyncio.get_running_loop(), asyncio.Event()

        def tell() -> None:
            loop.remove_reader(self._wake_r)
            event.set()

        loop.add_reader(self._wake_r, tell)
        return event


class Role:
    """The process's side towards whoever started it."""

    def __init__(self, niceness: int, gc_thresholds: tuple[int, int, int] = GC_THRESHOLDS) -> None:
        self.stopping = Stopping()
        """Set when the process should drain and end."""
        self.is_ready = False
        """What it last said."""
        self.places: dict[str, Any] = {}
        """Where else it can be asked; said with the word that it is ready."""
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
        gc.set_threshold(*gc_thresholds)
        # Ctrl-C reaches the whole foreground group; a supervised role waits for its turn (SIGTERM) instead.
        if notify is not None:
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            self.stopping.set_on(signal.SIGTERM)
        else:
            self.stopping.set_on(signal.SIGTERM, signal.SIGINT)

    def ready(self, **fields: Any) -> None:
        """Says that the role does its work; `fields` say where (its address, if it has one)."""
        self.is_ready = True
        fields |= self.places
        self._logger.info("ready", pid=os.getpid(), **fields)
        self._notify({"state": "ready", **fields})

    def not_ready(self, reason: str) -> None:
        """Says that the role does not do its work now, and why."""
        self.is_ready = False
        self._logger.info("not_ready", reason=reason)
        self._notify({"state": "not_ready", "reason": reason})

    def refused(self, reason: str) -> None:
        """Says why the role will not run, right before the process ends with EXIT_REFUSED."""
        self._logger.error("refused", reason=reason)
        self._notify({"state": "refused", "reason": reason})

    def _notify(self, message: dict[str, Any]) -> None:
        if self._notify_fd is not None:
            try:
                os.write(self._notify_fd, json.dumps(message).encode() + b"\n")
            except OSError:
                self.stopping.set()  # nobody reads any more

    def _watch_supervisor(self) -> None:
        """Standard input is a pipe that the supervisor holds open: its end means that the supervisor is gone, however it went."""
        while os.read(0, 64):
            pass
        self._logger.warning("supervisor_gone")
        self.stopping.set()
