"""What can be set about a client. docs/client.md has the table, and a test holds the two together."""

from dataclasses import dataclass, fields

from watertower.validation import ENTITIES_MAX, EVENTS_MAX


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientOptions:
    """Limits and times of one client. Raises ValueError for one that is out of its bounds."""

    timeout_ms: int = 10_000
    """ms that a call may take, with its retries and the time in a batch, where the call says nothing else"""

    attempt_timeout_ms: int = 5_000
    """ms after which one attempt is given up, so that another one may reach another process"""

    attempts_max: int = 10
    """attempts of one request, the first one included"""

    retry_base_ms: int = 50
    """ms before the first retry, at most; doubles, with full jitter"""

    retry_cap_ms: int = 2_000
    """ms before any retry, at most, on top of what the service asks for"""

    retry_percent_max: int = 10
    """retries in 10 s, in percent of the requests of these 10 s"""

    retry_reserve_max: int = 10
    """retries in 10 s on top of the percentage, so that a client with little to do has some"""

    batch_items_max: int = 1_000
    """events, or different entities, that go into one request; 1 turns micro-batching off"""

    batch_wait_ms_max: int = 5
    """ms that a call waits for others while a request is on its way; none does where nothing is"""

    batch_calls_max: int = 8
    """requests on their way at once: of events, of counts, of counts that wait for a position, and of those that wait for one which no
    answer has reached"""

    waiting_items_max: int = 100_000
    """events that wait for an answer, entities of each of the three sorts of counts, and other calls: of each so many; a call above that is
    refused at once"""

    near_entities_max: int = 0
    """entities whose counts are kept near; 0 turns the near cache off"""

    near_age_ms_max: int = 2_500
    """ms since the last word of the service after which nothing is answered from the near cache; to be above the service's
    query_watch_heartbeat_ms, since of what does not change it says no word more often than that"""

    near_refresh_ms: int = 1_000
    """ms between two looks at which entities are worth keeping near"""

    def __post_init__(self) -> None:
        for field in fields(self):
            least = 0 if field.name in _MAY_BE_ZERO else 1
            most = _MOST.get(field.name)
            value = getattr(self, field.name)
            if value < least or (most is not None and value > most):
                raise ValueError(f"{field.name} is {value}: must be {least} " + ("or more" if most is None else f"to {most}"))
        if self.waiting_items_max < self.batch_items_max:  # a full part of a call would never be let in
            raise ValueError(f"waiting_items_max is {self.waiting_items_max}: must be batch_items_max ({self.batch_items_max}) or more")


_MAY_BE_ZERO = {"retry_percent_max", "retry_reserve_max", "batch_wait_ms_max", "near_entities_max"}
_MOST = {"batch_items_max": min(EVENTS_MAX, ENTITIES_MAX), "near_entities_max": ENTITIES_MAX, "retry_percent_max": 100}
