"""What the service refuses to start on: it says why and what to do, exits with 3, and does not try again and again."""

import contextlib
import json
import re
import shutil
import socket
import sqlite3
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.calls import follow, record, wait_visible, writing
from tests.commands import watertower
from watertower import config
from watertower.backends.sqlite import SqliteLogReader
from watertower.datafolder import open_existing
from watertower.testing.service import ROLES, Service, free_port, wait_until

EXIT_REFUSED = 3


class Used(NamedTuple):
    """A data folder after two runs of the service, and its log as it was after the first."""

    data: Path
    older_log: Path


@pytest.fixture(scope="module")
def used(tmp_path_factory: pytest.TempPathFactory) -> Used:
    folder = tmp_path_factory.mktemp("used")
    data, older_log = folder / "data", folder / "older.sqlite"
    with Service(data, settings={"ingest_truncate_interval_ms": 20}) as service:
        for run in range(2):
            service.start()
            ends: dict[int, int] = {}
            with writing(service.write_target) as writer:
                for call in range(10):
                    ends.update(record(writer, [follow(f"ann{run}-{call}-{n}", "star") for n in range(50)]).offsets)
            wait_visible(service.read_target, ends)
            opened = open_existing(data)
            with contextlib.closing(SqliteLogReader(opened.log_path, opened.commits_path, opened.identity)) as log:
                wait_until(lambda log=log, ends=ends: all(log.start(p) == end for p, end in ends.items()), "the log is truncated")  # type: ignore[misc]
            assert service.stop() == 0
            if run == 0:
                shutil.copy(opened.log_path, older_log)
    return Used(data, older_log)


def _edit_marker(data: Path, **changes: object) -> None:
    path = data / "watertower.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def _overwrite(pattern: str) -> Callable[[Path, Used], None]:
    """Every byte of the files that match."""

    def damage(data: Path, _: Used) -> None:
        paths = list(data.glob(pattern))
        assert paths, f"there is no {pattern}"
        for path in paths:
            path.write_bytes(b"\xa5" * path.stat().st_size)

    return damage


def _newer_log(data: Path, _: Used) -> None:
    with contextlib.closing(sqlite3.connect(data / "log.sqlite")) as log, log:
        log.execute("UPDATE meta SET value = 2 WHERE name = 'format'")


def _other_log(data: Path, _: Used) -> None:
    with contextlib.closing(sqlite3.connect(data / "log.sqlite")) as log, log:
        log.execute("UPDATE meta SET value = ? WHERE name = 'log_id'", ("0" * 32,))


CASES: dict[str, tuple[Callable[[Path, Used], object], str]] = {
    "marker is no JSON": (
        lambda data, _: (data / "watertower.json").write_text("{"),
        r"watertower\.json is damaged: restore the data folder",
    ),
    "newer format": (lambda data, _: _edit_marker(data, format=2), r"has format 2 and this version of Watertower reads up to 1: start the"),
    "other files": (lambda data, _: (data / "watertower.json").unlink(), r"is not empty and no data folder of Watertower"),
    "log overwritten": (_overwrite("log.sqlite"), r"log\.sqlite cannot be opened: .*damaged, restore the data folder from a backup"),
    "log missing": (lambda data, _: (data / "log.sqlite").unlink(), r"log\.sqlite is missing, and its records had been applied"),
    "log newer": (_newer_log, r"log\.sqlite has format 2 .* start the version that wrote it"),
    "log of another folder": (_other_log, r"bring back the log that belongs to the folder"),
    "log restored from before": (lambda data, used: shutil.copy(used.older_log, data / "log.sqlite"), r"the log is older than the store"),
    "store gone": (
        lambda data, _: shutil.rmtree(data / "store"),
        r"the log starts at offset \d+ but the store has applied it only up to -1",
    ),
    "store without CURRENT": (lambda data, _: (data / "store" / "CURRENT").unlink(), r"the store at .* is damaged .* put back a backup"),
    "store manifest overwritten": (_overwrite("store/MANIFEST-*"), r"the store at .* is damaged .* put back a backup"),
    "store tables overwritten": (_overwrite("store/*.sst"), r"the store at .* is damaged .* put back a backup"),
}


@pytest.mark.parametrize("case", CASES)
def test_a_data_folder_that_is_damaged_newer_or_not_whole_is_refused(tmp_path: Path, used: Used, case: str) -> None:
    """`serve` exits with 3 and says, in its last line too, what is wrong and what to do. No role is started a second time."""
    damage, message = CASES[case]
    data = tmp_path / "data"
    shutil.copytree(used.data, data)
    damage(data, used)
    _assert_refused(data, message)


def test_another_number_of_partitions_is_refused(tmp_path: Path, used: Used) -> None:
    """It is fixed when the folder is created; the message says what it is."""
    data = tmp_path / "data"
    shutil.copytree(used.data, data)
    _assert_refused(data, r"has 8 partitions and the settings say 4: .* set partitions to 8", {"partitions": 4})


@pytest.mark.parametrize("which", ["write_port", "read_port"])
def test_a_taken_port_is_refused(tmp_path: Path, which: str) -> None:
    """The message names the address. `serve` exits with 3 as for every refusal at its start, a role alone with 4."""
    port = free_port()
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", port))
        holder.listen()
        _assert_refused(tmp_path / "data", rf"cannot listen on 127\.0\.0\.1:{port}: the port is taken", {which: port})
        role = "ingest" if which == "write_port" else "query"
        assert watertower(role, "--data", tmp_path / "data", "--set", f"{which}={port}").code == 4


