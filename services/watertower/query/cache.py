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
from collections.abc import Callable, Iterator, Mapping, Sequence

from watertower.core.model import Metric, Shard
from watertower.ports import FeedMessage

APPLY_ENTRIES_MAX = 500
"""Entries of a feed message that are applied in one go; reads get their turn in between."""

NEVER_LOADED = -1
"""The epoch of an entry before its first load has finished."""

_METRIC_NUMBERS = max(Metric) + 1


class Entry:
    """The counts of one entity.

    It may leave the cache while somebody holds it: then the feed passes it by, and it is as of its load.
    """

    __slots__ = ("epoch", "expires_s", "load", "shards", "totals")

    def __init__(self) -> None:
        self.shards: dict[tuple[int, int], tuple[int, int]] = {}  # (metric, shard) -> (value, offset); empty: never seen
        self.totals = [0] * _METRIC_NUMBERS  # by metric number: the sum of its shards' values
        self.expires_s = 0.0  # monotonic seconds
        self.epoch = NEVER_LOADED  # in which its last load began
        self.load: Load | None = None  # the one under way

    def merge(self, key: tuple[int, int], value: int, offset: int) -> None:
        """Takes a shard's value if it is of a newer position."""
        held = self.shards.get(key)
        if held is None:
            self.totals[key[0]] += value
        elif offset > held[1]:
            self.totals[key[0]] += value - held[0]
        else:
            return
        self.shards[key] = (value, offset)


_COLD = Entry()


class Load:
    """Entities that are read from the store together: waiting until `begin`, under way until `finish` or `abandon`."""

    __slots__ = ("began_s", "entities", "entries", "epoch")

    def __init__(self) -> None:
        self.entities: list[str] = []
        self.entries: list[Entry] = []  # of `entities`, in place
        self.epoch = NEVER_LOADED  # until it begins
        self.began_s = 0.0


class CountsCache:
    """At most `entities_max` entries; the least recently read goes first.

    An entry is served for `age_s_max` seconds after its load began, less up to a fifth at random, and for `unknown_age_s_max` while
    its entity was never seen. The feed does not prolong it. `uniform` gives random numbers in [0, 1).
    """

    def __init__(self, entities_max: int, age_s_max: float, unknown_age_s_max: float, uniform: Callable[[], float]) -> None:
        self.epoch = 0
        self._entities_max = entities_max
        self._age_s_max = age_s_max
        self._unknown_age_s_max = unknown_age_s_max
        self._uniform = uniform
        self._entries: OrderedDict[str, Entry] = OrderedDict()

    def __len__(self) -> int:
        return len(self._entries)

    def lookup(self, entities: Sequence[str], now_s: float) -> tuple[list[Entry], list[int]]:
        """The entries that may be served now, in place, and the indices where one must be loaded first (a placeholder is there)."""
        entries: list[Entry] = []
        cold: list[int] = []
        get, touch, epoch = self._entries.get, self._entries.move_to_end, self.epoch
        for index, entity in enumerate(entities):
            entry = get(entity)
            if entry is not None and entry.epoch == epoch and now_s < entry.expires_s:
                touch(entity)
                entries.append(entry)
            else:
                entries.append(_COLD)
                cold.append(index)
        return entries, cold

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
            entry = self._entries[entity] = Entry()
            if len(self._entries) > self._entities_max:
                self._entries.popitem(last=False)
        else:
            self._entries.move_to_end(entity)
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
        for entry, row in zip(load.entries, rows, strict=True):
            for key, shard in row.items():
                entry.merge(key, shard.value, shard.offset)
            if load.epoch >= entry.epoch:
                age_s = self._age_s_max * (1 - 0.2 * self._uniform()) if entry.shards else self._unknown_age_s_max
                entry.epoch, entry.expires_s = load.epoch, load.began_s + age_s
        self.abandon(load)

    def abandon(self, load: Load) -> None:
        """Gives a load up; the next read of its entities starts another."""
        for entry in load.entries:
            if entry.load is load:
                entry.load = None

    def apply(self, message: FeedMessage) -> Iterator[None]:
        """Merges a feed message into the entries there are, in slices: yields after every APPLY_ENTRIES_MAX of its entries."""
        partition, _, _, _, entities, metrics, values, offsets = message
        held = self._entries
        for start in range(0, len(entities), APPLY_ENTRIES_MAX):
            part = entities[start : start + APPLY_ENTRIES_MAX]
            # Most entities of a surge are in nobody's cache: this line is all that they cost.
            for index in [index for index, entity in enumerate(part, start) if entity in held]:
                held[entities[index]].merge((metrics[index], partition), values[index], offsets[index])
            yield

    def gap(self) -> None:
        """Says that messages of the feed were lost: no entry is served before it was loaded again."""
        self.epoch += 1
