"""The only place that picks back ends and wires processes. Everything else is handed what it needs.

Which back ends there are for a role say `embedded.py` and `cluster.py`, each alone: a service on one data folder never loads the
drivers of the other.
"""

import random
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import structlog

from watertower.clock import SystemClock
from watertower.config import IngestSettings, QuerySettings, Settings
from watertower.errors import BackupRefused, Reason, StartRefused
from watertower.health import HealthServer
from watertower.ingest.process import IngestProcess
from watertower.ingest.service import SERVICE as WRITER
from watertower.ingest.service import IngestService
from watertower.ports import LogWriter, StoreScanner
from watertower.projector.process import ProjectorProcess
from watertower.projector.projector import Projector
from watertower.pulse import Pulse
from watertower.query.process import QueryProcess
from watertower.query.service import SERVICE as READER
from watertower.query.service import QueryService
from watertower.query.warm import WarmList
from watertower.rpc import NotYet
from watertower.transport import listener_options

if TYPE_CHECKING:
    from watertower.bootstrap.backup import Backup


def health(role: str, settings: Settings) -> HealthServer | None:
    """The health service of a role while its process has none of its own; not started.

    The projector has no other. That of ingest and query has the port of their API while they wait for a back end at their start, and
    refuses its calls. None where the projector has no port for it; workers of query share theirs with those that serve.
    """
    service = settings.service
    if role == "projector":
        limits = settings.projector
        return HealthServer(limits.health_host, limits.health_port) if limits.health_port >= 0 else None
    uniform = random.Random().random  # noqa: S311 - jitter, not secrets
    if role == "ingest":
        return _stand_in(service.write_host, service.write_port, settings.ingest, WRITER, Reason.LOG_UNAVAILABLE, uniform)
    return _stand_in(service.read_host, service.read_port, settings.query, READER, Reason.STORE_UNAVAILABLE, uniform)


def _stand_in(
    host: str, port: int, limits: IngestSettings | QuerySettings, of: str, reason: Reason, uniform: Callable[[], float]
) -> HealthServer:
    refusing = NotYet(of, reason, limits.retry_after_ms / 1e3, uniform)
    return HealthServer(host, port, [refusing], listener_options(limits.message_bytes_max, limits, shared_port=False))


def ingest(settings: Settings, stand_in: HealthServer | None = None) -> IngestProcess:
    """The ingest role on the configured log. Raises StartRefused; BackendUnavailable where trying again may help."""
    with ExitStack() as opened:  # undone where a later part is not to be had yet: the caller tries again
        log, generation = log_writer(settings, opened)
        held = opened.pop_all()
    uniform = random.Random().random  # noqa: S311 - jitter, not secrets
    service = IngestService(log, settings.ingest, SystemClock(), generation, uniform)
    shown = None
    if settings.ingest.metrics_port >= 0:
        from watertower import metrics

        samples = partial(metrics.ingest_samples, service)
        shown = metrics.MetricsServer("ingest", settings.service.metrics_host, settings.ingest.metrics_port, samples, SystemClock())
    return IngestProcess(service, settings.service, settings.ingest, held, stand_in, shown)


def projector(settings: Settings, health: HealthServer | None = None) -> ProjectorProcess:
    """The projector role on the configured log, store and feed. Raises StartRefused; BackendUnavailable where trying again may help."""
    clock, limits = SystemClock(), settings.projector
    pulse = Pulse(clock)
    with ExitStack() as opened:
        log, store, feed = _back_ends(settings).projector_side(settings, opened, pulse.beat)
        held = opened.pop_all()
    loop = Projector(log, store, feed, limits, clock, random.Random(), pulse)  # noqa: S311 - jitter, not secrets
    shown = None
    if limits.metrics_port >= 0:
        from watertower import metrics

        samples = partial(metrics.projector_samples, loop, clock)
        shown = metrics.MetricsServer("projector", settings.service.metrics_host, limits.metrics_port, samples, clock)
    return ProjectorProcess(loop, settings.service, limits, clock, held, pulse, health, shown)


def query(settings: Settings, stand_in: HealthServer | None = None, shared_port: int = 0, worker: int = 0) -> QueryProcess:
    """The query role on the configured store and feed, or one worker of it, counted from 0, on a `shared_port`.

    Raises StartRefused; BackendUnavailable where trying again may help."""
    with ExitStack() as opened:
        store, feed = _back_ends(settings).query_side(settings, opened)
        held = opened.pop_all()
    service = QueryService(
        store,
        feed,
        settings.query,
        SystemClock(),
        random.Random(),  # noqa: S311 - jitter, not secrets
        partitions=store.identity.log.partitions,
    )
    shown, port = None, settings.query.metrics_port
    if port >= 0:
        from watertower import metrics

        samples = partial(metrics.query_samples, service, SystemClock())
        own = port + worker if port else 0  # the workers share the port of the API, but each counts for itself
        shown = metrics.MetricsServer("query", settings.service.metrics_host, own, samples, SystemClock())
    return QueryProcess(service, settings.service, settings.query, held, _warm_list(settings), shared_port, stand_in, shown)


def _warm_list(settings: Settings) -> WarmList | None:
    path, count = settings.query.warm_file, settings.query.warm_entities_max
    if path is None and settings.service.store == "rocksdb":
        path = settings.service.data / "query-warm"
    return WarmList(path, count, structlog.get_logger("watertower.query")) if path is not None and count else None


def log_writer(settings: Settings, opened: ExitStack) -> tuple[LogWriter, int]:
    """The configured log for appending, and the generation of the rows that are made from it. Raises StartRefused; BackendUnavailable."""
    found: tuple[LogWriter, int] = _back_ends(settings).log_writer(settings, opened)
    return found


@contextmanager
def opened_scanner(settings: Settings) -> Iterator[StoreScanner]:
    """All rows of the configured store, beside a service that runs or does not. Raises StartRefused; BackendUnavailable while the store
    is not there yet."""
    with ExitStack() as opened:
        yield _back_ends(settings).scanner(settings, opened)


def make_backup(settings: Settings, target: Path) -> "Backup":
    """A copy of the configured data folder, beside a service that runs or does not (see bootstrap/backup.py, whose errors it raises)."""
    if settings.service.store != "rocksdb":
        raise BackupRefused(
            f"store is {settings.service.store}: a data folder is what this command copies; how to back up Cassandra is in docs/cluster.md"
        )
    from watertower.bootstrap.backup import backup

    return backup(settings.service.data, target)


def _back_ends(settings: Settings) -> ModuleType:
    chosen = (settings.service.log, settings.service.store)
    if chosen == ("sqlite", "rocksdb"):
        from watertower.bootstrap import embedded

        return embedded
    if chosen == ("kafka", "cassandra"):
        from watertower.bootstrap import cluster

        return cluster
    raise StartRefused(
        f"settings: log {chosen[0]} and store {chosen[1]} do not go together: choose sqlite with rocksdb, or kafka with cassandra"
    )
