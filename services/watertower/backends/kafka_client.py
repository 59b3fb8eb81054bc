"""What all Kafka modules share: the settings, opening a client, and what the driver's errors mean here.

A client of kafka-python connects in its constructor, and says of everything that can go wrong there only that the time is over. The
reasons (a wrong password, a certificate that is not trusted) it only logs. So its log is listened to while a client is opened: what
waiting can heal is BackendUnavailable, what it cannot is StartRefused with the setting to look at.
"""

import re
import socket
import ssl
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

from kafka import errors
from kafka.admin import KafkaAdminClient
from kafka.codec import has_lz4, has_zstd
from kafka.net.compat import KafkaNetClient
from kafka.net.inet import KafkaNetSocket
from kafka.net.selector import NetworkSelector

from watertower.backends.driver_log import driver_log
from watertower.errors import BackendRefused, BackendUnavailable, StartRefused
from watertower.ports import Clock

RECONNECT_BACKOFF_MS_MAX = 1_000
"""ms between two attempts to reach a broker that is away (the driver's own limit is 30 s: too long to notice that it is back)."""

RECORD_BYTES_MAX = 2 * 2**20
"""Bytes of payload of one record. The topics are created for it (kafka_topics.py)."""

OVERHEAD_BYTES = 64 * 2**10
"""Bytes that a record and its batch may need beside the payload: headers, framing, and what compression can add."""

COMPRESSIONS: dict[str, Callable[[], bool]] = {"none": lambda: True, "gzip": lambda: True, "lz4": has_lz4, "zstd": has_zstd}
"""What may be set, and whether the libraries for it are installed."""

# Trying again does not help against these. All others are taken for passing: a broker that restarts answers with most of them.
_REFUSALS = (
    errors.AuthorizationError,
    errors.SaslAuthenticationFailedError,
    errors.UnsupportedSaslMechanismError,
    errors.UnsupportedVersionError,
    errors.UnsupportedCodecError,
    errors.UnsupportedCompressionTypeError,
    errors.KafkaConfigurationError,
    errors.MessageSizeTooLargeError,
    errors.RecordListTooLargeError,
    errors.InvalidRecordError,
    errors.InvalidTimestampError,
    errors.InvalidTopicError,
    errors.InvalidGroupIdError,
    errors.InvalidSessionTimeoutError,
    errors.InconsistentGroupProtocolError,
    errors.OffsetOutOfRangeError,
    errors.LogTruncationError,
    errors.NoOffsetForPartitionError,
)

_DIRECT = "direct"
_ADDRESS = re.compile(r"\S+:\d{1,5}")
_Client = TypeVar("_Client")


@dataclass(frozen=True)
class KafkaSettings:
    """How to reach Kafka and how to use it. Plain values; the password is in no repr."""

    bootstrap_servers: str  # "host:port,host:port"
    prefix: str = "watertower"  # of the names of topics and groups
    security_protocol: str = "PLAINTEXT"  # or SSL, SASL_PLAINTEXT, SASL_SSL
    sasl_mechanism: str = "SCRAM-SHA-512"  # or SCRAM-SHA-256, PLAIN; where the protocol is one of SASL
    sasl_username: str = ""
    sasl_password: str = field(default="", repr=False)
    ssl_ca_file: str = ""  # PEM; empty: the system's
    connect_timeout_ms: int = 5_000  # ms to reach a broker when a client is opened
    request_timeout_ms: int = 3_000  # ms that a broker may take for one answer
    delivery_timeout_ms: int = 5_000  # ms after which an append or a publish that is not acknowledged has failed
    compression: str = "lz4"  # see COMPRESSIONS
    group_session_timeout_ms: int = 10_000  # ms without a sign of life after which a member's partitions go to others
    group_heartbeat_ms: int = 2_000  # ms between two signs of life
    group_poll_ms_max: int = 120_000  # ms that a member may go without asking what it owns before it leaves the group
    prefetch_bytes: int = 16 * 2**20  # bytes of records that a reader of the log holds ready, about

    @property
    def log_topic(self) -> str:
        return f"{self.prefix}.events"

    @property
    def subjects_topic(self) -> str:
        return f"{self.prefix}.counts.subjects"

    @property
    def actors_topic(self) -> str:
        return f"{self.prefix}.counts.actors"

    @property
    def dead_letters_topic(self) -> str:
        return f"{self.prefix}.dead-letters"

    @property
    def group(self) -> str:
        """The consumer group of the projectors."""
        return f"{self.prefix}.projector"

    def connection(self) -> dict[str, Any]:
        """What every client of the driver is told."""
        configs: dict[str, Any] = {
            "bootstrap_servers": [server.strip() for server in self.bootstrap_servers.split(",")],
            "client_id": "watertower",
            "security_protocol": self.security_protocol,
            "bootstrap_timeout_ms": self.connect_timeout_ms,
            "request_timeout_ms": self.request_timeout_ms,
            "reconnect_backoff_max_ms": RECONNECT_BACKOFF_MS_MAX,
            "proxy_url": f"{_DIRECT}://",
        }
        if self.security_protocol.startswith("SASL"):
            configs |= {
                "sasl_mechanism": self.sasl_mechanism,
                "sasl_plain_username": self.sasl_username,
                "sasl_plain_password": self.sasl_password,
            }
        if self.security_protocol.endswith("SSL") and self.ssl_ca_file:
            configs["ssl_cafile"] = self.ssl_ca_file
        return configs


