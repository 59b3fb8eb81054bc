"""The debut that runs inside the cluster while a test does something to it, and what it saw."""

import json
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

from tests.kubernetes.cluster import IMAGE, Cluster, eventually

DRIVER = Path(__file__).with_name("driver.py")
FOLLOWS_PER_S, READS_PER_S = 60, 30
"""More than a million in 5 h 16 min, 52.7 a second; reads of each of the two readers. The pods share two cores with all the rest."""

SECONDS_MAX = 560
END_S = 90.0


class Seen(NamedTuple):
    """Reads of one reader in some seconds."""

    total: int
    p50_ms: float
    p99_ms: float
    max_ms: float
    late_p99_ms: float  # of the reader itself: a part of each latency
    errors: Counter[str]

    @property
    def failed(self) -> int:
        return self.errors.total()

    def __str__(self) -> str:
        named = "".join(f", {number} {error}" for error, number in self.errors.items())
        times = f"p50 {self.p50_ms:.0f} ms, p99 {self.p99_ms:.0f} ms, max {self.max_ms:.0f} ms"
        return f"{self.total} reads, {times} (sent late: p99 {self.late_p99_ms:.0f} ms), {self.failed} failed{named}"


def at(values: list[float], share: float) -> float:
    """The value below which that share of them is."""
    return sorted(values)[min(len(values) - 1, int(len(values) * share))]


class Debut:
    """A pod with tests/kubernetes/driver.py. Phases are times of this machine, on which the pod is."""

    def __init__(self, cluster: Cluster, namespace: str, release: str) -> None:
        self._cluster, self._namespace = cluster, namespace
        self._targets = {
            "WRITE": f"dns:///{release}-ingest-headless:50051",
            "READ": f"dns:///{release}-query-headless:50052",
        }
        self._phases: list[tuple[str, float]] = []
        self._lines: list[dict[str, Any]] = []

    def __enter__(self) -> Self:
        """It has begun."""
        environment = {**self._targets, "FOLLOWS_PER_S": FOLLOWS_PER_S, "READS_PER_S": READS_PER_S, "SECONDS_MAX": SECONDS_MAX}
        container = {
            "name": "debut",
            "image": f"{IMAGE}:1",
            "imagePullPolicy": "Never",
            "command": ["python", "/driver/driver.py"],
            "env": [{"name": name, "value": str(value)} for name, value in environment.items()],
            "resources": {"requests": {"cpu": "300m"}},  # or it would measure how long it waits itself
            "volumeMounts": [{"name": "driver", "mountPath": "/driver"}],
            "securityContext": {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            },
        }
        pod = {
            "restartPolicy": "Never",
            "securityContext": {"runAsNonRoot": True, "runAsUser": 10001, "seccompProfile": {"type": "RuntimeDefault"}},
            "containers": [container],
            "volumes": [{"name": "driver", "configMap": {"name": "debut"}}],
        }
        self._cluster.apply(
            self._namespace,
            {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "debut"}, "data": {"driver.py": DRIVER.read_text()}},
            {
                "apiVersion": "batch/v1",
                "kind": "Job",
                "metadata": {"name": "debut"},
                "spec": {"backoffLimit": 0, "template": {"spec": pod}},
            },
        )
        self._cluster.kubectl("-n", self._namespace, "wait", "--for=condition=Ready", "pod", "-l", "job-name=debut", "--timeout=60s")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._cluster.kubectl("-n", self._namespace, "delete", "--ignore-not-found", "job/debut", "configmap/debut")

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """What a test does in it is what the figures of that name are about."""
        self._phases.append((name, time.time()))
        yield
        print(f"{name}: {time.time() - self._phases[-1][1]:.1f} s", flush=True)

    def stop(self) -> None:
        """Ends it and collects what it saw. Raises AssertionError when it failed."""
        self._phases.append(("end", time.time()))
        self._cluster.kubectl("-n", self._namespace, "exec", "job/debut", "--", "sh", "-c", "kill -TERM 1")
        eventually(self._ended, "the debut has ended", END_S)
        log = self._cluster.kubectl("-n", self._namespace, "logs", "job/debut")
        assert self._status().get("succeeded") == 1, log[-4_000:]
        self._lines = [json.loads(line) for line in log.splitlines() if line.startswith("{")]

    @property
    def followers(self) -> set[str]:
        """The accounts whose last acknowledged event is a follow."""
        return {f"fan-{number}" for number in self._lines[-1]["followers"]}

    @property
    def accounts(self) -> int:
        """Accounts that did something, all of it acknowledged."""
        return int(self._lines[-1]["accounts"])

    @property
    def writes(self) -> Counter[str]:
        """Calls that were acknowledged, and those that ended with an error after the client's retries, by error."""
        return Counter(self._lines[-1]["writes"])

    def seen(self, reads: str, phase: str = "") -> Seen:
        """What the reader `normal` or `raw` saw in a phase; empty: in all of them."""
        starts = [start for name, start in self._phases if name == phase or not phase]
        begun = min(starts)
        if begun == self._phases[0][1]:  # what was read in the second in which it begins is of no other phase
            begun = int(begun)
        end = max(self._phases[-1][1] if not phase else self._end_of(phase), begun)
        latencies: list[float] = []
        late: list[float] = []
        errors: Counter[str] = Counter()
        for line in self._lines[:-1]:
            if line["reads"] == reads and begun <= line["second"] < end:
                latencies += line["latencies_ms"]
                late += line["late_ms"]
                errors.update(line["errors"])
        assert latencies, f"no read was answered in {phase}"
        return Seen(len(late), at(latencies, 0.5), at(latencies, 0.99), max(latencies), at(late, 0.99), errors)

    def table(self) -> str:
        """What both readers saw in each phase."""
        return "\n".join(
            f"  {name:<28} {reads:<6} {self.seen(reads, name)}" for name, _ in self._phases[:-1] for reads in ("normal", "raw")
        )

    def _end_of(self, phase: str) -> float:
        number = [name for name, _ in self._phases].index(phase)
        return self._phases[number + 1][1]

    def _status(self) -> dict[str, Any]:
        status: dict[str, Any] = self._cluster.get("-n", self._namespace, "job", "debut").get("status", {})
        return status

    def _ended(self) -> bool:
        return bool({"succeeded", "failed"} & set(self._status()))
