"""When a call is sent again, and when it is not sent at all."""

import random

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from watertower.client.errors import RETRYABLE, Refusal
from watertower.client.retries import BUDGET_WINDOW_S, THROTTLE_WINDOW_S, RetryBudget, Throttle, wait_s
from watertower.testing.clock import FakeClock


class Fixed(random.Random):
    """Gives one value."""

    def __init__(self, value: float) -> None:
        super().__init__(0)
        self.value = value

    def random(self) -> float:
        return self.value


@given(st.integers(0, 100), st.floats(0, 1, exclude_max=True), st.none() | st.floats(0, 60))
def test_a_wait_is_what_the_server_asks_for_and_full_jitter(attempt: int, uniform: float, asked: float | None) -> None:
    """Never less than asked for, never more than the doubled base or the cap on top, and spread over all of that."""
    refusal = Refusal(grpc.StatusCode.UNAVAILABLE, "", retry_after_s=asked)
    wait = wait_s(refusal, attempt, 0.05, 2.0, uniform)
    assert wait is not None
    assert wait == pytest.approx((asked or 0.0) + uniform * min(2.0, 0.05 * 2**attempt))


def test_a_request_that_is_too_large_stays_it() -> None:
    """RESOURCE_EXHAUSTED without a time to come back is no load that passes."""
    assert wait_s(Refusal(grpc.StatusCode.RESOURCE_EXHAUSTED, ""), 0, 0.05, 2.0, 0.5) is None


@pytest.mark.parametrize("status", list(grpc.StatusCode))
def test_only_what_may_pass_is_repeated(status: grpc.StatusCode) -> None:
    """A refusal that would come again is not asked for again, and neither is one that the server says not to repeat."""
    assert (wait_s(Refusal(status, "", retry_after_s=0.1), 0, 0.05, 2.0, 0.5) is not None) == (status in RETRYABLE)
    assert wait_s(Refusal(status, "", no_retry=True), 0, 0.05, 2.0, 0.5) is None


@given(
    st.integers(0, 100),
    st.integers(0, 5),
    st.lists(st.tuples(st.sampled_from(["request", "retry"]), st.floats(0, BUDGET_WINDOW_S / 2)), max_size=200),
)
def test_the_retry_budget_is_never_exceeded(percent: int, reserve: int, steps: list[tuple[str, float]]) -> None:
    """Whenever a retry is given, those of the last ten seconds are within the share of the requests of that time and the reserve; and
    overall within the share of all requests and a reserve for each ten seconds."""
    clock = FakeClock()
    budget = RetryBudget(percent, reserve, clock)
    requests: list[float] = []
    retries: list[float] = []
    for what, pause in steps:
        clock.advance(pause)
        now = clock.monotonic_s()
        if what == "request":
            budget.request()
            requests.append(now)
        elif budget.take():
            retries.append(now)
            # A window forgets in steps: nothing older than it counts, and nothing younger than all but one step of it is forgotten.
            in_window = [at for at in requests if at > now - BUDGET_WINDOW_S]
            surely = [at for at in retries if at > now - BUDGET_WINDOW_S * 0.95]
            assert len(surely) <= reserve + len(in_window) * percent / 100
    windows = clock.monotonic_s() / (BUDGET_WINDOW_S * 0.95) + 1
    assert len(retries) <= windows * (reserve + len(requests) * percent / 100)


def test_the_budget_gives_what_it_has() -> None:
    """The whole reserve and the whole share, not less; and again when ten seconds are over."""
    clock = FakeClock()
    budget = RetryBudget(10, 3, clock)
    for _ in range(20):
        budget.request()
    assert [budget.take() for _ in range(6)] == [True] * 5 + [False]
    clock.advance(BUDGET_WINDOW_S)
    assert [budget.take() for _ in range(4)] == [True] * 3 + [False]


@given(st.lists(st.tuples(st.integers(1, 1_000), st.booleans()), max_size=50))
def test_the_throttle_goes_by_its_formula(answers: list[tuple[int, bool]]) -> None:
    """max(0, (requests - 2 accepts) / (requests + 1)), over two minutes."""
    clock = FakeClock()
    throttle = Throttle(clock, random.Random(0))
    requests = accepts = 0
    for items, shed in answers:
        throttle.answered(items, shed)
        requests += items
        accepts += 0 if shed else items
        assert throttle.probability == pytest.approx(max(0.0, (requests - 2 * accepts) / (requests + 1)))
    clock.advance(THROTTLE_WINDOW_S)
    assert throttle.probability == 0.0


def test_a_throttled_call_counts_as_a_request() -> None:
    """So the share that is refused rises while the service accepts nothing, and some calls go on to try it."""
    clock = FakeClock()
    rng = Fixed(0.4)
    throttle = Throttle(clock, rng)
    throttle.answered(1, shed=True)  # 1 / 2
    assert throttle.refuses(1)
    assert throttle.probability == pytest.approx(2 / 3)
    rng.value = 0.99
    assert not throttle.refuses(1)
    assert throttle.probability == pytest.approx(2 / 3)


def test_half_may_be_shed_before_anything_is_throttled() -> None:
    """K is 2: a service that takes half of what it gets is left to refuse the rest itself."""
    throttle = Throttle(FakeClock(), Fixed(0.0))
    for _ in range(100):
        throttle.answered(1, shed=True)
        throttle.answered(1, shed=False)
        assert not throttle.refuses(1)
