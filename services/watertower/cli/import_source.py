"""Rows of an import file, read as a stream: bounded memory, whatever the file holds.

A row of a csv usually is one line, but a quoted field may hold line ends. A row of ndjson is one line. Blank lines are skipped. What
cannot be read as a row is a row with a reason.
"""

import csv
import gzip
import io
import json
import zlib
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, TypeAlias

from watertower.cli.output import CommandFailed, usage

LINE_BYTES_MAX = 65_536
"""Bytes of one line, its end included, and of one csv row of several lines; a longer one is rejected."""

REJECTED_BYTES_KEPT = 1_024
"""Bytes of a line over the limit that the rejects file shows."""

COLUMNS_SHOWN = 20
"""Columns of a file that a message names, at most."""

_READ_BYTES = 1_048_576
_GZIP_MAGIC = b"\x1f\x8b"

FORMATS = {".csv": "csv", ".ndjson": "ndjson", ".jsonl": "ndjson"}
"""File endings (before `.gz`) and what they mean."""

_Line: TypeAlias = tuple[int, int, bytes, bool]
"""(number from 1, offset of its end in the uncompressed file, bytes, longer than LINE_BYTES_MAX)"""

Values: TypeAlias = tuple[str, str, str, str]
"""(actor, subject, ref, time), as they stand in the row; ref and time are empty where there is none."""


class Row(NamedTuple):
    """One row: its values, or the reason why it has none."""

    line: int  # number of its first line, from 1
    last_line: int
    end: int  # offset in the uncompressed file where the next row starts
    raw: bytes
    values: Values | None
    reason: str


class Columns(NamedTuple):
    """Where a row's values are: names of columns (csv) or of keys (ndjson); None takes the default, which is the field's own name."""

    actor: str | None = None
    subject: str | None = None
    ref: str | None = None
    time: str | None = None


class Damaged(CommandFailed):
    """The file cannot be read to its end."""


def format_of(path: Path) -> str:
    """`csv` or `ndjson`, from the name. Raises CommandFailed (usage) for another ending."""
    suffixes = [s.lower() for s in path.suffixes]
    if suffixes and suffixes[-1] == ".gz":
        suffixes.pop()
    if not suffixes or suffixes[-1] not in FORMATS:
        raise usage(f"{path}: the name must end in {', '.join(FORMATS)} (or that and .gz)")
    return FORMATS[suffixes[-1]]


class Source:
    """An open import file."""

    def __init__(
        self, path: Path, columns: Columns, needs_ref: bool, header: bool = True, note: Callable[[str], object] = lambda text: None
    ) -> None:
        """`note` hears how a header was understood that does not name the columns as they are called here."""
        self._path = path
        self._note = note
        self._format = format_of(path)
        self._columns = columns
        self._needs_ref = needs_ref
        self._header = header
        self._raw = path.open("rb")
        packed = path.suffix.lower() == ".gz"
        if (self._raw.peek(len(_GZIP_MAGIC))[: len(_GZIP_MAGIC)] == _GZIP_MAGIC) != packed:
            self._raw.close()
            if packed:
                raise CommandFailed(f"{path} is no gzip file: name it without .gz, if it is not compressed")
            raise CommandFailed(f"{path} is compressed with gzip: give it a name that ends in .gz")
        unpacked: Any = gzip.GzipFile(fileobj=self._raw) if packed else self._raw
        self._stream: BinaryIO = io.BufferedReader(unpacked, _READ_BYTES)

    def consumed_bytes(self) -> int:
        """How much of the file, as it lies on the disk, was read."""
        return self._raw.tell()

    def rows(self, offset: int = 0, line: int = 0) -> Iterator[Row]:
        """The rows, from the first one or right after (`offset`, `line`): the `end` and `last_line` of an earlier row.

        Raises CommandFailed when the file is damaged or has no such columns.
        """
        try:
            lines = self._lines()
            if self._format == "csv":
                parse = self._csv_columns(lines)
                yield from _csv_rows(self._from(lines, offset, line), parse)
            else:
                yield from self._ndjson_rows(self._from(lines, offset, line))
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise Damaged(f"{self._path} is damaged: {error}") from error

    def close(self) -> None:
        self._stream.close()
        self._raw.close()

    def _lines(self, offset: int = 0, number: int = 0) -> Iterator[_Line]:
        readline = self._stream.readline
        while raw := readline(LINE_BYTES_MAX + 1):
            number += 1
            offset += len(raw)
            if len(raw) <= LINE_BYTES_MAX:
                yield number, offset, raw, False
                continue
            kept = raw[:REJECTED_BYTES_KEPT]
            while raw and not raw.endswith(b"\n"):
                raw = readline(LINE_BYTES_MAX)
                offset += len(raw)
            yield number, offset, kept, True

    def _from(self, lines: Iterator[_Line], offset: int, number: int) -> Iterator[_Line]:
        if not offset:
            return lines
        self._stream.seek(offset)
        return self._lines(offset, number)

    def _csv_columns(self, lines: Iterator[_Line]) -> Callable[[list[str]], Values]:
        """Reads the header and returns what picks a row's values; it raises IndexError for a row that is too short."""
        if self._header:
            numbers = self._numbers_by_name(next(lines, None))
        else:
            wanted = self._columns
            if not all(name is None or (name.isascii() and name.isdigit() and name != "0") for name in wanted):
                raise usage("with --no-header, columns are given by number, from 1")
            # The first two columns, and for comments the third one, unless others are named.
            defaults = [1, 2, 3 if self._needs_ref else 0, 0]
            numbers = [default if name is None else int(name) for name, default in zip(wanted, defaults, strict=True)]
        actor, subject, ref, time = (number - 1 for number in numbers)

        def pick(fields: list[str]) -> Values:
            return fields[actor], fields[subject], fields[ref] if ref >= 0 else "", fields[time] if time >= 0 else ""

        return pick

    def _numbers_by_name(self, first: _Line | None) -> list[int]:
        """The number, from 1, of each wanted column in the header; 0 for one that is not wanted.

        By name; a header that has none of the names, where no option gives any, is taken by place, and that is said: a file without a
        header loses its first row this way."""
        if first is None or first[3]:
            raise CommandFailed(f"{self._path}: the first line must name the columns (or use --no-header)")
        text = first[2].decode("utf-8-sig", "replace").rstrip("\r\n")
        try:
            names = next(csv.reader([text]), [])
        except csv.Error as error:
            said = "its lines end with CR alone, write them with LF" if "\r" in text else str(error)
            raise CommandFailed(f"{self._path}: the first line is no valid csv: {said}") from error
        defaults = Columns("actor", "subject", "ref" if self._needs_ref else None)
        wanted = [default if name is None else name for name, default in zip(self._columns, defaults, strict=True)]
        needed = [name for name in defaults if name is not None]
        if not any(self._columns) and not any(name in names for name in needed) and len(names) >= len(needed):
            taken = ", ".join(f"{found!r} as {name}" for found, name in zip(names, needed, strict=False))
            self._note(
                f"{self._path} names no columns {' and '.join(needed)}: taken by place, {taken} (--actor-column and its like name others)"
            )
            return [1, 2, 3 if self._needs_ref else 0, 0]
        missing = [name for name in wanted if name is not None and name not in names]
        if missing:
            said = f"the first line of {self._path} names no column {missing[0]!r}; it has {', '.join(map(repr, names[:COLUMNS_SHOWN]))}"
            for separator in (";", "\t", "|"):
                if len(names) == 1 and separator in text:
                    raise usage(f"{said}: columns must be separated by commas, and here seem to be by {separator!r}")
            options = ", ".join(f"--{field}-column" for field in ("actor", "subject", *(["ref"] if self._needs_ref else [])))
            raise usage(f"{said}: name the columns with {options}, or say --no-header if that line is a row")
        return [0 if name is None else names.index(name) + 1 for name in wanted]

    def _ndjson_rows(self, lines: Iterator[_Line]) -> Iterator[Row]:
        actor, subject, ref = self._columns.actor or "actor", self._columns.subject or "subject", self._columns.ref or "ref"
        time = self._columns.time
        for number, end, raw, too_long in lines:
            if too_long:
                yield _too_long(number, end, raw)
                continue
            if not raw.strip():
                continue
            values, reason = None, ""
            try:
                found = json.loads(raw.decode("utf-8-sig" if number == 1 else "utf-8"))
                if not isinstance(found, dict):
                    reason = "is no JSON object"
                else:
                    # A ref of null or absent is no ref: most kinds have none.
                    of_ref = "" if found.get(ref) is None else _text(found, ref)
                    values = (_text(found, actor), _text(found, subject), of_ref, _text(found, time) if time else "")
            except _NoText as error:
                reason = str(error)
            except UnicodeDecodeError:
                reason = "is not valid UTF-8"
            except (ValueError, RecursionError):
                reason = "is no valid JSON"
            yield Row(number, number, end, raw, values, reason)


