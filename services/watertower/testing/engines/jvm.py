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
from watertower.testing.engines.warden import Warden
from watertower.testing.service import free_port

JAVA_MIN = 17
START_S = 240.0
"""Seconds that a node may take to be ready on a busy machine."""

STOP_S = 60.0
"""Seconds that a node may take to end cleanly."""

LOG_LINES_SHOWN = 40
_POLL_S = 0.1
_PORT_TRIES = 100

# "$0" is the process, "$1" its folder, which its command line names: a pid may be somebody else's by now. The folder goes when nothing
# writes there any more.
_END = """
mine() { grep -qsaF -- "$1" "/proc/$0/cmdline"; }
if mine "$@"; then kill -9 "$0"; fi
while mine "$@"; do sleep 0.1; done
rm -rf "$1"; rmdir "$(dirname "$1")"
"""

_clock = SystemClock()


class JvmNode(Node):
    """A node that runs `java` with `arguments` in `folder`, and says in its log that it is ready. `jars` names what it runs."""

    def __init__(self, name: str, address: str, folder: Path, jars: str, arguments: Sequence[str], ready_line: str) -> None:
        super().__init__(address)
        self.name = name
        self.folder = folder
        self.paused = False
        self.jars = jars
        self._arguments = list(arguments)
        self._ready_line = ready_line
        self._process: subprocess.Popen[bytes] | None = None
        self._warden: Warden | None = None
        self.starts = 0

    # --- life

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int:
        """Of the process that runs. Raises EngineFailed when none does."""
        return self._running().pid

    def launch(self, trained: Path | None = None) -> None:
        """Starts the process and does not wait: the nodes of an engine start together.

        With `trained`, a clean stop leaves an archive of the loaded classes there.
        """
        if self.running:
            raise EngineFailed(f"{self.name} runs already")
        self.starts += 1
        self.paused = False
        classes = sharing(self.jars) if trained is None else [f"-XX:ArchiveClassesAtExit={trained}"]
        command = ["java", *classes, *self._arguments]
        with self.log_file.open("wb") as log:
            self._process = subprocess.Popen(
                command, cwd=self.folder, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
            )
        self._warden = Warden(_END, str(self._process.pid), str(self.folder))

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
        process = self._running()
        process.send_signal(signal.SIGSTOP)
        # A thread that computes on another core goes on for a moment.
        while any(state not in "TZX" for state in _states_of_threads(process.pid)):
            _clock.sleep(_POLL_S)
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
        if self._warden is not None:  # before the wait, after which the pid may be somebody else's
            self._warden.dismiss()
            self._warden = None
        process.wait()

    # --- what it said

    @property
    def log_file(self) -> Path:
        """What the process has said since its last start."""
        return self.folder / f"{self.starts}.log"

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


def _states_of_threads(pid: int) -> Iterator[str]:
    for stat in Path(f"/proc/{pid}/task").glob("*/stat"):
        with suppress(FileNotFoundError, ProcessLookupError):  # ended meanwhile
            yield stat.read_text().rpartition(")")[2].split()[0]


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
    """All nodes, started together and ready; gone at the end.

    The first run on a machine leaves an archive of the loaded classes, with which later ones start with half of the work.
    """
    first = nodes[0]
    archive = class_archive(first.jars)
    trained = archive.with_name(f".{os.getpid()}-{archive.name}")
    training = not archive.exists()
    try:
        for node in nodes:
            node.launch(trained if training and node is first else None)
        for node in nodes:
            node.wait_ready()
        yield
        if training and first.starts == 1 and first.running:
            with suppress(EngineFailed):  # no archive, then
                first.stop()
                trained.replace(archive)
    finally:
        for node in nodes:
            node.end()
        trained.unlink(missing_ok=True)


def class_archive(jars: str) -> Path:
    """Where the archive of the classes of `jars` is, or will be. It is of no use to another Java."""
    return files.folder() / f"{jars}-java{java_version()}.jsa"


def sharing(jars: str) -> list[str]:
    """Options of a JVM that runs `jars`: it goes by the archive if there is one that fits, and without a word if not."""
    return [f"-XX:SharedArchiveFile={class_archive(jars)}", "-Xlog:cds=off", "-Xlog:cds+dynamic=off"]


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
    version = java_version()
    if not version:
        return "java is not on the PATH (install openjdk-17-jre-headless)"
    major = version.split(".")[0]
    if not major.isdigit() or int(major) < JAVA_MIN:
        return f"java is version {version}, and {JAVA_MIN} or newer is needed (install openjdk-17-jre-headless)"
    if shutil.which("mvn") is None and not files.has_jars(jars):
        return "mvn is not on the PATH to fetch the jars with (install maven)"
    return ""


@cache
def java_version() -> str:
    """As in 17.0.15; empty when there is no java."""
    java = shutil.which("java")
    if java is None:
        return ""
    said = subprocess.run([java, "-version"], capture_output=True, text=True, check=False).stderr
    return said.partition(' version "')[2].partition('"')[0] or "unknown"
