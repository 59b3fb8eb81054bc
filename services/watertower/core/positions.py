"""Where in the log something was decided: write timestamps, and the opaque tokens that callers carry.

A position is (generation, partition, offset). An `end` is inclusive.
"""

from collections.abc import Mapping
from typing import NamedTuple

GENERATION_SPAN = 2**52
"""Write timestamps of one generation lie below the next one's. Generations start at 1, so that a stray wall-clock write
(about 1.8e15 microseconds, below 2**52) loses instead of shadowing a row."""

TOKEN_BYTES_MAX = 1_024
"""Bytes of a write token or of a position, at most: enough for 64 partitions with offsets up to 2**63."""

_TOKEN_VERSION = 1


def write_timestamp(generation: int, offset: int, delete: bool = False) -> int:
    """The explicit timestamp of a row write: generation * 2**52 + 2 * offset, + 1 for a delete."""
    return generation * GENERATION_SPAN + 2 * offset + delete


class Position(NamedTuple):
    """How much of a log something includes: per partition, the inclusive offset. A partition that is absent is at -1."""

    generation: int
    offsets: Mapping[int, int]

    def covers(self, other: "Position") -> bool:
        """Whether everything that `other` points at is included here. Never across generations."""
        return self.generation == other.generation and all(self.offsets.get(p, -1) >= o for p, o in other.offsets.items())

    def merged(self, other: "Position") -> "Position":
        """What includes both, of the generation of `other`: the later of two answers of one service."""
        offsets = dict(self.offsets)
        for partition, offset in other.offsets.items():
            offsets[partition] = max(offset, offsets.get(partition, -1))
        return Position(other.generation, offsets)

    def common(self, other: "Position") -> "Position":
        """What is included in both. Across generations: nothing."""
        if self.generation != other.generation:
            return Position(other.generation, {})
        return Position(self.generation, {p: min(o, other.offsets[p]) for p, o in self.offsets.items() if p in other.offsets})


class MalformedToken(ValueError):
    """The bytes are not a token of this service."""


def encode_position(position: Position) -> bytes:
    """A token: version, generation, then (partition, offset + 1) pairs in order of partition, all as LEB128 varints."""
    out = bytearray([_TOKEN_VERSION])
    _put_varint(out, position.generation)
    for partition in sorted(position.offsets):
        _put_varint(out, partition)
        _put_varint(out, position.offsets[partition] + 1)
    return bytes(out)


def decode_position(token: bytes) -> Position:
    """The inverse of encode_position. Raises MalformedToken for anything that it would not have written."""
    if not token or len(token) > TOKEN_BYTES_MAX or token[0] != _TOKEN_VERSION:
        raise MalformedToken("not a position of this service")
    generation, at = _take_varint(token, 1)
    offsets: dict[int, int] = {}
    while at < len(token):
        partition, at = _take_varint(token, at)
        offset, at = _take_varint(token, at)
        offsets[partition] = offset - 1
    position = Position(generation, offsets)
    if encode_position(position) != token:
        raise MalformedToken("not a position in its one written form")
    return position


def _put_varint(out: bytearray, value: int) -> None:
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)


def _take_varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        if at >= len(data) or shift > 63:
            raise MalformedToken("a number in the position is cut off")
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at += 1
        if byte < 0x80:
            return value, at
        shift += 7
