"""`python -m watertower.testing.engines [kafka] [cassandra] [--nodes N] [--secure]`: engines to develop against, until Ctrl-C.

Prints one line per engine: the variables with which tests and tools in other terminals find it.
"""

import argparse
import shlex
import signal
import sys
from contextlib import ExitStack

from watertower.testing.engines import Engine, EngineFailed, EngineUnavailable, cassandra, kafka

_STARTERS = {"kafka": kafka, "cassandra": cassandra}


def main() -> int:
    """The exit code: 0 after Ctrl-C or SIGTERM, 1 when an engine could not be had."""
    parser = argparse.ArgumentParser(
        prog="python -m watertower.testing.engines", description="Run Kafka and Cassandra until Ctrl-C or SIGTERM."
    )
    parser.add_argument("engines", nargs="*", metavar="engine", help="kafka, cassandra; both if none is named")
    parser.add_argument("--nodes", type=int, default=1, help="nodes of each (default 1)")
    parser.add_argument("--secure", action="store_true", help="with TLS and passwords")
    asked = parser.parse_args()
    unknown = set(asked.engines) - set(_STARTERS)
    if unknown:
        parser.error(f"unknown engine: {', '.join(sorted(unknown))}; choose from {', '.join(_STARTERS)}")

    # Both signals end the wait below, and a start that is under way, by the same way out: engines go in any case.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with ExitStack() as running:
            for name in asked.engines or _STARTERS:
                engine: Engine = running.enter_context(_STARTERS[name](asked.nodes, secure=asked.secure, own=True))
                print(" ".join(f"{variable}={shlex.quote(value)}" for variable, value in engine.environment().items()), flush=True)
            while True:
                signal.pause()
    except KeyboardInterrupt:
        return 0
    except (EngineUnavailable, EngineFailed) as error:
        print(error, file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
