"""Bring the database's schema to this version, or to a named revision."""

import argparse

from scripts.arguments import add_config, add_json, print_result, read_config
from service.database import migrate, open_engine


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    add_config(parser)
    add_json(parser)
    parser.add_argument("--revision", default="head", help="default %(default)s; base removes everything")


def run(arguments: argparse.Namespace) -> int:
    """Migrate."""
    engine = open_engine(read_config(arguments).store)
    revision = migrate(engine, revision=arguments.revision)
    print_result({"schema": revision}, as_json=arguments.json)
    return 0
