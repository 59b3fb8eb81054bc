"""An owner of a RocksDB store in a process of its own: `python -m tests.contract.rocksdb_owner FOLDER`.

Writes one flush after the other, from where the store's progress says, until it is killed, and prints the offset after each sync.
Flush number n lets PER_FLUSH new actors follow "star", and removes a third of those of flush n - 1.
"""

import sys
from pathlib import Path

from tests.contract.store_harnesses import open_store
from watertower.core.model import Kind
from watertower.testing.replay import Event, apply, record

PER_FLUSH = 300
REMOVED = PER_FLUSH // 3


def events(offset: int) -> list[Event]:
    """The events of one flush."""
    removed: list[Event] = [(f"{offset - 1}-{n}", Kind.FOLLOW, "star", "", False, offset) for n in range(REMOVED)] if offset else []
    return removed + [(f"{offset}-{n}", Kind.FOLLOW, "star", "", True, offset) for n in range(PER_FLUSH)]


def followers(end: int) -> int:
    """What "star" has after flush number `end`."""
    return (end + 1) * PER_FLUSH - end * REMOVED if end >= 0 else 0


def main(path: Path) -> None:
    store = open_store(path, write_buffer_bytes=256 * 1024)
    progress = store.read_progress()
    offset = progress[0].end + 1 if progress else 0
    while True:
        apply(store, store.feed, [record(0, offset, events(offset))])
        print(offset, flush=True)
        offset += 1


if __name__ == "__main__":
    main(Path(sys.argv[1]))
