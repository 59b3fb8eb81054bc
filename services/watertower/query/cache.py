"""The counts that are kept in memory. Pure: no clock, no I/O, no waiting; loader.py and tail.py drive it, and so can a simulator.

Three rules keep an entry right, whatever the order in which loads and feed messages reach it:

- It is registered before it is loaded. From then on the feed's messages are merged into it, also while the load is under way: what
  the load was too early to see, the feed brings.
- Both are merged per shard, and the newer position wins. Nothing is ever overwritten by something older, so no shard goes back.
- A gap in the feed starts a new epoch. An entry whose load began in an earlier epoch may lack what the gap held, and is loaded again
  before it is served.

Who drives it keeps two more: a load reads a view of the store that includes every message the cache was given before it began
(`ports.FeedReader.poll` promises it), and the claim of freshness moves past a message only after all of its entries were applied.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from heapq import nlargest
from typing import NamedTuple

from watertower.core.model import Metric, Shard
from watertower.ports import FeedMessage

APPLY_ENTRIES_MAX = 500
"""Entries of a feed message that are applied in one go; reads get their turn in between."""

REFRESH_SHARE = 0.2
"""The last part of an entry's age. An entry that is read in it is loaded again ahead, so that no caller has to wait for that."""

ENTRY_BYTES, SHARD_BYTES = 720, 150
"""What an entry takes, and each of its shards on top: bytes of CPython 3.11 to 3.13 on a 64-bit machine, the share of its dicts included
(a test measures both)."""

SPARED_MAX = 16
"""Entries that an eviction passes over because they were read: so many at most, for one insertion must not walk through all."""

NEVER_LOADED = -1
"""The epoch of an entry before its first load has finished."""

_METRIC_NUMBERS = max(Metric) + 1


class Entry:
    """The counts of one entity.

    It may leave the cache while somebody holds it: then the feed passes it by, and it is as of its load.
    """

    __slots__ = ("began_s", "bytes", "epoch", "expires_s", "load", "read_s", "refresh_s", "row", "row_of", "shards", "spared_s", "totals")

    def __init__(self) -> None:
        self.shards: dict[tuple[int, int], tuple[int, int]] = {}  # (metric, shard) -> (value, offset); empty: never seen
        self.totals = [0] * _METRIC_NUMBERS  # by metric number: the sum of its shards' values
        self.row_of: object = None  # the answers.Shape that `row` has; None: the totals have changed since
        self.row = b""
        self.began_s = 0.0  # monotonic seconds: when its last load began
        self.read_s = 0.0  # when it was last served
        self.spared_s = 0.0  # the `read_s` for which it was last passed over by an eviction
        self.refresh_s = 0.0  # from then on a read loads it ahead
        self.expires_s = 0.0  # from then on it is not served
        self.epoch = NEVER_LOADED  # in which its last load began
        self.load: Load | None = None  # the one under way
        self.bytes = 0  # that the cache counts for it

    def merge(self, key: tuple[int, int], value: int, offset: int) -> None:
        """Takes a shard's value if it is of a newer position."""
        held = self.shards.get(key)
        if held is None:
            self.totals[key[0]] += value
        elif offset > held[1]:
            self.totals[key[0]] += value - held[0]
        else:
            return
        self.row_of = None
        self.shards[key] = (value, offset)


def hottest(entries: Iterable[tuple[str, Entry]], count: int) -> list[str]:
    """So many of the known entities: those that were read last."""
    return [entity for _, entity in nlargest(count, ((entry.read_s, entity) for entity, entry in entries if entry.shards))]


_COLD = Entry()


class Load:
    """Entities that are read from the store together: waiting until `begin`, under way until `finish` or `abandon`."""

    __slots__ = ("began_s", "entities", "entries", "epoch")

    def __init__(self) -> None:
        self.entities: list[str] = []
        self.entries: list[Entry] = []  # of `entities`, in place
        self.epoch = NEVER_LOADED  # until it begins
        self.began_s = 0.0


class Found(NamedTuple):
    """What the cache has of the entities of a call."""

    entries: list[Entry]  # in place; a placeholder where one must be loaded first
    cold: Sequence[int]  # the indices of those
    ageing: Sequence[int]  # the indices of entries that are served and should be loaded again ahead


