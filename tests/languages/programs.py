"""The programs of examples/: built once for each of their contents, outside of the repository, and run.

`python -m tests.languages.programs` builds them all. Builds are kept in the folder `languages` beside WATERTOWER_ENGINES_CACHE
(~/.cache/watertower/languages); what the package managers download is where they keep it.
"""

import hashlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from tests.commands import Ran
from watertower.clock import SystemClock
from watertower.testing.engines import cache
from watertower.testing.service import clean_environment

ROOT = Path(__file__).parents[2]
MADE = ("gen", "build", "node_modules", "target")
"""Folders that builds make in examples/."""

BUILD_S = 1_200.0
"""Seconds that a build may take: the first one downloads and compiles the libraries, on a busy machine."""

RUN_S = 60.0
KEPT_S = 7 * 86_400.0
"""Seconds after which a build that nobody used is removed when another one is made."""

_SHOWN_CHARACTERS = 4_000
_clock = SystemClock()


class Unavailable(Exception):
    """A tool chain is missing or too old. Says which."""


class Tool(NamedTuple):
    """A program of a tool chain with the least version that the examples need."""

    version: tuple[str, ...]  # the command that says it
    least: tuple[int, int]

    def check(self) -> None:
        """Raises Unavailable."""
        name = self.version[0]
        try:
            said = subprocess.run(self.version, capture_output=True, text=True, timeout=RUN_S, check=False).stdout
        except FileNotFoundError:
            raise Unavailable(f"{name} is not installed") from None
        found = re.search(r"(\d+)\.(\d+)", said)
        if found is None or (int(found[1]), int(found[2])) < self.least:
            raise Unavailable(f"{name} is too old: {said.strip() or 'it says no version'}; {'.'.join(map(str, self.least))} is needed")


class Language(NamedTuple):
    """A folder of examples/, and how its program is built and run in it."""

    name: str
    tools: tuple[Tool, ...]
    build: tuple[tuple[str, ...], ...]
    run: tuple[str, ...]


GRPCURL = "github.com/fullstorydev/grpcurl/cmd/grpcurl@v1.9.4"
GO = Tool(("go", "version"), (1, 25))
LANGUAGES = {
    language.name: language
    for language in (
        Language("go", (GO,), (("go", "generate", "."), ("go", "build", "-o", "build/follow", ".")), ("build/follow",)),
        Language("grpcurl", (GO,), (("go", "install", GRPCURL),), ("./follow.sh",)),
        Language(
            "java",
            (Tool(("javac", "-version"), (17, 0)), Tool(("mvn", "-version"), (3, 8))),
            (("mvn", "-B", "-q", "-Dstyle.color=never", "package"),),
            ("java", "-jar", "target/follow.jar"),
        ),
        Language(
            "typescript",
            (Tool(("node", "--version"), (18, 0)), Tool(("npm", "--version"), (9, 0))),
            (("npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund"), ("npm", "run", "build")),
            ("node", "build/follow.js"),
        ),
    )
}


@lru_cache
def built(language: Language) -> Path:
    """The folder of its program, built. Raises Unavailable without the tool chain, AssertionError with what a failed build printed.

    One look a process: asking Maven for its version starts a JVM.
    """
    root = cache.folder().parent / "languages"
    root.mkdir(parents=True, exist_ok=True)
    for tool in language.tools:
        tool.check()
    name = f"{language.name}-{_digest(language)}"
    done = cache.once(name, lambda made: _build(language, made), root)
    now_s = _clock.now_us() / 1e6
    os.utime(done, (now_s, now_s))
    for other in root.glob(f"{language.name}-*"):
        if now_s - other.stat().st_mtime > KEPT_S:
            shutil.rmtree(other, ignore_errors=True)
    return done / "examples" / language.name


def run(language: Language, targets: Mapping[str, str], timeout_s: float = RUN_S) -> Ran:
    """Runs it against `targets`: environment variables that name the writer and the reader."""
    folder = built(language)
    environment = clean_environment({**targets, "PATH": _path(folder)})
    done = subprocess.run(
        language.run,
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )
    return Ran(done.returncode, done.stdout, done.stderr)


def _sources(language: Language) -> Iterator[Path]:
    example = ROOT / "examples" / language.name
    for folder in (example, ROOT / "proto"):
        for path in sorted(folder.rglob("*")):
            if path.is_file() and not set(MADE) & set(path.relative_to(folder).parts):
                yield path


def _digest(language: Language) -> str:
    digest = hashlib.sha256(repr(language.build).encode())
    for path in _sources(language):
        content = path.read_bytes()
        digest.update(f"{path.relative_to(ROOT)} {len(content)}\n".encode() + content)
    return digest.hexdigest()[:16]


def _build(language: Language, made: Path) -> None:
    for path in _sources(language):
        copy = made / path.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, copy)
    folder = made / "examples" / language.name
    environment = clean_environment({"PATH": _path(folder), "GOBIN": str(folder / "build")})
    for command in language.build:
        done = subprocess.run(
            command,
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=BUILD_S,
            check=False,
        )
        assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout[-_SHOWN_CHARACTERS:]}"


def _path(folder: Path) -> str:
    """What the build made, then buf of this environment, then what is there."""
    return f"{folder / 'build'}:{Path(sys.executable).parent}:{os.environ['PATH']}"


def main() -> None:
    """Builds all programs whose tool chains are there; says how long each took."""
    for language in LANGUAGES.values():
        started_s = _clock.monotonic_s()
        try:
            said = str(built(language))
        except Unavailable as error:
            said = str(error)
        print(f"{language.name}: {said} ({_clock.monotonic_s() - started_s:.0f} s)")


if __name__ == "__main__":
    main()
