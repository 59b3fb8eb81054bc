"""Pages as the tests see them: fenced blocks with what the text around them says about running them.

A block is run unless an HTML comment right before it says `<!-- not run: reason -->`. `<!-- Ctrl-C -->` stops the page's service.
`<!-- file: path -->` says that the block is that file of the repository; `python -m tests.docs.tables` writes it there.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]

COMMANDS = ("sh", "console", "python")
"""Languages whose blocks are run."""

CTRL_C = "Ctrl-C"
"""The language of the pseudo-block that stops the service."""

_FENCE = re.compile(r"^\s*```\s*(\S*)\s*$")
_COMMENT = re.compile(r"^\s*<!-- (?:not run: (?P<not_run>.+)|file: (?P<file>\S+)|(?P<ctrl_c>Ctrl-C)) -->\s*$")


class Block(NamedTuple):
    """One fenced block."""

    line: int
    language: str
    text: str
    not_run: str  # why; empty for a block that is run
    file: str = ""  # of the repository, that the block shows whole


def blocks(page: Path) -> Iterator[Block]:
    """The fenced blocks of a page in order, and where its service is stopped."""
    inside: list[str] | None = None
    language, first, reason, file = "", 0, "", ""
    for number, line in enumerate(page.read_text("utf-8").splitlines(), 1):
        fence = _FENCE.match(line)
        if inside is not None:
            if fence:
                yield Block(first, language, "\n".join(inside) + "\n", reason, file)
                inside, reason, file = None, "", ""
            else:
                inside.append(line)
        elif fence:
            inside, language, first = [], fence[1], number
        elif comment := _COMMENT.match(line):
            reason, file = comment["not_run"] or "", comment["file"] or ""
            if comment["ctrl_c"]:
                yield Block(number, CTRL_C, "", "")
        elif line.strip():
            reason, file = "", ""


CLUSTER_BACKUP = (("cluster.md", "nodetool snapshot"), ("cluster.md", "nodetool import"))
"""The backup of a cluster and its restoration: pages with a word of the block. tests/engines/test_backup.py runs them."""

POD_BACKUP = (("kubernetes.md", "-cf - backup"), ("kubernetes.md", "name: restore"))
"""The same of an embedded pod. tests/deploy holds what they name against the chart."""


def block_of(page: str, word: str) -> Block:
    """The one block of a page in docs/ in which the word occurs."""
    (found,) = (block for block in blocks(ROOT / "docs" / page) if word in block.text)
    return found


_SHOWN = re.compile(r"(?P<head>^<!-- file: (?P<file>\S+) -->\n```\S+\n).*?(?P<end>^```$)", re.MULTILINE | re.DOTALL)


def with_files(text: str) -> str:
    """A page with the blocks that show files as those are now."""
    return _SHOWN.sub(lambda block: block["head"] + (ROOT / block["file"]).read_text("utf-8") + block["end"], text)


class Command(NamedTuple):
    """One command of a console block with the output that the page shows."""

    command: str
    output: str


def commands(block: Block) -> list[Command]:
    """What a console block shows: lines that begin with `$ ` are typed, the others are printed."""
    found: list[Command] = []
    for line in block.text.splitlines():
        if line.startswith("$ "):
            found.append(Command(line.removeprefix("$ "), ""))
        elif found:
            found[-1] = found[-1]._replace(output=found[-1].output + line + "\n")
        else:
            raise ValueError(f"line {block.line}: a console block begins with `$ `")
    return found


_VARYING = (
    (re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z"), "TIME"),
    (re.compile(r"[\d,.]+ (?=a second|s\b)"), "NUMBER "),
)


def matches(shown: str, printed: str) -> bool:
    """Whether output is what a page shows: `...` stands for anything; times, rates and durations and the width of gaps are not compared."""
    for pattern, name in _VARYING:
        shown, printed = pattern.sub(name, shown), pattern.sub(name, printed)
    parts = [re.escape(" ".join(part.split())) for part in shown.split("...")]
    return re.fullmatch(r".*?".join(parts), " ".join(printed.split()), re.DOTALL) is not None
