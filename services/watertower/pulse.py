"""Whether a loop still turns, for those who ask from outside."""

from watertower.ports import Clock


class Pulse:
    """When something was last got through: a step, an answer of the store, be it an error. One thread beats, any thread may ask."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._at_s = clock.monotonic_s()

    def beat(self, wait_s: float = 0.0) -> None:
        """Something was got through; the next is to come after `wait_s` seconds."""
        self._at_s = self._clock.monotonic_s() + wait_s

    def age_s(self) -> float:
        """Seconds since then; negative while it waits."""
        return self._clock.monotonic_s() - self._at_s
