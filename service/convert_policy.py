"""Policies of categories: fields of the message to what a category sets itself and back, validated."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from google.protobuf.field_mask_pb2 import FieldMask
from nearhit.v1 import admin_service_pb2 as admin_pb
from nearhit.v1 import resources_pb2 as pb

from service.convert import (
    TTL_MODES,
    to_duration,
    to_positive_milliseconds,
    to_timestamp,
    to_ttl,
)
from service.errors import InvalidRequestError
from service.keys import cache_name, child_name, parse_child
from service.policy import Policy, Value, check_own
from service.promise import HITS, REQUESTS
from service.records import CategoryRecord, PolicyChangeRecord

_EVICTIONS: dict[int, str] = {
    pb.EVICTION_LRU: "lru",
    pb.EVICTION_LFU: "lfu",
    pb.EVICTION_FIFO: "fifo",
    pb.EVICTION_COST: "cost",
}
_WRONG_ACTIONS: dict[int, str] = {
    pb.WRONG_ACTION_KEEP: "keep",
    pb.WRONG_ACTION_DEMOTE: "demote",
    pb.WRONG_ACTION_REMOVE: "remove",
}
_BASES: dict[int, str] = {
    pb.WRONG_BASIS_HITS: HITS,
    pb.WRONG_BASIS_REQUESTS: REQUESTS,
}
_OPERATIONS = {
    "create": admin_pb.PolicyChange.OPERATION_CREATE,
    "update": admin_pb.PolicyChange.OPERATION_UPDATE,
    "delete": admin_pb.PolicyChange.OPERATION_DELETE,
}
_PARENT = "parent"


class _Field(NamedTuple):
    """A field of the message. name: of the policy. read: its value, None where it is not set; raises
    InvalidRequestError. write: set it in a message. is_whole: an update without mask inherits it where
    unset."""

    name: str
    read: Callable[[pb.Category], Value | None]
    write: Callable[[pb.Category, Policy], None]
    is_whole: bool = False


def _plain(name: str, *, is_whole: bool = False) -> _Field:
    """A field with presence, of equal name and value."""

    def write(category: pb.Category, policy: Policy) -> None:
        value = getattr(policy, name)
        if value is not None:
            setattr(category, name, value)

    return _Field(
        name, lambda category: getattr(category, name) if category.HasField(name) else None, write, is_whole
    )


def _enum(name: str, names: dict[int, str], *, is_whole: bool = False) -> _Field:
    """An enum, whose number 0 is that it is not set."""
    numbers = {own: number for number, own in names.items()}

    def read(category: pb.Category) -> Value | None:
        number = getattr(category, name)
        if number and number not in names:
            raise InvalidRequestError(f"unknown {name} {number}", reason="UNKNOWN_VALUE", field=name)
        return names.get(number)

    return _Field(
        name,
        read,
        lambda category, policy: setattr(category, name, numbers[getattr(policy, name)]),
        is_whole,
    )


def _duration(path: str, name: str) -> _Field:
    """A duration, in ms in the policy; zero and less are refused as INVALID_REFRESH."""

    def read(category: pb.Category) -> Value | None:
        if not category.HasField(path):
            return None
        return to_positive_milliseconds(getattr(category, path), field=path, reason="INVALID_REFRESH")

    def write(category: pb.Category, policy: Policy) -> None:
        duration_ms = getattr(policy, name)
        if duration_ms is not None:
            getattr(category, path).CopyFrom(to_duration(duration_ms))

    return _Field(name, read, write)


def _write_ttl(category: pb.Category, policy: Policy) -> None:
    if policy.ttl_ms is not None:
        category.ttl.CopyFrom(to_duration(policy.ttl_ms))


_FIELDS = {
    "threshold": _plain("threshold", is_whole=True),
    "ttl": _Field(
        "ttl_ms",
        lambda category: to_ttl(category.ttl) if category.HasField("ttl") else None,
        _write_ttl,
        is_whole=True,
    ),
    "ttl_mode": _enum("ttl_mode", TTL_MODES, is_whole=True),
    "max_entries": _plain("max_entries", is_whole=True),
    "max_bytes": _plain("max_bytes", is_whole=True),
    "eviction": _enum("eviction", _EVICTIONS, is_whole=True),
    "shadow": _plain("shadow", is_whole=True),
    "min_probability": _plain("min_probability"),
    "refresh_after": _duration("refresh_after", "refresh_after_ms"),
    "stale_while_revalidate": _plain("stale_while_revalidate"),
    "min_cost": _plain("min_cost"),
    "second_sighting": _plain("second_sighting"),
    "on_wrong": _enum("on_wrong", _WRONG_ACTIONS),
    "max_wrong": _plain("max_wrong"),
    "max_wrong_of": _enum("max_wrong_of", _BASES),
    "confidence": _plain("confidence"),
    "exploration": _plain("exploration"),
    "cold_threshold": _plain("cold_threshold"),
    "compare_responses": _plain("compare_responses"),
    "load_model": _plain("load_model"),
    "max_threshold_at_load": _plain("max_threshold_at_load"),
    "max_wrong_at_load": _plain("max_wrong_at_load"),
    "refresh_after_at_load": _duration("refresh_after_at_load", "refresh_after_at_load_ms"),
    "lookup_cost": _plain("lookup_cost"),
    "hit_cost": _plain("hit_cost"),
    "model_cost": _plain("model_cost"),
    "auto_bypass": _plain("auto_bypass"),
}


class PolicyUpdate(NamedTuple):
    """What an update changes. changed: None of a field: it is inherited from then on. parent: its id, "" for
    none; None: it stays."""

    changed: dict[str, Value | None]
    parent: str | None


def to_new_policy(category: pb.Category, *, cache: str) -> tuple[dict[str, Value], str]:
    """What a new category sets itself, and its parent's id or "". Raises: InvalidRequestError."""
    found = {field.name: field.read(category) for field in _FIELDS.values()}
    own = {name: value for name, value in found.items() if value is not None}
    check_own(own)
    return own, _to_parent(category, cache=cache)