def test_one_port_for_both_servers_is_refused(tmp_path: Path) -> None:
    """Before anything is made or started; 0, which takes any free one, may be said twice."""
    port = free_port()
    ran = watertower("serve", "--data", tmp_path / "data", "--write-port", port, "--set", f"read_port={port}")
    assert ran.code == EXIT_REFUSED
    assert ran.err == f"watertower: settings: write_port and read_port are both {port}: give each server a port of its own\n"
    assert not (tmp_path / "data").exists()


def _assert_refused(data: Path, message: str, settings: Mapping[str, int] | None = None) -> None:
    ports = {"write_port": 0, "read_port": 0, **(settings or {})}
    own = ("--write-port", ports.pop("write_port"), "--read-port", ports.pop("read_port"))
    more = [word for name, value in ports.items() for word in ("--set", f"{name}={value}")]
    ran = watertower("serve", "--data", data, "--json", *own, "--set", "log_format=json", *more, timeout_s=60.0)
    assert ran.code == EXIT_REFUSED, ran.err
    last = json.loads(ran.err.splitlines()[-1])
    assert last["exit_code"] == EXIT_REFUSED
    assert re.search(message, last["error"]), ran.err
    assert "Traceback" not in ran.err
    started = [json.loads(line)["child"] for line in ran.err.splitlines() if '"role_started"' in line]
    assert len(started) == len(set(started)), "a role was started again"
    assert set(started) <= set(ROLES)


# --- settings


def test_config_shows_every_setting_and_where_it_came_from() -> None:
    """An option wins over the environment, the environment over the default."""
    environment = {"WATERTOWER_PARTITIONS": "4", "WATERTOWER_QUERY_TAIL_INTERVAL_MS": "30"}
    ran = watertower("config", "--json", "--read-port", 7, "--set", "query_tail_interval_ms=40", environment=environment)
    assert ran.code == 0, ran.err
    shown = json.loads(ran.out)
    assert set(shown) == set(config.catalogue())
    assert shown["partitions"] == {"value": "4", "source": "environment WATERTOWER_PARTITIONS"}
    assert shown["query_tail_interval_ms"] == {"value": "40", "source": "option"}
    assert shown["read_port"] == {"value": "7", "source": "option"}
    assert shown["write_port"] == {"value": "50051", "source": "default"}


def test_config_has_a_table_for_people() -> None:
    """With every name, and what each means."""
    ran = watertower("config", environment={"COLUMNS": "200", "WATERTOWER_PARTITIONS": "4"})
    assert ran.code == 0, ran.err
    assert all(name in ran.out for name in config.catalogue())
    assert "environment WATERTOWER_PARTITIONS" in ran.out


@pytest.mark.parametrize("command", ["config", "serve", "ingest", "projector", "query"])
def test_unknown_and_bad_settings_are_refused_by_name(tmp_path: Path, command: str) -> None:
    """All of them in one message, options and environment alike, and nothing is made on the disk."""
    data = tmp_path / "data"
    environment = {"WATERTOWER_INGEST_QUEUE": "1", "WATERTOWER_QUERY_NICE": "50"}
    options = ("--set", "nonsense=1", "--set", "partitions=65", "--set", "ingest_retry_after_ms=soon")
    ran = watertower(command, "--data", data, *options, environment=environment)
    assert ran.code == EXIT_REFUSED
    for name in ("nonsense: there is no such setting", "WATERTOWER_INGEST_QUEUE: there is no such setting", "partitions: ", "query_nice: "):
        assert name in ran.err
    assert "ingest_retry_after_ms: " in ran.err
    assert not data.exists()


def test_variables_that_kubernetes_sets_are_ignored() -> None:
    """For Services named watertower and watertower-query. What only looks like them is refused."""
    links = {
        "WATERTOWER_SERVICE_HOST": "10.0.0.1",
        "WATERTOWER_SERVICE_PORT": "50051",
        "WATERTOWER_SERVICE_PORT_WRITE": "50051",
        "WATERTOWER_PORT": "tcp://10.0.0.1:50051",
        "WATERTOWER_PORT_50051_TCP": "tcp://10.0.0.1:50051",
        "WATERTOWER_PORT_50051_TCP_PROTO": "tcp",
        "WATERTOWER_PORT_50051_TCP_PORT": "50051",
        "WATERTOWER_PORT_50051_TCP_ADDR": "10.0.0.1",
        "WATERTOWER_QUERY_SERVICE_HOST": "10.0.0.2",
        "WATERTOWER_QUERY_PORT": "tcp://10.0.0.2:50052",
    }
    assert watertower("config", environment=links).code == 0
    slips = {"WATERTOWER_PORT": "50051", "WATERTOWER_SERVICE_NAME": "x", "WATERTOWER_PORT_WRITE": "50051"}
    ran = watertower("config", environment=slips)
    assert ran.code != 0
    assert all(f"{name}: there is no such setting" in ran.err for name in slips)


def test_what_ci_exports_is_taken_for_no_setting() -> None:
    """It is in the environment of every service of a run."""
    names = set(re.findall(r"WATERTOWER_[A-Z_]+", (Path(__file__).parents[2] / ".ci" / "run").read_text()))
    assert "WATERTOWER_KUBERNETES_CACHE" in names
    ran = watertower("config", environment=dict.fromkeys(names, "1"))
    assert ran.code == 0, ran.err


def test_no_setting_is_named_like_a_variable_of_kubernetes() -> None:
    """A slip in its name would not be noticed."""
    assert [name for name in config.catalogue() if config._SERVICE_LINK.search(f"WATERTOWER_{name.upper()}")] == []


def test_an_assignment_without_a_value_is_refused(tmp_path: Path) -> None:
    """`--set` says how it is written."""
    ran = watertower("serve", "--data", tmp_path / "data", "--set", "partitions")
    assert (ran.code, ran.err.strip()) == (EXIT_REFUSED, "watertower: --set partitions: write it as NAME=VALUE")
