"""A real Kubernetes cluster on this machine, by the scripts of deploy/test-cluster, and what tests do to it."""

import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.commands import Ran
from tests.docs.pages import blocks
from watertower.client import SyncClient
from watertower.clock import SystemClock
from watertower.testing.engines.warden import Warden
from watertower.testing.service import NotInTime

ROOT = Path(__file__).parents[2]
SCRIPTS = ROOT / "deploy" / "test-cluster"
IMAGE = "localhost/watertower"

COMMAND_S = 60.0
ROLLOUT_S = 180.0
UP_S = 300.0
"""Seconds that the scripts may take, the build of the image included, on a busy machine."""

_clock = SystemClock()
_NAMES = ("BIN", "STATE", "RUN", "NETNS", "HOST_LINK", "HOST_IP", "NODE_IP", "POD_CIDR", "KUBECONFIG")


LOOK_S = 0.5
"""Seconds between two looks: each costs a part of the two cores that are measured."""


class Unavailable(Exception):
    """There can be no cluster here. Says what to do."""


class Failed(AssertionError):
    """A command ended with another code than 0. Has what it said."""


def page_block(part: str) -> str:
    """The one block of docs/kubernetes.md in which `part` is."""
    (found,) = [block.text for block in blocks(ROOT / "docs" / "kubernetes.md") if part in block.text]
    return found.strip()


def run(command: Sequence[object], stdin: str = "", timeout_s: float = COMMAND_S, environment: dict[str, str] | None = None) -> Ran:
    """Runs it in the repository to its end, whatever that is."""
    done = subprocess.run(
        [str(part) for part in command],
        input=stdin,
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
        cwd=ROOT,
        env={**os.environ, **(environment or {})},
    )
    return Ran(done.returncode, done.stdout, done.stderr)


def said(ran: Ran, command: Sequence[object]) -> str:
    """Its output. Raises Failed."""
    if ran.code:
        raise Failed(f"{' '.join(map(str, command))}\nended with {ran.code}: {ran.out[-2_000:]}{ran.err[-4_000:]}")
    return ran.out


def eventually(condition: Callable[[], Any], what: str, seconds: float = ROLLOUT_S) -> Any:
    """The first true value of `condition`, looked at now and then. Raises NotInTime."""
    deadline = _clock.monotonic_s() + seconds
    while not (value := condition()):
        if _clock.monotonic_s() > deadline:
            raise NotInTime(f"not within {seconds:g} s: {what}")
        _clock.sleep(LOOK_S)
    return value


def ready(pod: dict[str, Any]) -> bool:
    """Whether a pod says that it is ready, and is not on its way out."""
    conditions = {condition["type"]: condition["status"] for condition in pod["status"].get("conditions", [])}
    return "deletionTimestamp" not in pod["metadata"] and conditions.get("Ready") == "True"


def settings() -> dict[str, str]:
    """The variables of env.sh."""
    script = f'. "{SCRIPTS}/env.sh" && for name in {" ".join(_NAMES)}; do printf "%s=%s\\n" "$name" "${{!name}}"; done'
    command = ["bash", "-c", script]
    return dict(line.split("=", 1) for line in said(run(command), command).splitlines())


def why_not() -> str:
    """Empty where the cluster can be started; else why it cannot."""
    checked = run([SCRIPTS / "up.sh", "--check"])
    if checked.code:
        return checked.err.strip()
    if shutil.which("docker") is None or run(["docker", "info"]).code:
        return "no Docker engine answers, to build the service's image"
    if not helm_program():
        return "helm is not built: run deploy/test-cluster/tools.sh"
    return ""


def helm_program() -> str:
    """Its path; empty where it is not built."""
    built = run([SCRIPTS / "tools.sh", "--cached"])
    return f"{built.out.strip()}/helm" if built.code == 0 else ""


