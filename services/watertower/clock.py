"""The machine's clock, behind ports.Clock."""

import time


class SystemClock:
    """Wall and monotonic time of this machine."""

    def now_us(self) -> int:
        return time.time_ns() // 1_000

    def monotonic_s(self) -> float:
        return time.monotonic()

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds)
