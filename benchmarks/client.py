"""What micro-batching is worth: `python -m benchmarks.client [--callers N ...] [--seconds S] [--rounds R]`.

Follows a second of one client process, acknowledged, against a real embedded service (three processes, synced log) on the same machine. N
callers follow one after the other, as fast as each is answered, with micro-batching and without it, in turns, so that what else the
machine does falls on both. Without it, each follow is a request of its own, and those of all callers may be under way at once. Figures are
printed, not asserted: machines differ.
"""

import argparse
import asyncio
import itertools
import statistics
import tempfile
from pathlib import Path

from watertower.client import Client, ClientOptions
from watertower.clock import SystemClock
from watertower.testing.service import Service

CLOCK = SystemClock()


async def follows_per_s(service: Service, options: ClientOptions, callers: int, seconds: float, names: "itertools.count[int]") -> float:
    """Acknowledged follows a second of so many callers in one process."""
    async with Client(service.write_target, service.read_target, options) as client:
        await client.follow(f"fan-{next(names)}", "star")  # connects
        began_s = CLOCK.monotonic_s()
        follows = 0

        async def call() -> None:
            nonlocal follows
            while CLOCK.monotonic_s() - began_s < seconds:
                await client.follow(f"fan-{next(names)}", "star")
                follows += 1

        await asyncio.gather(*(call() for _ in range(callers)))
        return follows / (CLOCK.monotonic_s() - began_s)


def main() -> None:
    """Prints a table: per number of callers the median of all rounds, and the least and most of them."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--callers", type=int, nargs="+", default=[1, 16, 256, 2_048])
    parser.add_argument("--seconds", type=float, default=3.0, help="of one measurement")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    names = itertools.count()
    print(f"{'callers':>8}  {'batched/s':>24}  {'single/s':>24}  {'ratio':>6}")
    with tempfile.TemporaryDirectory(prefix="watertower-bench-") as folder, Service(Path(folder) / "data") as service:
        service.start()
        for callers in arguments.callers:
            batched, single = ClientOptions(timeout_ms=60_000), ClientOptions(timeout_ms=60_000, batch_items_max=1, batch_calls_max=callers)
            found: tuple[list[float], list[float]] = ([], [])
            for _ in range(arguments.rounds):
                for options, figures in zip((batched, single), found, strict=True):
                    figures.append(asyncio.run(follows_per_s(service, options, callers, arguments.seconds, names)))
            ratio = statistics.median(found[0]) / statistics.median(found[1])
            cells = [f"{statistics.median(f):,.0f} ({min(f):,.0f} to {max(f):,.0f})" for f in found]
            print(f"{callers:>8,}  {cells[0]:>24}  {cells[1]:>24}  {ratio:>6.2f}", flush=True)


if __name__ == "__main__":
    main()
