"""Show what holds for a category and where each field comes from, or change it, on a running server.

A field that a category does not set is its parent's, without a parent the default. A change holds at once,
for all categories that inherit it. Durations are in seconds, distances are cosine distances; `parent` is a
field, too.

Examples:
  nearhit policy faq billing
  nearhit policy faq billing --set ttl=3600 --set refresh_after=600 --set eviction=cost --unset threshold
  nearhit policy faq refunds --set parent=billing
  nearhit policy faq billing --history
"""

import argparse
from collections.abc import Iterator, Sequence
from datetime import timedelta
from typing import Any

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.field_mask_pb2 import FieldMask
from nearhit import Client
from nearhit.v1 import admin_service_pb2 as admin_pb
from nearhit.v1 import resources_pb2 as pb

from scripts.arguments import CommandError, add_address, add_json, print_result

_ENUMS = {
    "ttl_mode": (pb.TtlMode, "TTL_MODE_"),
    "eviction": (pb.Eviction, "EVICTION_"),
    "on_wrong": (pb.WrongAction, "WRONG_ACTION_"),
    "max_wrong_of": (pb.WrongBasis, "WRONG_BASIS_"),
}
_FLAGS = {"true": True, "false": False}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    add_address(parser)
    add_json(parser)
    parser.add_argument("cache")
    parser.add_argument("category")
    parser.add_argument(
        "--set", action="append", default=[], metavar="FIELD=VALUE", help="change it; repeatable"
    )
    parser.add_argument(
        "--unset", action="append", default=[], metavar="FIELD", help="inherit it from now on; repeatable"
    )
    parser.add_argument("--etag", default="", help="change nothing if the category has another one")
    parser.add_argument("--history", action="store_true", help="list the changes that are kept, newest first")


def run(arguments: argparse.Namespace) -> int:
    """Change what is asked for, then show."""
    with Client(arguments.address, timeout_seconds=arguments.timeout) as client:
        if arguments.set or arguments.unset:
            _change(client, arguments)
        if arguments.history:
            for change in client.list_policy_changes(arguments.cache, category=arguments.category):
                print_result(_told(change), as_json=arguments.json)
            return 0
        chain = list(_chain(client, f"caches/{arguments.cache}/categories/{arguments.category}"))
    if arguments.json:
        print_result(_as_document(chain), as_json=True)
    else:
        print("\n".join(_lines(chain)))
    return 0


def to_message(
    assignments: Sequence[str], unset: Sequence[str], *, cache: str, option: str = "--set"
) -> tuple[pb.Category, FieldMask]:
    """The fields that FIELD=VALUE name, and the mask of these and of those to unset. option: that they were
    given by. Raises: CommandError."""
    message = pb.Category()
    paths: list[str] = []
    for assignment in assignments:
        path, is_given, text = assignment.partition("=")
        if not is_given:
            raise CommandError(f"{option} {assignment}: give FIELD=VALUE")
        if path not in _settable():
            raise CommandError(f"{path!r} is no field of a policy; {', '.join(_settable())} are")
        try:
            _assign(message, path, text, cache=cache)
        except (ValueError, KeyError, OverflowError) as error:
            raise CommandError(
                f"{option} {assignment}: {text!r} is no value of {path}{_choices(path)}"
            ) from error
        paths.append(path)
    paths += unset
    twice = sorted({path for path in paths if paths.count(path) > 1})
    if twice:
        raise CommandError(f"{twice[0]} is named twice")
    return message, FieldMask(paths=paths)


def _change(client: Client, arguments: argparse.Namespace) -> None:
    message, mask = to_message(arguments.set, arguments.unset, cache=arguments.cache)
    message.name = f"caches/{arguments.cache}/categories/{arguments.category}"
    message.etag = arguments.etag
    client.call(
        client.admin.UpdateCategory, admin_pb.UpdateCategoryRequest(category=message, update_mask=mask)
    )


