"""One node as a plain JVM process of this machine: no root, no Docker, and quicker than a container."""

import os
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

from watertower.clock import SystemClock
from watertower.testing.engines import cache as files
from watertower.testing.engines.engine import EngineFailed, Node
from watertower.testing.service import free_port

JAVA_MIN = 17
START_S = 180.0
"""Seconds that a node may take to be ready on a busy machine."""

STOP_S = 60.0
"""Seconds that a node may take to end cleanly."""

LOG_LINES_SHOWN = 40
_POLL_S = 0.1
_PORT_TRIES = 100

_WARDEN = 'read -r _ || { kill -9 "$0"; sleep 1; rm -rf "$1"; rmdir "$(dirname "$1")"; }'
"""Waits for a word of the process that started the node. When that process ends without a word, however it ended, so does the node, and its
data go. (The kernel's own way, a parent-death signal, would fire when the *thread* that started the node ends.)"""

_clock = SystemClock()


class JvmNode(Node):
    """A node that runs `command` in `folder`, and says in its log that it is ready."""

    def __init__(self, name: str, address: str, folder: Path, command: Sequence[str], ready_line: str) -> None:
        super().__init__(address)
        self.name = name
        self.folder = folder
        self.paused = False
        self._command = list(command)
        self._ready_line = ready_line
        self._process: subprocess.Popen[bytes] | None = None
        self._warden: subprocess.Popen[bytes] | None = None
        self._starts = 0

    # --- life

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int:
        """Of the process that runs. Raises EngineFailed when none does."""
        return self._running().pid

    def launch(self) -> None:
        """Starts the process and does not wait: the nodes of an engine start together."""
        if self.running:
            raise EngineFailed(f"{self.name} runs already")
        self._starts += 1
        self.paused = False
        self.folder.mkdir(parents=True, exist_ok=True)
        with self.log_file.open("wb") as log:
            self._process = subprocess.Popen(
                self._command, cwd=self.folder, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
            )
        self._warden = subprocess.Popen(
            ["/bin/sh", "-c", _WARDEN, str(self._process.pid), str(self.folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def wait_ready(self) -> None:
        """Waits until the log says so. Raises EngineFailed when the process ends instead, or after START_S."""
        self.wait_for_line(self._ready_line)

    def start(self) -> None:
        self.launch()
        self.wait_ready()

    def kill(self) -> None:
        process = self._running()
        process.kill()
        self._ended(process)

    def stop(self) -> None:
        process = self._running()
        process.send_signal(signal.SIGCONT)  # a paused process would not hear the next one
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(STOP_S)
            return self._ended(process)
        process.kill()
        self._ended(process)
        raise EngineFailed(f"{self.name} did not stop within {STOP_S:g} s, so it was killed:\n{self.log_tail()}")

    def pause(self) -> None:
        self._running().send_signal(signal.SIGSTOP)
        self.paused = True

    def resume(self) -> None:
        self._running().send_signal(signal.SIGCONT)
        self.paused = False

    def end(self) -> None:
        """Ends whatever runs, for good; the data are of no more use."""
        if self._process is not None:
            self._process.kill()
            self._ended(self._process)

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None or self._process.poll() is not None:
            raise EngineFailed(f"{self.name} does not run")
        return self._process

    def _ended(self, process: subprocess.Popen[bytes]) -> None:
        # Before the wait, after which the pid may be somebody else's.
        if self._warden is not None and self._warden.stdin is not None:
            with suppress(BrokenPipeError):
                self._warden.stdin.write(b"\n")
                self._warden.stdin.close()
            self._warden.wait()
            self._warden = None
        process.wait()

    # --- what it said

    @property
    def log_file(self) -> Path:
        """What the process has said since its last start."""
        return self.folder / f"{self._starts}.log"

    def said(self) -> str:
        """The log since the last start."""
        return self.log_file.read_text("utf-8", errors="replace")

    def log_tail(self) -> str:
        return "\n".join(self.said().splitlines()[-LOG_LINES_SHOWN:])

    def wait_for_line(self, part: str, after: int = 0) -> None:
        """Waits until the log, from character `after` on, has a line with `part`. Raises EngineFailed."""
        deadline = _clock.monotonic_s() + START_S
        while part not in self.said()[after:]:
            if not self.running:
                raise EngineFailed(f"{self.name} ended instead of saying '{part}':\n{self.log_tail()}")
            if _clock.monotonic_s() > deadline:
                raise EngineFailed(f"{self.name} did not say '{part}' within {START_S:g} s:\n{self.log_tail()}")
            _clock.sleep(_POLL_S)


def wait_for_any(nodes: Sequence[JvmNode], part: str) -> None:
    """Waits until the log of one of the nodes has a line with `part`. Raises EngineFailed after START_S."""
    deadline = _clock.monotonic_s() + START_S
    while not any(part in node.said() for node in nodes):
        if _clock.monotonic_s() > deadline:
            raise EngineFailed(
                f"none of {', '.join(node.name for node in nodes)} said '{part}' within {START_S:g} s:\n{nodes[0].log_tail()}"
            )
        _clock.sleep(_POLL_S)


@contextmanager
def launched(nodes: Sequence[JvmNode]) -> Iterator[None]:
    """All nodes, started together and ready; gone at the end."""
    try:
        for node in nodes:
            node.launch()
        for node in nodes:
            node.wait_ready()
        yield
    finally:
        for node in nodes:
            node.end()


@contextmanager
def data_folder(name: str) -> Iterator[Path]:
    """A new folder for the nodes of one engine."""
    folder = Path(tempfile.mkdtemp(prefix=f"watertower-{name}-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def shared_port(hosts: Sequence[str]) -> int:
    """A port that is free on every one of the addresses."""
    for _ in range(_PORT_TRIES):
        port = free_port()
        if all(_free(host, port) for host in hosts):
            return port
    raise EngineFailed(f"no port is free on all of {', '.join(hosts)}")


def _free(host: str, port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True


def why_no_jvm(jars: str) -> str:
    """Empty when this machine can start JVM processes from the jars of that name; else what is missing."""
    if not _java_version():
        return "java is not on the PATH (install openjdk-17-jre-headless)"
    if _java_version() < JAVA_MIN:
        return f"java is version {_java_version()}, and {JAVA_MIN} or newer is needed (install openjdk-17-jre-headless)"
    if shutil.which("mvn") is None and not files.has_jars(jars):
        return "mvn is not on the PATH to fetch the jars with (install maven)"
    return ""


@cache
def _java_version() -> int:
    """The major version; 0 when there is no java."""
    java = shutil.which("java")
    if java is None:
        return 0
    said = subprocess.run([java, "-version"], capture_output=True, text=True, check=False, env={**os.environ, "LC_ALL": "C"}).stderr
    _, _, version = said.partition(' version "')
    digits = version.split(".")[0].split('"')[0].split("-")[0]
    return int(digits) if digits.isdigit() else 0
