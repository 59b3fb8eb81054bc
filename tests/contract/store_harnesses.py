"""How the tests open the stores of the back ends."""

import subprocess
import sys
from pathlib import Path

from watertower.backends.memory import MemoryFeed, MemoryRows, MemoryStore
from watertower.backends.rocksdb import RocksDbReader, RocksDbScanner, RocksDbStore
from watertower.backends.rocksdb_follower import RocksDbFollower
from watertower.ports import LogIdentity, StoreIdentity, StoreScanner
from watertower.testing.contract_store import PARTITIONS, Owner, Reading

IDENTITY = StoreIdentity(LogIdentity("0123456789abcdef" * 2, PARTITIONS), 1)
FEED_MESSAGES_MAX = 50
MIB = 2**20
ROOT = Path(__file__).parents[2]


class MemoryHarness:
    """Any number of owners and readers of one set of rows."""

    identity = IDENTITY
    feed_messages_max = FEED_MESSAGES_MAX

    def __init__(self) -> None:
        self._rows = MemoryRows(IDENTITY, FEED_MESSAGES_MAX)

    def owner(self) -> Owner:
        return Owner(MemoryStore(self._rows), MemoryFeed(self._rows))

    def reader(self) -> Reading:
        return Reading(MemoryStore(self._rows), MemoryFeed(self._rows))

    def scanner(self) -> StoreScanner:
        return MemoryStore(self._rows.copy())


class RocksDbHarness:
    """One owner at a time; readers are secondary instances, of the same process or of a child's."""

    identity = IDENTITY
    feed_messages_max = FEED_MESSAGES_MAX

    def __init__(self, folder: Path, reader: type[RocksDbReader] | type[RocksDbFollower] = RocksDbReader) -> None:
        self.path = folder / "store"
        self._folder, self._reader = folder, reader
        self._opened: list[RocksDbStore | RocksDbReader | RocksDbFollower | RocksDbScanner] = []

    def owner(self) -> Owner:
        store = open_store(self.path)
        self._opened.append(store)
        return Owner(store, store.feed)

    def reader(self) -> Reading:
        self._create()
        reader = self._reader(self.path, self._own_folder(), IDENTITY, MIB)
        self._opened.append(reader)
        return Reading(reader, reader)

    def scanner(self) -> StoreScanner:
        self._create()
        scanner = RocksDbScanner(self.path, self._own_folder(), IDENTITY)
        self._opened.append(scanner)
        return scanner

    def close(self) -> None:
        for one in self._opened:
            one.close()

    def _own_folder(self) -> Path:
        return self._folder / f"reader-{len(self._opened)}"

    def _create(self) -> None:
        if not self.path.exists():
            open_store(self.path).close()


def open_store(path: Path, write_buffer_bytes: int = MIB) -> RocksDbStore:
    """An owner with small buffers, so that little data makes several files."""
    return RocksDbStore(path, IDENTITY, write_buffer_bytes=write_buffer_bytes, block_cache_bytes=MIB, feed_messages_max=FEED_MESSAGES_MAX)


def open_reader(path: Path, identity: StoreIdentity = IDENTITY) -> RocksDbReader:
    return RocksDbReader(path, path.parent / "reader", identity, MIB)


def open_scanner(path: Path) -> RocksDbScanner:
    return RocksDbScanner(path, path.parent / "scanner", IDENTITY)


class owner_process:  # noqa: N801 - reads as a function
    """An owner in a process of its own, killed with SIGKILL on leaving."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> "subprocess.Popen[str]":
        command = [sys.executable, "-m", "tests.contract.rocksdb_owner", str(self._path)]
        self._process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
        return self._process

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()


def reported(owner: "subprocess.Popen[str]") -> int:
    """The next offset that the owner says is synced."""
    if owner.stdout is None:
        raise RuntimeError("the owner has no output")
    line = owner.stdout.readline()
    if not line:
        raise RuntimeError(f"the owner died: {owner.wait()}")
    return int(line)
