import datetime

from google.protobuf import duration_pb2 as _duration_pb2
from google.protobuf import timestamp_pb2 as _timestamp_pb2
from watertower.v1 import common_pb2 as _common_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class GetCountsRequest(_message.Message):
    __slots__ = ("entity", "metrics", "min_position", "max_staleness")
    ENTITY_FIELD_NUMBER: _ClassVar[int]
    METRICS_FIELD_NUMBER: _ClassVar[int]
    MIN_POSITION_FIELD_NUMBER: _ClassVar[int]
    MAX_STALENESS_FIELD_NUMBER: _ClassVar[int]
    entity: str
    metrics: _containers.RepeatedScalarFieldContainer[_common_pb2.Metric]
    min_position: bytes
    max_staleness: _duration_pb2.Duration
    def __init__(self, entity: _Optional[str] = ..., metrics: _Optional[_Iterable[_Union[_common_pb2.Metric, str]]] = ..., min_position: _Optional[bytes] = ..., max_staleness: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ...) -> None: ...

class GetCountsResponse(_message.Message):
    __slots__ = ("values", "known", "freshness")
    VALUES_FIELD_NUMBER: _ClassVar[int]
    KNOWN_FIELD_NUMBER: _ClassVar[int]
    FRESHNESS_FIELD_NUMBER: _ClassVar[int]
    values: _containers.RepeatedScalarFieldContainer[int]
    known: bool
    freshness: _common_pb2.Freshness
    def __init__(self, values: _Optional[_Iterable[int]] = ..., known: bool = ..., freshness: _Optional[_Union[_common_pb2.Freshness, _Mapping]] = ...) -> None: ...

class BatchGetCountsRequest(_message.Message):
    __slots__ = ("entities", "metrics", "min_position", "max_staleness")
    ENTITIES_FIELD_NUMBER: _ClassVar[int]
    METRICS_FIELD_NUMBER: _ClassVar[int]
    MIN_POSITION_FIELD_NUMBER: _ClassVar[int]
    MAX_STALENESS_FIELD_NUMBER: _ClassVar[int]
    entities: _containers.RepeatedScalarFieldContainer[str]
    metrics: _containers.RepeatedScalarFieldContainer[_common_pb2.Metric]
    min_position: bytes
    max_staleness: _duration_pb2.Duration
    def __init__(self, entities: _Optional[_Iterable[str]] = ..., metrics: _Optional[_Iterable[_Union[_common_pb2.Metric, str]]] = ..., min_position: _Optional[bytes] = ..., max_staleness: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ...) -> None: ...

class BatchGetCountsResponse(_message.Message):
    __slots__ = ("counts", "exceptions", "freshness")
    COUNTS_FIELD_NUMBER: _ClassVar[int]
    EXCEPTIONS_FIELD_NUMBER: _ClassVar[int]
    FRESHNESS_FIELD_NUMBER: _ClassVar[int]
    counts: _containers.RepeatedCompositeFieldContainer[Counts]
    exceptions: _containers.RepeatedCompositeFieldContainer[CountsException]
    freshness: _common_pb2.Freshness
    def __init__(self, counts: _Optional[_Iterable[_Union[Counts, _Mapping]]] = ..., exceptions: _Optional[_Iterable[_Union[CountsException, _Mapping]]] = ..., freshness: _Optional[_Union[_common_pb2.Freshness, _Mapping]] = ...) -> None: ...

class Counts(_message.Message):
    __slots__ = ("values",)
    VALUES_FIELD_NUMBER: _ClassVar[int]
    values: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, values: _Optional[_Iterable[int]] = ...) -> None: ...

class CountsException(_message.Message):
    __slots__ = ("index", "known")
    INDEX_FIELD_NUMBER: _ClassVar[int]
    KNOWN_FIELD_NUMBER: _ClassVar[int]
    index: int
    known: bool
    def __init__(self, index: _Optional[int] = ..., known: bool = ...) -> None: ...

class CheckEdgesRequest(_message.Message):
    __slots__ = ("actor", "kind", "subjects", "min_position", "max_staleness")
    ACTOR_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    SUBJECTS_FIELD_NUMBER: _ClassVar[int]
    MIN_POSITION_FIELD_NUMBER: _ClassVar[int]
    MAX_STALENESS_FIELD_NUMBER: _ClassVar[int]
    actor: str
    kind: _common_pb2.Kind
    subjects: _containers.RepeatedScalarFieldContainer[str]
    min_position: bytes
    max_staleness: _duration_pb2.Duration
    def __init__(self, actor: _Optional[str] = ..., kind: _Optional[_Union[_common_pb2.Kind, str]] = ..., subjects: _Optional[_Iterable[str]] = ..., min_position: _Optional[bytes] = ..., max_staleness: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ...) -> None: ...

class CheckEdgesResponse(_message.Message):
    __slots__ = ("active", "freshness")
    ACTIVE_FIELD_NUMBER: _ClassVar[int]
    FRESHNESS_FIELD_NUMBER: _ClassVar[int]
    active: _containers.RepeatedScalarFieldContainer[bool]
    freshness: _common_pb2.Freshness
    def __init__(self, active: _Optional[_Iterable[bool]] = ..., freshness: _Optional[_Union[_common_pb2.Freshness, _Mapping]] = ...) -> None: ...

