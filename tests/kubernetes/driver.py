"""A debut from inside the cluster: this file runs in a pod of the service's image, with nothing but the package and its standard library.

New accounts follow one star at a constant rate, some twice, some of them unfollow; readers read at a constant rate, with the client's
normal retries and, beside them, without any. All on a schedule fixed beforehand: a late answer counts from the moment at which it was due.
A line of JSON a second says what became of the reads that were due in it; SIGTERM ends it, with one line that says what was acknowledged.
"""

import asyncio
import json
import os
import signal
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime

from watertower.client import Client, ClientError, ClientOptions, Event, Kind

STAR = "star"
WRITE, READ = os.environ["WRITE"], os.environ["READ"]
FOLLOWS_PER_S, READS_PER_S = int(os.environ["FOLLOWS_PER_S"]), int(os.environ["READS_PER_S"])
SECONDS_MAX = int(os.environ["SECONDS_MAX"])
TWICE_EVERY, UNFOLLOW_EVERY = 10, 20
REPEAT_S, REPEATS_MAX = 0.5, 120
"""Of a follow whose call ended with an error, after all retries of the client: as an application does that keeps what it could not say."""


class Reads:
    """What became of the reads of one reader, by the second in which they were due, and how late the reader itself was."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.by_second: dict[int, tuple[list[float], list[float], Counter[str]]] = {}

    def note(self, due_s: float, sent_s: float, error: str) -> None:
        took_s = time.time() - due_s
        late_ms, latencies_ms, errors = self.by_second.setdefault(int(due_s), ([], [], Counter()))
        late_ms.append(round((sent_s - due_s) * 1e3, 1))
        if error:
            errors[error] += 1
        else:
            latencies_ms.append(round(took_s * 1e3, 1))


def named(error: ClientError) -> str:
    return error.reason or (error.status.name if error.status else type(error).__name__)


def moment(at_s: float) -> datetime:
    return datetime.fromtimestamp(at_s, UTC)


async def paced(per_s: int, stop: asyncio.Event, deed: Callable[[int, float], Awaitable[None]]) -> None:
    """Does `deed(number, due)` so often, each for itself, and waits for all of them at the end. Times are the wall clock's, in seconds."""
    begun_s, number = time.time(), 0
    under_way: set[asyncio.Task[None]] = set()
    while not stop.is_set():
        due_s = begun_s + number / per_s
        await asyncio.sleep(max(0.0, due_s - time.time()))
        task = asyncio.ensure_future(deed(number, due_s))
        under_way.add(task)
        task.add_done_callback(under_way.discard)
        number += 1
    await asyncio.gather(*under_way)


async def main() -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, stop.set)
    loop.call_later(SECONDS_MAX, stop.set)
    acknowledged: dict[int, bool] = {}  # account -> whether it follows
    writes: Counter[str] = Counter()
    normal, raw = Reads("normal"), Reads("raw")
    # No retries, and no waiting for the service: what a bare stub sees.
    once = ClientOptions(attempts_max=1, timeout_ms=2_000, attempt_timeout_ms=2_000)

    async with Client(WRITE, READ) as client, Client(WRITE, READ, once) as bare:

        async def sure(event: Event) -> None:
            for _ in range(REPEATS_MAX):
                try:
                    await client.record_many([event])
                except ClientError as error:
                    writes[named(error)] += 1
                    await asyncio.sleep(REPEAT_S)
                else:
                    writes["acknowledged"] += 1
                    return
            raise SystemExit(f"{event} was not acknowledged in {REPEATS_MAX} calls")

        async def follow(number: int, due_s: float) -> None:
            event = Event(f"fan-{number}", Kind.FOLLOW, STAR, occurred_at=moment(due_s))
            await sure(event)
            if number % TWICE_EVERY == 0:
                await sure(event)
            if number % UNFOLLOW_EVERY == 0:
                await sure(Event(f"fan-{number}", Kind.FOLLOW, STAR, active=False, occurred_at=moment(due_s + 0.001)))
            acknowledged[number] = number % UNFOLLOW_EVERY != 0

        def reading(reads: Reads, by: Client) -> Callable[[int, float], Awaitable[None]]:
            async def read(number: int, due_s: float) -> None:
                sent_s = time.time()
                try:
                    if number % 10 == 9:  # one read in ten is of the store
                        await by.check(f"fan-{number}", [STAR])
                    else:
                        await by.counts(STAR if number % 2 else f"fan-{number}")
                except ClientError as error:
                    reads.note(due_s, sent_s, named(error))
                else:
                    reads.note(due_s, sent_s, "")

            return read

        await asyncio.gather(
            paced(FOLLOWS_PER_S, stop, follow),
            paced(READS_PER_S, stop, reading(normal, client)),
            paced(READS_PER_S, stop, reading(raw, bare)),
        )
    for reads in (normal, raw):
        for second, (late_ms, latencies_ms, errors) in sorted(reads.by_second.items()):
            print(json.dumps({"reads": reads.name, "second": second, "late_ms": late_ms, "latencies_ms": latencies_ms, "errors": errors}))
    followers = [number for number, follows in acknowledged.items() if follows]
    print(json.dumps({"accounts": len(acknowledged), "followers": sorted(followers), "writes": writes}), flush=True)


if __name__ == "__main__":
    asyncio.run(main())
