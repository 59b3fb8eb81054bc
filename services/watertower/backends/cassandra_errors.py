"""What the errors of Cassandra's driver mean. None of them leaves the back end."""

from typing import Final

from cassandra import (
    AuthenticationFailed,
    CoordinationFailure,
    DriverException,
    OperationTimedOut,
    Timeout,
    Unauthorized,
    Unavailable,
    UnresolvableContactPoints,
)
from cassandra.cluster import NoHostAvailable
from cassandra.connection import ConnectionBusy, ConnectionException
from cassandra.pool import NoConnectionsAvailable
from cassandra.protocol import ErrorMessage, IsBootstrappingErrorMessage, OverloadedErrorMessage, ServerError, TruncateError

from watertower.errors import StartRefused

_RETRYABLE = (
    Timeout,  # of a read or a write, as the coordinator says
    Unavailable,
    CoordinationFailure,
    OperationTimedOut,  # as the driver says
    NoHostAvailable,
    UnresolvableContactPoints,
    NoConnectionsAvailable,
    ConnectionException,
    ConnectionBusy,
    OverloadedErrorMessage,
    IsBootstrappingErrorMessage,
    TruncateError,
    ServerError,
    OSError,
)

DRIVER_ERRORS: Final = (DriverException, ErrorMessage, *_RETRYABLE)
"""Every error that the driver raises on purpose."""

_QUORUM_LOST = "cannot achieve consistency"

_CERTIFICATE_REFUSED = "CERTIFICATE_VERIFY_FAILED"
"""In the message: the driver wraps the error of ssl into one of its socket."""


def is_retryable(error: BaseException) -> bool:
    """Whether the same statement may succeed later."""
    if isinstance(error, Unauthorized):  # with authorization on, a lost quorum shows like this
        return _QUORUM_LOST in str(error).lower()
    return isinstance(error, _RETRYABLE)


def text(error: BaseException) -> str:
    """One line, the causes of NoHostAvailable included."""
    if isinstance(error, NoHostAvailable) and isinstance(error.errors, dict) and error.errors:
        return "; ".join(f"{host}: {text(cause)}" for host, cause in error.errors.items())
    return " ".join(f"{type(error).__name__}: {error}".split())


def refuse_start(error: BaseException) -> None:
    """Raises StartRefused if waiting cannot cure an error that came while connecting: a wrong password or certificate authority."""
    causes = error.errors.values() if isinstance(error, NoHostAvailable) and isinstance(error.errors, dict) else (error,)
    for cause in causes:
        if isinstance(cause, AuthenticationFailed):
            raise StartRefused(f"Cassandra refuses the login: check cassandra_user and cassandra_password ({text(cause)})") from error
        if _CERTIFICATE_REFUSED in str(cause):
            raise StartRefused(
                f"the certificate of a Cassandra node does not verify: check cassandra_ca_file and cassandra_contact_points ({text(cause)})"
            ) from error
