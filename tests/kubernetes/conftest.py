"""One cluster for all tests of this folder, and the engines beside it."""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.kubernetes import cluster as clusters
from tests.kubernetes.cluster import Cluster
from tests.needs import skip_or_fail
from watertower.testing.engines import CassandraEngine, KafkaEngine, cassandra, kafka
from watertower.testing.engines.fixtures import engine_or_skip

_HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """All of them are run by `make kubernetes` only, or by `make autoscale`."""
    for item in items:
        if _HERE in item.path.parents and not item.get_closest_marker("autoscale"):
            item.add_marker("kubernetes")


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """With the service's image in it. At the end nothing of it is left on the machine."""
    found = clusters.settings()
    own, before = not Path(found["RUN"]).exists(), set(clusters.leftovers(found))
    with ExitStack() as stack:
        try:
            running = stack.enter_context(clusters.running())
        except clusters.Unavailable as error:
            skip_or_fail(str(error))
        yield running
    if own:  # this very process names the folders nowhere
        assert set(clusters.leftovers(found)) - before == set()


@pytest.fixture(scope="module")
def near_kafka(cluster: Cluster) -> Iterator[KafkaEngine]:
    """A broker on this machine that pods reach."""
    with engine_or_skip(kafka(own=True, host=cluster.host_ip)) as engine:
        yield engine


@pytest.fixture(scope="module")
def near_cassandra(cluster: Cluster) -> Iterator[CassandraEngine]:
    """A node on this machine that pods reach."""
    with engine_or_skip(cassandra(own=True, host=cluster.host_ip)) as engine:
        yield engine
