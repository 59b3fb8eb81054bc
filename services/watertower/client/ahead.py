"""Positions that answers have not reached: a question for one waits for long, and holds up nobody but others like it."""

from watertower.core.positions import Position


class Ahead:
    """What was asked for and was not in the answer, though the service had waited for it; of each partition the earliest offset.

    A token of what a log has lost, in a restoration say, is ahead of it until the log has come as far again, in every question of its
    session, whichever object of this client the session is: so it is the positions that are remembered, not the sessions.
    """

    def __init__(self) -> None:
        self._generation = 0
        self._offsets: dict[int, int] = {}

    def includes(self, wanted: Position) -> bool:
        """Whether a position asks for what an earlier answer did not have, and no one has had since."""
        if wanted.generation != self._generation or not self._offsets:
            return False
        return any(partition in self._offsets and offset >= self._offsets[partition] for partition, offset in wanted.offsets.items())

    def answered(self, wanted: Position, position: Position | None) -> None:
        """A question for `wanted` has had an answer at a position. One of another generation says nothing, and was not waited for."""
        if position is None or position.generation != wanted.generation:
            return
        if position.generation != self._generation:
            self._generation, self._offsets = position.generation, {}
        reached = position.offsets
        self._offsets = {partition: offset for partition, offset in self._offsets.items() if reached.get(partition, -1) < offset}
        for partition, offset in wanted.offsets.items():
            if reached.get(partition, -1) < offset:
                self._offsets[partition] = min(offset, self._offsets.get(partition, offset))
