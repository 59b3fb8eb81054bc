"""What the tests of the query process share."""

import pytest


@pytest.fixture(params=["grpcio", "native"])
def each_server(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Every server that can be set, for whatever reads QuerySettings: the contract is one."""
    server: str = request.param
    monkeypatch.setenv("WATERTOWER_QUERY_SERVER", server)
    return server