class _NoText(Exception):
    pass


def _text(row: dict[str, Any], key: str) -> str:
    value = row.get(key)
    if isinstance(value, str):
        return value
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    raise _NoText(f"{key}: must be a string or a number" if key in row else f"has no {key!r}")


def _too_long(number: int, end: int, raw: bytes) -> Row:
    return Row(number, number, end, raw, None, f"line is longer than {LINE_BYTES_MAX} bytes")


def _csv_rows(lines: Iterator[_Line], pick: Callable[[list[str]], Values]) -> Iterator[Row]:
    put_back: deque[_Line] = deque()
    while (line := put_back.popleft() if put_back else next(lines, None)) is not None:
        number, end, raw, too_long = line
        if too_long:
            yield _too_long(number, end, raw)
            continue
        last = number
        values, reason = None, ""
        try:
            text = raw.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
            if not text:
                continue
            if '"' not in text:
                fields = text.split(",")
            else:
                if text.count('"') % 2:
                    # A quoted field that goes on in the next lines, or a stray quotation mark.
                    more = _joined(line, lines, put_back)
                    if more is not None:
                        last, end, raw = more
                        text = raw.decode().rstrip("\r\n")
                fields = next(csv.reader(io.StringIO(text, newline=""), strict=True))
            values = pick(fields)
        except UnicodeDecodeError:
            reason = "is not valid UTF-8"
        except csv.Error as error:
            reason = f"is no valid csv: {error}"
        except IndexError:
            reason = f"has only {len(fields)} columns"
        yield Row(number, last, end, raw, values, reason)


def _joined(first: _Line, lines: Iterator[_Line], put_back: "deque[_Line]") -> tuple[int, int, bytes] | None:
    """The row that starts with a line of an odd number of quotation marks: (last line, end, bytes). None, and nothing is consumed,
    when the line stands for itself or no end is found within LINE_BYTES_MAX: one stray mark must not swallow the rows behind it."""
    try:
        next(csv.reader([first[2].decode()], strict=True))
    except csv.Error:
        pass
    else:
        return None
    taken: list[_Line] = []
    size = len(first[2])
    while (line := put_back.popleft() if put_back else next(lines, None)) is not None:
        taken.append(line)
        size += len(line[2])
        if line[3] or size > LINE_BYTES_MAX:
            break
        if line[2].count(b'"') % 2:
            return line[0], line[1], first[2] + b"".join(t[2] for t in taken)
    put_back.extendleft(reversed(taken))
    return None
