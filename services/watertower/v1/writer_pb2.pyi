import datetime

from google.protobuf import timestamp_pb2 as _timestamp_pb2
from watertower.v1 import common_pb2 as _common_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class RecordEventsRequest(_message.Message):
    __slots__ = ("events",)
    EVENTS_FIELD_NUMBER: _ClassVar[int]
    events: _containers.RepeatedCompositeFieldContainer[Event]
    def __init__(self, events: _Optional[_Iterable[_Union[Event, _Mapping]]] = ...) -> None: ...

class Event(_message.Message):
    __slots__ = ("actor", "kind", "subject", "ref", "state", "occurred_at")
    ACTOR_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    SUBJECT_FIELD_NUMBER: _ClassVar[int]
    REF_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    OCCURRED_AT_FIELD_NUMBER: _ClassVar[int]
    actor: str
    kind: _common_pb2.Kind
    subject: str
    ref: str
    state: _common_pb2.State
    occurred_at: _timestamp_pb2.Timestamp
    def __init__(self, actor: _Optional[str] = ..., kind: _Optional[_Union[_common_pb2.Kind, str]] = ..., subject: _Optional[str] = ..., ref: _Optional[str] = ..., state: _Optional[_Union[_common_pb2.State, str]] = ..., occurred_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

class RecordEventsResponse(_message.Message):
    __slots__ = ("write_token",)
    WRITE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    write_token: bytes
    def __init__(self, write_token: _Optional[bytes] = ...) -> None: ...
