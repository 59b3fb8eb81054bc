"""The client for threads, against a scripted server in a thread of its own."""

import asyncio
import inspect
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, wait

import pytest

from tests.client.fake import FakeServer, refused, serving
from watertower.client import Client, ClientClosed, Event, InvalidRequest, Kind, SyncClient
from watertower.client.calls import Calls
from watertower.client.sync import SyncCalls
from watertower.errors import Reason
from watertower.v1 import reader_pb2


@pytest.fixture
def fake() -> Iterator[FakeServer]:
    """The server; its loop ends with the test."""
    started: list[tuple[FakeServer, asyncio.AbstractEventLoop, asyncio.Event]] = []
    ready = threading.Event()

    async def serve() -> None:
        async with serving() as server:
            end = asyncio.Event()
            started.append((server, asyncio.get_running_loop(), end))
            ready.set()
            await end.wait()

    thread = threading.Thread(target=lambda: asyncio.run(serve()))
    thread.start()
    assert ready.wait(10)
    server, loop, end = started[0]
    yield server
    loop.call_soon_threadsafe(end.set)
    thread.join()


def test_the_same_calls(fake: FakeServer) -> None:
    """Every call of the async client is there, with the same parameters, and does the same."""
    for name, method in inspect.getmembers(Calls, inspect.isfunction):
        if not name.startswith("_"):
            assert inspect.signature(getattr(SyncCalls, name)).parameters.keys() == inspect.signature(method).parameters.keys(), name
    with SyncClient(fake.target, fake.target) as client:
        session = client.session()
        assert session.follow("ann", "bob").token == session.token
        client.like("ann", "p")
        client.unlike("ann", "p")
        client.comment("ann", "p", "c")
        client.delete_comment("ann", "p", "c")
        client.unfollow("ann", "cid")
        assert [client.counts("bob").followers, *(one.followers for one in session.counts_many(["bob", "cid"]))] == [1, 1, 0]
        assert session.check("ann", ["bob"]).active == (True,)
        assert [item.id for item in client.list_actors("bob").items] == ["ann"]
        assert [item.id for item in client.list_subjects("ann", Kind.FOLLOW).items] == ["bob"]
        with pytest.raises(InvalidRequest):
            client.follow("ann", "ann")


def test_threads_share_requests(fake: FakeServer) -> None:
    """What many threads write is all there, in fewer requests than calls."""
    with SyncClient(fake.target, fake.target) as client, ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda n: client.follow(f"a{n}", "star"), range(400)))
    assert fake.followers["star"] == 400
    assert len(fake.records) < 400


def test_a_watch_in_a_loop(fake: FakeServer) -> None:
    """Is an iterator, and ends when it is closed."""
    with SyncClient(fake.target, fake.target) as client:
        updates = client.watch(["a"])
        with ThreadPoolExecutor(1) as pool:
            first = pool.submit(next, updates)
            while not fake.watches:
                assert not first.done()
            fake.loop.call_soon_threadsafe(fake.updates.put_nowait, fake.update(a=4))
            assert [counts.followers for counts in first.result(10).counts] == [4]
        updates.close()  # type: ignore[attr-defined] # of a generator
        assert list(updates) == []


def test_a_watch_ends_with_its_client(fake: FakeServer) -> None:
    """Whoever waits for an update hears that the client was closed; an iterator that is left over closes in silence."""
    client = SyncClient(fake.target, fake.target)
    waits, left = client.watch(["a"]), client.watch(["b"])
    with ThreadPoolExecutor(2) as pool:
        waiting, first = pool.submit(next, waits), pool.submit(next, left)
        while len(fake.watches) < 2:
            assert not waiting.done()
        fake.loop.call_soon_threadsafe(fake.updates.put_nowait, reader_pb2.WatchCountsResponse())
        done, _ = wait((waiting, first), timeout=10, return_when="FIRST_COMPLETED")
        assert len(done) == 1
        client.close()
        (other,) = {waiting, first} - done
        with pytest.raises(ClientClosed):
            other.result(10)
    del waits, left


def test_a_call_that_waits_for_its_retry_ends_with_its_client(fake: FakeServer) -> None:
    """Its thread hears ClientClosed, and not a cancellation that is no ClientError."""
    fake.on_read = lambda number, request: refused(Reason.STOPPING, 3_600.0)
    client = SyncClient(fake.target, fake.target)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(client.check, "a", ["b"], timeout_s=7_200.0)
        while not fake.reads:
            assert not waiting.done()
        time.sleep(0.05)  # the refusal is on its way
        client.close()
        with pytest.raises(ClientClosed):
            waiting.result(10)


def test_after_its_end(fake: FakeServer) -> None:
    """Calls are refused, closing again does nothing, and no thread stays."""
    client = SyncClient(fake.target, fake.target)
    client.close()
    client.close()
    with pytest.raises(ClientClosed):
        client.follow("a", "b")
    assert "watertower-client" not in {thread.name for thread in threading.enumerate()}


FORKS = """
import os, sys
from watertower.client import ClientClosed, SyncClient

client = SyncClient("127.0.0.1:1", "127.0.0.1:1")
client._loop._lock = HELD
child = os.fork()
if child:
    sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
try:
    with client:
        client.counts("a", timeout_s=0.1)
except ClientClosed as closed:
    print(closed, flush=True)
    os._exit(0)
os._exit(1)
"""
HELD = """__import__("threading").Lock(); client._loop._lock.acquire()"""


@pytest.mark.parametrize("lock", ["client._loop._lock", HELD], ids=["free", "held"])
def test_a_client_from_before_a_fork(lock: str) -> None:
    """Its calls and its end do not hang in the child, also where a thread held its lock: a call says what is wrong."""
    done = subprocess.run([sys.executable, "-c", FORKS.replace("HELD", lock)], capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 0, done.stderr
    assert "made before a fork" in done.stdout


def test_a_slow_iterable_holds_up_no_other_thread(fake: FakeServer) -> None:
    """Events are taken from it in the caller's own thread, while others go on."""
    with SyncClient(fake.target, fake.target) as client, ThreadPoolExecutor(1) as pool:

        def events() -> Iterator[Event]:
            assert pool.submit(client.counts, "b").result(10).followers == 0
            yield Event("a", Kind.FOLLOW, "b")

        client.record_many(events())
        assert client.counts("b").followers == 1


def test_a_call_inside_of_a_call(fake: FakeServer) -> None:
    """What the collector closes while a call is begun can make calls itself."""
    client, found = SyncClient(fake.target, fake.target), list[int]()

    def inside() -> None:
        with client._loop._lock:
            found.append(client.counts("a").followers)

    thread = threading.Thread(target=inside, daemon=True)  # it must not keep a test that fails from ending
    thread.start()
    thread.join(10)
    assert found == [0]
    client.close()


def test_a_client_needs_a_running_loop() -> None:
    """The async client outside of one is refused where it is made, not at its first call."""
    with pytest.raises(RuntimeError, match="running event loop"):
        Client()
