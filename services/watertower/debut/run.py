"""Puts a debut together: starts a service, reads from it, sends the surge, and recounts."""

import contextlib
import json
import subprocess
import sys
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import grpc

from watertower import bootstrap, config
from watertower.core.model import Kind
from watertower.core.positions import Position
from watertower.debut import DebutFailed
from watertower.debut.plan import POST, PROFILES, STAR, Plan, recount
from watertower.debut.readers import percentile
from watertower.debut.surge import Surge, seed_profiles
from watertower.debut.visible import WATCH_S, StarReader, until_visible
from watertower.ports import Clock
from watertower.v1 import common_pb2

IDLE_S = 5.0
"""Seconds of reading before the surge, for the comparison."""

BACK_S = 3_600.0
"""The debut is dated this long before now, beyond its own length, so that no press lies in the future."""


@dataclass
class Live:
    """What is shown while it runs."""

    phase: str = "starting"
    counted: int = 0
    acknowledged: int = 0
    accepted_per_s: float = 0.0
    visible_per_s: float = 0.0
    lag_ms: float = 0.0
    read_before: dict[str, Any] = field(default_factory=dict)
    read_now: dict[str, Any] = field(default_factory=dict)


class Service:
    """`watertower serve` as a child process, on free ports."""

    def __init__(self, options: Mapping[str, Any], log: IO[bytes]) -> None:
        chosen = {**options, "write_port": 0, "read_port": 0}
        assignments = [argument for name, value in chosen.items() for argument in ("--set", f"{name}={value}")]
        self._process = subprocess.Popen(  # noqa: S603 - our own command line
            [sys.executable, "-m", "watertower", "serve", "--json", *assignments],
            stdout=subprocess.PIPE,
            stderr=log,
        )
        if self._process.stdout is None:
            raise DebutFailed("the service has no output")
        line = self._process.stdout.readline()
        if not line:
            self._process.stdout.close()
            raise DebutFailed(f"the service did not start (exit code {self._process.wait()})")
        ready = json.loads(line)
        self.write, self.read = str(ready["write"]), str(ready["read"])
        self.pids: dict[str, int] = ready["pids"]

    def stop(self) -> None:
        """Drains and ends it."""
        self._process.terminate()
        self._process.wait(60)
        if self._process.stdout is not None:
            self._process.stdout.close()