def to_policy_update(category: pb.Category, mask: FieldMask, *, cache: str) -> PolicyUpdate:
    """What an update changes. Raises: InvalidRequestError: a field that cannot be set, or a value."""
    check_mask(mask, (*_FIELDS, _PARENT))
    changed: dict[str, Value | None] = {}
    for path, field in _FIELDS.items():
        value = field.read(category) if not mask.paths or path in mask.paths else None
        # A caller that does not know of a field, or forgot it, must not withdraw it: only its name does.
        if path in mask.paths or (not mask.paths and (value is not None or field.is_whole)):
            changed[field.name] = value
    check_own({name: value for name, value in changed.items() if value is not None})
    is_moved = _PARENT in mask.paths or (not mask.paths and category.parent)
    return PolicyUpdate(changed, _to_parent(category, cache=cache) if is_moved else None)


def set_policy(category: pb.Category, policy: Policy) -> None:
    """Set what holds."""
    for field in _FIELDS.values():
        field.write(category, policy)


def inherited_fields(record: CategoryRecord) -> list[str]:
    """The fields of the message that the category does not set itself."""
    return [path for path, field in _FIELDS.items() if field.name not in record.own_policy]


def check_mask(mask: FieldMask, settable: Sequence[str]) -> Sequence[str]:
    """The fields that the mask names; all settable ones where it is empty. Raises: InvalidRequestError."""
    for path in mask.paths:
        if path not in settable:
            raise InvalidRequestError(
                f"{path!r} cannot be changed; {', '.join(settable)} can", reason="INVALID_MASK", field=path
            )
    return list(mask.paths) or settable


def from_policy_change(cache: str, record: PolicyChangeRecord) -> admin_pb.PolicyChange:
    """One change."""
    return admin_pb.PolicyChange(
        category=child_name(cache, "categories", record.category),
        category_uid=record.category_id,
        etag=str(record.version),
        create_time=to_timestamp(record.create_ms),
        operation=_OPERATIONS[record.operation],
        before=record.before,
        after=record.after,
        principal=record.principal,
    )


def _to_parent(category: pb.Category, *, cache: str) -> str:
    if not category.parent:
        return ""
    owner, parent = parse_child(category.parent, "categories")
    if owner != cache:
        raise InvalidRequestError(
            f"{category.parent} is not of {cache_name(cache)}", reason="PARENT_MISMATCH", field="parent"
        )
    return parent
