"""The bytes of the log and of the feed: what is written is read back, in every version, and nothing else is read."""

import json
from importlib.resources import files
from pathlib import Path
from typing import Any
from zlib import crc32

import fastavro
import pytest
from hypothesis import given
from hypothesis import strategies as st

from watertower.codec import (
    COUNTS_FEED,
    EVENT_BATCH,
    RECORD_ID_BYTES,
    Format,
    UndecodableRecord,
    decode_batch,
    decode_feed,
    encode_batch,
    encode_feed,
    record_id,
)
from watertower.core.model import KINDS, EventBatch, Metric
from watertower.ports import FeedMessage

EXAMPLES = Path(str(files("watertower") / "schemas" / "examples"))
BATCHES = sorted(path.stem for path in EXAMPLES.glob("event_batch.*.bin"))
MESSAGES = sorted(path.stem for path in EXAMPLES.glob("counts_feed.*.bin"))

INT64 = st.integers(-(2**63), 2**63 - 1)
IDS = st.text(st.characters(exclude_categories=("Cs", "Cc")), max_size=8) | st.sampled_from(["star", "post-1", ""])
NOW = 1_556_000_000_000_000
ONE = EventBatch(["ana"], b"\x01", ["star"], [""], b"\x01", [NOW])
TWO = EventBatch(["ana", "ben"], b"\x01\x02", ["star", "post-1"], ["", ""], b"\x01\x00", [NOW, NOW + 1])
MESSAGE = FeedMessage(3, 41, 57, NOW, ["star", "ana"], b"\x01\x02", [7, 1], [57, 57])


@st.composite
def batches(draw: st.DrawFn) -> EventBatch:
    """Any batch that ingest could write."""
    count = draw(st.integers(1, 12))
    texts = st.lists(IDS, min_size=count, max_size=count) | IDS.map(lambda value: [value] * count)
    kinds = st.lists(st.sampled_from(list(KINDS)), min_size=count, max_size=count).map(bytes)
    actives = st.lists(st.sampled_from([0, 1]), min_size=count, max_size=count).map(bytes)
    moments = st.lists(INT64, min_size=count, max_size=count)
    return EventBatch(draw(texts), draw(kinds), draw(texts), draw(texts), draw(actives), draw(moments))


@st.composite
def messages(draw: st.DrawFn) -> FeedMessage:
    """Any message that a projector could publish."""
    count = draw(st.integers(0, 12))
    after = draw(st.integers(-1, 2**50))
    metrics = bytes(draw(st.lists(st.sampled_from(list(Metric)), min_size=count, max_size=count)))
    entities = draw(st.lists(IDS, min_size=count, max_size=count))
    numbers = st.lists(INT64, min_size=count, max_size=count)
    end = after + draw(st.integers(0, 9))
    return FeedMessage(draw(st.integers(0, 63)), after, end, draw(INT64), entities, metrics, draw(numbers), draw(numbers))


def framed(form: Format, datum: dict[str, Any], version: int | None = None) -> bytes:
    """A payload with a valid frame around a datum that the encoder itself would not write."""
    written = Format(form.magic, form.name, form.version)
    payload = written.encode(datum)
    return payload if version is None else payload[:2] + bytes([version]) + payload[3:]


def datum_of(payload: bytes) -> dict[str, Any]:
    """The columns of a record as they are written down."""
    return EVENT_BATCH.decode(payload)


@given(batches())
def test_a_batch_is_read_back_as_it_was_written(batch: EventBatch) -> None:
    """Every batch that ingest can write comes back equal."""
    assert decode_batch(encode_batch(batch)) == batch


@given(messages())
def test_a_feed_message_is_read_back_as_it_was_written(message: FeedMessage) -> None:
    """Every message that a projector can publish comes back equal, heartbeats included."""
    assert decode_feed(encode_feed(message)) == message


