"""What a process counts as it works: plain numbers, so that counting costs next to nothing and needs no library.

metrics.py reads them, from a thread of its own, when somebody asks. Each is written by one thread; a reader may see one a little before
another.
"""

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Sequence

CALL_BOUNDS_S = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"""Upper bounds of the classes into which durations of calls are counted: seconds."""

WRITE_BOUNDS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
"""The same for appends and flushes."""


class Durations:
    """How many durations fell into each class."""

    __slots__ = ("bounds_s", "counts", "sum_s")

    def __init__(self, bounds_s: Sequence[float]) -> None:
        self.bounds_s = bounds_s
        self.counts = [0] * (len(bounds_s) + 1)  # per class, up to its bound inclusive; the last one is for all that is longer
        self.sum_s = 0.0

    def add(self, seconds: float) -> None:
        self.counts[bisect_left(self.bounds_s, seconds)] += 1
        self.sum_s += seconds


class CallCounters:
    """How calls ended."""

    def __init__(self, methods: Sequence[str], streams: Sequence[str] = ()) -> None:
        """By name. A stream's duration is its caller's wish, and is not counted."""
        self.ended: defaultdict[tuple[str, str], int] = defaultdict(int)
        """By method and the name of the gRPC status."""
        self.refused: defaultdict[str, int] = defaultdict(int)
        """By the name of the errors.Reason."""
        self.durations = {method: Durations(CALL_BOUNDS_S) for method in methods}
        for method in (*methods, *streams):
            # What begins with 1 has not increased: the first fault would raise no alert.
            self.ended[method, "OK"] = self.ended[method, "INTERNAL"] = 0

    def end(self, method: str, code: str, seconds: float, reason: str = "") -> None:
        """A call is over. `seconds` since the process turned to it; `reason` where it was refused."""
        self.ended[method, code] += 1
        if reason:
            self.refused[reason] += 1
        durations = self.durations.get(method)
        if durations is not None:
            durations.add(seconds)
