"""Structured logs on stderr: an event name and fields, as JSON for machines or in colour for people."""

import logging
import sys

import structlog
from structlog.typing import EventDict

from watertower.config import ServiceSettings


def configure(settings: ServiceSettings, role: str) -> None:
    """Sets up the process's logs. Every line carries the time (UTC), the level and the role."""
    as_json = settings.log_format == "json" or (settings.log_format == "auto" and not sys.stderr.isatty())
    level = getattr(logging, settings.log_level.upper())

    def add_role(logger: object, method: str, event: EventDict) -> EventDict:
        event["role"] = role  # not by a context variable: a thread does not inherit it
        return event

    structlog.configure(
        processors=[
            add_role,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer() if as_json else structlog.dev.ConsoleRenderer(),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.WriteLoggerFactory(file=sys.stderr),
        cache_logger_on_first_use=True,
    )
    # grpc and asyncio report through the standard library: keep theirs at warnings, on the same stream.
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr, format="%(levelname)s %(name)s %(message)s")


def configure_command() -> None:
    """Sets up the logs of a command that opens back ends itself: warnings only, as lines on standard error. Standard output is for its
    answer."""
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            structlog.processors.LogfmtRenderer(key_order=["timestamp", "level", "event"]),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING),
        logger_factory=lambda *_: structlog.WriteLogger(sys.stderr),
        cache_logger_on_first_use=False,
    )
