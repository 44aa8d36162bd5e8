"""Verify every invariant of a cache, or of all: store, feed, codes, generation files and index.

Exit status 0 if all hold, 1 with a line per problem otherwise. Run it while nothing writes.
"""

import argparse
from dataclasses import asdict

from scripts.arguments import add_config, add_json, print_result, read_config
from service.check import check_cache
from service.database import check_schema, open_engine, reading
from service.rows import read_caches


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    add_config(parser)
    add_json(parser)
    parser.add_argument("--cache", action="append", default=[], help="repeatable; default: all")


def run(arguments: argparse.Namespace) -> int:
    """Check."""
    config = read_config(arguments)
    engine = open_engine(config.store)
    check_schema(engine)
    with reading(engine) as connection:
        names = arguments.cache or [cache.name for cache in read_caches(connection)]
    broken = False
    for name in names:
        report = check_cache(engine, name, config)
        broken = broken or bool(report.problems)
        if arguments.json:
            print_result(asdict(report), as_json=True)
            continue
        verdict = "all invariants hold" if not report.problems else f"{len(report.problems)} problems"
        print(f"{name}: {report.entry_count} entries, generation {report.generation or 'none'}: {verdict}")
        for problem in report.problems:
            print(f"  {problem}")
    return 1 if broken else 0
