"""One watch that goes on over lost connections."""

import asyncio
import random
from collections.abc import AsyncGenerator, Sequence
from typing import Any

import grpc

from watertower.client.answers import Counts, Update, freshness_of, values_of
from watertower.client.errors import Refusal, refusal_of
from watertower.client.options import ClientOptions
from watertower.client.peer import Method, Peer, cancelled, closed
from watertower.client.retries import wait_s
from watertower.core.model import Metric
from watertower.v1 import reader_pb2

_ENDED = Refusal(grpc.StatusCode.UNAVAILABLE, "the service ended the watch")


async def watch(
    peer: Peer,
    method: Method,
    request: reader_pb2.WatchCountsRequest,
    options: ClientOptions,
    rng: random.Random,
) -> AsyncGenerator[Update, None]:
    """The updates of one watch. Raises ClientError for a refusal that repeating cannot help.

    A watch has no deadline, so neither attempts nor the retry budget end it: lost connections are made again after full jitter.
    """
    metrics = [Metric(metric) for metric in request.metrics]
    number = 0
    while True:
        if peer.closed:
            raise closed()
        call: Any = method(request)
        try:
            async for message in call:
                number = 0
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
        wait = wait_s(refusal, number, options.retry_base_ms / 1e3, options.retry_cap_ms / 1e3, rng.random())
        if wait is None:
            raise peer.error(refusal)
        await peer.sleep(wait)
        number += 1


def _update(entities: Sequence[str], metrics: Sequence[Metric], message: reader_pb2.WatchCountsResponse) -> Update:
    freshness = freshness_of(message.freshness)
    counts = [Counts(entities[row.index], values_of(metrics, row.values), row.known, freshness) for row in message.counts]
    return Update(tuple(counts), freshness)