class CountsCache:
    """At most `bytes_max` bytes of entries, by their own estimate. What goes first is what was registered long ago and not read since it
    was last passed over ("second chance"; A. Tanenbaum, "Modern Operating Systems"): the order of reads, nearly, without a move a read.

    An entry is served for `age_s_max` seconds after its load began, less up to a fifth at random, and for `unknown_age_s_max` while
    its entity was never seen. The feed does not prolong it. Where it cannot be loaded again, its last known values may be given, as
    such, until `stale_age_s_max` after its load began. `uniform` gives random numbers in [0, 1).
    """

    def __init__(
        self, bytes_max: int, age_s_max: float, unknown_age_s_max: float, stale_age_s_max: float, uniform: Callable[[], float]
    ) -> None:
        self.epoch = 0
        self.bytes = 0
        """The estimate of what all entries take."""
        self._bytes_max = bytes_max
        self._age_s_max = age_s_max
        self._unknown_age_s_max = unknown_age_s_max
        self._stale_age_s_max = stale_age_s_max
        self._uniform = uniform
        self._entries: OrderedDict[str, Entry] = OrderedDict()
        self._keys: dict[tuple[int, int], tuple[int, int]] = {}  # one object for all entries' shards of the same metric and partition

    def __len__(self) -> int:
        return len(self._entries)

    def lookup(self, entities: Sequence[str], now_s: float) -> Found:
        """The entries that may be served now, and which must, or should, be loaded."""
        entries: list[Entry] = []
        cold: list[int] = []
        ageing: list[int] = []
        get, epoch, keep = self._entries.get, self.epoch, entries.append
        for index, entity in enumerate(entities):
            entry = get(entity)
            if entry is not None and entry.epoch == epoch and now_s < entry.expires_s:
                entry.read_s = now_s
                keep(entry)
                if now_s >= entry.refresh_s:
                    ageing.append(index)
            else:
                keep(_COLD)
                cold.append(index)
        return Found(entries, cold, ageing)

    def may_stand_in(self, entry: Entry, now_s: float) -> bool:
        """Whether an entry's last known values may be given where it cannot be loaded."""
        return entry.epoch != NEVER_LOADED and now_s - entry.began_s <= self._stale_age_s_max

    def held(self, entity: str) -> Entry | None:
        """The entry of an entity, whatever its age."""
        return self._entries.get(entity)

    def items(self) -> list[tuple[str, Entry]]:
        """All entities with their entries, as of now."""
        return list(self._entries.items())

    def under_way(self, entity: str) -> tuple[Entry, Load] | None:
        """The entry and the load that bring an entity, if one will that is new enough to answer a call that comes now."""
        entry = self._entries.get(entity)
        if entry is None or entry.load is None or entry.load.epoch not in (NEVER_LOADED, self.epoch):
            return None
        return entry, entry.load

    def register(self, entity: str, load: Load) -> Entry:
        """Adds an entity to a load that has not begun. What the cache holds of it is kept."""
        entry = self._entries.get(entity)
        if entry is None:
            entry = Entry()
            entry.bytes = ENTRY_BYTES + 2 * len(entity)
            self._shrink(entry.bytes)  # first, or the new one could be what goes
            self._entries[entity] = entry
            self.bytes += entry.bytes
        entry.load = load
        load.entities.append(entity)
        load.entries.append(entry)
        return entry

    def begin(self, load: Load, now_s: float) -> None:
        """Says that the store is about to be read for a load."""
        load.epoch = self.epoch
        load.began_s = now_s

    def finish(self, load: Load, rows: Sequence[Mapping[tuple[int, int], Shard]]) -> None:
        """Merges what the store said, one row per entity of the load, in order."""
        intern = self._keys.setdefault
        for entity, entry, row in zip(load.entities, load.entries, rows, strict=True):
            shards = len(entry.shards)
            for key, shard in row.items():
                entry.merge(intern(key, key), shard.value, shard.offset)
            if load.epoch >= entry.epoch:
                entry.epoch, entry.began_s = load.epoch, load.began_s
                if entry.shards:
                    age_s = self._age_s_max * (1 - 0.2 * self._uniform())
                    entry.refresh_s = load.began_s + age_s * (1 - REFRESH_SHARE)
                else:
                    age_s = self._unknown_age_s_max
                    entry.refresh_s = load.began_s + age_s
                entry.expires_s = load.began_s + age_s
            if self._entries.get(entity) is entry:
                self._grow(entry, len(entry.shards) - shards)
        self.abandon(load)
        self._shrink()

    def abandon(self, load: Load) -> None:
        """Gives a load up; the next read of its entities starts another."""
        for entry in load.entries:
            if entry.load is load:
                entry.load = None

    def apply(self, message: FeedMessage) -> Iterator[None]:
        """Merges a feed message into the entries there are, in slices: yields after every APPLY_ENTRIES_MAX of its entries."""
        partition, _, _, _, entities, metrics, values, offsets = message
        held, intern = self._entries, self._keys.setdefault
        for start in range(0, len(entities), APPLY_ENTRIES_MAX):
            part = entities[start : start + APPLY_ENTRIES_MAX]
            # Most entities of a surge are in nobody's cache: this line is all that they cost.
            for index in [index for index, entity in enumerate(part, start) if entity in held]:
                entry = held[entities[index]]
                key, shards = (metrics[index], partition), len(entry.shards)
                entry.merge(intern(key, key), values[index], offsets[index])
                self._grow(entry, len(entry.shards) - shards)
            self._shrink()
            yield

    def gap(self) -> None:
        """Says that messages of the feed were lost: no entry is served before it was loaded again."""
        self.epoch += 1

    def _grow(self, entry: Entry, shards: int) -> None:
        if shards:
            entry.bytes += shards * SHARD_BYTES
            self.bytes += shards * SHARD_BYTES

    def _shrink(self, room: int = 0) -> None:
        spared = 0
        while self._entries and self.bytes + room > self._bytes_max:
            entity, entry = self._entries.popitem(last=False)
            if entry.read_s > entry.spared_s and spared < SPARED_MAX:
                entry.spared_s = entry.read_s
                self._entries[entity] = entry
                spared += 1
            else:
                self.bytes -= entry.bytes
                spared = 0
