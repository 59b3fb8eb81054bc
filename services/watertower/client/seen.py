"""What was seen of the log: a position that only moves on."""

from watertower.client.answers import covers, position_of
from watertower.core.positions import Position, decode_position, encode_position


class Seen:
    """Merged from the tokens of writes and of answers."""

    def __init__(self, token: bytes = b"") -> None:
        """Raises MalformedToken (a ValueError) for what is neither empty nor a token."""
        self.position: Position | None = decode_position(token) if token else None

    @property
    def token(self) -> bytes:
        """The position as a token; empty while there is none."""
        return b"" if self.position is None else encode_position(self.position)

    def included_in(self, token: bytes) -> bool:
        """Whether an answer at `token` includes everything that was seen."""
        return covers(position_of(token), self.position)

    def not_before(self, token: bytes) -> bool:
        """Whether an update at `token` takes nothing back that was seen. One of a newer generation is another beginning."""
        position = position_of(token)
        newer = position is not None and self.position is not None and position.generation > self.position.generation
        return newer or covers(position, self.position)

    def add(self, token: bytes) -> None:
        """Something was seen at `token`. A newer generation replaces an older one: its log may be another one, with offsets of its own."""
        position = position_of(token)
        if position is None:
            return
        mine = self.position
        if mine is None or position.generation > mine.generation:
            self.position = position
        elif position.generation == mine.generation:
            self.position = mine.merged(position)
