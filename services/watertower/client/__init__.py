"""The client of a Watertower service, for other services to use: `Client` for asyncio, `SyncClient` for everything else. docs/client.md."""

from watertower.client.answers import ALL_METRICS, Checked, Counts, Event, Freshness, Item, Page, Update, Written
from watertower.client.attempt import Attempt
from watertower.client.client import Client
from watertower.client.errors import (
    ClientClosed,
    ClientError,
    DeadlineExceeded,
    InvalidRequest,
    Overloaded,
    Refused,
    Throttled,
    TooManyWaiting,
    Unavailable,
    Violation,
)
from watertower.client.options import ClientOptions
from watertower.client.session import Session
from watertower.client.sync import SyncClient, SyncSession
from watertower.core.model import Kind, Metric

__all__ = [
    "ALL_METRICS",
    "Attempt",
    "Checked",
    "Client",
    "ClientClosed",
    "ClientError",
    "ClientOptions",
    "Counts",
    "DeadlineExceeded",
    "Event",
    "Freshness",
    "InvalidRequest",
    "Item",
    "Kind",
    "Metric",
    "Overloaded",
    "Page",
    "Refused",
    "Session",
    "SyncClient",
    "SyncSession",
    "Throttled",
    "TooManyWaiting",
    "Unavailable",
    "Update",
    "Violation",
    "Written",
]
