"""One watch that goes on over lost connections."""

import asyncio
import contextlib
import random
from collections.abc import AsyncGenerator, Sequence
from dataclasses import replace
from typing import Any

import grpc

from watertower.client.answers import Counts, Update, freshness_of, values_of
from watertower.client.errors import Refusal, refusal_of
from watertower.client.options import ClientOptions
from watertower.client.peer import Method, Peer, cancelled, closed
from watertower.client.retries import wait_s
from watertower.client.seen import Seen
from watertower.client.watch_channels import WatchChannels
from watertower.core.model import Metric
from watertower.v1 import reader_pb2

WATCH_SETTLED_S = 5.0
"""Seconds after its first message from which on a watch counts as connected: the waits begin anew after it. One that ends sooner, again and
again, is no better than one that cannot be made."""

_ENDED = Refusal(grpc.StatusCode.UNAVAILABLE, "the service ended the watch")


async def watch(
    peer: Peer,
    channels: WatchChannels,
    request: reader_pb2.WatchCountsRequest,
    options: ClientOptions,
    rng: random.Random,
) -> AsyncGenerator[Update, None]:
    """The updates of one watch. Raises ClientError for a refusal that repeating cannot help.

    A watch has no deadline, so neither attempts nor the retry budget end it: lost connections are made again after full jitter.
    """
    if peer.closed:
        raise closed()
    async with channels.method() as method, contextlib.aclosing(_connected(peer, method, request, options, rng)) as updates:
        async for update in updates:
            yield update


async def _connected(
    peer: Peer,
    method: Method,
    request: reader_pb2.WatchCountsRequest,
    options: ClientOptions,
    rng: random.Random,
) -> AsyncGenerator[Update, None]:
    metrics = [Metric(metric) for metric in request.metrics]
    number = 0
    while True:
        if peer.closed:
            raise closed()
        call: Any = method(request)
        first_s: float | None = None  # the moment of its first message
        try:
            async for message in call:
                if first_s is None:
                    first_s = peer.clock.monotonic_s()
                yield _update(request.entities, metrics, message)
            refusal = _ENDED
        except grpc.RpcError as error:
            refusal = refusal_of(error)
        except asyncio.CancelledError:
            if peer.closed and not cancelled():
                raise closed() from None
            raise
        finally:
            call.cancel()
        if first_s is not None and peer.clock.monotonic_s() - first_s >= WATCH_SETTLED_S:
            number = 0
        wait = wait_s(refusal, number, options.retry_base_ms / 1e3, options.retry_cap_ms / 1e3, rng.random())
        if wait is None:
            raise peer.error(refusal)
        await peer.pause(wait)
        number += 1


async def forward_only(updates: AsyncGenerator[Update, None], seen: Seen) -> AsyncGenerator[Update, None]:
    """The updates of a watch without those that take back something that was `seen`, which they move on.

    Such an update comes from a process that is behind, as a rule the first one after a lost connection. What it says of an entity still
    holds when that process has caught up, unless it says something newer by then: so it is kept, and comes with the next good update.
    """
    held: dict[str, Counts] = {}
    async with contextlib.aclosing(updates):
        async for update in updates:
            held.update((counts.entity, counts) for counts in update.counts)
            if seen.not_before(update.freshness.position):
                seen.add(update.freshness.position)
                yield Update(tuple(replace(counts, freshness=update.freshness) for counts in held.values()), update.freshness)
                held.clear()


def _update(entities: Sequence[str], metrics: Sequence[Metric], message: reader_pb2.WatchCountsResponse) -> Update:
    freshness = freshness_of(message.freshness)
    counts = [Counts(entities[row.index], values_of(metrics, row.values), row.known, freshness) for row in message.counts]
    return Update(tuple(counts), freshness)
