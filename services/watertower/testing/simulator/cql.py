"""As much of CQL as the back end for Cassandra prepares, on tables with one column beside the key: read by the text of the statements and
of the shipped migrations, so that a statement that is not understood is refused instead of simulated wrongly.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from itertools import product
from typing import Any, NamedTuple, TypeAlias

from watertower.backends.cassandra_schema import shipped
from watertower.testing.simulator.cluster import Cell, Partition, Write

Row: TypeAlias = tuple[Any, ...]


class NotUnderstood(Exception):
    """The text of a statement or of a table that this module cannot read."""


class Table(NamedTuple):
    """One table. A row is a cell: key and value are its clustering columns and its one other column, which is never deleted alone."""

    name: str
    types: dict[str, str]
    partition: tuple[str, ...]
    clustering: tuple[str, ...]
    descending: frozenset[str]
    value: str

    def decoded(self, column: str, value: bytes) -> Any:
        """A value as it is bound to a mutation."""
        kind = self.types[column]
        if kind == "blob":
            return value
        return value.decode() if kind == "text" else int.from_bytes(value, "big", signed=True)

    def decoded_list(self, columns: Sequence[str], value: bytes) -> list[Any]:
        """A value of `column IN ?`, or, of tuples, `(column, column) IN ?`."""
        items = _parts(value[4:])
        if len(columns) == 1:
            return [self.decoded(columns[0], item) for item in items]
        return [tuple(map(self.decoded, columns, _parts(item))) for item in items]

    def place(self, key: Row) -> tuple[Any, ...]:
        """Orders the rows of a partition. Text is in order of code points, which is that of UTF-8's bytes; a column that descends is a
        number."""
        return tuple(-value if column in self.descending else value for column, value in zip(self.clustering, key, strict=True))


def _parts(data: bytes) -> list[bytes]:
    """What lies one behind the other, each after its length in four bytes."""
    parts, at = [], 0
    while at < len(data):
        end = at + 4 + int.from_bytes(data[at : at + 4], "big")
        parts.append(data[at + 4 : end])
        at = end
    return parts


@cache
def tables() -> dict[str, Table]:
    """The shipped ones, by name."""
    found = {}
    for migration in shipped():
        for statement in migration.statements:
            match = re.fullmatch(r"CREATE TABLE IF NOT EXISTS (\w+) \((.+?)\n\)(.*)", statement, re.DOTALL)
            if match is None:
                raise NotUnderstood(statement)
            found[match[1]] = _table(match[1], match[2], match[3])
    return found


def _table(name: str, columns: str, options: str) -> Table:
    types: dict[str, str] = {}
    partition: tuple[str, ...] = ()
    clustering: tuple[str, ...] = ()
    for line in filter(None, (line.strip().rstrip(",") for line in columns.splitlines())):
        if key := re.fullmatch(r"PRIMARY KEY \(\((.+?)\)(?:, (.+))?\)", line):
            partition, clustering = tuple(key[1].split(", ")), tuple((key[2] or "").split(", ")) if key[2] else ()
        elif column := re.fullmatch(r"(\w+) (text|blob|tinyint|smallint|int|bigint)( PRIMARY KEY)?", line):
            types[column[1]] = column[2]
            if column[3]:
                partition = (column[1],)
        else:
            raise NotUnderstood(f"{name}: {line}")
    others = types.keys() - {*partition, *clustering}
    if len(others) != 1:
        raise NotUnderstood(f"{name} has not one column beside its key, but {sorted(others)}")
    return Table(name, types, partition, clustering, frozenset(re.findall(r"(\w+) DESC", options)), others.pop())


_COMPARE: dict[str, Callable[[Any, Any], bool]] = {
    "=": lambda found, asked: bool(found == asked),
    ">=": lambda found, asked: bool(found >= asked),
    ">": lambda found, asked: bool(found > asked),
    "<": lambda found, asked: bool(found < asked),
    "IN": lambda found, asked: found in asked,
}


class _Condition(NamedTuple):
    """`columns compare value`; the value is a literal or comes from so many bound values."""

    columns: tuple[str, ...]
    compare: str
    bound: int  # values that it takes
    literal: int = 0

    def value(self, values: Iterator[Any], table: Table) -> Any:
        if not self.bound:
            return self.literal
        taken = tuple(next(values) for _ in range(self.bound))
        if self.compare == "IN" and isinstance(taken[0], bytes):
            taken = (table.decoded_list(self.columns, taken[0]),)
        value = taken if self.bound > 1 or (len(self.columns) > 1 and self.compare != "IN") else taken[0]
        return {*map(tuple, value)} if self.compare == "IN" and len(self.columns) > 1 else value


class Asked(NamedTuple):
    """What a bound SELECT reads of one partition."""

    partition: Partition
    matches: Callable[[Row], bool]
    limit: int | None


class Prepared:
    """A statement, as the driver gives it to who prepares it."""

    def __init__(self, query: str, page_rows: int | None = None) -> None:
        """Raises NotUnderstood."""
        self.query_id = query.encode()
        self.page_rows = page_rows
        text = query.replace("{keyspace}.", "")
        self._select = re.fullmatch(r"SELECT (?P<columns>.+) FROM (?P<table>\w+)(?: WHERE (?P<where>.+?))?(?P<limit> LIMIT \?)?", text)
        self._insert = re.fullmatch(r"INSERT INTO (?P<table>\w+) \((?P<columns>.+?)\) VALUES \((?P<values>.+)\) USING TIMESTAMP \?", text)
        self._delete = re.fullmatch(r"DELETE FROM (?P<table>\w+) USING TIMESTAMP \? WHERE (?P<where>.+)", text)
        match = self._select or self._insert or self._delete
        if match is None:
            raise NotUnderstood(query)
        self.table = tables()[match["table"]]
        self.columns: Sequence[str] = () if self._delete else match["columns"].split(", ")
        self._literals = _literals(self.columns, match["values"].split(", ")) if self._insert else {}
        self._conditions = [] if self._insert or not match["where"] else [_condition(one) for one in match["where"].split(" AND ")]

    def bind(self, values: Sequence[Any]) -> "Bound":
        return Bound(self, values)

    def write(self, values: Sequence[bytes]) -> Write:
        """The mutation that an INSERT or a DELETE with these values is."""
        table, value = self.table, None
        if self._insert:
            bound = [column for column in self.columns if column not in self._literals]
            row = self._literals | {column: table.decoded(column, one) for column, one in zip(bound, values[:-1], strict=True)}
            value, timestamp = row[table.value], values[-1]
        else:
            names = [condition.columns[0] for condition in self._conditions]
            row = {column: table.decoded(column, one) for column, one in zip(names, values[1:], strict=True)}
            timestamp = values[0]
        cell: Cell = (int.from_bytes(timestamp, "big", signed=True), value)
        return Write((table.name, tuple(row[c] for c in table.partition)), tuple(row[c] for c in table.clustering), cell)

    def asked(self, values: Sequence[Any], all_partitions: Sequence[Partition]) -> Iterator[Asked]:
        """Of each partition that a SELECT with these values names; of `all_partitions` where it names none."""
        if self._select is None:
            raise NotUnderstood(f"not a SELECT: {self.query_id.decode()}")
        table, remaining = self.table, iter(values)
        of_partition: dict[str, Sequence[Any]] = {}
        tests: list[tuple[list[int], Callable[[Any, Any], bool], Any, bool]] = []
        for condition in self._conditions:
            value = condition.value(remaining, table)
            if condition.columns[0] in table.partition:
                of_partition[condition.columns[0]] = value if condition.compare == "IN" else [value]
            else:
                places = [table.clustering.index(column) for column in condition.columns]
                tests.append((places, _COMPARE[condition.compare], value, len(places) > 1))

        def matches(key: Row) -> bool:
            return all(
                compare(tuple([key[place] for place in places]) if several else key[places[0]], value)
                for places, compare, value, several in tests
            )

        limit = next(remaining) if self._select["limit"] else None
        if not of_partition:
            yield from (Asked(partition, matches, limit) for partition in all_partitions)
        for key in product(*(of_partition[column] for column in table.partition)) if of_partition else ():
            yield Asked((table.name, key), matches, limit)

    def projected(self, partition: Partition, key: Row, value: Any) -> Row:
        """A row, as the SELECT names its columns."""
        table = self.table
        row = dict(zip((*table.partition, *table.clustering, table.value), (*partition[1], *key, value), strict=True))
        return tuple(row[column] for column in self.columns)


class Bound:
    """A SELECT with its values."""

    def __init__(self, prepared: Prepared, values: Sequence[Any]) -> None:
        self.prepared, self.values = prepared, values
        self.consistency_level: int | None = None


def _literals(columns: Sequence[str], values: Sequence[str]) -> dict[str, Any]:
    """Those values of an INSERT that are in its text."""
    found: dict[str, Any] = {}
    for column, value in zip(columns, values, strict=True):
        if match := re.fullmatch(r"(\d+)|'([^']*)'", value):
            found[column] = match[2] if match[1] is None else int(match[1])
        elif value != "?":
            raise NotUnderstood(value)
    return found


def _condition(text: str) -> _Condition:
    match = re.fullmatch(r"(\(.+?\)|\w+) (=|IN|>=|>|<) (\?|\(\?(?:, \?)*\)|\d+)", text)
    if match is None:
        raise NotUnderstood(text)
    columns = tuple(match[1].strip("()").split(", "))
    if match[3].isdigit():
        return _Condition(columns, match[2], 0, int(match[3]))
    return _Condition(columns, match[2], match[3].count("?"))
