"""Delete entries of a cache, by what they are.

Within one option any of its values may match; all options that are given must. See `nearhit forget` for what
was learned from entries.

Examples:
  nearhit invalidate faq --source crm/4711 --dry-run
  nearhit invalidate faq --model gpt-x --older-than 86400
  nearhit invalidate faq --category billing --near question.npy --radius 0.15
"""

import argparse
from datetime import UTC, datetime, timedelta
from pathlib import Path

from nearhit import Client

from scripts.arguments import CommandError, add_address, add_json, positive_number, print_result
from scripts.query_arguments import read_row


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    add_address(parser)
    add_json(parser)
    parser.add_argument("cache")
    for option in ("entry", "tag", "source", "model", "category"):
        parser.add_argument(f"--{option}", action="append", default=[], help="repeatable")
    parser.add_argument(
        "--older-than", type=positive_number, metavar="SECONDS", help="entries created longer ago than this"
    )
    parser.add_argument(
        "--created-before", type=_time, metavar="TIME", help="ISO 8601, in UTC where it names no zone"
    )
    near = parser.add_mutually_exclusive_group()
    near.add_argument("--near", type=Path, metavar="FILE.npy", help="entries near this embedding")
    near.add_argument("--near-text", default="", help="the same of a text; needs an embedder in the server")
    parser.add_argument("--row", type=int, default=0, help="row of --near (default 0)")
    parser.add_argument("--radius", type=float, help="cosine distance in [0, 2] of --near or --near-text")
    parser.add_argument("--modality", default="", help="of --near; default: text")
    parser.add_argument("--embedder-id", default="", help="model that made --near; default: the cache's")
    parser.add_argument("--dry-run", action="store_true", help="count, delete nothing")


def run(arguments: argparse.Namespace) -> int:
    """Delete, or count."""
    is_near = arguments.near is not None or bool(arguments.near_text)
    if is_near != (arguments.radius is not None):
        raise CommandError("--radius goes with --near or --near-text")
    age = arguments.older_than
    with Client(arguments.address, timeout_seconds=arguments.timeout) as client:
        answer = client.invalidate(
            arguments.cache,
            entries=arguments.entry,
            categories=arguments.category,
            tags=arguments.tag,
            sources=arguments.source,
            models=arguments.model,
            created_before=arguments.created_before,
            older_than=None if age is None else timedelta(seconds=age),
            near=None if arguments.near is None else read_row(arguments.near, arguments.row),
            near_text=arguments.near_text,
            radius=arguments.radius,
            modality=arguments.modality,
            embedder_id=arguments.embedder_id,
            dry_run=arguments.dry_run,
        )
    if arguments.dry_run:
        print_result({"would_delete": answer.entry_count}, as_json=arguments.json)
    else:
        print_result({"deleted": answer.entry_count, "seq": answer.seq}, as_json=arguments.json)
    return 0


def _time(text: str) -> datetime:
    try:
        time = datetime.fromisoformat(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not a time as 2026-03-01T12:00:00+01:00") from error
    return time if time.tzinfo else time.replace(tzinfo=UTC)