class ListActorsRequest(_message.Message):
    __slots__ = ("subject", "kind", "page_size", "page_token", "min_position", "max_staleness")
    SUBJECT_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    MIN_POSITION_FIELD_NUMBER: _ClassVar[int]
    MAX_STALENESS_FIELD_NUMBER: _ClassVar[int]
    subject: str
    kind: _common_pb2.Kind
    page_size: int
    page_token: str
    min_position: bytes
    max_staleness: _duration_pb2.Duration
    def __init__(self, subject: _Optional[str] = ..., kind: _Optional[_Union[_common_pb2.Kind, str]] = ..., page_size: _Optional[int] = ..., page_token: _Optional[str] = ..., min_position: _Optional[bytes] = ..., max_staleness: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ...) -> None: ...

class ListActorsResponse(_message.Message):
    __slots__ = ("items", "next_page_token", "freshness")
    ITEMS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    FRESHNESS_FIELD_NUMBER: _ClassVar[int]
    items: _containers.RepeatedCompositeFieldContainer[ActorItem]
    next_page_token: str
    freshness: _common_pb2.Freshness
    def __init__(self, items: _Optional[_Iterable[_Union[ActorItem, _Mapping]]] = ..., next_page_token: _Optional[str] = ..., freshness: _Optional[_Union[_common_pb2.Freshness, _Mapping]] = ...) -> None: ...

class ActorItem(_message.Message):
    __slots__ = ("actor", "ref", "occurred_at")
    ACTOR_FIELD_NUMBER: _ClassVar[int]
    REF_FIELD_NUMBER: _ClassVar[int]
    OCCURRED_AT_FIELD_NUMBER: _ClassVar[int]
    actor: str
    ref: str
    occurred_at: _timestamp_pb2.Timestamp
    def __init__(self, actor: _Optional[str] = ..., ref: _Optional[str] = ..., occurred_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

class ListSubjectsRequest(_message.Message):
    __slots__ = ("actor", "kind", "page_size", "page_token", "min_position", "max_staleness")
    ACTOR_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    MIN_POSITION_FIELD_NUMBER: _ClassVar[int]
    MAX_STALENESS_FIELD_NUMBER: _ClassVar[int]
    actor: str
    kind: _common_pb2.Kind
    page_size: int
    page_token: str
    min_position: bytes
    max_staleness: _duration_pb2.Duration
    def __init__(self, actor: _Optional[str] = ..., kind: _Optional[_Union[_common_pb2.Kind, str]] = ..., page_size: _Optional[int] = ..., page_token: _Optional[str] = ..., min_position: _Optional[bytes] = ..., max_staleness: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ...) -> None: ...

class ListSubjectsResponse(_message.Message):
    __slots__ = ("items", "next_page_token", "freshness")
    ITEMS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    FRESHNESS_FIELD_NUMBER: _ClassVar[int]
    items: _containers.RepeatedCompositeFieldContainer[SubjectItem]
    next_page_token: str
    freshness: _common_pb2.Freshness
    def __init__(self, items: _Optional[_Iterable[_Union[SubjectItem, _Mapping]]] = ..., next_page_token: _Optional[str] = ..., freshness: _Optional[_Union[_common_pb2.Freshness, _Mapping]] = ...) -> None: ...

class SubjectItem(_message.Message):
    __slots__ = ("subject", "ref", "occurred_at")
    SUBJECT_FIELD_NUMBER: _ClassVar[int]
    REF_FIELD_NUMBER: _ClassVar[int]
    OCCURRED_AT_FIELD_NUMBER: _ClassVar[int]
    subject: str
    ref: str
    occurred_at: _timestamp_pb2.Timestamp
    def __init__(self, subject: _Optional[str] = ..., ref: _Optional[str] = ..., occurred_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

class WatchCountsRequest(_message.Message):
    __slots__ = ("entities", "metrics", "interval")
    ENTITIES_FIELD_NUMBER: _ClassVar[int]
    METRICS_FIELD_NUMBER: _ClassVar[int]
    INTERVAL_FIELD_NUMBER: _ClassVar[int]
    entities: _containers.RepeatedScalarFieldContainer[str]
    metrics: _containers.RepeatedScalarFieldContainer[_common_pb2.Metric]
    interval: _duration_pb2.Duration
    def __init__(self, entities: _Optional[_Iterable[str]] = ..., metrics: _Optional[_Iterable[_Union[_common_pb2.Metric, str]]] = ..., interval: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ...) -> None: ...

class WatchCountsResponse(_message.Message):
    __slots__ = ("counts", "freshness")
    COUNTS_FIELD_NUMBER: _ClassVar[int]
    FRESHNESS_FIELD_NUMBER: _ClassVar[int]
    counts: _containers.RepeatedCompositeFieldContainer[WatchedCounts]
    freshness: _common_pb2.Freshness
    def __init__(self, counts: _Optional[_Iterable[_Union[WatchedCounts, _Mapping]]] = ..., freshness: _Optional[_Union[_common_pb2.Freshness, _Mapping]] = ...) -> None: ...

class WatchedCounts(_message.Message):
    __slots__ = ("index", "values", "known")
    INDEX_FIELD_NUMBER: _ClassVar[int]
    VALUES_FIELD_NUMBER: _ClassVar[int]
    KNOWN_FIELD_NUMBER: _ClassVar[int]
    index: int
    values: _containers.RepeatedScalarFieldContainer[int]
    known: bool
    def __init__(self, index: _Optional[int] = ..., values: _Optional[_Iterable[int]] = ..., known: bool = ...) -> None: ...
