"""What a query process last held in memory, kept in a file for its next start: a restarted process is ready when that is loaded again."""

import os
from itertools import islice
from pathlib import Path

from structlog.typing import FilteringBoundLogger

from watertower.validation import ID_BYTES_MAX, id_violation

_HEAD = "watertower entities 1\n"


class WarmList:
    """A file of entities, one a line (an id has no line ends), after a line that says what it is. Losing it costs a slower start."""

    def __init__(self, path: Path, entities_max: int, log: FilteringBoundLogger) -> None:
        self._path, self._entities_max, self._log = path, entities_max, log

    def read(self) -> list[str]:
        """The entities; none where there is no such file, or it is another's. What is no id is left out."""
        try:
            with self._path.open(encoding="utf-8", newline="\n") as file:
                if file.readline(len(_HEAD)) != _HEAD:
                    raise ValueError("it does not begin as a list of entities does")
                lines = iter(lambda: file.readline(ID_BYTES_MAX + 1), "")
                found = [line.removesuffix("\n") for line in islice(lines, self._entities_max)]
        except FileNotFoundError:
            return []
        except (OSError, ValueError) as error:
            self._log.warning("warm_list_unreadable", path=str(self._path), error=str(error))
            return []
        return [entity for entity in found if id_violation(entity) is None]

    def write(self, entities: list[str]) -> None:
        """Replaces the file as a whole, so that a reader never finds half of it."""
        other = self._path.with_name(f"{self._path.name}.{os.getpid()}")  # of this process: several may share the file
        try:
            other.write_text(_HEAD + "".join(f"{entity}\n" for entity in entities[: self._entities_max]), encoding="utf-8", newline="\n")
            other.replace(self._path)
        except OSError as error:
            self._log.warning("warm_list_not_written", path=str(self._path), error=str(error))
