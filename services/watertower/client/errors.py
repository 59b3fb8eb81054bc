"""What a failed call says, and the errors that callers of the client catch."""

import re
from collections.abc import Sequence
from datetime import datetime
from typing import Any, NamedTuple

import grpc
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2

PUSHBACK_KEY = "grpc-retry-pushback-ms"
STATUS_KEY = "grpc-status-details-bin"

RETRYABLE = (
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.CANCELLED,  # by a server that stops, of a call that it has received and not begun; nobody here cancels
)
"""After these the identical call may be sent again."""


_INDEX = re.compile(r"\[([0-9]{1,9})\]")


class Violation(NamedTuple):
    """One broken rule of a request."""

    field: str
    """Path in the request, as in `events[3].actor`; empty for the request as a whole."""
    rule: str
    reason: str
    """A name of docs/reference/errors.md; empty if the service gave none."""


class Refusal(NamedTuple):
    """What a failed call carries."""

    status: grpc.StatusCode
    said: str
    reason: str = ""
    violations: tuple[Violation, ...] = ()
    retry_after_s: float | None = None
    violations_count: int = 0  # as the server says: it names the first ones only
    no_retry: bool = False  # a negative or unreadable pushback: the server does not want this call again

    @property
    def retryable(self) -> bool:
        """Whether the identical call may be sent again. (RESOURCE_EXHAUSTED without a time to come back is the size of the request.)"""
        too_large = self.status is grpc.StatusCode.RESOURCE_EXHAUSTED and self.retry_after_s is None
        return self.status in RETRYABLE and not self.no_retry and not too_large

    @property
    def shed(self) -> bool:
        """Whether the server has refused work because it has too much."""
        return self.status is grpc.StatusCode.RESOURCE_EXHAUSTED and self.retry_after_s is not None


def refusal_of(error: grpc.RpcError) -> Refusal:
    """A failed call of grpc or grpc.aio, with its details: google.rpc's ErrorInfo, BadRequest and RetryInfo, and the pushback metadata.

    The wait is the longer one of RetryInfo and pushback. Details that cannot be read are as if they were not there.
    """
    trailing: Any = error.trailing_metadata()  # the published types of an item are not those of the pairs that it is
    metadata: dict[str, str | bytes] = dict(trailing or ())
    refusal = Refusal(error.code() or grpc.StatusCode.UNKNOWN, " ".join((error.details() or "").split()))
    encoded = metadata.get(STATUS_KEY)
    if isinstance(encoded, bytes):
        refusal = _with_details(refusal, encoded)
    pushback = metadata.get(PUSHBACK_KEY)
    if pushback is None:
        return refusal
    text = pushback.decode("ascii", "replace") if isinstance(pushback, bytes) else pushback
    if not re.fullmatch("[0-9]{1,9}", text):
        return refusal._replace(no_retry=True)
    return refusal._replace(retry_after_s=max(refusal.retry_after_s or 0.0, int(text) / 1e3))


def _with_details(refusal: Refusal, encoded: bytes) -> Refusal:
    try:
        details = status_pb2.Status.FromString(encoded).details
        for packed in details:
            info, bad, retry = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest(), error_details_pb2.RetryInfo()
            if packed.Unpack(info):
                count = info.metadata.get("violations", "")
                refusal = refusal._replace(reason=info.reason, violations_count=int(count) if re.fullmatch("[0-9]{1,9}", count) else 0)
            elif packed.Unpack(bad):
                found = tuple(Violation(v.field, v.description, v.reason) for v in bad.field_violations)
                refusal = refusal._replace(violations=refusal.violations + found)
            elif packed.Unpack(retry):
                refusal = refusal._replace(retry_after_s=max(0.0, retry.retry_delay.ToMicroseconds() / 1e6))
    except DecodeError:
        pass  # the status alone is told
    return refusal


class ClientError(Exception):
    """A call that did not end well. The message is one line and says what to do where there is something to do."""

    retryable = False
    """Whether the identical call, with the same occurred_at, may be worth repeating later."""

    def __init__(self, message: str, refusal: Refusal | None = None) -> None:
        """`refusal`: what the service said, if it said something."""
        super().__init__(message)
        self.status = refusal.status if refusal else None
        self.reason = refusal.reason if refusal else ""
        self.retry_after_s = refusal.retry_after_s if refusal else None
        self.occurred_at: tuple[datetime, ...] = ()
        """Of a write, the moments of its events as they were, or would have been, sent: with them the call can be repeated as it was."""
        self.token = b""
        """Of a write in several parts, the token of those that were recorded; empty for none."""

    def partly(self, recorded: int, parts: int, token: bytes) -> None:
        """So many parts of the call were recorded before this: the message says so."""
        self.args = (f"{recorded} of {parts} parts of the call were recorded, and then: {self}",)
        self.token = token


class InvalidRequest(ClientError):
    """A rule is broken; nothing was recorded, but parts of a call in several parts (`token`). Repeating gives the same answer."""

    def __init__(self, violations: Sequence[Violation], message: str = "", refusal: Refusal | None = None) -> None:
        """`violations`: of the caller's own part of a batch, with places as the caller counts them."""
        said = "; ".join(f"{violation.field} {violation.rule}".lstrip() for violation in violations)
        super().__init__(said or message, refusal)
        self.violations = tuple(violations)
        self.reason = violations[0].reason if violations else self.reason
        self._refusal = refusal

    def moved(self, by: int) -> "InvalidRequest":
        """The same, for a request that begins `by` items earlier: `events[3]` becomes `events[1003]`."""
        moved = [v._replace(field=_INDEX.sub(lambda found: f"[{int(found[1]) + by}]", v.field, count=1)) for v in self.violations]
        return InvalidRequest(moved, str(self), self._refusal)


class Unavailable(ClientError):
    """Nothing answers, the service cannot do it now, or others of the same batch were wrong, and the retries ran out. Events may have
    been recorded."""

    retryable = True


class DeadlineExceeded(ClientError):
    """The call's time is over. Events may have been recorded."""

    retryable = True


class Overloaded(ClientError):
    """There is too much to do, and the retries ran out. Send less."""

    retryable = True


class Throttled(Overloaded):
    """Refused by this client itself, at once: the service has refused much of the last two minutes. Nothing was sent."""


class TooManyWaiting(Overloaded):
    """Refused by this client itself, at once: `waiting_items_max` items wait for answers. Nothing was sent."""


class ClientClosed(ClientError):
    """The client is closed, or was closed while the call waited. Events may have been recorded."""


class Refused(ClientError):
    """Any other status: a fault of the service, a wrong address, a proxy in between, a request that is too large."""


def error_of(refusal: Refusal, target: str) -> ClientError:
    """The error for a refusal by the server at `target` that is not repeated, or no more."""
    status, said = refusal.status, refusal.said
    if status is grpc.StatusCode.INVALID_ARGUMENT:
        return InvalidRequest(refusal.violations, said, refusal)
    if refusal.shed:
        return Overloaded(f"{target} has too much to do: {said}", refusal)
    if status is grpc.StatusCode.DEADLINE_EXCEEDED:
        return DeadlineExceeded(f"{target} did not answer in time: {said}", refusal)
    if status is grpc.StatusCode.UNAVAILABLE and not refusal.reason:
        return Unavailable(f"nothing answers at {target}: {said}", refusal)
    if status in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED):
        return Unavailable(f"{target} cannot take the call now: {said}", refusal)
    return Refused(f"{target} refused the call: {status.name}: {said}", refusal)
