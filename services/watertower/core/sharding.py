"""Which partition of the log an actor's events go to."""

from collections.abc import Iterable
from zlib import crc32

PARTITIONS_MAX = 64
"""Partitions of a log, at most: a position of so many still fits into a token (positions.py)."""


def partition_of(actor: str, partitions: int) -> int:
    """The partition of an actor: CRC-32 of its UTF-8 bytes modulo the number of partitions.

    Everything an actor does is in one partition, in order, with one reader; a hot subject spreads over all of them. Must never
    change for a log that exists: an actor's edges have one writer because of it.
    """
    return crc32(actor.encode()) % partitions


def partitions_of(actors: Iterable[str], partitions: int) -> list[int]:
    """partition_of each of `actors`, without the cost of a call per actor."""
    return [crc32(actor.encode()) % partitions for actor in actors]
