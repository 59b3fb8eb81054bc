"""How a role hears that it should stop: by a signal at any moment, from any thread, in every kind of wait."""

import asyncio
import subprocess
import sys
import threading

import pytest

from watertower.role import Stopping

LONG_S = 60.0  # no wait may take this long

_SIGNAL_ON_EVERY_LINE = """
import os, signal, sys
from watertower.role import Stopping

def interrupted(line):
    "Waits, and sends a signal on so many-th line of Python that the wait runs. Whether there was one."
    left = line
    def trace(frame, event, argument):
        nonlocal left
        if event == "line":
            left -= 1
            if not left:
                os.kill(os.getpid(), signal.SIGTERM)
        return trace
    stopping = Stopping()
    stopping.set_on(signal.SIGTERM)
    sys.settrace(trace)
    stopping.wait(0.05)
    sys.settrace(None)
    assert stopping.is_set() == (left <= 0)
    return left <= 0

line = 1
while interrupted(line):
    line += 1
assert line > 1
"""

_SIGNAL_TO_ANOTHER_THREAD = """
import asyncio, signal, sys, threading, time
from watertower.role import Stopping

async def heard():
    await stopping.event().wait()

stopping = Stopping()
stopping.set_on(signal.SIGTERM)
other = threading.Thread(target=time.sleep, args=(3600,), daemon=True)
other.start()
threading.Timer(0.3, signal.pthread_kill, (other.ident, signal.SIGTERM)).start()
if sys.argv[1] == "wait":
    stopping.wait(3600)
else:
    asyncio.run(heard())
assert stopping.is_set()
"""


def run(script: str, *arguments: str) -> None:
    subprocess.run([sys.executable, "-c", script, *arguments], check=True, timeout=LONG_S)


def test_a_signal_in_the_middle_of_a_wait_ends_it() -> None:
    """On whichever line the main thread is: the handler needs nothing that the main thread may hold."""
    run(_SIGNAL_ON_EVERY_LINE)


@pytest.mark.parametrize("how", ["wait", "event loop"])
def test_a_signal_that_another_thread_takes_ends_the_wait(how: str) -> None:
    """The kernel gives a signal to any thread; Python runs the handler in the main one, which has to be woken up."""
    run(_SIGNAL_TO_ANOTHER_THREAD, how)


def test_it_is_heard_from_any_thread_and_for_good() -> None:
    """A wait that is under way ends, and so does every later one."""
    stopping = Stopping()
    threading.Timer(0.1, stopping.set).start()
    stopping.wait(LONG_S)
    assert stopping.is_set()
    stopping.set()
    stopping.wait(LONG_S)


def test_an_event_loop_that_has_ended_is_not_told() -> None:
    """A role that tries again does so on a new loop: what the old one waited for is gone with it."""
    stopping = Stopping()

    async def fails() -> None:
        stopping.event()
        raise ValueError

    async def hears() -> None:
        heard = stopping.event()
        stopping.set()
        async with asyncio.timeout(LONG_S):
            await heard.wait()

    with pytest.raises(ValueError):
        asyncio.run(fails())
    asyncio.run(hears())
    asyncio.run(hears())
