"""How the rows lie in RocksDB: keys as bytes (values: cells.py). Pure; no driver.

One ordered key space, split into ranges by a leading byte. Ids are written as one byte of length and their UTF-8, so that one id
is never the start of another. Numbers in keys are big-endian, so that their order is the order of the bytes.

    E | actor | kind | subject | ref                        -> active, occurred_at, bucket, offset      the truth
    C | entity | metric | shard                             -> value, gained, offset, crossings         one cell: never torn
    L | subject | kind | ~occurred_at | actor | ref         -> shard, bucket                            newest first
    A | actor | kind | ~occurred_at | subject | ref         ->                                          newest first
    P | partition                                           -> end, appended_at, record_id
    F | sequence                                            -> one message of the counts feed
    M | name                                                -> JSON

The bucket of a list row is in its value, not in its key: buckets bound partitions where a store has them; a range needs none, and
without them it is in exact order. It is kept so that an audit can compare it with the edge's.
"""

from collections.abc import Iterable, Mapping
from struct import Struct
from typing import Final, NamedTuple

from watertower.core.model import EdgeKey, ListChange, ListKey, ShardKey
from watertower.ports import ListCursor

EDGES: Final = b"E"
SHARDS: Final = b"C"
SUBJECT_LISTS: Final = b"L"
ACTOR_LISTS: Final = b"A"
PROGRESS: Final = b"P"
FEED: Final = b"F"
IDENTITY: Final = b"Midentity"

_BYTE = [bytes((n,)) for n in range(256)]
_TIME_MAX = 2**63 - 1
_TIME = Struct(">Q")
_SHARD_NUMBER = Struct(">H")
_PLACE = Struct("<HI")
_PARTITION = Struct(">cH")
_SEQUENCE = Struct(">cQ")


class Ids(dict[str, bytes]):
    """Ids as they stand in keys, made once each: `ids["ann"] == b"\\x03ann"`. Grows with use; empty it between flushes.

    Raises IndexError for an id longer than 255 bytes (the API allows 128).
    """

    def __missing__(self, name: str) -> bytes:
        encoded = self[name] = _id(name)
        return encoded


# --- keys


def edge_keys(keys: Iterable[EdgeKey], ids: Ids) -> list[bytes]:
    """E keys, in order."""
    join, byte = b"".join, _BYTE
    return [join((b"E", ids[actor], byte[kind], ids[subject], ids[ref])) for actor, kind, subject, ref in keys]


def shard_keys(keys: Iterable[ShardKey], ids: Ids) -> list[bytes]:
    """C keys, in order."""
    join, byte, number = b"".join, _BYTE, _SHARD_NUMBER.pack
    return [join((b"C", ids[entity], byte[metric], number(shard))) for entity, metric, shard in keys]


class ListRows(NamedTuple):
    """What a flush does to the lists, as rows."""

    of_subjects: dict[bytes, bytes]  # L rows that are there
    of_actors: list[bytes]  # A rows that are there; their values are empty
    gone: list[bytes]  # L and A rows that are not


def list_rows(lists: Mapping[ListKey, ListChange], ids: Ids) -> ListRows:
    """The L and the A row of every list row. (One loop, with everything at hand: it runs once per event.)"""
    of_subjects: dict[bytes, bytes] = {}
    of_actors: list[bytes] = []
    gone: list[bytes] = []
    join, byte, time, place = b"".join, _BYTE, _TIME.pack, _PLACE.pack
    for (subject, kind, shard, bucket, occurred_at, actor, ref), (present, _) in lists.items():
        kind_and_time = byte[kind] + time(_TIME_MAX - occurred_at)
        subject_id, actor_id, ref_id = ids[subject], ids[actor], ids[ref]
        of_subject = join((b"L", subject_id, kind_and_time, actor_id, ref_id))
        of_actor = join((b"A", actor_id, kind_and_time, subject_id, ref_id))
        if present:
            of_subjects[of_subject] = place(shard, bucket)
            of_actors.append(of_actor)
        else:
            gone += (of_subject, of_actor)
    return ListRows(of_subjects, of_actors, gone)


def list_prefix(which: bytes, owner: str, kind: int) -> bytes:
    """What all rows of one list (SUBJECT_LISTS or ACTOR_LISTS) begin with."""
    return which + _id(owner) + _BYTE[kind]


def list_place(prefix: bytes, cursor: ListCursor) -> bytes:
    """The key of the row that the cursor names, whether or not it exists."""
    return prefix + _TIME.pack(_TIME_MAX - cursor.occurred_at) + _id(cursor.other) + _id(cursor.ref)


def entity_prefix(entity: str) -> bytes:
    """What all shards of one entity begin with."""
    return SHARDS + _id(entity)


def edge_prefix(actor: str, kind: int, subject: str) -> bytes:
    """What all edges between two ids begin with, whatever their ref."""
    return EDGES + _id(actor) + _BYTE[kind] + _id(subject)


def progress_key(partition: int) -> bytes:
    return _PARTITION.pack(PROGRESS, partition)


def feed_key(sequence: int) -> bytes:
    return _SEQUENCE.pack(FEED, sequence)


def range_end(prefix: bytes) -> bytes:
    """The first key after all keys that begin with `prefix`, which must not be all 0xFF."""
    kept = prefix.rstrip(b"\xff")
    return kept[:-1] + _BYTE[kept[-1] + 1]


def _id(name: str) -> bytes:
    utf8 = name.encode()
    return _BYTE[len(utf8)] + utf8


# --- keys, read back


def decode_edge_key(key: bytes) -> EdgeKey:
    actor_end = 2 + key[1]
    subject_at = actor_end + 2
    subject_end = subject_at + key[actor_end + 1]
    return (key[2:actor_end].decode(), key[actor_end], key[subject_at:subject_end].decode(), key[subject_end + 1 :].decode())


def decode_shard_key(key: bytes) -> ShardKey:
    return (key[2:-3].decode(), key[-3], key[-2] << 8 | key[-1])


def decode_list_row(key: bytes, value: bytes) -> ListKey:
    """An L row."""
    subject_end = 2 + key[1]
    cursor = decode_cursor(key, subject_end + 1)
    shard, bucket = _PLACE.unpack(value)
    return (key[2:subject_end].decode(), key[subject_end], shard, bucket, *cursor)


def decode_actor_list_row(key: bytes) -> EdgeKey:
    """An A row, as the key of the edge behind it."""
    actor_end = 2 + key[1]
    _, subject, ref = decode_cursor(key, actor_end + 1)
    return (key[2:actor_end].decode(), key[actor_end], subject, ref)


def decode_cursor(key: bytes, at: int) -> ListCursor:
    """What stands in an L or A key from `at` on, after the list's prefix."""
    other_at = at + 9
    other_end = other_at + key[at + 8]
    (inverse,) = _TIME.unpack_from(key, at)
    return ListCursor(_TIME_MAX - inverse, key[other_at:other_end].decode(), key[other_end + 1 :].decode())


def decode_partition(key: bytes) -> int:
    return int.from_bytes(key[1:])


def decode_sequence(key: bytes) -> int:
    return int.from_bytes(key[1:])
