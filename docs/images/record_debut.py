"""Draws docs/images/debut.svg: runs `watertower debut` and takes what stands on the screen at its end.

.venv/bin/python docs/images/record_debut.py [options of `watertower debut`]
"""

import io
import re
import sys
from pathlib import Path
from unittest.mock import patch

import rich.console
from rich._export_format import CONSOLE_SVG_FORMAT
from rich.terminal_theme import MONOKAI

from watertower import cli

COLUMNS = 112
PICTURE = Path(__file__).with_name("debut.svg")

# The usual format fetches a font from elsewhere and names where it is from; the reader's own font will do.
FORMAT = re.sub(r"@font-face \{\{.*?\}\}\n|<!-- .*? -->\n", "", CONSOLE_SVG_FORMAT, flags=re.DOTALL).replace(
    "Fira Code", "ui-monospace, Menlo, Consolas"
)


def main() -> int:
    """Runs it, draws it if it was exact, returns its exit code."""
    console = rich.console.Console(record=True, width=COLUMNS, file=io.StringIO())  # prints nowhere and remembers
    with patch.object(rich.console, "Console", lambda: console):
        code = cli.run(["debut", *sys.argv[1:]])
    if code == 0:
        console.save_svg(str(PICTURE), title="make debut", theme=MONOKAI, code_format=FORMAT, unique_id="debut")
    return code


if __name__ == "__main__":
    sys.exit(main())
