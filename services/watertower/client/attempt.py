"""What a client tells of its single attempts: what a caller sees is only how a call ends."""

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import grpc


class Attempt(NamedTuple):
    """One request that was sent, and how it ended."""

    target: str
    method: str
    """Of the API, as in `RecordEvents`."""
    number: int
    """0 for the first one, 1 for its first retry, and so on."""
    items: int
    """Events or entities in it, of one caller or of many; 1 for the methods that are not batched."""
    took_s: float
    status: grpc.StatusCode
    """OK for one that was answered."""
    reason: str
    """A name of docs/reference/errors.md; empty if the service gave none."""


OnAttempt: TypeAlias = Callable[[Attempt], None]
"""Called on the client's event loop after each attempt but those that nobody waits for any more. It must be quick and must not raise."""
