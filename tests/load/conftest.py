"""One real service for the tests of this folder."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from watertower.testing.service import Service


@pytest.fixture(scope="package")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    data: Path = tmp_path_factory.mktemp("load") / "data"
    with Service(data) as running:
        yield running.start()
