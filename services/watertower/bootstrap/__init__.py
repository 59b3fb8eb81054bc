"""The only place that picks back ends and wires processes. Everything else is handed what it needs.

Which back ends there are for a role say `embedded.py` and `cluster.py`, each alone: a service on one data folder never loads the
drivers of the other.
"""

import random
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import structlog

from watertower.clock import SystemClock
from watertower.config import Settings
from watertower.errors import BackupRefused, StartRefused
from watertower.health import HealthServer
from watertower.ingest.process import IngestProcess
from watertower.ingest.service import IngestService
from watertower.ports import LogWriter, StoreScanner
from watertower.projector.process import ProjectorProcess
from watertower.projector.projector import Projector
from watertower.query.process import QueryProcess
from watertower.query.service import QueryService
from watertower.query.warm import WarmList

if TYPE_CHECKING:
    from watertower.bootstrap.backup import Backup


def ingest(settings: Settings) -> IngestProcess:
    """The ingest role on the configured log. Raises StartRefused; BackendUnavailable where trying again may help."""
    with ExitStack() as opened:  # undone where a later part is not to be had yet: the caller tries again
        log, generation = log_writer(settings, opened)
        held = opened.pop_all()
    uniform = random.Random().random  # noqa: S311 - jitter, not secrets
    return IngestProcess(IngestService(log, settings.ingest, SystemClock(), generation, uniform), settings.service, settings.ingest, held)


def projector(settings: Settings) -> ProjectorProcess:
    """The projector role on the configured log, store and feed. Raises StartRefused; BackendUnavailable where trying again may help."""
    with ExitStack() as opened:
        health = None
        if settings.projector.health_port >= 0:
            health = HealthServer(settings.projector.health_host, settings.projector.health_port)
            opened.callback(health.stop)
        log, store, feed = _back_ends(settings).projector_side(settings, opened)
        held = opened.pop_all()
    loop = Projector(log, store, feed, settings.projector, SystemClock(), random.Random())  # noqa: S311 - jitter, not secrets
    return ProjectorProcess(loop, settings.service, SystemClock(), held, health)


def query(settings: Settings, shared_port: int = 0) -> QueryProcess:
    """The query role on the configured store and feed, or one worker of it on a `shared_port`.

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
    return QueryProcess(service, settings.service, settings.query, held, _warm_list(settings), shared_port)


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
