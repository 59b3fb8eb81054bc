"""Every setting, in one catalogue: name, unit, default, bounds, meaning.

A setting comes from an option (`--set NAME=VALUE`, or an option of its own such as `--data`), else from the environment
(`WATERTOWER_` and the name in capitals), else from its default. `watertower config` prints the effective ones and where each came from;
docs/reference/settings.md lists them, and a test holds the two together.

Processes do not read Settings: bootstrap.py hands each the section that it needs.
"""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import Field, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from watertower.core.sharding import PARTITIONS_MAX
from watertower.errors import StartRefused

Port = Annotated[int, Field(ge=0, le=65_535)]
Positive = Annotated[int, Field(gt=0)]
Milliseconds = Annotated[int, Field(gt=0, le=3_600_000)]


class _Section(BaseSettings):
    model_config = SettingsConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)


class ServiceSettings(_Section):
    """What all processes share."""

    model_config = SettingsConfigDict(env_prefix="WATERTOWER_")

    data: Path = Field(Path("watertower-data"), description="the data folder of the embedded back ends")
    log: Literal["sqlite"] = Field("sqlite", description="the back end of the log")
    store: Literal["rocksdb"] = Field("rocksdb", description="the back end of the store and of the counts feed")
    partitions: Annotated[int, Field(ge=1, le=PARTITIONS_MAX)] = Field(
        8, description="partitions of the log; fixed when the data folder is created"
    )
    write_host: str = Field("127.0.0.1", description="address that the writer binds")
    write_port: Port = Field(50051, description="port of the writer; 0 takes a free one")
    read_host: str = Field("127.0.0.1", description="address that the reader binds")
    read_port: Port = Field(50052, description="port of the reader; 0 takes a free one")
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="least severity of log lines")
    log_format: Literal["auto", "json", "console"] = Field(
        "auto", description="log lines as JSON or for people; auto: for people on a terminal"
    )
    shutdown_grace_ms: Milliseconds = Field(10_000, description="ms that a process may take to drain after SIGTERM")
    restart_base_ms: Milliseconds = Field(200, description="ms before the first restart of a role that died; doubles, with full jitter")
    restart_cap_ms: Milliseconds = Field(10_000, description="ms before a restart of a role, at most")


class IngestSettings(_Section):
    """Limits of the write side."""

    model_config = SettingsConfigDict(env_prefix="WATERTOWER_INGEST_")

    message_bytes_max: Positive = Field(1_048_576, description="bytes of one request; a larger one is refused by the transport")
    record_events_max: Annotated[int, Field(ge=1, le=100_000)] = Field(4_000, description="events in one log record")
    record_bytes_max: Positive = Field(921_600, description="bytes of ids in one log record, about")
    queue_events_max: Positive = Field(100_000, description="events waiting for the log; a call above that is shed with QUEUE_FULL")
    queue_bytes_max: Positive = Field(67_108_864, description="bytes of ids waiting for the log; a call above that is shed with QUEUE_FULL")
    clock_ahead_ms_max: Milliseconds = Field(5_000, description="ms that occurred_at may be ahead of this process's clock")
    retry_after_ms: Milliseconds = Field(500, description="ms that RetryInfo and the pushback metadata tell shed callers to wait")
    truncate_interval_ms: Milliseconds = Field(1_000, description="ms between two truncations of the log behind what is applied")
    nice: Annotated[int, Field(ge=0, le=19)] = Field(5, description="scheduling niceness: a surge of writes gives way to reads")


class ProjectorSettings(_Section):
    """Limits of the path from the log to the store."""

    model_config = SettingsConfigDict(env_prefix="WATERTOWER_PROJECTOR_")

    flush_events_max: Positive = Field(10_000, description="events that one flush covers, about: it takes whole records")
    flush_records_max: Positive = Field(1_000, description="log records that one flush covers")
    flush_bytes_max: Positive = Field(8_388_608, description="bytes of log records that one flush covers")
    poll_idle_ms: Milliseconds = Field(5, description="ms between two looks at a log that has nothing new")
    heartbeat_ms: Milliseconds = Field(250, description="ms between two messages on the feed that say that nothing happened")
    feed_messages_max: Positive = Field(1_000, description="messages kept on the embedded feed; a reader further behind re-reads")
    retry_base_ms: Milliseconds = Field(50, description="ms before the first retry of a failed flush; doubles, with full jitter")
    retry_cap_ms: Milliseconds = Field(5_000, description="ms before a retry of a failed flush, at most")
    write_buffer_bytes: Positive = Field(16_777_216, description="bytes of one memtable of the embedded store (two at most)")
    block_cache_bytes: Positive = Field(33_554_432, description="bytes of the block cache of the embedded store, per process")
    nice: Annotated[int, Field(ge=0, le=19)] = Field(10, description="scheduling niceness: a surge of writes gives way to reads")


