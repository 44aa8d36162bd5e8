"""Create a cache, or categories in one, on a running server. `nearhit policy` sets the rest of a policy.

Examples:
  nearhit create faq --dim 384 --embedder-id all-MiniLM-L6-v2
  nearhit create faq --category billing --threshold 0.1 --ttl 86400 --max-entries 100000
  nearhit create faq --category refunds --parent billing --ttl 3600
"""

import argparse
from datetime import timedelta

from nearhit import Client

from scripts.arguments import CommandError, add_address, add_json, positive_number, print_result


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    add_address(parser)
    add_json(parser)
    parser.add_argument("cache", help="id of the cache")
    parser.add_argument("--dim", type=int, help="dimensions of its embeddings; creates the cache")
    parser.add_argument("--modality", default="text", help="default %(default)s")
    parser.add_argument("--embedder-id", default="", help="model that makes its embeddings; checked when set")
    parser.add_argument("--code-bits", type=int, default=0, help="64..1024, default 256")
    parser.add_argument("--label-bits", type=int, default=0, help="64..1024, default 64")
    parser.add_argument("--category", action="append", default=[], help="create this category; repeatable")
    parser.add_argument("--threshold", type=float, help="cosine distance of a hit at most (default 0.10)")
    parser.add_argument(
        "--min-probability",
        type=float,
        help="at which the active verifier consents to a hit, in (0, 1]; default: it is not asked",
    )
    parser.add_argument("--ttl", type=positive_number, metavar="SECONDS", help="time to live; default: none")
    parser.add_argument("--max-entries", type=int, help="default: no limit")
    parser.add_argument("--max-bytes", type=int, help="default: no limit")
    parser.add_argument(
        "--parent",
        default="",
        metavar="CATEGORY",
        help="inherit the rest from it; default: nothing",
    )


def run(arguments: argparse.Namespace) -> int:
    """Create."""
    if arguments.dim is None and not arguments.category:
        raise CommandError("give --dim to create the cache, --category to create a category in it, or both")
    with Client(arguments.address, timeout_seconds=arguments.timeout) as client:
        if arguments.dim is not None:
            created = client.create_cache(
                arguments.cache,
                dim=arguments.dim,
                modality=arguments.modality,
                embedder_id=arguments.embedder_id,
                code_bits=arguments.code_bits,
                label_bits=arguments.label_bits,
            )
            print_result({"created": created.name}, as_json=arguments.json)
        for category in arguments.category:
            made = client.create_category(
                arguments.cache,
                category,
                ttl=None if arguments.ttl is None else timedelta(seconds=arguments.ttl),
                threshold=arguments.threshold,
                min_probability=arguments.min_probability,
                max_entries=arguments.max_entries,
                max_bytes=arguments.max_bytes,
                parent=arguments.parent,
            )
            print_result(
                {"created": made.name, "threshold": made.threshold, "etag": made.etag}, as_json=arguments.json
            )
    return 0
