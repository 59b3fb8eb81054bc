"""Answers ahead of a deadline, on a machine that stops for longer than the service answers ahead."""

import pytest

from watertower import rpc


def half_of_the_time_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """A back end may take half of a call's time, instead of all but a tenth and 0.3 s at most. Caller and service share an event loop, and
    what holds it up for that long would end the call before its answer."""
    monkeypatch.setattr(rpc, "ANSWER_AHEAD_SHARE", 0.5)
    monkeypatch.setattr(rpc, "ANSWER_AHEAD_S_MAX", 10.0)