class QuerySettings(_Section):
    """Limits of the read side."""

    model_config = SettingsConfigDict(env_prefix="WATERTOWER_QUERY_")

    message_bytes_max: Positive = Field(1_048_576, description="bytes of one request; a larger one is refused by the transport")
    cache_entities_max: Positive = Field(100_000, description="entities kept in memory; the least recently read goes first")
    cache_age_ms_max: Milliseconds = Field(
        60_000, description="ms after which an entry is loaded again, feed or not (less up to a fifth, at random)"
    )
    unknown_age_ms_max: Milliseconds = Field(1_000, description="ms that an unknown entity is remembered as zero")
    loads_concurrent_max: Positive = Field(4, description="store reads under way at once")
    loads_waiting_max: Positive = Field(
        10_000, description="store reads waiting; a call above that is shed with READS_FULL; below 1,000 a cold batch may never fit"
    )
    tail_interval_ms: Milliseconds = Field(20, description="ms between two looks at the counts feed")
    stale_after_ms: Milliseconds = Field(10_000, description="ms that as_of may lie behind before answers are marked stale")
    retry_after_ms: Milliseconds = Field(500, description="ms that RetryInfo and the pushback metadata tell shed callers to wait")
    nice: Annotated[int, Field(ge=0, le=19)] = Field(0, description="scheduling niceness")


class Settings(NamedTuple):
    """All sections."""

    service: ServiceSettings
    ingest: IngestSettings
    projector: ProjectorSettings
    query: QuerySettings


class EffectiveSetting(NamedTuple):
    """One setting as it came out."""

    name: str  # as in `--set`: "ingest_queue_events_max"
    value: Any
    source: str  # "option", "environment NAME" or "default"
    description: str


SECTIONS: dict[str, type[_Section]] = {
    "": ServiceSettings,
    "ingest_": IngestSettings,
    "projector_": ProjectorSettings,
    "query_": QuerySettings,
}


def catalogue() -> dict[str, tuple[type[_Section], str]]:
    """Every setting's name with its section and its field there."""
    return {prefix + field: (section, field) for prefix, section in SECTIONS.items() for field in section.model_fields}


def load(options: Mapping[str, Any]) -> Settings:
    """Settings from options (by name; None means "not given"), environment and defaults.

    Raises StartRefused naming each setting that is unknown or breaks its rule, options and environment alike.
    """
    known = catalogue()
    problems = [f"{name}: there is no such setting (see `watertower config`)" for name in options if name not in known]
    problems += [
        f"{variable}: there is no such setting (see `watertower config`)"
        for variable in os.environ
        if variable.startswith("WATERTOWER_")
        and variable not in _NOT_SETTINGS
        and variable.removeprefix("WATERTOWER_").lower() not in known
        and not _of_kubernetes(variable)
    ]
    given: dict[type[_Section], dict[str, Any]] = {section: {} for section in SECTIONS.values()}
    for name, value in options.items():
        if name in known and value is not None:
            section, field = known[name]
            given[section][field] = value
    sections: list[Any] = []
    for prefix, section in SECTIONS.items():
        try:
            sections.append(section(**given[section]))
        except ValidationError as error:
            problems += [f"{prefix}{'.'.join(str(p) for p in e['loc'])}: {e['msg']}" for e in error.errors(include_url=False)]
    if problems:
        raise StartRefused("settings: " + "; ".join(problems))
    return Settings(*sections)


def effective(settings: Settings, options: Mapping[str, Any]) -> list[EffectiveSetting]:
    """Every setting with its value and where it came from."""
    rows = []
    environment = {name.upper() for name in os.environ}
    for (prefix, section), values in zip(SECTIONS.items(), settings, strict=True):
        for field, info in section.model_fields.items():
            name = prefix + field
            variable = "WATERTOWER_" + name.upper()
            source = "option" if options.get(name) is not None else f"environment {variable}" if variable in environment else "default"
            rows.append(EffectiveSetting(name, getattr(values, field), source, info.description or ""))
    return rows


def _of_kubernetes(variable: str) -> bool:
    """Whether Kubernetes sets it in every pod beside a Service whose name begins with "watertower"."""
    return _SERVICE_LINK.search(variable) is not None or (variable.endswith("_PORT") and "://" in os.environ[variable])


_SERVICE_LINK = re.compile(r"_SERVICE_HOST$|_SERVICE_PORT(_\w+)?$|_PORT_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?$")

# Variables of the same prefix that steer clients, tests and the supervisor's own children; they are no settings.
_NOT_SETTINGS = {
    "WATERTOWER_REQUIRE_ENGINES",
    "WATERTOWER_TEST_DATA",
    "WATERTOWER_TEST_SEED",
    "WATERTOWER_FAILPOINTS",
    "WATERTOWER_NOTIFY_FD",
    "WATERTOWER_WRITE_TARGET",
    "WATERTOWER_READ_TARGET",
}
