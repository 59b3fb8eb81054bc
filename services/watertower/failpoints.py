"""Named points at which a test can make a process die, stop or wait. Off outside tests.

`WATERTOWER_FAILPOINTS="projector.after_edges=kill:3"` kills the process with SIGKILL the third time that it reaches the point.
Actions: `kill`, `stop` (SIGSTOP), `error` (raises BackendUnavailable). Where the variable is not set, a point costs one look-up in an
empty dict.
"""

import os
import signal
from collections.abc import Callable

from watertower.errors import BackendUnavailable, StartRefused

POINTS = (
    "ingest.before_append",
    "ingest.after_append",
    "ingest.before_acknowledge",
    "projector.after_read",
    "projector.after_fold",
    "projector.after_derived",
    "projector.after_edges",
    "projector.after_progress",
    "projector.after_publish",
    "projector.after_sync",
    "projector.after_commit",
    "query.before_load",
    "query.after_load",
    "backup.after_store",
    "backup.after_log",
    "backup.after_files",
    "backup.after_rename",
)

_armed: dict[str, tuple[str, int]] = {}

watcher: Callable[[str], None] | None = None
"""Hears of every point that is reached: the simulator's. It may raise, or wait."""


def arm(spec: str) -> None:
    """Arms points: "name=action:count" joined by commas; a count of n means "from the n-th time on" (default 1)."""
    for item in filter(None, spec.split(",")):
        name, _, rest = item.partition("=")
        action, _, count = rest.partition(":")
        if name not in POINTS or action not in ("kill", "stop", "error"):
            raise StartRefused(f"WATERTOWER_FAILPOINTS: there is no {item!r}")
        _armed[name] = (action, int(count or 1))


def disarm() -> None:
    """Turns every point off."""
    _armed.clear()


def reach(name: str) -> None:
    """Says that execution is at this point."""
    if watcher is not None:
        watcher(name)
    armed = _armed.get(name)
    if armed is None:
        return
    action, count = armed
    if count > 1:
        _armed[name] = (action, count - 1)
    elif action == "error":
        raise BackendUnavailable(f"failpoint {name}")
    else:
        os.kill(os.getpid(), signal.SIGKILL if action == "kill" else signal.SIGSTOP)


arm(os.environ.get("WATERTOWER_FAILPOINTS", ""))
