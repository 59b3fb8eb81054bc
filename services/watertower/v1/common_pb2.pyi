import datetime

from google.protobuf import timestamp_pb2 as _timestamp_pb2
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Kind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    KIND_UNSPECIFIED: _ClassVar[Kind]
    KIND_FOLLOW: _ClassVar[Kind]
    KIND_LIKE: _ClassVar[Kind]
    KIND_COMMENT: _ClassVar[Kind]

class State(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    STATE_UNSPECIFIED: _ClassVar[State]
    STATE_ACTIVE: _ClassVar[State]
    STATE_REMOVED: _ClassVar[State]

class Metric(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    METRIC_UNSPECIFIED: _ClassVar[Metric]
    METRIC_FOLLOWERS: _ClassVar[Metric]
    METRIC_FOLLOWING: _ClassVar[Metric]
    METRIC_LIKES: _ClassVar[Metric]
    METRIC_LIKES_GIVEN: _ClassVar[Metric]
    METRIC_COMMENTS: _ClassVar[Metric]
    METRIC_COMMENTS_WRITTEN: _ClassVar[Metric]
KIND_UNSPECIFIED: Kind
KIND_FOLLOW: Kind
KIND_LIKE: Kind
KIND_COMMENT: Kind
STATE_UNSPECIFIED: State
STATE_ACTIVE: State
STATE_REMOVED: State
METRIC_UNSPECIFIED: Metric
METRIC_FOLLOWERS: Metric
METRIC_FOLLOWING: Metric
METRIC_LIKES: Metric
METRIC_LIKES_GIVEN: Metric
METRIC_COMMENTS: Metric
METRIC_COMMENTS_WRITTEN: Metric

class Freshness(_message.Message):
    __slots__ = ("as_of", "position", "stale", "satisfied")
    AS_OF_FIELD_NUMBER: _ClassVar[int]
    POSITION_FIELD_NUMBER: _ClassVar[int]
    STALE_FIELD_NUMBER: _ClassVar[int]
    SATISFIED_FIELD_NUMBER: _ClassVar[int]
    as_of: _timestamp_pb2.Timestamp
    position: bytes
    stale: bool
    satisfied: bool
    def __init__(self, as_of: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., position: _Optional[bytes] = ..., stale: bool = ..., satisfied: bool = ...) -> None: ...
