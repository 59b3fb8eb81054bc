"""Events and feed messages <-> bytes: Avro, in columns, versioned.

A payload is a header and one Avro datum without its schema. The header: 2 bytes of magic, 1 byte schema version, 4 bytes CRC-32
(little-endian) of the datum, started from the version so that it covers that too. The checksum is there because a flipped bit in
an id would otherwise be counted, on the wrong account. The schema of version N is schemas/avro/NAME.vN.avsc, and never changes once
it has been released: a new field is a new version with a default, so that version n + 1 reads what version n wrote.

Why columns, and a text column as one joined string: fastavro decodes 3 M strings/s from an array and 30 M/s when they are split from
one string. Why no compression: zlib costs more time per event than everything else here, for a log that is dropped once it is applied.
"""

import json
import struct
from collections.abc import Mapping, Sequence
from functools import cached_property
from hashlib import blake2b
from importlib.resources import files
from io import BytesIO
from typing import Any, TypeVar
from zlib import crc32

import fastavro

from watertower.core.model import KINDS, EventBatch, Metric
from watertower.ports import FeedMessage

RECORD_ID_BYTES = 8

_HEADER = struct.Struct("<2sBI")  # magic, version, checksum
_SEPARATOR = "\n"
_EVENTS = "events"
_KINDS = bytes(KINDS)
_METRICS = bytes(Metric)
_STATES = b"\x00\x01"
_INT64_BYTES = 8

_Column = TypeVar("_Column", bytes, Sequence[str], Sequence[int])
_Decoded = TypeVar("_Decoded", bytes, list[str], list[int])


class UndecodableRecord(Exception):
    """These bytes are not what this version of Watertower can read: another format, a newer schema version, an unknown record type
    or kind, or damage."""


class ForeignRecord(UndecodableRecord):
    """These bytes were never written by any version of Watertower: every one of them begins its payloads with the same magic."""


class Format:
    """One kind of payload, in all its schema versions."""

    def __init__(self, magic: bytes, name: str, version: int) -> None:
        """`version` is the newest, and the one that is written; all from 1 to `version` are read."""
        self.magic = magic
        self.name = name
        self.version = version

    @cached_property
    def schemas(self) -> dict[int, Any]:
        """The parsed schemas by version, loaded at first use."""
        folder = files("watertower") / "schemas" / "avro"
        names = {version: f"{self.name}.v{version}.avsc" for version in range(1, self.version + 1)}
        return {version: fastavro.parse_schema(json.loads((folder / name).read_text("utf-8"))) for version, name in names.items()}

    def encode(self, datum: Mapping[str, Any]) -> bytes:
        """The payload of a datum. Raises ValueError for what the schema cannot hold."""
        out = BytesIO()
        out.seek(_HEADER.size)
        fastavro.schemaless_writer(out, self.schemas[self.version], datum)
        payload = out.getbuffer()
        _HEADER.pack_into(payload, 0, self.magic, self.version, crc32(payload[_HEADER.size :], self.version))
        return bytes(payload)

    def decode(self, payload: bytes) -> dict[str, Any]:
        """The datum of a payload, as the newest schema sees it. Raises UndecodableRecord."""
        if len(payload) < _HEADER.size:
            raise ForeignRecord(f"{len(payload)} bytes are too few for a {self.name}")
        magic, version, checksum = _HEADER.unpack_from(payload)
        if magic != self.magic:
            raise ForeignRecord(f"no {self.name} of Watertower: it begins with {magic.hex()}")
        if version not in self.schemas:
            raise UndecodableRecord(f"{self.name} of schema version {version}; this version of Watertower reads 1 to {self.version}")
        if checksum != crc32(memoryview(payload)[_HEADER.size :], version):
            raise UndecodableRecord(f"{self.name} is damaged: its checksum does not match")
        source = BytesIO(payload)
        source.seek(_HEADER.size)
        newest = None if version == self.version else self.schemas[self.version]
        try:
            datum = fastavro.schemaless_reader(source, self.schemas[version], newest)
        except Exception as error:  # the decoder raises whatever its input leads it to: EOFError, IndexError, UnicodeDecodeError...
            raise UndecodableRecord(f"{self.name} is not valid Avro: {error!r}") from error
        if source.tell() != len(payload) or not isinstance(datum, dict):
            raise UndecodableRecord(f"{self.name} has {len(payload) - source.tell()} bytes after its end")
        return datum


EVENT_BATCH = Format(b"WE", "event_batch", 1)
COUNTS_FEED = Format(b"WF", "counts_feed", 1)


def record_id(payload: bytes) -> bytes:
    """What tells one record from another at the same place: a hash of its payload, RECORD_ID_BYTES bytes."""
    return blake2b(payload, digest_size=RECORD_ID_BYTES).digest()


