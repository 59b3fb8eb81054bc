"""Up to where the embedded log is applied: a small file that the projector writes and the log's writer reads.

It is a file of its own so that the log has a single writing process. It is replaced whole and never synced: what is lost with it is
only the knowledge that some records may be dropped.
"""

import json
from collections.abc import Mapping
from pathlib import Path

from watertower.errors import BackendUnavailable
from watertower.ports import LogIdentity


class CommitsFile:
    """The ends (inclusive offsets) by partition."""

    def __init__(self, path: Path, identity: LogIdentity) -> None:
        self._path = path
        self._identity = identity

    def read(self) -> dict[int, int]:
        """What was written last. Nothing where there is no file, or not a whole one, or one of another log."""
        try:
            content = json.loads(self._path.read_bytes())
            ends = {int(partition): int(end) for partition, end in content["ends"].items()}
            known = content["log_id"] == self._identity.log_id
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            return {}
        return {partition: end for partition, end in ends.items() if known and 0 <= partition < self._identity.partitions}

    def write(self, ends: Mapping[int, int]) -> None:
        """Adds to what was written before; an end never goes back. Raises BackendUnavailable."""
        merged = self.read()
        for partition, end in ends.items():
            merged[partition] = max(end, merged.get(partition, -1))
        unfinished = self._path.with_name(self._path.name + ".new")
        try:
            unfinished.write_text(json.dumps({"log_id": self._identity.log_id, "ends": merged}))
            unfinished.replace(self._path)
        except OSError as error:
            raise BackendUnavailable(f"the log's commits cannot be written: {error.strerror}") from error
