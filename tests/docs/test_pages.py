"""Every command and every program in the pages is run as it stands, and prints what the page shows."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import unquote

import pytest

from tests.docs.pages import (
    CLUSTER_BACKUP,
    COMMANDS,
    CTRL_C,
    PAGES,
    ROOT,
    Block,
    block_of,
    blocks,
    commands,
    matches,
    with_files,
)
from tests.languages.programs import GRPCURL
from watertower.testing.engines import unique_name

CLUSTER_BY_HAND = """\
deploy/test-cluster/build.sh
deploy/test-cluster/up.sh
deploy/test-cluster/images.sh       # again after a change of the service
. deploy/test-cluster/env.sh        # kubectl on the path
deploy/test-cluster/down.sh         # KEEP=1 keeps what is in it for the next up.sh"""

NOT_RUN = {
    "make setup": "makes the environment in which the tests run",
    "make test": "would run itself",
    "make check": "would run itself",
    "make up": "tests/engines/test_compose.py runs it",
    "make down": "tests/engines/test_compose.py runs it",
    "make load": "tests/engines/test_compose.py runs it, smaller",
    "docker compose --profile load up --build --exit-code-from load load\n"
    "docker compose --profile load cp load:/report/. load-report": "make load does, and tests/engines/test_compose.py runs that",
    'LOAD_SCENARIO=steady LOAD_ARGS="--seconds 60 --rate 100 --threshold read.p99_ms=2000 '
    '--threshold write.p99_ms=2000 --threshold generator.late_p99_ms=500" make load': "tests/engines/test_compose.py runs it, smaller",
    ".venv/bin/python -m watertower.testing.engines kafka cassandra": "runs until Ctrl-C; tests/engines/test_providers.py runs it",
    "make debut-cluster": "a million follows take minutes; tests/engines/test_main_job.py counts on both engines",
    "make kubernetes": "takes minutes, as root",
    "make autoscale": "takes minutes, as root",
    CLUSTER_BY_HAND: "tests/kubernetes runs the scripts",
    **{block_of(*place).text.strip(): "tests/engines/test_backup.py runs it" for place in CLUSTER_BACKUP},
    "make bench": "takes minutes; its figures are not asserted",
    "python -m benchmarks.cluster figures\npython -m benchmarks.cassandra_counters": "take minutes; their figures are not asserted",
    "python -m benchmarks.cassandra_cold": "starts a node; its figures are not asserted",
    "python -m benchmarks.abuse --no-autogroup": "takes minutes; its figures are not asserted",
    "python -m benchmarks.tower": "takes minutes; its figures are not asserted",
    "python -m benchmarks.gets": "needs Go; its figures are not asserted",
    "make simulate": "takes most of an hour; tests/simulation runs a slice",
    "make chart": "builds helm; .ci/run does the same in its parts",
    "make stubs": "writes into the tree; tests/docs/test_add_a_kind.py generates stubs in a copy",
    "cd examples/go\ngo generate .\ngo run .": "tests/languages runs it",
    "cd examples/java\nmvn package\njava -jar target/follow.jar": "tests/languages runs it",
    "cd examples/typescript\nnpm ci --ignore-scripts\nnpm run build\nnpm start": "tests/languages runs it",
    f"go install {GRPCURL}\nexamples/grpcurl/follow.sh": "tests/languages runs it",
    "python -m tests.docs.tables": "writes into the tree; test_reference.py compares",
}
"""Commands that pages may show without their being run here, and why."""

LENIENT = "--threshold read.p99_ms=off --threshold generator.late_p99_ms=off"
LENIENT_TO_WRITES = f"{LENIENT} --threshold write.p99_ms=off"
"""The machine of the tests does other things as well."""

REDUCED = {
    "make debut": "watertower debut --followers 20000 --seed 7",
    "watertower load steady --seconds 5 --report steady": f"watertower load steady --seconds 2 --report steady {LENIENT_TO_WRITES}",
    'watertower load debut --followers 1000 --times 100 --json | grep -o \'"verdict": "pass"\'': (
        f'watertower load debut --followers 1000 --times 100 --json {LENIENT_TO_WRITES} | grep -o \'"verdict": "pass"\''
    ),
    "watertower load read-storm --seconds 5 --threshold read.p99_ms=200 --threshold read.p999_ms=500": (
        f"watertower load read-storm --seconds 2 --threshold read.p999_ms=60000 {LENIENT}"
    ),
}
"""Commands that are run here in a smaller form."""