@pytest.mark.parametrize("name", BATCHES)
def test_golden_batches_are_read_and_written(name: str) -> None:
    """A record written by a released version is read for ever; and the newest version still writes the same bytes."""
    payload = (EXAMPLES / f"{name}.bin").read_bytes()
    content = json.loads((EXAMPLES / f"{name}.json").read_text("utf-8"))
    batch = decode_batch(payload)
    assert {key: list(value) for key, value in batch._asdict().items()} == content
    if f".v{EVENT_BATCH.version}." in name:
        assert encode_batch(batch) == payload


@pytest.mark.parametrize("name", MESSAGES)
def test_golden_feed_messages_are_read_and_written(name: str) -> None:
    """A message written by a released version is read for ever; and the newest version still writes the same bytes."""
    payload = (EXAMPLES / f"{name}.bin").read_bytes()
    content = json.loads((EXAMPLES / f"{name}.json").read_text("utf-8"))
    message = decode_feed(payload)
    assert {key: list(value) if isinstance(value, bytes) else value for key, value in message._asdict().items()} == content
    if f".v{COUNTS_FEED.version}." in name:
        assert encode_feed(message) == payload


@pytest.mark.parametrize("form", [EVENT_BATCH, COUNTS_FEED], ids=lambda form: form.name)
def test_every_version_has_a_golden_example(form: Format) -> None:
    """No version is released without an example that later versions must read."""
    for version in range(1, form.version + 1):
        assert list(EXAMPLES.glob(f"{form.name}.v{version}.*.bin"))


@pytest.mark.parametrize("name", BATCHES + MESSAGES)
def test_every_truncation_and_every_flipped_byte_is_refused(name: str) -> None:
    """Damage is never read as something else, and never raises anything but UndecodableRecord."""
    payload = (EXAMPLES / f"{name}.bin").read_bytes()
    decode = decode_batch if name in BATCHES else decode_feed
    for length in range(len(payload)):
        with pytest.raises(UndecodableRecord):
            decode(payload[:length])
    for at in range(len(payload)):
        with pytest.raises(UndecodableRecord):
            decode(payload[:at] + bytes([payload[at] ^ 0x40]) + payload[at + 1 :])
    with pytest.raises(UndecodableRecord):
        decode(payload + b"\x00")


@given(st.binary(max_size=64))
def test_garbage_behind_a_valid_checksum_is_refused(body: bytes) -> None:
    """Whatever follows a valid header either is a batch or raises UndecodableRecord, and nothing else."""
    payload = b"WE\x01" + crc32(body, 1).to_bytes(4, "little") + body
    try:
        decode_batch(payload)
    except UndecodableRecord:
        return
    assert datum_of(payload)["type"] == "events"


@pytest.mark.parametrize("version", [0, EVENT_BATCH.version + 1, 255])
def test_an_unknown_version_is_refused(version: int) -> None:
    """A record of a newer version stops the reader, and the message says which versions it reads."""
    with pytest.raises(UndecodableRecord, match=rf"schema version {version}; this version of Watertower reads 1 to {EVENT_BATCH.version}"):
        decode_batch(framed(EVENT_BATCH, datum_of(encode_batch(ONE)), version))


def test_the_next_version_reads_this_one() -> None:
    """A version that adds a field with a default reads the records of the one before."""
    newer = Format(EVENT_BATCH.magic, EVENT_BATCH.name, EVENT_BATCH.version + 1)
    old = EVENT_BATCH.schemas[EVENT_BATCH.version]
    fields = [*old["fields"], {"name": "region", "type": "string", "default": "nowhere"}]
    newer.schemas = {**EVENT_BATCH.schemas, newer.version: fastavro.parse_schema({**old, "fields": fields}, {})}
    assert newer.decode(encode_batch(ONE)) == {**datum_of(encode_batch(ONE)), "region": "nowhere"}
    with pytest.raises(UndecodableRecord, match="schema version 2"):
        decode_batch(newer.encode({**datum_of(encode_batch(ONE)), "region": "north"}))


