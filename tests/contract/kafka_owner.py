"""A reader of the log in a process of its own, for tests that freeze and kill it: writes what it owns, whenever that changes.

usage: python -m tests.contract.kafka_owner BOOTSTRAP_SERVERS PREFIX SESSION_TIMEOUT_MS
"""

import json
import sys
import time

import structlog

from watertower.backends.kafka_client import KafkaSettings
from watertower.backends.kafka_reader import KafkaLogReader
from watertower.clock import SystemClock


def main() -> None:
    servers, prefix, session_timeout_ms = sys.argv[1:]
    structlog.configure(logger_factory=structlog.WriteLoggerFactory(file=sys.stderr))  # stdout is for what it owns
    settings = KafkaSettings(servers, prefix, group_session_timeout_ms=int(session_timeout_ms), group_heartbeat_ms=200)
    reader = KafkaLogReader(settings, SystemClock())
    said = None
    while True:
        owned = sorted(reader.owned())
        if owned != said:
            print(json.dumps(owned), flush=True)
            said = owned
        time.sleep(0.02)


if __name__ == "__main__":
    main()
