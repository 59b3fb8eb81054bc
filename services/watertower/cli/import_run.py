"""The work of `watertower import`: reads, sends several calls at once, settles them in order, remembers how far it is.

The main thread reads the file and builds calls; a few threads send them. Calls are settled in the order of the file, so that what the
state says is acknowledged has no gaps.
"""

import contextlib
import random
import re
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from watertower.cli import connection, import_state
from watertower.cli.connection import CallFailed, RetryPolicy
from watertower.cli.import_events import Batch, EventMaker, Reject
from watertower.cli.import_source import Columns, Damaged, Source
from watertower.cli.import_state import ImportState, RejectsFile
from watertower.cli.output import CommandFailed
from watertower.client.errors import RETRYABLE
from watertower.core.model import KINDS, Kind
from watertower.core.positions import Position, decode_position, encode_position
from watertower.ports import Clock
from watertower.v1 import common_pb2, reader_pb2, reader_pb2_grpc, writer_pb2, writer_pb2_grpc

CALLS_IN_FLIGHT_MAX = 8
STATE_INTERVAL_S = 0.5
"""Seconds between two writes of the state, about: how much is sent again after a kill."""

AHEAD_US_MAX = 5_000_000
"""Microseconds that a row's time may be ahead of this machine's clock, as with the service's default."""

WAIT_POLL_S = 0.05
WAIT_STALLED_S = 60.0
"""Seconds without any progress of the reader after which waiting for it ends."""

PROBE_ENTITY = "watertower-import"
"""The entity that is asked for, to learn how far the reader is. It need not exist."""

_EVENT_FIELD = re.compile(r"events\[(\d+)\]\.?(.*)")


class Request(NamedTuple):
    """What is to be imported, and how."""

    file: Path
    kind: Kind
    mutual: bool
    active: bool
    columns: Columns
    time_unit: str
    base_time: int | None  # microseconds; None: the moment the import began
    header: bool
    rejects: Path
    state: Path
    restart: bool
    wait: bool
    retry_for_s: float
    write_target: str
    read_target: str

    @property
    def events_per_row(self) -> int:
        """A mutual edge is two events, one each way."""
        return 2 if self.mutual else 1

    def identity(self) -> dict[str, Any]:
        """Everything that decides which events the rows become, and where they and the rejects go."""
        return {
            "kind": self.kind.name.lower(),
            "mutual": self.mutual,
            "remove": not self.active,
            "columns": list(self.columns),
            "time_unit": self.time_unit,
            "at": self.base_time,
            "header": self.header,
            "rejects": str(self.rejects.absolute()),
            "write_target": self.write_target,
        }


class _Sent(NamedTuple):
    """A batch that is through: what the service took, and what it refused."""

    events: int
    refused: list[Reject]
    token: bytes  # empty when nothing was sent


