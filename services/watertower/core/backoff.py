"""Full jitter: how long to wait before the next attempt."""


def full_jitter(attempt: int, base_s: float, cap_s: float, uniform: float) -> float:
    """Seconds to wait before attempt number `attempt` (from 0): uniform * min(cap, base * 2**attempt), `uniform` in [0, 1).

    The whole interval is random, so that callers that failed together do not come back together, at the cap neither. (M. Brooker,
    "Exponential Backoff and Jitter", AWS Architecture Blog, 2015.)
    """
    return uniform * min(cap_s, base_s * 2.0 ** min(attempt, 62))
