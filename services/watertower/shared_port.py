"""One port for several processes: the system spreads new connections over those that listen there (SO_REUSEPORT)."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager

from watertower.errors import AddressTaken

SHARED_PORT_VARIABLE = "WATERTOWER_SHARED_PORT"
"""Tells a worker on which port it listens beside others."""

WORKER_VARIABLE = "WATERTOWER_WORKER"
"""Tells a worker which one it is, from 0."""


def address_taken(where: str) -> AddressTaken:
    """What to say of HOST:PORT."""
    return AddressTaken(
        f"cannot listen on {where}: the port is taken, or the address is not one of this machine; stop what holds the port, or take another"
    )


@contextmanager
def held_port(host: str, port: int) -> Iterator[int]:
    """Keeps the port for the processes of this service; `port` 0 takes a free one. Raises AddressTaken.

    With SO_REUSEPORT alone, a second service on the port would not be refused: it would get half of the connections. So the port is bound
    by one socket that does not share it, which fails where anybody else has it, shared or not. Only then this socket allows others in.
    It never listens, and stays for as long as the workers come and go: nobody can take the port without sharing it, either. Of a name
    with several addresses, the first is held.
    """
    try:
        found = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM)
        family, kind, protocol, _, address = found[0]
        holder = socket.socket(family, kind, protocol)
    except OSError as error:
        raise AddressTaken(f"cannot listen on {host}:{port}: {error.strerror or error}; give an address of this machine") from error
    with holder:
        try:
            holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as gRPC does: what an earlier process closed is no obstacle
            holder.bind(address)
            # No longer: with it, whoever sets it too may bind the port as long as nobody listens there.
            holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)
            holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        except OSError as error:
            raise address_taken(f"{host}:{port}") from error
        yield int(holder.getsockname()[1])
