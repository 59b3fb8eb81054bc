"""What single requests ask for, remembered."""

import pytest

from watertower.query import asked as module
from watertower.query.answers import shape_of
from watertower.query.asked import ASKED_BYTES_MAX, ASKED_MAX, asked
from watertower.v1 import reader_pb2 as pb


def test_a_request_is_taken_apart() -> None:
    """The entity, and the one shape of its metrics, in their order; the same the second time."""
    data = pb.GetCountsRequest(entity="é" * 64, metrics=[3, 1]).SerializeToString()
    for _ in range(2):
        assert asked(data) == ("é" * 64, shape_of((3, 1)))


@pytest.mark.parametrize(
    "data",
    [
        b"\xff",
        b"",
        pb.GetCountsRequest(entity="", metrics=[1]).SerializeToString(),
        pb.GetCountsRequest(entity="a\n", metrics=[1]).SerializeToString(),
        pb.GetCountsRequest(entity="a", metrics=[1, 1]).SerializeToString(),
        pb.GetCountsRequest(entity="a", metrics=[1], min_position=b"x").SerializeToString(),
        pb.GetCountsRequest(entity="a", metrics=[1], max_staleness={"seconds": 0}).SerializeToString(),
        pb.GetCountsRequest(entity="a", metrics=[1]).SerializeToString() + b"\x9a\x06\x80\x02" + bytes(ASKED_BYTES_MAX),  # an unknown field
    ],
)
def test_what_is_more_than_a_look_into_memory_is_left_to_the_method(data: bytes) -> None:
    """No message, a broken rule, a wish for freshness (an empty one, too), and bytes that nobody needs to send (ASKED_BYTES_MAX)."""
    assert asked(data) is None


def test_the_longest_request_without_anything_superfluous_fits() -> None:
    """128 bytes of entity and every metric."""
    longest = pb.GetCountsRequest(entity="x" * 128, metrics=[1, 2, 3, 4, 5, 6]).SerializeToString()
    assert asked(longest) == ("x" * 128, shape_of((1, 2, 3, 4, 5, 6)))


def test_only_so_many_are_remembered() -> None:
    """ASKED_MAX: one more takes the place of the one that was seen longest ago, and is right all the same."""
    for number in range(ASKED_MAX + 5):
        found = asked(pb.GetCountsRequest(entity=f"e{number}", metrics=[1]).SerializeToString())
        assert found == (f"e{number}", shape_of((1,)))
    assert module._asked.cache_info().currsize == ASKED_MAX