class _ClosingSocket(KafkaNetSocket):  # type: ignore[misc] # the driver has no types
    """Closes a socket that does not connect. The driver leaves it to the garbage collector, and an outage makes one a second: a process
    that waits quietly would run out of files. It is the driver's own way to be told how to connect: a scheme of a proxy's URL."""

    SCHEMES = (_DIRECT,)

    async def sock_connect(self, net: Any, sock: socket.socket, sockaddr: Any, timeout_at: float | None = None) -> socket.socket:
        try:
            connected: socket.socket = await super().sock_connect(net, sock, sockaddr, timeout_at=timeout_at)
        except BaseException:
            sock.close()
            raise
        return connected


def opened(settings: KafkaSettings, clock: Clock, client: Callable[..., _Client], **configs: Any) -> _Client:
    """Makes a client of the driver. Raises StartRefused or BackendUnavailable; leaves no thread of a failed attempt behind."""
    if not COMPRESSIONS.get(settings.compression, lambda: False)():
        usable = ", ".join(name for name, installed in COMPRESSIONS.items() if installed())
        raise StartRefused(f"kafka_compression is {settings.compression!r}: set one of {usable} (the others need their packages)")
    if not all(_ADDRESS.fullmatch(server.strip()) for server in settings.bootstrap_servers.split(",")):
        raise StartRefused(
            f"kafka_bootstrap_servers is {settings.bootstrap_servers!r}: it must be host:port, or several with commas between"
        )
    loops: list[NetworkSelector] = []

    def network(**network_configs: Any) -> KafkaNetClient:
        loops.append(NetworkSelector(**network_configs))
        return KafkaNetClient(net=loops[-1], **network_configs)

    with driver_log("kafka", clock).listen() as heard:
        try:
            return client(**(settings.connection() | configs), kafka_client=network)
        except (errors.KafkaError, OSError, ValueError) as error:
            for loop in loops:
                loop.close()
            raise _reason(settings, [*heard, error]) from error


def admin(settings: KafkaSettings, clock: Clock) -> KafkaAdminClient:
    """A client for questions about topics. Raises as `opened`; the caller closes it."""
    return opened(settings, clock, KafkaAdminClient)


@contextmanager
def translated(doing: str) -> Iterator[None]:
    """Turns what the driver raises into BackendUnavailable or BackendRefused."""
    try:
        yield
    except (errors.KafkaError, OSError) as error:
        raise meaning(error, doing) from error


def meaning(error: BaseException, doing: str) -> BackendUnavailable | BackendRefused:
    """What an error of the driver means to the caller."""
    kind = BackendRefused if isinstance(error, _REFUSALS) else BackendUnavailable
    # The driver's own text repeats the class and the error code; what it was given is more than enough.
    detail = "; ".join(str(argument) for argument in error.args if argument) or (error.__doc__ or "").strip()
    return kind(f"{doing}: {type(error).__name__}{': ' + detail if detail else ''}")


def _reason(settings: KafkaSettings, heard: list[BaseException]) -> StartRefused | BackendUnavailable:
    """Why a client could not be opened, told from all that was heard of it."""
    where = f"Kafka at {settings.bootstrap_servers}"
    for error in _with_causes(heard):
        if isinstance(error, errors.SaslAuthenticationFailedError):
            return StartRefused(
                f"{where} does not accept user {settings.sasl_username!r} with this password by {settings.sasl_mechanism}: "
                "see kafka_user, kafka_password_file and kafka_sasl_mechanism"
            )
        if isinstance(error, (errors.UnsupportedSaslMechanismError, errors.IllegalSaslStateError)):
            return StartRefused(f"{where} does not offer {settings.sasl_mechanism}: see kafka_sasl_mechanism")
        if isinstance(error, ssl.SSLCertVerificationError):
            return StartRefused(f"{where} shows a certificate that is not trusted ({error.verify_message}): see kafka_ca_file")
        if isinstance(error, ssl.SSLError) and error.reason == "WRONG_VERSION_NUMBER":
            return StartRefused(f"{where} does not speak TLS: see kafka_security_protocol ({settings.security_protocol})")
        if isinstance(error, FileNotFoundError) and settings.ssl_ca_file:
            return StartRefused(f"kafka_ca_file {settings.ssl_ca_file!r} cannot be read: {error.strerror}")
        if isinstance(error, ssl.SSLError) and error.reason in ("NO_CERTIFICATE_OR_CRL_FOUND", "NO_START_LINE"):
            return StartRefused(f"kafka_ca_file {settings.ssl_ca_file!r} holds no certificate in PEM form")
        if isinstance(error, (errors.KafkaConfigurationError, ValueError)):
            return StartRefused(f"Kafka's client refuses the settings: {error}")
    last = next((error for error in reversed(heard) if not isinstance(error, errors.KafkaTimeoutError)), heard[-1])
    hint = ""
    if settings.security_protocol.startswith("SASL") and any("disconnected" in str(error) for error in heard):
        # The driver mostly loses an answer that comes with the end of its connection, and that is how a login is refused.
        hint = " (perhaps it refuses the login: see kafka_sasl_mechanism, kafka_user and kafka_password_file)"
    return BackendUnavailable(f"{where} cannot be reached within {settings.connect_timeout_ms} ms: {last}{hint}")


def _with_causes(heard: list[BaseException]) -> Iterator[BaseException]:
    for error in heard:
        link: BaseException | None = error
        while link is not None:
            yield link
            link = link.__cause__ or link.__context__
