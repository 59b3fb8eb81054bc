"""What happens to the processes of a cluster while it works, in an order that a seed decides."""

import contextlib
import random
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial

from tests.calls import CLOCK
from tests.engines.roles import READY_S, Roles
from tests.traffic import Writers
from watertower.testing.engines import Node
from watertower.testing.service import Service, wait_until

AGAIN_S = 60.0
"""Seconds in which calls are acknowledged again after something happened."""

PAUSE_S_MAX = 2.0
"""Seconds between two faults, at most: some come while the last is not mended yet."""

AWAY_S_MAX = 3.0
"""Seconds that a killed process stays away, at most, besides what its start takes."""


class Nemesis:
    """Does harm, and mends it again. `done` counts what it did."""

    def __init__(self, roles: Roles, writers: Writers, rng: random.Random) -> None:
        self._roles, self._writers, self._rng = roles, writers, rng
        self.done: Counter[str] = Counter()

    def run(self, *, kills: int, zombies: int, nodes: dict[str, Node]) -> None:
        """So many SIGKILLs of roles, so many zombies, and each of these nodes (by what it is called) killed and started, in any order.
        In the end all are there again."""
        roles = self._roles
        # Each kind of role dies; the rest of the deaths is anybody's.
        victims = [self._rng.choice(kind) for kind in (roles.projectors, roles.ingests, roles.queries)]
        victims += self._rng.choices(roles.all, k=max(0, kills - len(victims)))
        faults: list[Callable[[], None]] = [partial(self.kill, role) for role in victims[:kills]]
        faults += [partial(self.zombie, self._rng.choice(roles.projectors)) for _ in range(zombies)]
        faults += [partial(self.restart, name, node) for name, node in nodes.items()]
        self._rng.shuffle(faults)
        for fault in faults:
            acknowledged = self._writers.acknowledged
            fault()
            if self._rng.random() < 0.5:
                wait_until(partial(self._writers.acknowledged_more_than, acknowledged), "events are acknowledged again", AGAIN_S)
                CLOCK.sleep(self._rng.random() * PAUSE_S_MAX)
        roles.wait_ready()
        roles.wait_shared()
        roles.assert_none_ended()

    def kill(self, role: Service) -> None:
        """SIGKILL; starts it again sooner or later, and does not wait for it."""
        self._roles.assert_none_ended()
        role.kill_group()
        self._note(f"kill {role.command}")
        CLOCK.sleep(self._rng.choice((0.0, self._rng.random() * AWAY_S_MAX)))
        role.start(ready=False)

    def zombie(self, projector: Service) -> None:
        """Freezes a projector in the midst of its work until its partitions are others' and these have gone on; then lets it go on, too."""
        self._roles.wait_ready()
        self._roles.wait_shared()
        projector.send(signal.SIGSTOP)
        self._note("zombie")
        self._roles.wait_taken_over(projector)
        acknowledged = self._writers.acknowledged
        wait_until(partial(self._writers.acknowledged_more_than, acknowledged), "events are acknowledged beside a zombie", AGAIN_S)
        CLOCK.sleep(self._rng.random() * PAUSE_S_MAX)
        projector.send(signal.SIGCONT)

    def restart(self, name: str, node: Node) -> None:
        """SIGKILL; starts it again."""
        with self.away(name, node):
            CLOCK.sleep(self._rng.random() * AWAY_S_MAX)
        print(f"{CLOCK.monotonic_s():.1f} {name} is there again", flush=True)

    @contextlib.contextmanager
    def away(self, name: str, node: Node) -> Iterator[None]:
        """A node is away within, by SIGKILL."""
        node.kill()
        self._note(f"restart {name}")
        try:
            yield
        finally:
            node.start()

    def _note(self, what: str) -> None:
        self.done[what] += 1
        print(f"{CLOCK.monotonic_s():.1f} {what}", flush=True)


__all__ = ["READY_S", "Nemesis"]
