"""How commands connect."""

import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import grpc

from watertower.cli.connection import open_channel, reader

SLOW_S = 0.4
"""Until a connection gets its first byte: four times what the backoff between two attempts begins with."""


def test_a_slow_connection_is_waited_for() -> None:
    """One over which the first word comes late is used, and not given up for another one that would be as slow."""
    server = grpc.server(ThreadPoolExecutor(1))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    accepted: list[socket.socket] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def relay() -> None:
            while True:
                try:
                    accepted.append(listener.accept()[0])
                except OSError:
                    return  # the test is over
                accepted[-1].settimeout(None)
                time.sleep(SLOW_S)
                behind = socket.create_connection(("127.0.0.1", port))
                for source, target in ((accepted[-1], behind), (behind, accepted[-1])):
                    threading.Thread(target=_copy, args=(source, target), daemon=True).start()

        threading.Thread(target=relay, daemon=True).start()
        with open_channel(reader(f"127.0.0.1:{listener.getsockname()[1]}")) as channel:
            grpc.channel_ready_future(channel).result(10)
            assert len(accepted) == 1
        listener.shutdown(socket.SHUT_RDWR)
    server.stop(None)


def _copy(source: socket.socket, target: socket.socket) -> None:
    try:
        while data := source.recv(65_536):
            target.sendall(data)
    except OSError:
        pass  # the test is over
    finally:
        target.close()
