"""What an event costs ingest before the log: `python benchmarks/ingest_parse.py` prints microseconds per event of each step.

One call is 500 follows of one subject by random actors, over 8 partitions; one record is what one call gives one partition (the worst
case: under load a record gathers several calls). No gRPC and no disk.
"""

import random
import time
from collections.abc import Callable

from watertower.codec import encode_batch
from watertower.ingest.batcher import Batcher
from watertower.ingest.events import events_of
from watertower.v1.writer_pb2 import Event, RecordEventsRequest

EVENTS = 500
PARTITIONS = 8
CALLS = 200
ROUNDS = 7
NOW_S = 1_800_000_000


def main() -> None:
    """Prints one line per step: the best of ROUNDS."""
    rng = random.Random(1)
    calls = [_call(rng).SerializeToString() for _ in range(CALLS)]
    messages = [RecordEventsRequest.FromString(call) for call in calls]
    parts = [events_of(message, PARTITIONS, NOW_S * 1_000_000) for message in messages]

    steps: dict[str, Callable[[], object]] = {
        "parse": lambda: [RecordEventsRequest.FromString(call) for call in calls],
        "validate and route": lambda: [events_of(message, PARTITIONS, NOW_S * 1_000_000) for message in messages],
        "queue": lambda: _through_a_queue(parts),
        "encode": lambda: [encode_batch(batch) for call in parts for batch in call.values()],
    }
    total = 0.0
    for name, step in steps.items():
        cost = min(_seconds(step) for _ in range(ROUNDS)) / (CALLS * EVENTS) * 1e6
        total += cost
        print(f"{name:20} {cost:6.2f} us/event")
    print(f"{'all':20} {total:6.2f} us/event   {1e6 / total:,.0f} events/s of one core")


def _call(rng: random.Random) -> RecordEventsRequest:
    events = []
    for _ in range(EVENTS):
        event = Event(actor=f"account-{rng.randrange(10**8)}", kind=1, subject="star-0000000001", state=1)
        event.occurred_at.FromMicroseconds(NOW_S * 1_000_000 - rng.randrange(10**9))
        events.append(event)
    return RecordEventsRequest(events=events)


def _through_a_queue(parts: list) -> None:
    limit = 10**9
    queue = Batcher(
        PARTITIONS, record_events_max=4_000, record_bytes_max=limit, queue_events_max=limit, queue_bytes_max=limit, retry_after_s=1
    )
    for offset, part in enumerate(parts):
        queue.add(part, float("inf"))
        for partition in queue.ready():
            queue.next_record(partition, 0)
            queue.appended(partition, offset)
        queue.take_ended()


def _seconds(step: Callable[[], object]) -> float:
    start = time.perf_counter()
    step()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
