"""What the client's tests on a real service share."""

from collections.abc import Iterator

import pytest

from watertower.testing.service import Service


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """One embedded service for the tests of a module: each has entities of its own."""
    with Service(tmp_path_factory.mktemp("client") / "data") as running:
        yield running.start()
