"""Latencies in buckets that grow by a hundredth: any number of them in little memory, percentiles within half a percent."""

from math import exp, log

GROWTH = 1.01
"""Upper end of a bucket by its lower one: a percentile is within half of this from what was recorded."""

_LEAST_S = 1e-6
_PER_BUCKET = log(GROWTH)


class Histogram:
    """Counts of seconds by bucket."""

    __slots__ = ("_buckets", "count", "max_s")

    def __init__(self) -> None:
        self._buckets: dict[int, int] = {}
        self.count = 0
        self.max_s = 0.0
        """Exact."""

    def record(self, seconds: float) -> None:
        """One more; less than a microsecond counts as one."""
        bucket = int(log(max(seconds, _LEAST_S) / _LEAST_S) / _PER_BUCKET)
        self._buckets[bucket] = self._buckets.get(bucket, 0) + 1
        self.count += 1
        self.max_s = max(self.max_s, seconds)

    def add(self, other: "Histogram") -> None:
        """Everything that another one has."""
        for bucket, count in other._buckets.items():
            self._buckets[bucket] = self._buckets.get(bucket, 0) + count
        self.count += other.count
        self.max_s = max(self.max_s, other.max_s)

    def percentile_s(self, share: float) -> float | None:
        """The value at or below which this share (0 to 1) lies, by nearest rank; None of nothing."""
        if not self.count:
            return None
        left = max(1, -int(-share * self.count // 1))  # rounded up
        for bucket in sorted(self._buckets):
            left -= self._buckets[bucket]
            if left <= 0:
                return min(self.max_s, _LEAST_S * exp((bucket + 0.5) * _PER_BUCKET))
        return self.max_s