class ImportRun:
    """One run of the command. `run` does it; `state` and `consumed_bytes` may be read whenever `on_progress` is called."""

    def __init__(
        self, request: Request, clock: Clock, rng: random.Random, note: Callable[[str], None], on_progress: Callable[[], None]
    ) -> None:
        self._request = request
        self._clock = clock
        self._rng = rng
        self._note = note
        self._on_progress = on_progress
        self._writer, self._reader = connection.writer(request.write_target), connection.reader(request.read_target)
        self._stop = threading.Event()
        self._position: Position | None = None  # everything that was acknowledged, of earlier runs too
        self._resumed: Position | None = None  # what earlier runs knew to be acknowledged
        self._saved_s = 0.0
        self.state = ImportState({}, {}, 0)
        self.consumed_bytes = 0

    def run(self) -> dict[str, Any]:
        """Imports, waits if asked to, and returns the summary. Raises CommandFailed; what was acknowledged stays remembered."""
        try:
            return self._run()
        except OSError as error:
            file, name = str(self._request.file), error.filename
            if name in (None, file):
                raise CommandFailed(f"{file}: {error.strerror or error}") from error
            raise CommandFailed(
                f"{file}: its import keeps its progress and rejected rows in files of its own, and {name} cannot be used: "
                f"{error.strerror}; name others with --state and --rejects"
            ) from error

    def _run(self) -> dict[str, Any]:
        request = self._request
        began_us, began_s = self._clock.now_us(), self._clock.monotonic_s()
        with contextlib.ExitStack() as opened:
            channel = opened.enter_context(contextlib.closing(connection.open_channel(self._writer)))
            source = opened.enter_context(
                contextlib.closing(Source(request.file, request.columns, KINDS[request.kind].needs_ref, request.header, self._note))
            )
            opened.enter_context(import_state.locked(request.state))
            before = self.state = self._begin(began_us)
            rejects = opened.enter_context(contextlib.closing(RejectsFile(request.rejects, before.rejects_bytes)))
            maker = EventMaker(
                kind=request.kind,
                active=request.active,
                events_per_row=request.events_per_row,
                has_time=request.columns.time is not None,
                time_unit=request.time_unit,
                base_time=before.base_time,
                latest_us=began_us + AHEAD_US_MAX,
            )
            stub = writer_pb2_grpc.EngagementWriterStub(channel)
            try:
                self._send_all(maker, source, stub, rejects)
            except Damaged as failure:
                again = "; mend the file and import it with --restart" if self.state.events else ""
                raise CommandFailed(f"{failure}; before the damage, {self._through()}{again}") from failure
            except CallFailed as failure:
                again = "; run the same command again to go on" if failure.status in RETRYABLE else ""
                raise CallFailed(f"{failure}; {self._through()}{again}", failure.status, failure.reason, failure.violations) from failure
        accepted_s = self._clock.monotonic_s() - began_s
        self._on_progress()
        if request.wait:
            try:
                self._wait()
            except CallFailed as failure:
                message = f"all rows are recorded and need not be sent again, but whether they are counted is not known: {failure}"
                raise CallFailed(message, failure.status, failure.reason) from failure
        visible_s = self._clock.monotonic_s() - began_s if request.wait else None
        sent = self.state.events - before.events
        return {
            "file": str(request.file),
            "kind": request.kind.name.lower(),
            "removed": not request.active,
            "rows": self.state.rows,
            "events": self.state.events,
            "rejected": self.state.rejected,
            "rejects_file": str(request.rejects) if self.state.rejected else None,
            "resumed_after_rows": before.rows,
            "accepted_s": round(accepted_s, 3),
            "accepted_per_s": round(sent / max(accepted_s, 1e-6), 1),
            "visible_s": None if visible_s is None else round(visible_s, 3),
            "visible_per_s": None if visible_s is None else round(sent / max(visible_s, 1e-6), 1),
        }

    def _begin(self, now_us: int) -> ImportState:
        """The state to start from."""
        request = self._request
        base_time = now_us if request.base_time is None else request.base_time
        fresh = ImportState(import_state.fingerprint(request.file), request.identity(), base_time)
        state = fresh
        if not request.restart:
            state = import_state.begin(import_state.load(request.state), fresh, request.state)
        if state.rows:
            self._note(f"continuing the import that was cut off after {state.rows:,} rows (--restart begins anew)")
        if state.position:
            self._resumed = self._position = decode_position(bytes.fromhex(state.position))
        return state

    def _through(self) -> str:
        """How much is remembered as recorded, for people."""
        rows, rejected = self.state.rows - self.state.rejected, self.state.rejected
        recorded = f"{rows:,} {'row was' if rows == 1 else 'rows were'} recorded" if rows else "no row was recorded"
        return f"{recorded} and {rejected:,} rejected" if rejected else recorded

    def _send_all(self, maker: EventMaker, source: Source, stub: writer_pb2_grpc.EngagementWriterStub, rejects: RejectsFile) -> None:
        in_flight: deque[tuple[Batch, Future[_Sent]]] = deque()
        begun = False
        pool = ThreadPoolExecutor(CALLS_IN_FLIGHT_MAX, thread_name_prefix="import")
        try:
            for batch in maker.batches(source.rows(self.state.offset, self.state.line)):
                if not begun:
                    # Before anything is sent: after a kill, the same command must find the base time.
                    import_state.save(self._request.state, self.state)
                    begun = True
                in_flight.append((batch, pool.submit(self._send, stub, batch)))
                self.consumed_bytes = source.consumed_bytes()
                if len(in_flight) >= CALLS_IN_FLIGHT_MAX:
                    self._settle_oldest(in_flight, rejects)
            while in_flight:
                self._settle_oldest(in_flight, rejects)
            self.state = self.state._replace(finished=True)
        finally:
            # After an error or Ctrl-C: no new attempts; what is through, without a gap, is remembered.
            self._stop.set()
            pool.shutdown(wait=True, cancel_futures=True)
            with contextlib.suppress(Exception, CancelledError):  # the error that is under way already
                while in_flight:
                    self._settle_oldest(in_flight, rejects)
            if begun or self.state.rows:  # also one whose last run was killed between its last row and its end
                import_state.save(self._request.state, self.state)

    def _send(self, stub: writer_pb2_grpc.EngagementWriterStub, batch: Batch) -> _Sent:
        """In a thread of the pool: one call, repeated without the rows that the service refuses."""
        events, rows, refused = batch.request, batch.rows, list[Reject]()
        while rows:
            try:
                response = self._call(stub.RecordEvents, events, self._writer, self._policy())
                return _Sent(len(events.events), refused, response.write_token)
            except CallFailed as failure:
                broken = self._refused_rows(failure)
                if not broken:
                    raise
                refused += [Reject(line, broken[i], raw) for i, (line, raw) in enumerate(rows) if i in broken]
                rows = [row for i, row in enumerate(rows) if i not in broken]
                kept = [event for i, event in enumerate(events.events) if i // self._request.events_per_row not in broken]
                events = writer_pb2.RecordEventsRequest(events=kept)
        return _Sent(0, refused, b"")

    def _refused_rows(self, failure: CallFailed) -> dict[int, str]:
        """Why the service refused which rows of a call; empty when it refused the call as a whole."""
        broken: dict[int, str] = {}
        for field, rule in failure.violations:
            match = _EVENT_FIELD.fullmatch(field)
            if match is None:
                return {}
            if match[2] == "occurred_at" and self._request.columns.time is None:
                # Not the rows' fault: all of them carry the one time of this import.
                raise CommandFailed(
                    f"the service refuses the time of this import: occurred_at {rule}; set the clock, or give --at"
                ) from failure
            broken.setdefault(int(match[1]) // self._request.events_per_row, f"{match[2]} {rule}".strip())
        return broken

    def _settle_oldest(self, in_flight: "deque[tuple[Batch, Future[_Sent]]]", rejects: RejectsFile) -> None:
        """Waits for the oldest batch and takes its result into the state. It leaves the queue when that is done: nothing may be
        settled past a batch that failed."""
        batch, future = in_flight[0]
        sent = future.result()
        refused = sorted([*batch.rejects, *sent.refused])
        if sent.token:
            self._acknowledged(sent.token)
        self.state = self.state._replace(
            offset=batch.end,
            line=batch.last_line,
            rows=self.state.rows + len(batch.rows) + len(batch.rejects),
            events=self.state.events + sent.events,
            rejected=self.state.rejected + len(refused),
            rejects_bytes=rejects.write(refused, self.state.rejects_bytes) if refused else self.state.rejects_bytes,
            position="" if self._position is None else encode_position(self._position).hex(),
        )
        in_flight.popleft()
        now_s = self._clock.monotonic_s()
        if now_s - self._saved_s >= STATE_INTERVAL_S:
            import_state.save(self._request.state, self.state)
            self._saved_s = now_s
        self._on_progress()

    def _acknowledged(self, token: bytes) -> None:
        position = decode_position(token)
        before = self._resumed
        if before is not None and (
            before.generation != position.generation or any(before.offsets.get(p, -1) > o for p, o in position.offsets.items())
        ):
            raise CommandFailed("the service has another log than when this import was cut off: send everything again with --restart")
        self._position = position if self._position is None else self._position.merged(position)

    def _wait(self) -> None:
        """Until the reader's answers include everything that was acknowledged."""
        if self._position is None:
            return
        request = self._request
        with contextlib.closing(connection.open_channel(self._reader)) as channel:
            stub = reader_pb2_grpc.EngagementReaderStub(channel)
            probe = reader_pb2.GetCountsRequest(entity=PROBE_ENTITY, metrics=[common_pb2.METRIC_FOLLOWERS])
            seen, seen_s = 0, self._clock.monotonic_s()
            self._stop.clear()
            while True:
                token = self._call(stub.GetCounts, probe, self._reader, self._policy()).freshness.position
                position = decode_position(token) if token else Position(self._position.generation, {})
                if position.covers(self._position):
                    return
                now_s = self._clock.monotonic_s()
                # Only what is waited for: other callers' events may go on while the partition of ours stands still.
                through = sum(min(position.offsets.get(p, -1), offset) for p, offset in self._position.offsets.items())
                if through != seen:
                    seen, seen_s = through, now_s
                elif now_s - seen_s > WAIT_STALLED_S:
                    raise CommandFailed(
                        f"all rows are recorded, but the reader at {request.read_target} has not come further for {WAIT_STALLED_S:.0f} s: "
                        "look at the projector's log"
                    )
                self._clock.sleep(WAIT_POLL_S)

    def _policy(self) -> RetryPolicy:
        return RetryPolicy(total_s=self._request.retry_for_s)

    def _call(self, method: Any, request: Any, server: connection.Server, policy: RetryPolicy) -> Any:
        return connection.call(method, request, server, policy, self._clock, self._rng, give_up=self._stop.is_set)
