"""The counts feed of a run: each reader may miss a message, or get it, and what follows it, late."""

import asyncio
import random
from collections.abc import Iterable

from watertower.errors import BackendUnavailable
from watertower.ports import FeedMessage
from watertower.testing.simulator.faults import Faults
from watertower.testing.simulator.kernel import VirtualTimeLoop, wait


class SimulatedFeed:
    """What was published, by partition."""

    def __init__(self, loop: VirtualTimeLoop, faults: Faults, rng: random.Random, partitions: int) -> None:
        self.loop, self.faults, self.rng = loop, faults, rng
        self.messages: list[list[FeedMessage]] = [[] for _ in range(partitions)]


class SimulatedFeedWriter:
    """ports.CountsFeed of one projector."""

    def __init__(self, feed: SimulatedFeed) -> None:
        self._feed = feed

    def publish(self, messages: Iterable[FeedMessage]) -> None:
        feed = self._feed
        wait(asyncio.sleep(feed.rng.uniform(0.0005, 0.003)))
        for message in messages:
            if feed.faults.strikes("publish_failed"):
                if feed.faults.stream("publish_failed").random() < 0.5:
                    feed.messages[message.partition].append(message)
                raise BackendUnavailable("the feed did not answer")
            feed.messages[message.partition].append(message)


class SimulatedFeedReader:
    """ports.FeedReader of one query process."""

    def __init__(self, feed: SimulatedFeed) -> None:
        self._feed = feed
        self._next: list[int] | None = None
        self._held_until_s = [0.0] * len(feed.messages)

    def poll(self) -> list[FeedMessage]:
        self.travel()
        return self.take()

    def travel(self) -> None:
        """The time that a look takes."""
        wait(asyncio.sleep(self._feed.rng.uniform(0.0005, 0.003)))

    def take(self) -> list[FeedMessage]:
        """What is there for this reader now."""
        feed = self._feed
        if self._next is None:
            self._next = [len(messages) for messages in feed.messages]
            return []
        found = []
        for partition, messages in enumerate(feed.messages):
            if feed.loop.now_s < self._held_until_s[partition] and not feed.faults.over:
                continue
            while self._next[partition] < len(messages):
                if feed.faults.strikes("feed_late"):
                    self._held_until_s[partition] = feed.loop.now_s + feed.faults.stream("feed_late").uniform(0.5, 15.0)
                    break
                message = messages[self._next[partition]]
                self._next[partition] += 1
                if not feed.faults.strikes("feed_lost"):
                    found.append(message)
        return found
