"""Callers of WatchCounts, some of which are slow to read."""

import asyncio
from contextlib import aclosing
from typing import Any

from watertower.core.positions import decode_position
from watertower.errors import BackendUnavailable, CallRefused
from watertower.testing.simulator.clients import ENTITIES, METRIC_NUMBERS, METRICS, Deadline
from watertower.testing.simulator.processes import QueryNode
from watertower.testing.simulator.world import Broken, World
from watertower.v1 import reader_pb2


def error_of(sending: "asyncio.Task[None]") -> BaseException | None:
    """What ended a watch at its server that nobody expects: neither its end or its death, nor a refusal."""
    error = None if sending.cancelled() else sending.exception()
    return None if isinstance(error, BackendUnavailable | CallRefused) else error


class Watchers:
    """Callers of WatchCounts. What they were sent so far is, at every message, of the position that the message claims."""

    def __init__(self, world: World, nodes: list[QueryNode]) -> None:
        self._world, self._nodes = world, nodes

    async def run(self, number: int) -> None:
        rng = self._world.rng(f"watcher {number}")
        while True:
            await asyncio.sleep(rng.expovariate(1 / 2.0))
            node = rng.choice(self._nodes)
            if node.service is not None:
                await self._watch(node, rng.sample(ENTITIES, rng.randint(1, 4)), rng)

    async def _watch(self, node: QueryNode, entities: list[str], rng: Any) -> None:
        on_its_way: asyncio.Queue[bytes | None] = asyncio.Queue(maxsize=1)  # the next is made when there is room
        request = reader_pb2.WatchCountsRequest(entities=entities, metrics=METRIC_NUMBERS)
        sending = node.spawn(self._send(node, request, on_its_way))
        shown: dict[int, Any] = {}
        try:
            for _ in range(rng.randint(1, 40)):
                getting = asyncio.ensure_future(on_its_way.get())
                await asyncio.wait({getting, sending}, return_when=asyncio.FIRST_COMPLETED)
                if not getting.done():
                    getting.cancel()
                    unexpected = error_of(sending)
                    if unexpected is not None:
                        raise unexpected
                    return  # its server died, or would not go on
                encoded = getting.result()
                if encoded is None:
                    return
                self._check(entities, shown, encoded)
                if self._world.faults.strikes("watch_not_read"):
                    await asyncio.sleep(self._world.faults.stream("watch_not_read").uniform(1.0, 20.0))
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
