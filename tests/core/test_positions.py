"""Positions: tokens round-trip in one form, bounds hold, timestamps order as the protocol needs."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from watertower.core.positions import (
    TOKEN_BYTES_MAX,
    MalformedToken,
    Position,
    decode_position,
    encode_position,
    write_timestamp,
)
from watertower.core.sharding import PARTITIONS_MAX

POSITIONS = st.builds(Position, st.integers(1, 2**31), st.dictionaries(st.integers(0, 63), st.integers(-1, 2**62), max_size=64))


@given(POSITIONS)
def test_tokens_round_trip(position: Position) -> None:
    """Every position has one token and comes back from it."""
    assert decode_position(encode_position(position)) == position


def test_the_largest_token_fits_its_limit() -> None:
    """PARTITIONS_MAX partitions at the largest offset: below the documented 1,024 bytes."""
    token = encode_position(Position(2**31, dict.fromkeys(range(PARTITIONS_MAX), 2**63 - 2)))
    assert len(token) <= TOKEN_BYTES_MAX
    assert decode_position(token).offsets[PARTITIONS_MAX - 1] == 2**63 - 2


@given(st.binary(max_size=64))
def test_garbage_is_refused_or_is_the_one_written_form(data: bytes) -> None:
    """Bytes that are not a token raise MalformedToken and nothing else."""
    try:
        position = decode_position(data)
    except MalformedToken:
        return
    assert encode_position(position) == data


@pytest.mark.parametrize("data", [b"", b"\x01", b"\x02\x01", b"\x01\x80", b"\x01\x01\x05", b"\x01" * (TOKEN_BYTES_MAX + 1)])
def test_malformed_tokens_are_refused(data: bytes) -> None:
    """Empty, cut off, of another version, a partition without offset, too long."""
    with pytest.raises(MalformedToken):
        decode_position(data)


@given(POSITIONS, POSITIONS)
def test_covers_is_per_partition(one: Position, two: Position) -> None:
    """A position covers itself; it covers another exactly when no partition lies behind, and never across generations."""
    assert one.covers(one)
    behind = any(offset > one.offsets.get(p, -1) for p, offset in two.offsets.items())
    assert one.covers(two) == (one.generation == two.generation and not behind)


@given(POSITIONS, POSITIONS)
def test_merged_is_the_least_that_covers_both(one: Position, two: Position) -> None:
    """Per partition the later offset; the generation is the newer answer's."""
    two = two._replace(generation=one.generation)
    merged = one.merged(two)
    assert merged.covers(one)
    assert merged.covers(two)
    assert all(offset in (one.offsets.get(p), two.offsets.get(p)) for p, offset in merged.offsets.items() if offset >= 0)
    assert one.merged(two._replace(generation=one.generation + 1)).generation == one.generation + 1


@given(POSITIONS, POSITIONS)
def test_common_is_the_most_that_both_cover(one: Position, two: Position) -> None:
    """Per partition the earlier offset; nothing across generations."""
    assert one.common(two._replace(generation=one.generation + 1)).offsets == {}
    two = two._replace(generation=one.generation)
    common = one.common(two)
    assert one.covers(common)
    assert two.covers(common)
    assert all(common.offsets.get(p, -1) == min(one.offsets.get(p, -1), two.offsets.get(p, -1)) for p in one.offsets | two.offsets)


def test_write_timestamps_order_as_the_protocol_needs() -> None:
    """A delete beats the value of its own offset and loses to the next; wall clocks lose; a new generation beats the old."""
    assert write_timestamp(1, 7) < write_timestamp(1, 7, delete=True) < write_timestamp(1, 8)
    assert write_timestamp(1, 0) > 4_000_000_000_000_000  # microseconds of the year 2096
    assert write_timestamp(1, 2**50) < write_timestamp(2, 0)
