"""Callers of WatchCounts, some of which are slow to read."""

import asyncio
from contextlib import aclosing
from typing import Any

from watertower.config import QuerySettings
from watertower.core.positions import decode_position
from watertower.errors import BackendUnavailable, CallRefused
from watertower.testing.simulator.clients import ENTITIES, METRIC_NUMBERS, METRICS, Deadline
from watertower.testing.simulator.processes import QueryNode
from watertower.testing.simulator.world import Broken, World
from watertower.v1 import reader_pb2

_SETTINGS = QuerySettings.model_construct()

SILENT_S_MAX = (
    max(_SETTINGS.freshness_wait_ms_max, _SETTINGS.watch_interval_ms + 2 * _SETTINGS.watch_heartbeat_ms) / 1e3 + 0.1  # of rounding
)
"""How long a watch may send nothing, whatever befalls the store: before its first message a call's wait, and then a look that begins
just before a heartbeat is due, and takes as long as one may."""


async def heard(on_its_way: "asyncio.Queue[Any]", sending: "asyncio.Task[None]") -> Any | None:
    """The next message of a watch; None where its server died, or would not go on. Raises Broken, and what nobody expects."""
    getting = asyncio.ensure_future(on_its_way.get())
    await asyncio.wait({getting, sending}, timeout=SILENT_S_MAX, return_when=asyncio.FIRST_COMPLETED)
    if getting.done():
        return getting.result()
    getting.cancel()
    if not sending.done():
        raise Broken("a watch goes on", f"nothing was heard for {SILENT_S_MAX:g} s")
    error = None if sending.cancelled() else sending.exception()
    if error is not None and not isinstance(error, BackendUnavailable | CallRefused):
        raise error
    return None


class Watchers:
    """Callers of WatchCounts. What they were sent so far is, at every message, of the position that the message claims; and there is
    always a next message in time."""

    def __init__(self, world: World, nodes: list[QueryNode]) -> None:
        self._world, self._nodes = world, nodes

    async def run(self, number: int) -> None:
        rng = self._world.rng(f"watcher {number}")
        while True:
            await asyncio.sleep(rng.expovariate(1 / 2.0))
            node = rng.choice(self._nodes)
            if node.service is not None:
                await self._watch(node, rng.sample(ENTITIES, rng.randint(1, 4)), rng.randint(1, 40))

    async def last(self) -> None:
        """When the faults are over: every query process has counts for a new watch, and goes on with it."""
        for node in self._nodes:
            if await self._watch(node, list(ENTITIES), 3) < 3:
                raise Broken("a watch goes on", f"{node.name} ended it")

    async def _watch(self, node: QueryNode, entities: list[str], messages: int) -> int:
        """Reads so many messages, as long as the process goes on; how many there were."""
        on_its_way: asyncio.Queue[bytes | None] = asyncio.Queue(maxsize=1)  # the next is made when there is room
        request = reader_pb2.WatchCountsRequest(entities=entities, metrics=METRIC_NUMBERS)
        sending = node.spawn(self._send(node, request, on_its_way))
        shown: dict[int, Any] = {}
        try:
            for number in range(messages):
                encoded = await heard(on_its_way, sending)
                if encoded is None:
                    return number
                self._check(entities, shown, encoded)
                if self._world.faults.strikes("watch_not_read"):
                    await asyncio.sleep(self._world.faults.stream("watch_not_read").uniform(1.0, 20.0))
            return messages
        finally:
            sending.cancel()

    async def _send(self, node: QueryNode, request: reader_pb2.WatchCountsRequest, on_its_way: "asyncio.Queue[bytes | None]") -> None:
        if node.service is None:
            return
        context: Any = Deadline(self._world)
        try:
            async with aclosing(node.service.watch_counts(request, context)) as messages:
                async for message in messages:
                    await on_its_way.put(message)
        except (BackendUnavailable, CallRefused):
            await on_its_way.put(None)

    def _check(self, entities: list[str], shown: dict[int, Any], encoded: bytes) -> None:
        message = reader_pb2.WatchCountsResponse.FromString(encoded)
        for counts in message.counts:
            shown[counts.index] = counts
        if len(shown) < len(entities):
            raise Broken("a watch shows everything first", f"{sorted(shown)} of {entities}")
        position = decode_position(message.freshness.position)
        for index, entity in enumerate(entities):
            for metric, value in zip(METRICS, shown[index].values, strict=True):
                self._world.check_count("answers are of their position", entity, metric, value, position.offsets)