class Cluster:
    """A cluster that runs."""

    def __init__(self, found: dict[str, str]) -> None:
        self.host_ip = found["HOST_IP"]
        self._kubectl = f"{found['BIN']}/kubectl"
        self._helm = helm_program()
        self._environment = {
            "KUBECONFIG": found["KUBECONFIG"],
            "PATH": os.pathsep.join([found["BIN"], str(Path(self._helm).parent), os.environ["PATH"]]),
            # Not the user's own: releases of other clusters, repositories, plugins.
            **{f"HELM_{name}_HOME": f"{found['STATE']}/helm" for name in ("CACHE", "CONFIG", "DATA")},
        }

    # --- commands

    def try_kubectl(self, *arguments: object, stdin: str = "", timeout_s: float = COMMAND_S) -> Ran:
        """What kubectl did, whatever that is."""
        return run([self._kubectl, *arguments], stdin, timeout_s, self._environment)

    def kubectl(self, *arguments: object, stdin: str = "", timeout_s: float = COMMAND_S) -> str:
        """What kubectl printed. Raises Failed."""
        return said(self.try_kubectl(*arguments, stdin=stdin, timeout_s=timeout_s), ["kubectl", *arguments])

    def get(self, *arguments: object) -> Any:
        """`kubectl get ... -o json`, decoded."""
        return json.loads(self.kubectl("get", *arguments, "-o", "json"))

    def apply(self, namespace: str, *objects: dict[str, Any]) -> None:
        """Makes or changes objects."""
        self.kubectl("-n", namespace, "apply", "-f", "-", stdin=json.dumps({"apiVersion": "v1", "kind": "List", "items": objects}))

    def try_shell(self, script: str) -> Ran:
        """What a script in which kubectl and helm are those of this cluster did, whatever that is."""
        return run(["bash", "-euc", script], "", 2 * ROLLOUT_S, self._environment)

    def shell(self, script: str) -> str:
        """What it printed. Raises Failed."""
        return said(self.try_shell(script), [script])

    # --- what is there

    def pods(self, namespace: str, selector: str) -> list[dict[str, Any]]:
        """Pods that are not on their way out."""
        found = self.get("-n", namespace, "pods", "-l", selector)["items"]
        return [pod for pod in found if "deletionTimestamp" not in pod["metadata"]]

    def target(self, namespace: str, service: str, port: int) -> str:
        """Where this machine reaches a Service."""
        return f"{self.get('-n', namespace, 'service', service)['spec']['clusterIP']}:{port}"

    def client(self, namespace: str, release: str) -> SyncClient:
        """A client on this machine of a release: one connection to each of its two Services."""
        return SyncClient(self.target(namespace, f"{release}-ingest", 50051), self.target(namespace, f"{release}-query", 50052))

    def wait_rolled_out(self, namespace: str, *names: str) -> None:
        """Waits until every pod of each is of the newest version and ready, and no other is there."""
        for name in names:
            self.kubectl("-n", namespace, "rollout", "status", name, f"--timeout={ROLLOUT_S:g}s", timeout_s=ROLLOUT_S + COMMAND_S)

    def evict(self, namespace: str, pod: str) -> Ran:
        """Asks for an eviction through the API, as `kubectl drain` does; once."""
        body = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": pod, "namespace": namespace}}
        return self.try_kubectl("create", "--raw", f"/api/v1/namespaces/{namespace}/pods/{pod}/eviction", "-f", "-", stdin=json.dumps(body))

    def objects(self, namespace: str) -> set[str]:
        """kind/name of everything in a namespace that somebody made there: without what Kubernetes itself keeps in each."""
        kinds = [
            kind for kind in self.kubectl("api-resources", "--verbs=list", "--namespaced", "-o", "name").split() if "events" not in kind
        ]
        names = self.kubectl("-n", namespace, "get", ",".join(kinds), "-o", "name").split()
        return set(names) - {"configmap/kube-root-ca.crt", "serviceaccount/default"}


@contextmanager
def running() -> Iterator[Cluster]:
    """A cluster with the image of this tree, as IMAGE:1 and IMAGE:2; gone at the end, without a trace.

    One that runs already is taken as it is, images included, and left running: handy while developing. Raises Unavailable.
    """
    found = settings()
    if Path(found["RUN"]).exists():
        yield Cluster(found)
        return
    reason = why_not()
    if reason:
        raise Unavailable(reason)
    down = str(SCRIPTS / "down.sh")
    warden = Warden('exec "$0"', down)
    try:
        for script in ("up.sh", "images.sh"):
            print(said(run([SCRIPTS / script], timeout_s=UP_S), [script]), end="")
        yield Cluster(found)
    finally:
        print(said(run([down], timeout_s=UP_S), [down]), end="")
        warden.dismiss()


def leftovers(found: dict[str, str]) -> list[str]:
    """What a cluster has left on the machine: processes, mounts, network, cgroups, files."""
    left = [found[name] for name in ("STATE", "RUN") if Path(found[name]).exists()]
    left += [f"namespace {found['NETNS']}"] if Path("/run/netns", found["NETNS"]).exists() else []
    left += [f"link {found['HOST_LINK']}"] if Path("/sys/class/net", found["HOST_LINK"]).exists() else []
    left += [f"route {line}" for line in run(["ip", "route"]).out.splitlines() if found["NODE_IP"] in line]
    mounts = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    left += [f"mount {point}" for point in mounts if point.startswith((found["STATE"], found["RUN"]))]
    groups = Path("/sys/fs/cgroup")
    left += [f"cgroup {folder}" for folder in (*groups.glob("*/kubepods"), *groups.glob("kubepods"))]
    for process in Path("/proc").glob("[0-9]*"):
        try:
            command = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except (FileNotFoundError, ProcessLookupError):
            continue  # ended meanwhile
        if any(found[name] in command for name in ("BIN", "RUN", "STATE")):
            left.append(f"process {process.name}: {command[:100]}")
    return left
