"""Rows as bytes: an edge, a shard, a progress. One cell each, so that no store can tear a value from its position. Pure; no driver.

A released form never changes: the rows outlive the program that wrote them.
"""

from collections.abc import Iterable, Iterator
from itertools import starmap
from struct import Struct

from watertower.core.model import Crossing, Edge, Progress, Shard

_EDGE = Struct("<?qIq")
_SHARD = Struct("<qQq")
_CROSSING = Struct("<qI")
_PROGRESS = Struct("<qq")


def encode_edges(edges: Iterable[Edge]) -> Iterator[bytes]:
    """Values, in order."""
    return starmap(_EDGE.pack, edges)


def decode_edge(value: bytes) -> Edge:
    return Edge._make(_EDGE.unpack(value))


def encode_shards(shards: Iterable[Shard]) -> list[bytes]:
    """Cells, in order."""
    pack = _SHARD.pack
    return [
        pack(value, gained, offset) + b"".join([_CROSSING.pack(*crossing) for crossing in crossings])
        if crossings
        else pack(value, gained, offset)
        for value, gained, crossings, offset in shards
    ]


def decode_shard(cell: bytes) -> Shard:
    value, gained, offset = _SHARD.unpack_from(cell)
    crossings: tuple[Crossing, ...] = tuple(_CROSSING.iter_unpack(cell[_SHARD.size :])) if len(cell) > _SHARD.size else ()
    return Shard(value, gained, crossings, offset)


def encode_progress(progress: Progress) -> bytes:
    return _PROGRESS.pack(progress.end, progress.appended_at) + progress.record_id


def decode_progress(value: bytes) -> Progress:
    end, appended_at = _PROGRESS.unpack_from(value)
    return Progress(end, value[_PROGRESS.size :], appended_at)
