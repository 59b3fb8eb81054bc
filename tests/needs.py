"""What a test needs of the machine and may not find."""

import os
from typing import NoReturn

import pytest


def skip_or_fail(reason: str) -> NoReturn:
    """Skips the test, or fails it where everything that tests need is required to be there."""
    if os.environ.get("WATERTOWER_REQUIRE_ENGINES") == "1":
        pytest.fail(reason)
    pytest.skip(reason)
