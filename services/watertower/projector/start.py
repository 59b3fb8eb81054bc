"""What must hold before a projector applies its first record. Each condition is refused with what to do about it."""

from collections.abc import Callable, Iterable, Mapping

from watertower.codec import record_id
from watertower.core.model import NO_PROGRESS, Progress
from watertower.errors import StartRefused
from watertower.ports import LogIdentity, LogReader, Store


def check_identity(log: LogReader, store: Store) -> None:
    """Raises StartRefused for another log, or another number of partitions, than the one the rows were made from."""
    if log.identity != store.identity.log:
        raise StartRefused(
            f"the store was made from log {_name(store.identity.log)}, this is log {_name(log.identity)}: bring back the log that "
            "belongs to the store, or rebuild the store from its edges as a new generation"
        )


def resume_points(
    log: LogReader, applied: Mapping[int, Progress], partitions: Iterable[int], beat: Callable[[], None] = lambda: None
) -> dict[int, Progress]:
    """Per partition, where to resume, by what the store says is `applied`; `beat` is called with each.

    Raises StartRefused where the log cannot be the one that the store was made from:

    - the record at `progress` is not the one that was applied there: a rewound or restored log reuses offsets;
    - the log starts past `progress` + 1: input was lost, and neither "earliest" nor "latest" would make it right.
    """
    points = {partition: applied.get(partition, NO_PROGRESS) for partition in partitions}
    for partition, progress in points.items():
        beat()
        start = log.start(partition)
        record = log.record_at(partition, progress.end) if progress.end >= 0 else None
        if progress.end >= start and record is None:
            raise StartRefused(
                f"partition {partition}: the log has no record at offset {progress.end}, up to which the store has applied it: the log "
                "is older than the store (restored?); bring back the newer log"
            )
        if record is not None and record_id(record.payload) != progress.record_id:
            raise StartRefused(
                f"partition {partition}: the record at offset {progress.end} is not the one that the store has applied: the log was "
                "rewound and offsets were used again; bring back the log that belongs to the store"
            )
        if start > progress.end + 1:
            raise StartRefused(
                f"partition {partition}: the log starts at offset {start} but the store has applied it only up to {progress.end}: what "
                "lies between is lost; restore a newer store, or a log that reaches further back"
            )
    return points


def _name(identity: LogIdentity) -> str:
    return f"{identity.log_id} ({identity.partitions} partitions)"
