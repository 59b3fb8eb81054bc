"""When a call is sent again, and when it is not sent at all. Pure: time and randomness are handed in.

Three things keep a service that is in trouble from being hit harder for it:

- *Full jitter* spreads retries over the whole interval, on top of what the service asks for (core/backoff.py).
- The *retry budget* bounds retries to a share of requests, so that a service that fails everything gets 1.1 times its load, not ten
  times (B. Beyer et al., "Site Reliability Engineering", chapter 21; Finagle's RetryBudget).
- The *throttle* refuses calls in the client once the service sheds more than half, with the probability
  max(0, (requests - K * accepts) / (requests + 1)) over two minutes (the same chapter, "Client-Side Throttling").
"""

import random
from collections import deque

from watertower.client.errors import Refusal
from watertower.core.backoff import full_jitter
from watertower.ports import Clock

THROTTLE_K = 2.0
"""Requests for each accepted one from which on calls are refused here."""

THROTTLE_WINDOW_S = 120.0
"""Seconds that the throttle looks back."""

BUDGET_WINDOW_S = 10.0
"""Seconds that the retry budget looks back."""

_STEPS = 20
"""A window forgets in this many steps."""


def wait_s(refusal: Refusal, attempt: int, base_s: float, cap_s: float, uniform: float) -> float | None:
    """Seconds to wait after attempt number `attempt` (from 0) was refused; None where repeating cannot help or is not wanted.

    What the server asks for, and full jitter on top: all that were refused together were told the same time.
    """
    if not refusal.retryable:
        return None
    return (refusal.retry_after_s or 0.0) + full_jitter(attempt, base_s, cap_s, uniform)


class Window:
    """Two sums over the last `span_s` seconds."""

    def __init__(self, span_s: float, clock: Clock) -> None:
        self._step_s = span_s / _STEPS
        self._clock = clock
        self._steps: deque[list[int]] = deque()  # [number of the step, first, second]
        self._first = self._second = 0

    def add(self, first: int = 0, second: int = 0) -> None:
        """Counts at this moment."""
        step = self._forget()
        if not self._steps or self._steps[-1][0] != step:
            self._steps.append([step, 0, 0])
        last = self._steps[-1]
        last[1] += first
        last[2] += second
        self._first += first
        self._second += second

    def sums(self) -> tuple[int, int]:
        """Both sums at this moment."""
        self._forget()
        return self._first, self._second

    def _forget(self) -> int:
        step = int(self._clock.monotonic_s() / self._step_s)
        while self._steps and self._steps[0][0] <= step - _STEPS:
            _, first, second = self._steps.popleft()
            self._first -= first
            self._second -= second
        return step


class RetryBudget:
    """Retries of the last BUDGET_WINDOW_S, bounded by a share of the requests of that time and a reserve."""

    def __init__(self, percent: int, reserve: int, clock: Clock) -> None:
        self._percent, self._reserve = percent, reserve
        self._window = Window(BUDGET_WINDOW_S, clock)

    def request(self) -> None:
        """A first attempt is made."""
        self._window.add(1, 0)

    def take(self) -> bool:
        """Whether one retry may be made; it is counted if so."""
        requests, retries = self._window.sums()
        if (retries + 1 - self._reserve) * 100 > requests * self._percent:
            return False
        self._window.add(0, 1)
        return True


class Throttle:
    """Refuses a share of the calls while the server sheds. Counts items, so that a batch weighs what it holds."""

    def __init__(self, clock: Clock, rng: random.Random) -> None:
        self._rng = rng
        self._window = Window(THROTTLE_WINDOW_S, clock)

    @property
    def probability(self) -> float:
        """With which the next call is refused."""
        requests, accepts = self._window.sums()
        return max(0.0, (requests - THROTTLE_K * accepts) / (requests + 1))

    def refuses(self, items: int) -> bool:
        """Whether a call of so many items is refused here. It then counts as a request: the share falls only as the server accepts."""
        refused = self._rng.random() < self.probability
        if refused:
            self._window.add(items, 0)
        return refused

    def answered(self, items: int, shed: bool) -> None:
        """The server has answered, well or not, or has shed."""
        self._window.add(items, 0 if shed else items)
