"""The rule for one edge. Order does not matter."""

from watertower.core.model import Edge


def wins(active: bool, occurred_at: int, current: Edge | None) -> bool:
    """Whether an event changes the edge: (occurred_at, REMOVED > ACTIVE) must be greater than what the edge holds.

    An edge is a last-writer-wins register, so events may arrive twice, late or in any order, from any number of retries, and
    the edge ends the same. An event equal to what the edge holds does not win: a duplicate changes nothing.
    """
    if current is None:
        return True
    if occurred_at != current.occurred_at:
        return occurred_at > current.occurred_at
    return current.active and not active