READY_S, COMMAND_S = 60.0, 240.0
DEFAULTS = {"write": "127.0.0.1:50051", "read": "127.0.0.1:50052"}
ENGINES = {"kafka": "127.0.0.1:29192", "cassandra": "127.0.0.1:29042"}
"""Where pages look for the engines; what stands in their place here are those of the run."""

IDS = [str(page.relative_to(ROOT)) for page in PAGES]


class Terminals:
    """A folder in which a page's blocks are run in order: commands in one terminal, `watertower serve` in another.

    A page is followed as it stands but for the ports: the service takes free ones (settings from the environment), the commands know them
    from the environment, and in programs the two default addresses are replaced. What a block exports as WATERTOWER_ stays, in both
    terminals.
    """

    def __init__(self, folder: Path, engines: Mapping[str, str] | None = None) -> None:
        """`engines`: where those of ENGINES are."""
        self._folder = folder
        self._service: subprocess.Popen[bytes] | None = None
        self.targets = dict(DEFAULTS)
        self._engines = engines or {}
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("WATERTOWER_")}
        self._environment = {
            **inherited,
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "WATERTOWER_WRITE_PORT": "0",
            "WATERTOWER_READ_PORT": "0",
            "NO_COLOR": "1",
        }
        if engines:  # shared with other tests
            name = unique_name("page")
            self._environment |= {"WATERTOWER_KAFKA_PREFIX": name, "WATERTOWER_CASSANDRA_KEYSPACE": name}

    def run(self, block: Block) -> None:
        """Runs a block and compares what it prints, if the page shows that."""
        if block.language == CTRL_C:
            self.stop_service()
        elif block.language == "python":
            program = self._folder / "program.py"
            program.write_text(self._addressed(block.text), "utf-8")
            self._bash(f"python {program.name}", 0)
        elif block.language == "console":
            for command, shown in commands(block):
                # A command may fail if the page shows how.
                printed = self._serve(command) if command.startswith("watertower serve") else self._bash(command, None)
                assert matches(self._addressed(shown), printed), f"{command}\n--- the page shows\n{shown}\n--- printed\n{printed}"
        elif block.text.startswith("watertower serve"):
            self._serve(block.text.strip())
        else:
            self._bash(REDUCED.get(block.text.strip(), block.text), 0)

    def stop_service(self) -> None:
        """Ctrl-C: the service ends well."""
        service, self._service = self._service, None
        if service is None:
            return
        service.send_signal(signal.SIGINT)
        try:
            code = service.wait(READY_S)
        finally:
            service.kill()
            service.wait()
        assert code == 0

    def _serve(self, command: str) -> str:
        """Starts the service; what it prints when it is ready."""
        assert self._service is None, "the page starts a service while one runs"
        said, log = self._folder / "service.out", self._folder / "service.log"
        with said.open("w") as out, log.open("w") as err:
            self._service = subprocess.Popen(command.split(), cwd=self._folder, env=self._environment, stdout=out, stderr=err)
        deadline = time.monotonic() + READY_S
        while "is ready" not in (printed := said.read_text("utf-8")) and self._service.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
        found = re.search(r"writes at (\S+), reads at (\S+),", printed)
        assert found, printed + log.read_text("utf-8")
        self.targets = {"write": found[1], "read": found[2]}
        self._environment |= {"WATERTOWER_WRITE_TARGET": found[1], "WATERTOWER_READ_TARGET": found[2]}
        return printed

    def _bash(self, command: str, expected_code: int | None) -> str:
        """Runs commands to their end; both outputs, as a terminal shows them."""
        for name, address in self._engines.items():
            command = command.replace(ENGINES[name], address)
        kept = self._folder / ".exported"
        keeping = f"{command}\nenv --null > {kept}" if expected_code == 0 else command
        done = subprocess.run(
            ["bash", "-eu", "-o", "pipefail", "-c", keeping] if expected_code == 0 else ["bash", "-c", command],
            cwd=self._folder,
            env=self._environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=COMMAND_S,
            check=False,
        )
        assert expected_code is None or done.returncode == expected_code, f"{command}\n{done.stdout}"
        if expected_code == 0:
            exported = dict(line.split("=", 1) for line in kept.read_text("utf-8").split("\0") if line.startswith("WATERTOWER_"))
            self._environment |= exported
        return done.stdout

    def _addressed(self, text: str) -> str:
        for side, default in DEFAULTS.items():
            text = text.replace(default, self.targets[side])
        return text


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_every_command_and_program_runs(page: Path, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """In order, in one new folder a page, against a real service where the page starts one, and real engines where it uses some."""
    engines = {}
    if any(address in page.read_text("utf-8") for address in ENGINES.values()):
        engines["kafka"] = request.getfixturevalue("kafka_engine").bootstrap_servers
        engines["cassandra"] = request.getfixturevalue("cassandra_engine").contact_points
    terminals = Terminals(tmp_path, engines)
    try:
        for block in blocks(page):
            if block.language in (*COMMANDS, CTRL_C) and (not block.not_run or block.text.strip() in REDUCED):
                try:
                    terminals.run(block)
                except AssertionError as error:
                    raise AssertionError(f"{page.name}, line {block.line}: {error}") from error
    finally:
        terminals.stop_service()


def test_what_is_not_run_is_known() -> None:
    """A block can be left out only by name, with a reason in the page and here."""
    left_out = [block for page in PAGES for block in blocks(page) if block.not_run and block.language in COMMANDS]
    elsewhere = ("test_add_a_kind.py runs it", "tests/kubernetes runs it")
    commands_left_out = {block.text.strip() for block in left_out if not any(where in block.not_run for where in elsewhere)}
    assert commands_left_out <= set(NOT_RUN) | set(REDUCED)
    assert set(REDUCED) <= commands_left_out


def test_what_the_cluster_runs_is_run_there() -> None:
    """A block of which the page says that tests/kubernetes runs it is named in a test of that folder by a part of it."""
    sources = "".join(path.read_text("utf-8") for path in (ROOT / "tests" / "kubernetes").glob("test_*.py"))
    parts = re.findall(r"""(?:page_block|here)\(["'](.+?)["']\)""", sources)
    said = [block for block in blocks(ROOT / "docs" / "kubernetes.md") if "tests/kubernetes runs it" in block.not_run]
    assert len(said) > 5
    assert [block.text for block in said if not any(part in block.text for part in parts)] == []


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_blocks_say_what_they_are(page: Path) -> None:
    """A block without a language, or with another one, would be a command that nobody runs."""
    assert {block.language for block in blocks(page) if not block.file} <= {*COMMANDS, CTRL_C, "diff", "text", "proto"}
    assert not {block.language for block in blocks(page) if block.file} & {*COMMANDS, ""}


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_files_are_shown_as_they_are(page: Path) -> None:
    """A reader of the page gets the program that the tests run."""
    text = page.read_text("utf-8")
    assert with_files(text) == text, "run: python -m tests.docs.tables"
    assert all(block.text == (ROOT / block.file).read_text("utf-8") for block in blocks(page) if block.file)


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_links_and_pictures_resolve(page: Path) -> None:
    """Every relative link leads to a file, and to a heading of it where it names one."""
    text = re.sub(r"^```.*?^```", "", page.read_text("utf-8"), flags=re.DOTALL | re.MULTILINE)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = unquote(target).partition("#")
        found = (page.parent / path) if path else page
        assert found.exists(), target
        if anchor:
            assert anchor in _anchors(found), target


def test_every_page_can_be_reached_from_the_readme() -> None:
    """A page that nothing links to is a page that nobody reads."""
    reached, waiting = set[Path](), [ROOT / "README.md"]
    while waiting:
        page = waiting.pop()
        if page in reached or page.suffix != ".md" or not page.exists():
            continue
        reached.add(page)
        waiting += [(page.parent / target).resolve() for target in re.findall(r"\]\(([^)#\s]+)", page.read_text("utf-8"))]
    assert [page for page in PAGES if page.resolve() not in {found.resolve() for found in reached}] == []


def test_pictures_show_no_machine() -> None:
    """A recorded screen has no paths, hosts or users in it, and loads nothing from elsewhere."""
    for picture in (ROOT / "docs" / "images").glob("*.svg"):
        text = picture.read_text("utf-8")
        assert not re.search(r"/(home|root|tmp|work|Users)/|https?://(?!www\.w3\.org/)|@font-face", text), picture.name


def _anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text("utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