def encode_batch(batch: EventBatch) -> bytes:
    """A record of the log. Raises ValueError for a batch that decode_batch would refuse."""
    count = len(batch.occurred_at)
    _check_batch(batch.kinds, batch.actives, count, ValueError)
    return EVENT_BATCH.encode(
        {
            "type": _EVENTS,
            "actors": _join(batch.actors, count),
            "kinds": _shorten(batch.kinds, count),
            "subjects": _join(batch.subjects, count),
            "refs": _join(batch.refs, count),
            "actives": _shorten(batch.actives, count),
            "occurred_at": _pack(batch.occurred_at),
        }
    )


def decode_batch(payload: bytes) -> EventBatch:
    """The events of a record of the log. Raises UndecodableRecord, whatever the bytes are."""
    datum = EVENT_BATCH.decode(payload)
    if datum["type"] != _EVENTS:
        raise UndecodableRecord(f"record of type {datum['type']!r}; this version of Watertower reads {_EVENTS!r}")
    occurred_at = _unpack(datum["occurred_at"])
    count = len(occurred_at)
    batch = EventBatch(
        actors=_split(datum["actors"], count),
        kinds=_lengthen(datum["kinds"], count),
        subjects=_split(datum["subjects"], count),
        refs=_split(datum["refs"], count),
        actives=_lengthen(datum["actives"], count),
        occurred_at=occurred_at,
    )
    _check_batch(batch.kinds, batch.actives, count, UndecodableRecord)
    return batch


def encode_feed(message: FeedMessage) -> bytes:
    """A message of the counts feed. Raises ValueError for one that decode_feed would refuse."""
    count = len(message.values)
    _check_feed(message.after, message.end, message.metrics, ValueError)
    return COUNTS_FEED.encode(
        {
            "partition": message.partition,
            "after": message.after,
            "end": message.end,
            "as_of": message.as_of,
            "entities": _join(message.entities, count),
            "metrics": _shorten(message.metrics, count),
            "values": _pack(message.values),
            "offsets": _pack(_shorten(message.offsets, count)),
        }
    )


def decode_feed(payload: bytes) -> FeedMessage:
    """A message of the counts feed. Raises UndecodableRecord, whatever the bytes are."""
    datum = COUNTS_FEED.decode(payload)
    values = _unpack(datum["values"])
    count = len(values)
    message = FeedMessage(
        partition=datum["partition"],
        after=datum["after"],
        end=datum["end"],
        as_of=datum["as_of"],
        entities=_split(datum["entities"], count),
        metrics=_lengthen(datum["metrics"], count),
        values=values,
        offsets=_lengthen(_unpack(datum["offsets"]), count),
    )
    _check_feed(message.after, message.end, message.metrics, UndecodableRecord)
    return message


def _check_batch(kinds: bytes, actives: bytes, count: int, refusal: type[Exception]) -> None:
    if not count:
        raise refusal("a record has at least one event")
    if kinds.translate(None, _KINDS):
        raise refusal(f"unknown kinds {sorted(set(kinds) - set(_KINDS))}")
    if actives.translate(None, _STATES):
        raise refusal(f"unknown states {sorted(set(actives) - set(_STATES))}")


def _check_feed(after: int, end: int, metrics: bytes, refusal: type[Exception]) -> None:
    if after > end:
        raise refusal(f"a range from {after} to {end}")
    if metrics.translate(None, _METRICS):
        raise refusal(f"unknown metrics {sorted(set(metrics) - set(_METRICS))}")


# Columns. Written down, a column that holds one value throughout is that value alone: most batches are of one kind and state, have no
# refs, and in a surge a single subject.


def _shorten(column: _Column, count: int) -> _Column:
    """`column`, or its only value if all are equal."""
    if len(column) != count:
        raise ValueError(f"columns of {len(column)} and {count} values")
    return column[:1] if count > 1 and column[0] == column[-1] and column.count(column[0]) == count else column


def _lengthen(column: _Decoded, count: int) -> _Decoded:
    """The inverse of _shorten."""
    if len(column) == count:
        return column
    if len(column) != 1 or not count:
        raise UndecodableRecord(f"columns of {len(column)} and {count} values")
    return column * count


def _join(column: Sequence[str], count: int) -> str:
    """A text column as one string."""
    short = _shorten(column, count)
    text = _SEPARATOR.join(short)
    if text.count(_SEPARATOR) != max(len(short) - 1, 0):
        raise ValueError("an id contains U+000A")
    return text


def _split(text: str, count: int) -> list[str]:
    """The inverse of _join. (Nothing joined and one empty value look the same; `count` tells them apart.)"""
    return _lengthen(text.split(_SEPARATOR) if count or text else [], count)


def _pack(numbers: Sequence[int]) -> bytes:
    """Numbers as little-endian int64."""
    try:
        return struct.pack(f"<{len(numbers)}q", *numbers)
    except struct.error as error:
        raise ValueError(f"not an int64 in a column of numbers: {error}") from error


def _unpack(data: bytes) -> list[int]:
    """The inverse of _pack."""
    if len(data) % _INT64_BYTES:
        raise UndecodableRecord(f"{len(data)} bytes are no column of int64")
    return list(struct.unpack(f"<{len(data) // _INT64_BYTES}q", data))
