"""What goes wrong: each kind with a rate, a random stream and a counter of its own.

A kind draws from its own stream, so that switching one off leaves the others as they were, as far as that is possible: that is what
makes a failing seed shrink.
"""

import random
from collections import Counter
from collections.abc import Collection

KINDS = {
    # messages between a process and a replica of the store
    "message_lost": 0.004,
    "message_duplicated": 0.01,
    "message_delayed": 0.01,
    "message_reordered": 0.05,
    "write_applied_but_timed_out": 0.004,
    "write_on_one_replica": 0.004,
    "write_applied_late": 0.006,
    "read_failed": 0.002,
    "store_slow": 0.25,
    # processes
    "crash_projector": 0.5,
    "crash_ingest": 0.3,
    "crash_query": 0.3,
    "flush_cut": 0.01,
    "zombie": 0.012,
    "two_owners": 0.3,
    "rebalance": 0.6,
    "ping_pong": 0.3,
    "replay_from_old_offset": 0.2,
    "clock_jump": 0.4,
    # calls
    "call_lost": 0.03,
    "answer_lost": 0.03,
    "call_repeated_after_acknowledgement": 0.05,
    "call_redelivered_late": 0.05,
    "deadline_short": 0.02,
    # the log
    "append_lost": 0.02,
    "append_unacknowledged": 0.03,
    "log_read_failed": 0.01,
    "offset_gap": 0.05,
    "record_undecodable": 0.05,
    "log_truncated": 0.1,
    "log_starts_past_progress": 0.1,
    "log_tail_rewound": 0.1,
    "log_tail_lost": 0.1,
    "log_recreated": 0.1,
    "log_repartitioned": 0.1,
    # the counts feed
    "feed_lost": 0.02,
    "feed_late": 0.05,
    "publish_failed": 0.01,
    # watches
    "watch_not_read": 0.05,
    # the embedded store
    "sync_failed": 0.02,
    # an actor's partition in Cassandra
    "mutation_on_one_replica": 0.06,
}
"""Every kind with its rate: per message, per call, per step of a flush, per round of the nemesis, or per run (the log's last five)."""


class Faults:
    """Decides what goes wrong in one run, and counts it."""

    def __init__(self, seed: int, without: Collection[str] = ()) -> None:
        self._rates = {kind: rate for kind, rate in KINDS.items() if kind not in without}
        # A run with every kind at its full rate is one sort of bad day only: some are worse, some lack a kind.
        day = random.Random(f"{seed}/day")
        self._factors = {kind: day.choice((0.0, 0.5, 1.0, 1.0, 2.0)) for kind in KINDS}
        self._streams = {kind: random.Random(f"{seed}/{kind}") for kind in KINDS}
        self.fired: Counter[str] = Counter()
        self.over = False
        """True once the faults have stopped."""

    def strikes(self, kind: str) -> bool:
        """Whether this kind happens here. It is counted if so."""
        rate = self._rates.get(kind)
        if rate is None or self.over or self._streams[kind].random() >= rate * self._factors[kind]:
            return False
        self.fired[kind] += 1
        return True

    def stream(self, kind: str) -> random.Random:
        """For further choices about a fault of this kind."""
        return self._streams[kind]
