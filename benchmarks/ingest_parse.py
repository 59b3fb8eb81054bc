"""What an event costs ingest before the log: `python benchmarks/ingest_parse.py` prints microseconds per event of each step.

One call is 500 follows of one subject by random actors, over 8 partitions; one record is what one call gives one partition (the worst
case: under load a record gathers several calls). No gRPC and no disk.
"""

import random
import time
from collections.abc import Callable

from watertower.codec import encode_batch
from watertower.core.model import EventBatch
from watertower.ingest.batcher import Batcher
from watertower.ingest.events import events_of
from watertower.v1.common_pb2 import KIND_FOLLOW, STATE_ACTIVE
from watertower.v1.writer_pb2 import Event, RecordEventsRequest

EVENTS = 500
PARTITIONS = 8
CALLS = 200
ROUNDS = 7
NOW_S = 1_800_000_000


def main() -> None:
    """Prints one line per step."""
    rng = random.Random(1)
    calls = [_call(rng).SerializeToString() for _ in range(CALLS)]
    parts = [_parts(call) for call in calls]
    parse = _cost(lambda: [None for call in calls if RecordEventsRequest.FromString(call) is None])
    steps = {
        "parse": parse,
        "validate and route": _cost(lambda: [None for call in calls if not _parts(call)]) - parse,
        "queue": _cost(lambda: _through_a_queue(parts)),
        "encode": _cost(lambda: [None for call in parts for batch in call.values() if not encode_batch(batch)]),
    }
    total = sum(steps.values())
    for name, cost in steps.items():
        print(f"{name:20} {cost:6.2f} us/event")
    print(f"{'all':20} {total:6.2f} us/event   {1e6 / total:,.0f} events/s of one core")


def _call(rng: random.Random) -> RecordEventsRequest:
    events = []
    for _ in range(EVENTS):
        event = Event(actor=f"account-{rng.randrange(10**8)}", kind=KIND_FOLLOW, subject="star-0000000001", state=STATE_ACTIVE)
        event.occurred_at.FromMicroseconds(NOW_S * 1_000_000 - rng.randrange(10**9))
        events.append(event)
    return RecordEventsRequest(events=events)


def _through_a_queue(parts: list[dict[int, EventBatch]]) -> None:
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


def _parts(call: bytes) -> dict[int, EventBatch]:
    return events_of(RecordEventsRequest.FromString(call), PARTITIONS, NOW_S * 1_000_000)


def _cost(step: Callable[[], object]) -> float:
    """Microseconds per event: the best of ROUNDS."""
    best = float("inf")
    for _ in range(ROUNDS):
        start = time.perf_counter()
        step()
        best = min(best, time.perf_counter() - start)
    return best / (CALLS * EVENTS) * 1e6


if __name__ == "__main__":
    main()
