"""What every provider gives: an engine with its addresses and its nodes, and the errors."""

import secrets
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal

Name = Literal["kafka", "cassandra"]
Provider = Literal["addresses", "containers", "jvm"]

_UNIQUE_BYTES = 5


class EngineUnavailable(Exception):
    """No provider can give the engine that was asked for. The message says, for each, what to do."""


class EngineFailed(Exception):
    """An engine that should run did not start, ended, or did not stop. The message ends with its log."""


class NodeNotControllable(Exception):
    """The engine was given by its address only: whoever started it can stop it, a test cannot."""


@dataclass(frozen=True)
class Request:
    """What a test asks for."""

    engine: Name
    nodes: int = 1
    secure: bool = False
    own: bool = False
    host: str = ""

    def __post_init__(self) -> None:
        if not 1 <= self.nodes <= NODES_MAX:
            raise ValueError(f"an engine has 1 to {NODES_MAX} nodes, not {self.nodes}")
        if self.host and self.nodes > 1:
            raise ValueError("an engine with a host is one node: it has no second address")

    @property
    def hosts(self) -> list[str]:
        """The address of each node, where they are processes of this machine."""
        return [self.host] if self.host else [f"127.0.0.{number}" for number in range(1, self.nodes + 1)]

    @property
    def replication_factor(self) -> int:
        return min(self.nodes, 3)


NODES_MAX = 5
"""Nodes of one engine: they share a machine."""


class Node(ABC):
    """One process of an engine, to be hurt. Its data and its address stay the same whatever happens to it."""

    def __init__(self, address: str) -> None:
        self.address = address
        """host:port, where clients reach this node."""

    @abstractmethod
    def kill(self) -> None:
        """Ends it at once (SIGKILL), also when it is paused."""

    @abstractmethod
    def stop(self) -> None:
        """Ends it cleanly (SIGTERM), and waits until it has ended."""

    @abstractmethod
    def start(self) -> None:
        """Starts it again on its data, and waits until it takes requests. Raises EngineFailed."""

    @abstractmethod
    def pause(self) -> None:
        """Freezes it (SIGSTOP): connections stay open, nothing is answered."""

    @abstractmethod
    def resume(self) -> None:
        """Lets a paused node go on."""


@dataclass(frozen=True, kw_only=True)
class Engine:
    """A running engine. `user`, `password` and `ca_file` are empty exactly when it is not secure."""

    name: ClassVar[Name]
    provider: Provider
    nodes: Sequence[Node]
    user: str = ""
    password: str = field(default="", repr=False)
    ca_file: str = ""

    @property
    def secure(self) -> bool:
        return bool(self.user)

    @property
    def addresses(self) -> str:
        """host:port of every node, separated by commas."""
        return ",".join(node.address for node in self.nodes)

    def environment(self) -> dict[str, str]:
        """The variables with which other processes find this engine (provider `addresses`)."""
        variable = f"WATERTOWER_TEST_{self.name.upper()}"
        found = {variable: self.addresses}
        if self.secure:
            found |= {f"{variable}_USER": self.user, f"{variable}_PASSWORD": self.password, f"{variable}_CA": self.ca_file}
        return found


@dataclass(frozen=True, kw_only=True)
class KafkaEngine(Engine):
    """Brokers. Secure: SASL_SSL with SCRAM-SHA-512. Topics are never made by themselves."""

    name = "kafka"

    @property
    def bootstrap_servers(self) -> str:
        return self.addresses


@dataclass(frozen=True, kw_only=True)
class CassandraEngine(Engine):
    """Nodes of one data centre. Secure: TLS only, with a password; the user is a super user."""

    name = "cassandra"
    local_datacenter: str = "datacenter1"

    @property
    def contact_points(self) -> str:
        return self.addresses

    def environment(self) -> dict[str, str]:
        found = super().environment()
        if self.local_datacenter != CassandraEngine.local_datacenter:
            found["WATERTOWER_TEST_CASSANDRA_DC"] = self.local_datacenter
        return found


def unique_name(prefix: str) -> str:
    """A name that nobody else uses, good for a topic, a keyspace and a group: engines are shared, names are not.

    `prefix` must be lower-case letters, digits and underscores, at most 36 (a keyspace has 48 characters at most).
    """
    return f"{prefix}_{secrets.token_hex(_UNIQUE_BYTES)}"
