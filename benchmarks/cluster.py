"""The service on a real Kafka and a real Cassandra, which are started for it: `python -m benchmarks.cluster COMMAND`.

`debut [OPTIONS]` is `watertower debut` on new topics and tables. `figures [--only NAME ...] [--followers N]
[--half-load N] [--json]` prints those of docs/performance.md. One broker and one node on the same cores as everything else, the load too.
"""

import argparse
import json
import os
import random
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import IO, Any, NamedTuple

from benchmarks.cassandra_flush import cpu_of
from benchmarks.service import Figure, Uniform, lag, on_service
from watertower.clock import SystemClock
from watertower.debut.plan import PRESETS, Plan, Press
from watertower.debut.run import Live, Service, Watcher
from watertower.debut.surge import Surge
from watertower.debut.visible import StarReader, until_visible
from watertower.testing.engines import CassandraEngine, KafkaEngine, cassandra, kafka, unique_name

PARTITIONS = 16
WARM_FOLLOWERS = 60_000
"""Of a debut before the one that counts: the JVMs compile meanwhile."""


class Engines(NamedTuple):
    """What was started."""

    broker: KafkaEngine
    node: CassandraEngine

    @property
    def pids(self) -> dict[str, int]:
        """Of the processes whose use of the CPU can be read."""
        nodes = {"kafka": self.broker.nodes[0], "cassandra": self.node.nodes[0]}
        return {name: node.pid for name, node in nodes.items() if hasattr(node, "pid")}


@contextmanager
def engines() -> Iterator[Engines]:
    """One broker, one node."""
    with kafka() as broker, cassandra() as node:
        yield Engines(broker, node)


def prepared(started: Engines, partitions: int = PARTITIONS) -> dict[str, str]:
    """Makes new topics and tables; gives the settings to reach them."""
    name = unique_name("bench")
    settings = {
        "log": "kafka",
        "store": "cassandra",
        "kafka_bootstrap_servers": started.broker.bootstrap_servers,
        "kafka_prefix": name,
        "cassandra_contact_points": started.node.contact_points,
        "cassandra_local_datacenter": started.node.local_datacenter,
        "cassandra_replication": f"{started.node.local_datacenter}:1",
        "cassandra_keyspace": name,
    }
    for command in (("topics", "create", "--partitions", str(partitions)), ("migrate",)):
        if code := watertower(settings, *command, answer=sys.stderr):
            raise SystemExit(code)
    return settings


def watertower(settings: Mapping[str, str], *arguments: str, answer: IO[str] | None = None) -> int:
    """Runs the command with these settings, on this terminal; its standard output goes to `answer`, if given. Its exit code."""
    environment = {f"WATERTOWER_{name.upper()}": value for name, value in settings.items()}
    return subprocess.run(
        [sys.executable, "-m", "watertower", *arguments], env={**os.environ, **environment}, stdout=answer, check=False
    ).returncode


class Spread(Uniform):
    """As many who are followed as followers, in random order."""

    def presses(self) -> Iterator[Press]:
        followed = list(range(self.followers))
        random.Random(self.seed).shuffle(followed)
        for press, number in zip(super().presses(), followed, strict=True):
            yield press._replace(subject=f"followed-{number}")


class Renamed(NamedTuple):
    """Another plan with other followers, for a run before the one that counts."""

    plan: Plan
    seed: int = 0

    def presses(self) -> Iterator[Press]:
        for press in self.plan.presses():
            yield press._replace(actor=f"earlier-{press.actor}")


def visible(service: Service, started: Engines, plan: Plan) -> dict[str, Any]:
    """The plan as fast as it goes, until all of it can be read; and what each process computed for an event of it."""
    surge_of(service, Renamed(plan._replace(followers=WARM_FOLLOWERS)))
    pids = {**service.pids, **started.pids, "load": os.getpid()}
    before = {name: cpu_of(pid) for name, pid in pids.items()}
    events, accepted_s, visible_s = surge_of(service, plan)
    computed = {name: cpu_of(pid) - before[name] for name, pid in pids.items()}
    return {
        "events": events,
        "accepted_per_s": round(events / accepted_s),
        "visible_per_s": round(events / visible_s),
        "cpu_us_per_event": {name: round(seconds / events * 1e6, 1) for name, seconds in computed.items()},
    }


def surge_of(service: Service, plan: Any) -> tuple[int, float, float]:
    """Sends it. Events; seconds until the last was acknowledged, and until all could be read."""
    clock = SystemClock()
    with (
        closing(Surge(service.write, plan, clock.now_us() - 86_400_000_000, None, clock)) as surge,
        closing(StarReader(service.read)) as star,
    ):
        watcher = Watcher(star, surge, Live(), clock)
        watcher.start()
        surge.run()
        until_visible(watcher.seen, surge.position, clock)
        visible_s = clock.monotonic_s() - surge.started_s
        watcher.stop()
    return surge.events_acknowledged, surge.ended_s - surge.started_s, visible_s


def figures(options: argparse.Namespace) -> None:
    """Prints them, each on new topics and tables."""
    preset = PRESETS["2019"]
    with engines() as started:
        star, spread = Plan(preset, options.followers, 7), Spread(preset, options.followers, 7)

        def half_load(service: Service, _: Path) -> dict[str, Any]:
            surge_of(service, Renamed(star._replace(followers=WARM_FOLLOWERS)))
            return lag(service, options.half_load, 20)

        measures: dict[str, Callable[[Service, Path], dict[str, Any]]] = {
            "star": lambda service, _: visible(service, started, star),
            "spread": lambda service, _: visible(service, started, spread),
            "lag-half-load": half_load,
        }
        for name, measure in measures.items():
            if not options.only or name in options.only:
                figure = Figure(name, on_service(measure, prepared(started)))
                shown = json.dumps({figure.name: figure.values}) if options.json else f"{name}: {json.dumps(figure.values, indent=2)}"
                print(shown, flush=True)


def main(arguments: list[str]) -> int:
    if arguments[:1] == ["debut"]:
        with engines() as started:
            return watertower(prepared(started), *arguments)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["debut", "figures"])
    parser.add_argument("--only", nargs="*", help="names of figures")
    parser.add_argument("--followers", type=int, default=150_000)
    parser.add_argument("--half-load", type=float, default=2_500, help="events/s for the lag: half of the goal for what becomes visible")
    parser.add_argument("--json", action="store_true")
    figures(parser.parse_args(arguments))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