def test_the_other_format_is_refused() -> None:
    """A feed message is not read as a record, nor a record as a feed message."""
    with pytest.raises(UndecodableRecord, match="no event_batch"):
        decode_batch(encode_feed(MESSAGE))
    with pytest.raises(UndecodableRecord, match="no counts_feed"):
        decode_feed(encode_batch(ONE))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"type": "erase"}, "type 'erase'"),
        ({"kinds": b"\x01\x09"}, r"unknown kinds \[9\]"),
        ({"kinds": b"\x00"}, r"unknown kinds \[0\]"),
        ({"actives": b"\x02"}, r"unknown states \[2\]"),
        ({"kinds": b"\x01\x01\x01"}, "columns of 3 and 2"),
        ({"actives": b""}, "columns of 0 and 2"),
        ({"actors": "ana\nben\ncleo"}, "columns of 3 and 2"),
        ({"subjects": "a\nb\nc"}, "columns of 3 and 2"),
        ({"refs": "\n\n"}, "columns of 3 and 2"),
        ({"occurred_at": b"\x00" * 9}, "no column of int64"),
        ({"occurred_at": b"", "kinds": b"", "actives": b"", "actors": "", "subjects": "", "refs": ""}, "at least one event"),
    ],
)
def test_a_record_that_ingest_cannot_have_written_is_refused(change: dict[str, Any], message: str) -> None:
    """Unknown types, kinds and states, columns of unequal length and empty records are refused, each by its name."""
    with pytest.raises(UndecodableRecord, match=message):
        decode_batch(framed(EVENT_BATCH, {**datum_of(encode_batch(TWO)), **change}))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"metrics": b"\x01\x63"}, r"unknown metrics \[99\]"),
        ({"after": 58}, "range from 58 to 57"),
        ({"entities": "a\nb\nc"}, "columns of 3 and 2"),
        ({"offsets": b""}, "columns of 0 and 2"),
        ({"values": b"", "offsets": b""}, "columns of 2 and 0"),
    ],
)
def test_a_feed_message_that_no_projector_can_have_written_is_refused(change: dict[str, Any], message: str) -> None:
    """Unknown metrics, ranges that run backwards and columns of unequal length are refused."""
    with pytest.raises(UndecodableRecord, match=message):
        decode_feed(framed(COUNTS_FEED, {**COUNTS_FEED.decode(encode_feed(MESSAGE)), **change}))


@pytest.mark.parametrize(
    "batch",
    [
        EventBatch([], b"", [], [], b"", []),
        ONE._replace(kinds=b"\x07"),
        ONE._replace(actives=b"\x02"),
        ONE._replace(actors=["ana", "ben"]),
        ONE._replace(actors=["ana\nben"]),
        TWO._replace(subjects=["star\npost-1", "star\npost-1"]),
        ONE._replace(occurred_at=[2**63]),
        ONE._replace(refs=["\ud800"]),
    ],
)
def test_what_could_not_be_read_is_not_written(batch: EventBatch) -> None:
    """The encoder raises ValueError for what the decoder would refuse or read as something else."""
    with pytest.raises(ValueError):
        encode_batch(batch)


def test_a_surge_costs_a_fraction_of_its_columns() -> None:
    """One subject, one kind, one state and no refs are written once per record: an event costs its actor and its moment."""
    count = 1_000
    batch = EventBatch(
        [f"fan-{i:06}" for i in range(count)], b"\x01" * count, ["star"] * count, [""] * count, b"\x01" * count, [NOW] * count
    )
    assert len(encode_batch(batch)) < count * (len("fan-000000") + 1 + 8) + 100


def test_record_ids_tell_records_apart() -> None:
    """The id of a record is a hash of its bytes: equal for equal bytes, another for others, of fixed length."""
    first, second = encode_batch(ONE), encode_batch(TWO)
    assert record_id(first) == record_id(bytes(first)) != record_id(second)
    assert len(record_id(first)) == RECORD_ID_BYTES
