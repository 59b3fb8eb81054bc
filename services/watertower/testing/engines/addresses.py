"""Engines that somebody else runs, found by their addresses in the environment.

WATERTOWER_TEST_KAFKA and WATERTOWER_TEST_CASSANDRA are "host:port[,host:port]"; with _USER, _PASSWORD and _CA (a file) appended the
engine is secure; WATERTOWER_TEST_CASSANDRA_DC is the local data centre when it is not datacenter1.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

from watertower.testing.engines.engine import CassandraEngine, KafkaEngine, Node, NodeNotControllable, Request


class _GivenNode(Node):
    """A node of which only the address is known."""

    def _cannot(self) -> NoReturn:
        raise NodeNotControllable(
            f"{self.address} was given by its address, so this test cannot stop or start it: ask for an engine of its own (own=True)"
        )

    kill = stop = start = pause = resume = _cannot


def why_not(request: Request) -> str:
    """Empty when the environment names what is asked for; else why it does not."""
    variable = f"WATERTOWER_TEST_{request.engine.upper()}"
    given = _given(variable)
    if not given:
        return f"{variable} is not set (host:port[,host:port] of an engine that runs)"
    if request.host:
        return f"{variable} names an engine whose address is what it is, and the test wants one at {request.host}"
    if request.own:
        return f"{variable} names an engine that others use, and the test wants to stop and start one of its own"
    if len(given) < request.nodes:
        return f"{variable} names {len(given)} of the {request.nodes} nodes that the test wants"
    if request.secure != (f"{variable}_USER" in os.environ):
        return f"the test wants {'a' if request.secure else 'no'} login, and {variable}_USER is {'not ' if request.secure else ''}set"
    return ""


@contextmanager
def kafka(request: Request) -> Iterator[KafkaEngine]:
    """The Kafka that the environment names; it is neither started nor stopped."""
    nodes, user, password, ca_file = _known("WATERTOWER_TEST_KAFKA")
    yield KafkaEngine(provider="addresses", nodes=nodes, user=user, password=password, ca_file=ca_file)


@contextmanager
def cassandra(request: Request) -> Iterator[CassandraEngine]:
    """The Cassandra that the environment names; it is neither started nor stopped."""
    nodes, user, password, ca_file = _known("WATERTOWER_TEST_CASSANDRA")
    centre = os.environ.get("WATERTOWER_TEST_CASSANDRA_DC", CassandraEngine.local_datacenter)
    yield CassandraEngine(provider="addresses", nodes=nodes, user=user, password=password, ca_file=ca_file, local_datacenter=centre)


def _given(variable: str) -> list[str]:
    return [address.strip() for address in os.environ.get(variable, "").split(",") if address.strip()]


def _known(variable: str) -> tuple[list[Node], str, str, str]:
    user, password, ca_file = (os.environ.get(f"{variable}_{part}", "") for part in ("USER", "PASSWORD", "CA"))
    return [_GivenNode(address) for address in _given(variable)], user, password, ca_file