def _assign(message: pb.Category, path: str, text: str, *, cache: str) -> None:
    field = pb.Category.DESCRIPTOR.fields_by_name[path]
    if path == "parent":
        message.parent = f"caches/{cache}/categories/{text}" if text else ""
    elif path in _ENUMS:
        names, prefix = _ENUMS[path]
        setattr(message, path, names.Value(f"{prefix}{text.upper()}"))
    elif field.type == FieldDescriptor.TYPE_MESSAGE:  # a duration
        getattr(message, path).FromTimedelta(timedelta(seconds=float(text)))
    elif field.type == FieldDescriptor.TYPE_BOOL:
        setattr(message, path, _FLAGS[text.lower()])
    elif field.type == FieldDescriptor.TYPE_INT64:
        setattr(message, path, int(text))
    elif field.type == FieldDescriptor.TYPE_STRING:
        setattr(message, path, text)
    else:
        setattr(message, path, float(text))


def _choices(path: str) -> str:
    if path not in _ENUMS:
        return ""
    names, prefix = _ENUMS[path]
    return f": {', '.join(name.removeprefix(prefix).lower() for name in names.keys()[1:])}"


def _settable() -> list[str]:
    """The fields of a policy: those of the message that replies do not only tell."""
    told = {
        *("name", "entry_count", "size_bytes", "create_time", "etag", "hit_count", "miss_count"),
        *("shadow_hit_count", "bypass_count", "shift", "inherited_fields", "rule", "break_even_hit_rate"),
    }
    return [field.name for field in pb.Category.DESCRIPTOR.fields if field.name not in told]


def _chain(client: Client, name: str) -> Iterator[pb.Category]:
    """The category, its parent, and so on."""
    while name:
        category: pb.Category = client.call(client.admin.GetCategory, admin_pb.GetCategoryRequest(name=name))
        yield category
        name = category.parent


def _sources(chain: Sequence[pb.Category]) -> dict[str, str]:
    """Where each field comes from: "own", the id of a category above, or "default"."""
    sources: dict[str, str] = {}
    for path in _settable():
        if path == "parent":
            continue
        setting = [category for category in chain if path not in category.inherited_fields]
        if not setting:
            sources[path] = "default"
        else:
            sources[path] = "own" if setting[0] is chain[0] else _last(setting[0].name)
    return sources


def _value(category: pb.Category, path: str) -> Any:
    field = pb.Category.DESCRIPTOR.fields_by_name[path]
    if path in _ENUMS:
        names, prefix = _ENUMS[path]
        return names.Name(getattr(category, path)).removeprefix(prefix).lower()
    if field.has_presence and not category.HasField(path):
        return None
    value = getattr(category, path)
    return value.ToTimedelta().total_seconds() if field.type == FieldDescriptor.TYPE_MESSAGE else value


def _as_document(chain: Sequence[pb.Category]) -> dict[str, Any]:
    category = chain[0]
    return {
        "category": category.name,
        "etag": category.etag,
        "parent": _last(category.parent),
        "policy": {
            path: {"value": _value(category, path), "from": source}
            for path, source in _sources(chain).items()
        },
    }


def _lines(chain: Sequence[pb.Category]) -> list[str]:
    category = chain[0]
    above = "".join(f" < {_last(parent.name)}" for parent in chain[1:])
    lines = [f"{_last(category.name)}{above}  (etag {category.etag})"]
    for path, source in _sources(chain).items():
        value = _value(category, path)
        shown = "-" if value is None else f"{value:g}" if isinstance(value, float) else _told_value(value)
        lines.append(f"  {path:<24}{shown:<14}{source}")
    return lines


def _told_value(value: Any) -> str:
    return (value or "-") if isinstance(value, str) else str(value).lower()


def _told(change: admin_pb.PolicyChange) -> dict[str, Any]:
    return {
        "time": change.create_time.ToJsonString(),
        "category": _last(change.category),
        "etag": change.etag,
        "operation": admin_pb.PolicyChange.Operation.Name(change.operation)
        .removeprefix("OPERATION_")
        .lower(),
        "before": change.before,
        "after": change.after,
        "principal": change.principal,
    }


def _last(name: str) -> str:
    return name.rpartition("/")[2]
