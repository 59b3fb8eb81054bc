"""The rules that the write side and the read side share."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from watertower import validation
from watertower.errors import CallRefused, Reason, Violation

IDS = st.text(max_size=140) | st.text(alphabet=st.sampled_from("aé€🌊\0\x1f\x20\x7e\x7f\x80\x9f\xa0"), max_size=140)


@given(st.lists(IDS, max_size=5))
def test_a_column_is_right_exactly_when_each_id_is(values: list[str]) -> None:
    """all_ids and id_violations agree with id_violation, and the violations name the places."""
    expected = [(f"ids[{place}]", reason) for place, value in enumerate(values) if (reason := validation.id_violation(value)) is not None]
    assert validation.id_violations("ids", values) == expected
    assert validation.all_ids(values) == (not expected)


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("a", None),
        ("a" * 128, None),
        ("é" * 64, None),
        ("", Reason.ID_LENGTH),
        ("a" * 129, Reason.ID_LENGTH),
        ("é" * 65, Reason.ID_LENGTH),
        ("\x1f", Reason.ID_CONTROL_CHARACTER),
        (" ", None),
        ("~", None),
        ("\x7f", Reason.ID_CONTROL_CHARACTER),
        ("\x9f", Reason.ID_CONTROL_CHARACTER),
        ("\u00a0", None),
        ("\u2028", None),
    ],
)
def test_an_id_is_1_to_128_bytes_without_control_characters(value: str, reason: Reason | None) -> None:
    """Bytes, not characters; exactly U+0000 to U+001F and U+007F to U+009F, though other characters do not print either."""
    assert validation.id_violation(value) is reason


@pytest.mark.parametrize(
    ("metrics", "violations"),
    [
        ([1, 2, 3, 4, 5, 6], []),
        ([6], []),
        ([], [("metrics", Reason.METRICS_COUNT)]),
        ([1, 1], [("metrics", Reason.METRICS_COUNT)]),
        ([1] * 1_000_000, [("metrics", Reason.METRICS_COUNT)]),
        (
            [1, 0, 99, -1],
            [("metrics[1]", Reason.METRIC_UNKNOWN), ("metrics[2]", Reason.METRIC_UNKNOWN), ("metrics[3]", Reason.METRIC_UNKNOWN)],
        ),
    ],
)
def test_metrics_are_1_to_6_known_ones_each_once(metrics: list[int], violations: list[Violation]) -> None:
    """An unknown metric is named by its place."""
    assert validation.metrics_violations("metrics", metrics) == violations


@pytest.mark.parametrize(("page_size", "reason"), [(0, None), (1_000, None), (1_001, Reason.PAGE_SIZE), (-1, Reason.PAGE_SIZE)])
def test_a_page_has_up_to_1000_items(page_size: int, reason: Reason | None) -> None:
    """0 means the default."""
    assert validation.page_size_violation(page_size) is reason


@pytest.mark.parametrize(("count", "reason"), [(0, Reason.ENTITIES_COUNT), (1, None), (1_000, None), (1_001, Reason.ENTITIES_COUNT)])
def test_a_call_has_1_to_1000_entities(count: int, reason: Reason | None) -> None:
    """The reason is the caller's to give."""
    assert validation.count_violation(count, validation.ENTITIES_MAX, Reason.ENTITIES_COUNT) is reason


def test_a_refusal_takes_every_violation() -> None:
    """No violation, no refusal; the first one's reason is the refusal's."""
    validation.refuse_if_any(validation.violations_of(("actor", None), ("kind", validation.kind_violation(1))))
    violations = validation.violations_of(("actor", validation.id_violation("")), ("kind", validation.kind_violation(9)))
    with pytest.raises(CallRefused) as refused:
        validation.refuse_if_any(violations)
    assert refused.value.violations == (Violation("actor", Reason.ID_LENGTH), Violation("kind", Reason.KIND_UNKNOWN))
    assert refused.value.reason is Reason.ID_LENGTH
