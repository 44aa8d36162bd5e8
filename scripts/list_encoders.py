"""Show how a cache's encoders descend from each other, with what each learned and how it was judged.

A child stands under the encoder that it was updated from. `entries` is the range of the feed that an encoder
learned from beyond its parent. --activate and --rollback change which one codes new entries and queries; a
running server picks it up at once.

Examples:
  nearhit encoders --cache faq
  nearhit encoders --cache faq --activate 1f0c...
  nearhit encoders --cache faq --rollback
"""

import argparse
from collections import defaultdict
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import Any

from scripts.arguments import CommandError, add_config, add_json, print_result, read_config
from service.database import check_schema, open_engine, reading, writing
from service.records import EncoderRecord
from service.registry import activate_encoder, roll_back_encoder
from service.rows import read_cache, read_encoders

SHORT_ID_CHARS = 12
SHORTEST_PREFIX_CHARS = 4


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    add_config(parser)
    add_json(parser)
    parser.add_argument("--cache", required=True)
    change = parser.add_mutually_exclusive_group()
    change.add_argument(
        "--activate", metavar="ENCODER", help="an encoder's id, or the first 4 or more characters of it"
    )
    change.add_argument("--rollback", action="store_true", help="to the encoder that was active before")


def run(arguments: argparse.Namespace) -> int:
    """Change what is asked for, then show."""
    config = read_config(arguments)
    engine = open_engine(config.store)
    check_schema(engine)
    if arguments.activate or arguments.rollback:
        with writing(engine) as connection:
            cache = read_cache(connection, arguments.cache)
            if arguments.rollback:
                roll_back_encoder(connection, cache.id)
            else:
                most = config.search.max_live_encoders
                known = [record.encoder_id for record in read_encoders(connection, cache.id)]
                chosen = whole_id(arguments.activate, known)
                activate_encoder(connection, cache.id, chosen, max_live_encoders=most)
    with reading(engine) as connection:
        found = read_encoders(connection, read_cache(connection, arguments.cache).id)
    lineage = list(descent(found))
    if arguments.json:
        for _, record in lineage:
            print_result(_as_document(record, found), as_json=True)
        return 0
    if not lineage:
        print(f"{arguments.cache} has no encoder: train one with `nearhit train`")
    for depth, record in lineage:
        print(_line(depth, record, found))
    return 0


def whole_id(given: str, known: Sequence[str]) -> str:
    """The known id that is given or begins so; what is given where none does, or it is too short for that.

    Raises: CommandError: several begin so.
    """
    if given in known or len(given) < SHORTEST_PREFIX_CHARS:
        return given
    found = sorted(encoder_id for encoder_id in known if encoder_id.startswith(given))
    if len(found) > 1:
        raise CommandError(f"--activate {given}: {' and '.join(found)} begin so")
    return found[0] if found else given


def descent(records: Sequence[EncoderRecord]) -> Iterator[tuple[int, EncoderRecord]]:
    """Each encoder with its depth, parents before their children, older ones first.

    One whose parent is not among them begins a line of its own.
    """
    known = {record.encoder_id for record in records}
    children: dict[str | None, list[EncoderRecord]] = defaultdict(list)
    for record in sorted(records, key=lambda record: (record.create_ms, record.encoder_id)):
        children[record.parent_id if record.parent_id in known else None].append(record)
    waiting = [(0, record) for record in reversed(children[None])]
    while waiting:
        depth, record = waiting.pop()
        yield depth, record
        waiting += [(depth + 1, child) for child in reversed(children[record.encoder_id])]


def _as_document(record: EncoderRecord, records: Sequence[EncoderRecord]) -> dict[str, Any]:
    first, last = _learned_range(record, records)
    return {
        "encoder": record.encoder_id,
        "state": record.state,
        "parent": record.parent_id,
        "previous": record.previous_id,
        "create_time": to_time(record.create_ms),
        "entries_after_seq": first,
        "entries_to_seq": last,
        "classes": record.class_count,
        "reason": record.reason,
        "metrics": dict(record.metrics),
    }


def _line(depth: int, record: EncoderRecord, records: Sequence[EncoderRecord]) -> str:
    first, last = _learned_range(record, records)
    figures = " ".join(f"{name}={value:.4g}" for name, value in sorted(record.metrics.items()))
    reason = f" ({record.reason})" if record.reason else ""
    identity = f"{'  ' * depth}{record.encoder_id[:SHORT_ID_CHARS]}"
    return (
        f"{identity:<24} {record.state:<9} {to_time(record.create_ms)}  entries {first}..{last}"
        f"  classes {record.class_count}  {figures}{reason}"
    )


def _learned_range(record: EncoderRecord, records: Sequence[EncoderRecord]) -> tuple[int, int]:
    """The feed positions between which the encoder learned what its parent had not."""
    parents = {other.encoder_id: other.watermark for other in records}
    return parents.get(record.parent_id or "", 0), record.watermark


def to_time(moment_ms: int) -> str:
    """A time in milliseconds since the epoch as ISO 8601."""
    return datetime.fromtimestamp(moment_ms / 1000, tz=UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
