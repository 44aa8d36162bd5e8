"""Store an answer. Exit status 3 where the category's policy does not admit it.

Examples:
  nearhit store faq billing "how do I cancel?" --response "Under Account, Billing, Cancel."
  nearhit store faq billing --embedding question.npy --response-file answer.json --ttl 3600
"""

import argparse
from datetime import timedelta
from pathlib import Path

from nearhit import Client
from nearhit.v1 import semantic_cache_service_pb2 as cache_pb

from scripts.arguments import CommandError, add_address, add_json, positive_number, print_result
from scripts.query_arguments import add_query, read_embedding


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    add_address(parser)
    add_json(parser)
    parser.add_argument("cache")
    parser.add_argument("category")
    add_query(parser)
    parser.add_argument("--response", help="the answer")
    parser.add_argument("--response-file", type=Path, metavar="FILE", help="a file that holds the answer")
    parser.add_argument("--entry", default="", help="id of the entry; default: the server makes one")
    parser.add_argument("--content-type", default="", help="media type of the answer")
    parser.add_argument("--label", action="append", default=[], help="repeatable")
    parser.add_argument("--tag", action="append", default=[], help="repeatable")
    parser.add_argument("--source", default="")
    parser.add_argument("--cost", type=float, default=0.0, help="of computing it; default: not known")
    parser.add_argument("--model", default="", help="which made it")
    parser.add_argument("--ttl", type=positive_number, metavar="SECONDS", help="default: the category's")


def run(arguments: argparse.Namespace) -> int:
    """Store."""
    if (arguments.response is None) == (arguments.response_file is None):
        raise CommandError("give either --response or --response-file")
    response = (
        arguments.response.encode()
        if arguments.response is not None
        else arguments.response_file.read_bytes()
    )
    embedding = read_embedding(arguments)
    with Client(arguments.address, timeout_seconds=arguments.timeout) as client:
        stored = client.store(
            arguments.cache,
            arguments.category,
            response=response,
            embedding=embedding,
            text=arguments.text,
            embedder_id=arguments.embedder_id,
            entry=arguments.entry,
            ttl=None if arguments.ttl is None else timedelta(seconds=arguments.ttl),
            scope=arguments.scope,
            content_type=arguments.content_type,
            labels=arguments.label,
            tags=arguments.tag,
            source=arguments.source,
            cost=arguments.cost,
            model=arguments.model,
        )
    if stored.admission != cache_pb.ADMISSION_STORED:
        reason = cache_pb.Admission.Name(stored.admission).removeprefix("ADMISSION_").lower()
        print_result({"stored": None, "admission": reason}, as_json=arguments.json)
        return 3
    print_result(
        {"stored": stored.entry.name, "seq": stored.entry.seq, "evicted": stored.evicted_count},
        as_json=arguments.json,
    )
    return 0
