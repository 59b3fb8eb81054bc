"""The service config of proto/ keeps gRPC's rules, and a stock client does what it says."""

import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest

from tests.languages.scripted import STREAMS, Refusal, Scripted
from watertower.config import IngestSettings, QuerySettings
from watertower.errors import Reason
from watertower.v1 import reader_pb2, writer_pb2

TEXT = (Path(__file__).parents[2] / "proto" / "watertower" / "v1" / "service_config.json").read_text("utf-8")
CONFIG = json.loads(TEXT)
METHODS = {
    (service.full_name, method.name): method
    for file in (writer_pb2.DESCRIPTOR, reader_pb2.DESCRIPTOR)
    for service in file.services_by_name.values()
    for method in service.methods
}
CONFIGURED = {(name["service"], name["method"]): config for config in CONFIG["methodConfig"] for name in config["name"]}
NAMES = {f"/{service}/{method}": config for (service, method), config in CONFIGURED.items()}
RETRIED = sorted(name for name, config in NAMES.items() if "retryPolicy" in config)
RECORD = "/watertower.v1.EngagementWriter/RecordEvents"

ATTEMPTS_MAX = 5
"""gRPC's libraries make no more, whatever a policy says."""

TOKENS_MAX = 1_000
"""gRPC's bound of retryThrottling.maxTokens."""

SHED, AWAY = Refusal(Reason.QUEUE_FULL, 1), Refusal(Reason.STOPPING, 1)


def seconds(duration: str) -> float:
    """Of a duration in the JSON form of protocol buffers."""
    found = re.fullmatch(r"(\d+(?:\.\d{1,9})?)s", duration)
    assert found, duration
    return float(found[1])


@contextmanager
def calling(server: Scripted, config: str = TEXT) -> Iterator[Any]:
    """A channel of grpcio with nothing but the service config; calls have no deadline of their own."""
    options = [("grpc.service_config", config), ("grpc.use_local_subchannel_pool", 1)]
    with grpc.insecure_channel(server.target, options=options) as channel:
        yield channel


def code_of(call: Any) -> grpc.StatusCode | None:
    """How a call ended; None if well."""
    try:
        call()
    except grpc.RpcError as error:
        return error.code()
    return None


def test_every_method_is_named_once() -> None:
    """A new method cannot be forgotten, and no name is of a method that is not there."""
    names = [(name["service"], name["method"]) for config in CONFIG["methodConfig"] for name in config["name"]]
    assert sorted(names) == sorted(METHODS)
    assert {"loadBalancingConfig", "methodConfig", "retryThrottling"} == set(CONFIG)


def test_policies_keep_the_rules_of_grpc() -> None:
    """A library that met a value out of bounds would drop the whole config, with its deadlines."""
    for name in RETRIED:
        policy = NAMES[name]["retryPolicy"]
        assert set(policy) == {"maxAttempts", "initialBackoff", "maxBackoff", "backoffMultiplier", "retryableStatusCodes"}
        assert 2 <= policy["maxAttempts"] <= ATTEMPTS_MAX
        assert 0 < seconds(policy["initialBackoff"]) <= seconds(policy["maxBackoff"])
        assert policy["backoffMultiplier"] > 1
    budget = CONFIG["retryThrottling"]
    assert 0 < budget["maxTokens"] <= TOKENS_MAX
    assert budget["tokenRatio"] == 0.1, "one retry for ten calls that went well"


def test_only_codes_that_are_safe_are_retried() -> None:
    """Those after which the catalogue of reasons says to repeat the identical call; a broken rule stays broken."""
    retried = {code for name in RETRIED for code in NAMES[name]["retryPolicy"]["retryableStatusCodes"]}
    assert retried == {"UNAVAILABLE", "RESOURCE_EXHAUSTED"}
    assert {reason.status.name for reason in Reason if "repeat the call" in reason.rule} - {"DEADLINE_EXCEEDED"} == retried


def test_streams_have_neither_deadline_nor_retries() -> None:
    """A watch lasts until its caller ends it; every other method has both."""
    streams = {f"/{service}/{method}" for (service, method), found in METHODS.items() if found.server_streaming}
    assert streams == set(STREAMS) == {name for name, config in NAMES.items() if set(config) == {"name"}}
    assert all(seconds(NAMES[name]["timeout"]) > 0 for name in RETRIED)
    assert len(RETRIED) == len(NAMES) - len(STREAMS)


