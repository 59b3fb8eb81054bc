"""Whether a process is ready, asked from outside."""

from pathlib import Path

from tests.commands import watertower
from watertower.testing.service import Service, free_port


def test_a_projector_answers_where_it_is_told_to(tmp_path: Path) -> None:
    """Ready while it runs; nobody there before and after, which is not ready either."""
    target = f"127.0.0.1:{(port := free_port())}"
    with Service(tmp_path / "data", "projector", settings={"projector_health_port": port}) as projector:
        assert watertower("health", target, "--timeout-s", "0.5").code == 1
        projector.start()
        ready = watertower("health", target)
        assert (ready.code, ready.out) == (0, f"{target} is ready\n")
        assert projector.stop() == 0
        gone = watertower("health", target, "--timeout-s", "0.5")
        assert gone.code == 1
        assert "does not answer" in gone.err


def test_ingest_and_query_answer_on_their_ports(tmp_path: Path) -> None:
    """The same question, where their callers call."""
    with Service(tmp_path / "data").start() as service:
        assert watertower("health", service.write_target).code == 0
        assert watertower("health", service.read_target).code == 0
