"""A reader of the embedded store in a process of its own, so that following a surge never holds the query process's interpreter lock.

rocksdict keeps the interpreter lock while a secondary catches up: some milliseconds for every flush, tens of them now and then. In the
process that answers calls this would stop every read, warm ones too. So the secondary lives in a child, and the query process only
waits for its answers, in threads, which costs it nothing.

The child is `python -m watertower.backends.rocksdb_follower FD`; both speak multiprocessing's pickled messages over a socket pair that
nobody else can reach. A child that dies is started again by the next call.
"""

import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from watertower.backends.rocksdb_reader import RocksDbReader
from watertower.codec import decode_feed
from watertower.core.model import Progress, Shard
from watertower.errors import BackendRefused, BackendUnavailable, StartRefused
from watertower.ports import FeedMessage, ListCursor, StoreIdentity

_CLOSE_S = 5.0
"""Seconds that the child may take to let go before it is killed."""


class RocksDbFollower:
    """The StoreReader and FeedReader of ports.py, through a child process. After the child died, messages are missing from the feed."""

    def __init__(self, path: Path, secondary_path: Path, identity: StoreIdentity, block_cache_bytes: int) -> None:
        """As RocksDbReader, whose errors it raises."""
        self._arguments = (path, secondary_path, identity, block_cache_bytes)
        self._identity = identity
        self._lock = threading.Lock()  # one call at a time: the child has one interpreter lock anyway
        self._closed = False
        self._child: subprocess.Popen[bytes] | None = None
        self._connection: Connection[Any, Any] | None = None
        with self._lock:
            self._start()

    @property
    def identity(self) -> StoreIdentity:
        return self._identity

    @property
    def pid(self) -> int | None:
        """Of the child, while there is one."""
        return None if self._child is None else self._child.pid

    def catch_up(self) -> None:
        self._call("catch_up")

    def read_entities(self, entities: Sequence[str]) -> list[dict[tuple[int, int], Shard]]:
        return self._call("read_entities", list(entities))  # type: ignore[no-any-return] # what the same method returned in the child

    def read_progress(self) -> dict[int, Progress]:
        return self._call("read_progress")  # type: ignore[no-any-return] # as above

    def check_edges(self, actor: str, kind: int, subjects: Sequence[str]) -> list[bool]:
        return self._call("check_edges", actor, kind, list(subjects))  # type: ignore[no-any-return] # as above

    def list_actors(self, subject: str, kind: int, after: ListCursor | None, limit: int) -> list[ListCursor]:
        return self._call("list_actors", subject, kind, after, limit)  # type: ignore[no-any-return] # as above

    def list_subjects(self, actor: str, kind: int, after: ListCursor | None, limit: int) -> list[ListCursor]:
        return self._call("list_subjects", actor, kind, after, limit)  # type: ignore[no-any-return] # as above

    def poll(self) -> list[FeedMessage]:
        """Of FeedReader. The messages travel as they were written and are decoded here: columns, which is quick."""
        return [decode_feed(payload) for payload in self._call("poll_payloads")]

    def close(self) -> None:
        """Lets go and removes `secondary_path`. Idempotent."""
        with self._lock:
            self._closed = True
            self._end()

    def _call(self, method: str, *arguments: Any) -> Any:
        with self._lock:
            if self._closed:
                raise BackendRefused("the reader is closed")
            if self._connection is None:
                try:
                    self._start()
                except StartRefused as error:  # this is no start any more
                    raise BackendRefused(str(error)) from error
            return self._ask((method, arguments))

    def _ask(self, message: Any) -> Any:
        connection = self._connection
        if connection is None:
            raise BackendUnavailable("the store's reader is gone")
        try:
            connection.send(message)
            succeeded, value = connection.recv()
        except (EOFError, OSError) as error:
            self._end()
            raise BackendUnavailable("the store's reader died; the next read starts it again") from error
        if not succeeded:
            raise value
        return value

    def _start(self) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            try:
                self._child = subprocess.Popen(  # noqa: S603 - our own command line
                    [sys.executable, "-m", "watertower.backends.rocksdb_follower", str(theirs.fileno())],
                    pass_fds=[theirs.fileno()],
                    stdin=subprocess.DEVNULL,
                )
            except OSError as error:  # too many processes, no memory
                ours.close()
                raise BackendUnavailable(f"the store's reader cannot be started: {error}") from error
        self._connection = Connection(ours.detach())
        try:
            self._ask(self._arguments)
        except BaseException:
            self._end()
            raise

    def _end(self) -> None:
        if self._connection is not None:
            self._connection.close()  # the child sees the end of its requests
            self._connection = None
        if self._child is not None:
            try:
                self._child.wait(_CLOSE_S)
            except subprocess.TimeoutExpired:
                self._child.kill()
                self._child.wait()
            self._child = None


def serve(connection: "Connection[Any, Any]") -> None:
    """The child: opens the reader that the first message asks for, then answers (method, arguments) until the other side is gone."""
    try:
        reader = RocksDbReader(*connection.recv())
    except (BackendUnavailable, BackendRefused, StartRefused) as error:
        connection.send((False, error))
        return
    except EOFError:
        return
    try:
        connection.send((True, None))
        while True:
            method, arguments = connection.recv()
            try:
                answer = (True, getattr(reader, method)(*arguments))
            except (BackendUnavailable, BackendRefused) as error:
                answer = (False, error)
            connection.send(answer)
    except (EOFError, OSError):
        pass  # the query process is gone, or has closed
    finally:
        reader.close()


if __name__ == "__main__":
    # The query process decides when it ends, by closing the connection; a signal to the whole group must not come before.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    os.set_inheritable(int(sys.argv[1]), False)
    serve(Connection(int(sys.argv[1])))