def test_there_is_time_for_the_retries() -> None:
    """All attempts fit into the deadline where each is answered at once with the pushback of a default service."""
    for name in RETRIED:
        pushback_ms = (IngestSettings() if name == RECORD else QuerySettings()).retry_after_ms
        waits = NAMES[name]["retryPolicy"]["maxAttempts"] - 1
        assert waits * pushback_ms / 1e3 < seconds(NAMES[name]["timeout"])


@pytest.mark.parametrize("name", RETRIED)
def test_a_call_that_hangs_ends_after_the_time_of_its_method(name: str) -> None:
    """grpcio takes the config as it is: a call without a deadline of its own has the method's. (Here with shorter ones. Up to grpcio 1.85
    they end a second early, https://github.com/grpc/grpc/issues/34547, and never reach the server.)"""
    hasty = re.sub(r'"timeout": "\d+s"', '"timeout": "1.2s"', TEXT)
    over = threading.Event()
    with Scripted(lambda method, request: b"" if over.wait(30) else b"late") as server, calling(server, hasty) as channel:
        try:
            assert code_of(lambda: channel.unary_unary(name)(b"")) is grpc.StatusCode.DEADLINE_EXCEEDED
        finally:
            over.set()


@pytest.mark.parametrize("refusal", [SHED, AWAY], ids=["shed", "away"])
@pytest.mark.parametrize("name", RETRIED)
def test_a_refused_call_is_repeated_identically(name: str, refusal: Refusal) -> None:
    """The caller sees only the answer; the server sees the same bytes again, and which attempt it is."""
    with Scripted(lambda method, request: b"answer") as server, calling(server) as channel:
        server.refusals = [refusal, refusal]
        assert channel.unary_unary(name)(b"request") == b"answer"
        assert [(seen.method, seen.request, seen.previous_attempts) for seen in server.seen] == [(name, b"request", n) for n in range(3)]


@pytest.mark.parametrize("name", RETRIED)
def test_attempts_are_bounded(name: str) -> None:
    """A refusal that lasts reaches the caller after maxAttempts."""
    with Scripted() as server, calling(server) as channel:
        server.lasting = SHED
        assert code_of(lambda: channel.unary_unary(name)(b"")) is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert len(server.seen) == NAMES[name]["retryPolicy"]["maxAttempts"]


def test_pushback_is_honoured() -> None:
    """The next attempt comes when the service said, not when the backoff would have it (0.1 s, then 0.2 s)."""
    with Scripted() as server, calling(server) as channel:
        server.refusals = [Refusal(Reason.QUEUE_FULL, 500), Refusal(Reason.LOG_UNAVAILABLE, 500)]
        channel.unary_unary(RECORD)(b"")
        assert all(gap >= 0.5 for gap in server.gaps_s())
        assert len(server.gaps_s()) == 2


def test_a_broken_rule_is_not_repeated() -> None:
    """INVALID_ARGUMENT reaches the caller at once."""
    with Scripted() as server, calling(server) as channel:
        server.lasting = Refusal(Reason.EVENTS_COUNT)
        assert code_of(lambda: channel.unary_unary(RECORD)(b"")) is grpc.StatusCode.INVALID_ARGUMENT
        assert len(server.seen) == 1


def test_a_watch_is_not_repeated() -> None:
    """A watch that ends is opened again by its caller, who has to take its first message for a new beginning."""
    with Scripted() as server, calling(server) as channel:
        server.lasting = AWAY
        assert code_of(lambda: list(channel.unary_stream(STREAMS[0])(b""))) is grpc.StatusCode.UNAVAILABLE
        assert len(server.seen) == 1


def test_retries_have_a_budget() -> None:
    """While a service refuses everything, a process soon sends nothing but first attempts: half of the tokens is spent and no more."""
    tokens, attempts_max = CONFIG["retryThrottling"]["maxTokens"], NAMES[RECORD]["retryPolicy"]["maxAttempts"]
    with Scripted() as server, calling(server) as channel:
        server.lasting = SHED
        calls = 0
        while len(server.seen) < tokens / 2:
            assert code_of(lambda: channel.unary_unary(RECORD)(b"")) is grpc.StatusCode.RESOURCE_EXHAUSTED
            calls += 1
        assert calls == tokens / 2 / attempts_max
        before = len(server.seen)
        for _ in range(5):
            code_of(lambda: channel.unary_unary(RECORD)(b""))
        assert len(server.seen) == before + 5
