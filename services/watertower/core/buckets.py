"""Bounded parts of a list, and why a replay puts a row into the same one.

A list may have hundreds of millions of rows, so it is kept in buckets. Bucket 0 is shared by all shards and takes a shard's first
`SHARED_GAINED_MAX` activations: a small account's list is one part in true order. Afterwards a shard has buckets of its own, a new
one every `BUCKET_GAINED_MAX` activations.

The bucket must not depend on where a flush began, because a replay meets events that the shard's value already contains. So a shard
remembers the events at which its gained crossed each boundary, and an event's bucket is the number of crossings before it. That
number is the same for an event met for the first time (all crossings so far are before it) and for one met again.
"""

from bisect import bisect_left

from watertower.core.model import Crossing

SHARED_GAINED_MAX = 2_000
"""Activations of a shard that go to the shared bucket 0."""

BUCKET_GAINED_MAX = 100_000
"""Activations per bucket of a shard of its own (the first of them is shorter by SHARED_GAINED_MAX)."""


def is_boundary(gained: int) -> bool:
    """Whether the activation that makes a shard's lifetime `gained` is the last one of its bucket."""
    return gained == SHARED_GAINED_MAX or (gained > 0 and gained % BUCKET_GAINED_MAX == 0)


def bucket_of(crossings: tuple[Crossing, ...], offset: int, index: int) -> int:
    """The bucket of the activation at (offset, index): how many crossings lie before it."""
    return bisect_left(crossings, (offset, index))
