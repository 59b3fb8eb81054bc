"""A session: one user's reads include what that user wrote and saw."""

from collections.abc import Awaitable, Callable
from typing import TypeVar

from watertower.client.calls import Answer, Calls
from watertower.client.seen import Seen
from watertower.client.transport import Transport
from watertower.core.positions import Position

T = TypeVar("T")


class Session(Calls):
    """Calls that never go backwards: an answer includes everything that this session has written and seen, whichever process gives it,
    or says that it does not (`freshness.satisfied` is false). Cheap: make one for each user, and keep its `token` between requests.
    """

    def __init__(self, transport: Transport, token: bytes = b"") -> None:
        """Made by `Client.session`. Raises MalformedToken (a ValueError) for what is neither empty nor a token."""
        super().__init__(transport)
        self._seen_so_far = Seen(token)
        # A token from elsewhere may be of a write that no answer was seen to include.
        self._written = bool(token)

    @property
    def token(self) -> bytes:
        """What the session has written and seen, at most 1,024 bytes; `Client.session(token)` goes on from it, in any process."""
        return self._seen_so_far.token

    def _wrote(self, token: bytes) -> None:
        self._seen_so_far.add(token)
        self._written = True

    def _watched(self) -> Seen:
        return self._seen_so_far

    async def _read(self, ask: Callable[[Position | None, float], Awaitable[Answer[T]]], timeout_s: float) -> T:
        # Nothing is asked to wait unless something was written since: nearly every answer is new enough as it is, and shares a request
        # with those of other sessions.
        seen, clock = self._seen_so_far, self._transport.clock
        deadline_s = clock.monotonic_s() + timeout_s
        wanted = seen.position if self._written else None
        while True:
            written = self._written
            answer, tokens = await ask(wanted, deadline_s - clock.monotonic_s())
            included = all(seen.included_in(token) for token in tokens)
            asked, wanted = wanted, seen.position
            if included and written:
                self._written = False
            if included or asked == wanted:
                # Not included, and asked for: the answer says so itself.
                for token in tokens:
                    seen.add(token)
                return answer
