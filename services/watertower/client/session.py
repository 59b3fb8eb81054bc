"""A session: one user's reads include what that user wrote and saw."""

from collections.abc import Awaitable, Callable
from typing import TypeVar

from watertower.client.calls import Answer, Calls
from watertower.client.errors import ClientError
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
        written = self._written
        wanted = seen.position if written else None
        answer = await ask(wanted, timeout_s)
        if not self._included(answer) and wanted != seen.position:
            # Once more, and not until it is included: other calls of the session may move it on all the time.
            written = self._written
            try:
                answer = await ask(seen.position, deadline_s - clock.monotonic_s())
            except ClientError as error:
                if not error.retryable:
                    raise
                # Out of time, shed, away: there is an answer, and it says that it is behind.
        included = self._included(answer)
        if included and written:
            self._written = False
        for token in answer.tokens:
            seen.add(token)
        return answer.value if included else answer.behind()

    def _included(self, answer: Answer[T]) -> bool:
        return all(self._seen_so_far.included_in(token) for token in answer.tokens)
