"""What single requests ask for, remembered: hot entities are asked for in the same bytes again and again."""

from functools import lru_cache

from watertower.query.answers import Shape, shape_of
from watertower.v1 import reader_pb2
from watertower.validation import id_violation, metrics_violations

ASKED_MAX = 10_000
"""Requests that are remembered; the least recently seen goes first."""

ASKED_BYTES_MAX = 256
"""Bytes of a request that is looked at here: more than one needs that has nothing superfluous."""


def asked(data: bytes) -> tuple[str, Shape] | None:
    """The entity and the metrics of a GetCountsRequest; None where it breaks a rule, asks for freshness, or is longer than it need be."""
    if len(data) > ASKED_BYTES_MAX:
        return None
    try:
        return _asked(data)
    except _NotHere:
        return None


class _NotHere(Exception):
    """What lru_cache does not remember: requests that differ from call to call must not displace the hot ones."""


@lru_cache(ASKED_MAX)
def _asked(data: bytes) -> tuple[str, Shape]:
    try:
        request = reader_pb2.GetCountsRequest.FromString(data)
    except Exception:  # whatever the parser dislikes
        raise _NotHere from None
    if request.min_position or request.HasField("max_staleness"):
        raise _NotHere
    if id_violation(request.entity) or metrics_violations("metrics", request.metrics):
        raise _NotHere
    return request.entity, shape_of(tuple(request.metrics))
