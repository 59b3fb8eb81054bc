"""What happens to the processes of a cluster while it works, in an order that a seed decides."""

import contextlib
import random
import signal
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import partial

from tests.calls import CLOCK, position_of, wait_visible
from tests.engines.roles import PARTITIONS, Roles, applied_by
from tests.traffic import Writers
from watertower.testing.engines import Node
from watertower.testing.service import Service, wait_until

AGAIN_S = 120.0
"""Seconds in which calls are acknowledged and applied again after something happened, on a busy machine."""

PAUSE_S_MAX = 2.0
"""Seconds between two faults, at most."""

AWAY_S_MAX = 3.0
"""Seconds that a killed process stays away, at most, besides what its start takes."""

SETTLED_SHARE = 0.5
"""Share of the faults that are waited out; the next one comes while the others are not mended yet."""

Fault = Callable[[], None]


class Nemesis:
    """Does harm, and mends it again. `done` counts what it did."""

    def __init__(self, roles: Roles, writers: Writers, rng: random.Random) -> None:
        self._roles, self._writers, self._rng = roles, writers, rng
        self._started_s = CLOCK.monotonic_s()
        self.done: Counter[str] = Counter()

    def run(self, faults: Sequence[Fault]) -> None:
        """All of these, in any order. In the end everything is there again."""
        for fault in self._rng.sample(faults, len(faults)):
            fault()
            if self._rng.random() < SETTLED_SHARE:
                self._wait_acknowledged()
                CLOCK.sleep(self._rng.random() * PAUSE_S_MAX)
        self._roles.wait_ready()
        self._roles.wait_shared()
        self._roles.assert_none_ended()
        self._wait_acknowledged()

    # --- faults

    def kills(self, number: int) -> list[Fault]:
        """SIGKILLs of roles: at least one of each kind if the number allows it, the rest of any."""
        roles = self._roles
        victims = [self._rng.choice(kind) for kind in (roles.projectors, roles.ingests, roles.queries)]
        victims += self._rng.choices(roles.all, k=max(0, number - len(victims)))
        return [partial(self.kill, role) for role in victims[:number]]

    def zombies(self, number: int) -> list[Fault]:
        """So many times `zombie`, of any projector."""
        return [partial(self.zombie, self._rng.choice(self._roles.projectors)) for _ in range(number)]

    def kill(self, role: Service) -> None:
        """SIGKILL; starts it again sooner or later, and does not wait for it."""
        self._roles.assert_none_ended()
        self._note(f"kill of {role.command}")
        role.kill_group()
        CLOCK.sleep(self._rng.choice((0.0, self._rng.random() * AWAY_S_MAX)))
        role.start(ready=False)

    def zombie(self, projector: Service) -> None:
        """Freezes a projector in the midst of its work until its partitions are others' and these have gone on; then lets it go on, too."""
        self._roles.wait_ready()
        self._roles.wait_shared()
        self._note("zombie")
        partitions = applied_by(projector)
        projector.send(signal.SIGSTOP)
        self._roles.wait_taken_over(projector)
        self._wait_gone_on(partitions)
        projector.send(signal.SIGCONT)

    def restart(self, name: str, node: Node) -> None:
        """SIGKILL of a node; starts it again."""
        with self.away({name: node}):
            CLOCK.sleep(self._rng.random() * AWAY_S_MAX)

    def lose(self, nodes: Mapping[str, Node]) -> None:
        """SIGKILL of several nodes at once, of engines that can do without them: the service goes on. Starts them again."""
        with self.away(nodes):
            self._wait_acknowledged()
            self._wait_gone_on(range(PARTITIONS))
            CLOCK.sleep(self._rng.random() * AWAY_S_MAX)
            self._wait_acknowledged()

    @contextlib.contextmanager
    def away(self, nodes: Mapping[str, Node]) -> Iterator[None]:
        """Nodes, by what they are called, are away within."""
        with contextlib.ExitStack() as mended:
            for name, node in nodes.items():
                self._note(f"restart of a {name}")
                node.kill()
                mended.callback(node.start)
            yield

    # --- how

    def _wait_acknowledged(self) -> None:
        acknowledged = self._writers.acknowledged
        wait_until(partial(self._writers.acknowledged_more_than, acknowledged), "events are acknowledged", AGAIN_S)

    def _wait_gone_on(self, partitions: Collection[int]) -> None:
        """Waits until more of each of these partitions is applied than now."""
        target = self._roles.queries[0].read_target
        applied = position_of(target, AGAIN_S)
        wait_visible(target, {partition: applied.get(partition, -1) + 1 for partition in partitions}, AGAIN_S)

    def _note(self, what: str) -> None:
        self.done[what] += 1
        print(f"after {CLOCK.monotonic_s() - self._started_s:5.1f} s: {what}", flush=True)
