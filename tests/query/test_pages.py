"""Page tokens."""

import base64

import hypothesis
import pytest
from hypothesis import strategies as st

from watertower.ports import ListCursor
from watertower.query.pages import PAGE_TOKEN_CHARACTERS_MAX, PageTokens

IDS = st.text(st.characters(codec="utf-8", exclude_categories=["Cc"]), min_size=1, max_size=32)
CURSORS = st.builds(ListCursor, st.integers(946_684_800_000_000, 2**62), IDS, IDS | st.just(""))


@hypothesis.given(IDS, st.integers(1, 3), CURSORS)
def test_a_token_carries_its_place(of: str, kind: int, cursor: ListCursor) -> None:
    """What is encoded is decoded, by every process of the same log."""
    token = PageTokens("log-1").encode("ListActors", of, kind, cursor)
    assert PageTokens("log-1").decode("ListActors", of, kind, token) == cursor


def test_the_longest_ids_fit() -> None:
    """PAGE_TOKEN_CHARACTERS_MAX is enough for ids of 128 bytes."""
    tokens, cursor = PageTokens("log-1"), ListCursor(2**63, "é" * 64, "é" * 64)
    token = tokens.encode("ListSubjects", "x" * 128, 3, cursor)
    assert len(token) <= PAGE_TOKEN_CHARACTERS_MAX
    assert tokens.decode("ListSubjects", "x" * 128, 3, token) == cursor


FOREIGN = {
    "log": ("log-2", "ListActors", "star", 1),
    "method": ("log-1", "ListSubjects", "star", 1),
    "subject": ("log-1", "ListActors", "sta", 1),
    "kind": ("log-1", "ListActors", "star", 2),
}


@pytest.mark.parametrize(("log_id", "method", "of", "kind"), FOREIGN.values(), ids=FOREIGN)
def test_a_foreign_token_is_refused(log_id: str, method: str, of: str, kind: int) -> None:
    """A token belongs to one log, method, subject and kind."""
    token = PageTokens("log-1").encode("ListActors", "star", 1, ListCursor(10**15, "a", ""))
    assert PageTokens(log_id).decode(method, of, kind, token) is None


@hypothesis.given(st.data())
def test_a_changed_token_is_refused(data: st.DataObject) -> None:
    """Whichever bit is changed, whatever is cut off or added."""
    tokens = PageTokens("log-1")
    token = tokens.encode("ListActors", "star", 1, ListCursor(10**15, "a", "r"))
    raw = bytearray(base64.urlsafe_b64decode(token + "=" * (-len(token) % 4)))
    bit = data.draw(st.integers(0, len(raw) * 8 - 1))
    raw[bit // 8] ^= 1 << bit % 8
    assert tokens.decode("ListActors", "star", 1, base64.urlsafe_b64encode(raw).rstrip(b"=").decode()) is None
    assert tokens.decode("ListActors", "star", 1, token[: data.draw(st.integers(0, len(token) - 1))]) is None
    assert tokens.decode("ListActors", "star", 1, token + data.draw(st.text(min_size=1, max_size=3))) is None


@hypothesis.given(st.text(max_size=PAGE_TOKEN_CHARACTERS_MAX + 10))
def test_any_other_text_is_refused(text: str) -> None:
    """Garbage raises nothing; it is no token."""
    assert PageTokens("log-1").decode("ListActors", "star", 1, text) is None


def test_an_overlong_token_is_not_even_looked_at() -> None:
    """PAGE_TOKEN_CHARACTERS_MAX holds for what is right otherwise, too."""
    tokens = PageTokens("log-1")
    token = tokens.encode("ListActors", "star", 1, ListCursor(10**15, "a" * 255, "r" * 100))
    assert len(token) > PAGE_TOKEN_CHARACTERS_MAX
    assert tokens.decode("ListActors", "star", 1, token) is None
