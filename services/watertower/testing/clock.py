"""A clock that a test owns."""


class FakeClock:
    """ports.Clock that moves only when told to; `sleep` moves it."""

    def __init__(self, now_us: int = 1_700_000_000_000_000) -> None:
        self._now_us = now_us
        self._monotonic_s = 0.0

    def now_us(self) -> int:
        return self._now_us

    def monotonic_s(self) -> float:
        return self._monotonic_s

    def sleep(self, seconds: float) -> None:
        self.advance(seconds)

    def advance(self, seconds: float) -> None:
        """Lets time pass."""
        self._monotonic_s += seconds
        self._now_us += int(seconds * 1e6)

    def set_wall(self, now_us: int) -> None:
        """A jump of the wall clock."""
        self._now_us = now_us
