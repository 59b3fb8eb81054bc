"""The worked example of docs/contributing.md works: applied to a copy of the tree, a SAVE is validated, counted, read and documented."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.docs.pages import ROOT, blocks

COPIED = (
    "services",
    "proto",
    "schemas",
    "tests",
    "deploy",
    "docs",
    "examples",
    "benchmarks",
    "README.md",
    "CHANGELOG.md",
    "pyproject.toml",
)
MADE = shutil.ignore_patterns("__pycache__", "*.egg-info", "node_modules", "target")

COUNTS_A_SAVE = """
from tests.core.histories import Happening, apply_all, records_of
from watertower import codec, validation
from watertower.cli.options import KIND_NAMES, METRIC_NAMES
from watertower.core.model import Kind, Metric
from watertower.ingest.events import events_of
from watertower.v1 import common_pb2, writer_pb2

presses = [Happening("ann", Kind.SAVE, "post", "", True, 1), Happening("bob", Kind.SAVE, "post", "", True, 2)]
presses += [Happening("bob", Kind.SAVE, "post", "", False, 3), *presses]
edges, counts, lists = apply_all(records_of(presses, [1, 2, 2]), [1, 3]).visible()
assert counts == {("post", Metric.SAVES): 1, ("ann", Metric.SAVED): 1}, counts
assert lists == [("post", Kind.SAVE, -1, "ann", "")], lists

request = writer_pb2.RecordEventsRequest()
event = request.events.add(actor="ann", kind=common_pb2.KIND_SAVE, subject="post", state=common_pb2.STATE_ACTIVE)
event.occurred_at.seconds = 1_714_564_800
(batch,) = events_of(request, 1, 1_714_564_801_000_000).values()
assert codec.decode_batch(codec.encode_batch(batch)).kinds == bytes([Kind.SAVE])

assert not validation.metrics_violations("metrics", [common_pb2.METRIC_SAVES, common_pb2.METRIC_SAVED])
assert KIND_NAMES["save"] is Kind.SAVE and METRIC_NAMES["saves"] is Metric.SAVES
print("counted")
"""


class Copy:
    """A copy of the tree, and its own Python path."""

    def __init__(self, path: Path) -> None:
        self.path = path
        for name in COPIED:
            source = ROOT / name
            if source.is_dir():
                shutil.copytree(source, path / name, symlinks=True, ignore=MADE)
            else:
                shutil.copy(source, path / name)

    def run(self, *command: str, stdin: str = "") -> str:
        """Runs a command there; fails with what it printed."""
        environment = {**os.environ, "PYTHONPATH": str(self.path / "services"), "GIT_CEILING_DIRECTORIES": str(self.path.parent)}
        done = subprocess.run(
            command, cwd=self.path, env=environment, input=stdin, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
        )
        assert done.returncode == 0, f"{' '.join(command[:4])}\n{done.stdout}"
        return done.stdout

    def python(self, *arguments: str) -> str:
        return self.run(sys.executable, *arguments)


@pytest.fixture(scope="module")
def changed(tmp_path_factory: pytest.TempPathFactory) -> Copy:
    """The tree after every step of the example, in its order."""
    copy = Copy(tmp_path_factory.mktemp("tree"))
    for block in blocks(ROOT / "docs" / "contributing.md"):
        if block.language == "diff":
            copy.run("git", "apply", "-", stdin=block.text)  # wherever its context is; lines may have moved
        elif block.language == "python":
            copy.python("-c", block.text)
        elif block.text.strip() == "make stubs":
            protos = sorted(str(path.relative_to(copy.path)) for path in (copy.path / "proto").rglob("*.proto"))
            out = [f"--{kind}_out=services" for kind in ("python", "pyi", "grpc_python")]
            copy.python("-m", "grpc_tools.protoc", "-I", "proto", *out, *protos)
    copy.python("-m", "tests.docs.tables")
    return copy


def test_a_save_is_counted(changed: Copy) -> None:
    """The fold, validation, the codec, the stubs and the command know the kind, with no other change than the page shows."""
    assert "counted" in changed.python("-c", COUNTS_A_SAVE)


def test_the_changed_tree_keeps_its_promises(changed: Copy) -> None:
    """The rules of the core, the golden examples and the reference hold with the new kind."""
    tests = ["tests/core/test_small_rules.py", "tests/core/test_codec.py", "tests/core/test_fold.py", "tests/docs/test_reference.py"]
    wanted = "golden or reference or small_rules or permutation or equal_active_edges"
    said = changed.python("-m", "pytest", "-q", "-p", "no:cacheprovider", *tests, "-k", wanted)
    assert " passed" in said
    assert "event_batch.v1.save" in changed.python(
        "-m", "pytest", "-q", "--collect-only", "-p", "no:cacheprovider", tests[1], "-k", "golden"
    )


def test_the_changed_api_is_clean(changed: Copy) -> None:
    """buf finds nothing to say about the new values."""
    changed.run(str(Path(sys.executable).parent / "buf"), "lint", "proto")