class Readers:
    """readers.py as a child process."""

    def __init__(self, target: str, reads_per_s: float, seed: int, live: Live, profiles: int = PROFILES) -> None:
        """Reads of the star and of the first `profiles` profiles."""
        self._process = subprocess.Popen(  # noqa: S603 - our own command line
            [sys.executable, "-m", "watertower.debut.readers", target, str(reads_per_s), str(profiles), str(seed)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._live = live
        self._last: dict[str, Any] = {}
        self._thread = threading.Thread(target=self._follow, daemon=True, name="debut-readers")
        self._thread.start()

    def phase(self, name: str) -> None:
        if self._process.stdin is not None:
            self._process.stdin.write(name + "\n")
            self._process.stdin.flush()

    def result(self) -> dict[str, dict[str, Any]]:
        """Ends the reading; per phase reads, errors, p50_ms, p99_ms."""
        if self._process.stdin is not None:
            self._process.stdin.close()
        self._thread.join(30)
        if self._process.wait(30) != 0:
            raise DebutFailed("the readers failed")
        return self._last

    def kill(self) -> None:
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()

    def _follow(self) -> None:
        if self._process.stdout is not None:
            with self._process.stdout as lines:
                for line in lines:
                    self._last = self._live.read_now = json.loads(line)


class Watcher:
    """Measures lag from a thread: how long after its acknowledgement each call of a surge became visible in reads of the star."""

    def __init__(self, star: StarReader, surge: Surge, live: Live, clock: Clock, watch_s: float = WATCH_S) -> None:
        self._watch_s = watch_s
        self._star, self._surge, self._live, self._clock = star, surge, live, clock
        self._stopping = threading.Event()
        self.lags_s: list[float] = []
        self._position = Position(0, {})
        self._visible_events = 0
        self._error: grpc.RpcError | None = None
        self._thread = threading.Thread(target=self._run, daemon=True, name="debut-watcher")

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopping.set()
        self._thread.join(30)

    def seen(self) -> Position:
        """How far the answers reached at the last look. Raises DebutFailed when it can look no more."""
        if self._error is not None:
            raise DebutFailed(f"the star could not be read: {self._error.details()}") from self._error
        return self._position

    def _run(self) -> None:
        shown_at, shown = self._clock.monotonic_s(), (0, 0)
        try:
            while not self._stopping.wait(self._watch_s):
                self._position = self._star.look()
                self._live.counted = self._star.followers
                now = self._clock.monotonic_s()
                calls = self._surge.acknowledged
                while calls and self._position.covers(calls[0].position):
                    call = calls.popleft()
                    self._visible_events += call.events
                    self.lags_s.append(now - call.at_s)
                if now - shown_at >= 0.5:
                    acknowledged = self._surge.events_acknowledged
                    self._live.accepted_per_s = (acknowledged - shown[0]) / (now - shown_at)
                    self._live.visible_per_s = (self._visible_events - shown[1]) / (now - shown_at)
                    self._live.lag_ms = (now - calls[0].at_s if calls else self.lags_s[-1] if self.lags_s else 0.0) * 1e3
                    self._live.acknowledged = acknowledged
                    shown_at, shown = now, (acknowledged, self._visible_events)
        except grpc.RpcError as error:
            self._error = error


def run(
    plan: Plan, speed: float | None, reads_per_s: float, options: Mapping[str, Any], log: Path, live: Live, clock: Clock
) -> dict[str, Any]:
    """Runs a debut on a service with these settings, whose log goes to the file `log`; its store must not know the star yet.

    Returns what `watertower debut --json` prints. Raises DebutFailed, grpc.RpcError.
    """
    live.phase = "starting ingest, projector and query as processes"
    with contextlib.ExitStack() as opened:
        service = Service(options, opened.enter_context(log.open("wb")))
        opened.callback(service.stop)
        base_us = clock.now_us() - int((plan.preset.seconds + BACK_S) * 1e6)
        surge = opened.enter_context(contextlib.closing(Surge(service.write, plan, base_us, speed, clock)))
        star = opened.enter_context(contextlib.closing(StarReader(service.read)))
        if star.count(STAR, common_pb2.METRIC_FOLLOWERS) or star.count(POST, common_pb2.METRIC_LIKES):
            raise DebutFailed("the store knows the star already: give the debut topics and a keyspace of its own")
        watcher = Watcher(star, surge, live, clock)
        until_visible(star.look, seed_profiles(service.write, PROFILES, base_us), clock)

        live.phase = f"reading {reads_per_s:.0f} times a second, before the surge"
        readers = Readers(service.read, reads_per_s, plan.seed, live)
        opened.callback(readers.kill)
        readers.phase("warm")
        clock.sleep(1.0)
        readers.phase("idle")
        clock.sleep(IDLE_S)
        live.read_before = dict(live.read_now)

        live.phase = "the surge"
        readers.phase("surge")
        watcher.start()
        opened.callback(watcher.stop)
        surge.run()
        live.phase = "everything is acknowledged; the projector catches up"
        until_visible(watcher.seen, surge.position, clock)
        visible_s = clock.monotonic_s() - surge.started_s
        watcher.stop()
        readers.phase("after")
        reads = readers.result()
        followers, likes = star.count(STAR, common_pb2.METRIC_FOLLOWERS), star.count(POST, common_pb2.METRIC_LIKES)
        resident = {role: _resident_mb(pid) for role, pid in service.pids.items()}

    live.phase = "recounting: every press once more, and every edge in the store"
    expected = recount(plan)
    edges = _recount_edges(options)
    accepted_s = surge.ended_s - surge.started_s
    idle, busy = reads["idle"], reads["surge"]
    return {
        "exact": followers == expected.followers == edges[0] and likes == expected.likes == edges[1],
        "followers_expected": expected.followers,
        "followers_counted": followers,
        "followers_edges": edges[0],
        "likes_expected": expected.likes,
        "likes_counted": likes,
        "likes_edges": edges[1],
        "events_acknowledged": surge.events_acknowledged,
        "events_repeated": surge.events_acknowledged - expected.presses,
        "calls": surge.calls,
        "calls_retried": surge.retried,
        "accepted_per_s": round(surge.events_acknowledged / accepted_s),
        "visible_per_s": round(surge.events_acknowledged / visible_s),
        "surge_s": round(accepted_s, 2),
        "visible_s": round(visible_s, 2),
        "lag_p50_ms": _ms(percentile(watcher.lags_s, 0.5)),
        "lag_p99_ms": _ms(percentile(watcher.lags_s, 0.99)),
        "reads_per_s": reads_per_s,
        "read_p50_ms_idle": idle["p50_ms"],
        "read_p99_ms_idle": idle["p99_ms"],
        "read_p50_ms_surge": busy["p50_ms"],
        "read_p99_ms_surge": busy["p99_ms"],
        "star_read_p50_ms_idle": idle["star_p50_ms"],
        "star_read_p99_ms_idle": idle["star_p99_ms"],
        "star_read_p50_ms_surge": busy["star_p50_ms"],
        "star_read_p99_ms_surge": busy["star_p99_ms"],
        "reads": sum(phase["reads"] for phase in reads.values()),
        "read_errors": sum(phase["errors"] for phase in reads.values()),
        "resident_mb": resident,
        "seed": plan.seed,
    }


def _recount_edges(options: Mapping[str, Any]) -> tuple[int, int]:
    """Active edges of the star and of its post, straight from the store."""
    followers = likes = 0
    with bootstrap.opened_scanner(config.load(options)) as scanner:
        for (_, kind, subject, _), edge in scanner.edges():
            if edge.active and subject == STAR and kind == Kind.FOLLOW:
                followers += 1
            elif edge.active and subject == POST and kind == Kind.LIKE:
                likes += 1
    return followers, likes


def _resident_mb(pid: int) -> float | None:
    """Resident memory, MB; None where the system does not say (other than Linux)."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return None
    return round(int(status.split("VmRSS:")[1].split()[0]) / 1024, 1)


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds * 1e3, 1)
