"""Serve caches over gRPC until SIGTERM or SIGINT.

Builds a new generation of a cache's index by itself, in a process of its own, when that pays: see
[compaction] in --print-config.

Ends in order: health says NOT_SERVING, running calls finish within [server] grace_seconds, queued writes are
committed, and where the next start would have many rows to replay, a generation is built, for at most
[compaction] snapshot_seconds.
"""

import argparse
import gc
from dataclasses import replace

from scripts.arguments import add_config, configure_logging, read_config
from service.config import render_config
from service.database import migrate, open_engine
from service.server import serve


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    add_config(parser)
    parser.add_argument("--address", help="host:port, instead of [server] address")
    parser.add_argument("--migrate", action="store_true", help="bring the schema to this version first")
    parser.add_argument(
        "--print-config", action="store_true", help="print every key with its value and default, and end"
    )


def run(arguments: argparse.Namespace) -> int:
    """Serve."""
    config = read_config(arguments)
    if arguments.address:
        config = replace(config, server=replace(config.server, address=arguments.address))
    if arguments.print_config:
        print(render_config(config))
        return 0
    configure_logging(config)
    if arguments.migrate:
        migrate(open_engine(config.store))
    # What is imported stays. A full collection would look at all of it, which stops every lookup for 50 ms.
    gc.collect()
    gc.freeze()
    serve(config)
    return 0
