"""Learn what arrived since the active encoder was trained, without touching a stored code.

Takes entries with labels that were stored since. The new encoder is activated if it finds old entries as well
as before on rows that no encoder has seen, and rejected with the figures otherwise; a running server picks it
up at once. Entries without labels only feed the drift figure. Exit status 0 activated, 3 nothing to learn, 4
rejected.
"""

import argparse
from dataclasses import asdict

from scripts.arguments import add_config, add_json, print_result, read_config
from service.application import clock_ms
from service.database import check_schema, open_engine
from service.learning import run_update


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    add_config(parser)
    add_json(parser)
    parser.add_argument("--cache", required=True)


def run(arguments: argparse.Namespace) -> int:
    """Update."""
    config = read_config(arguments)
    engine = open_engine(config.store)
    check_schema(engine)
    outcome = run_update(
        engine,
        arguments.cache,
        config=config.update,
        max_live_encoders=config.search.max_live_encoders,
        clock=clock_ms,
    )
    print_result(asdict(outcome), as_json=arguments.json)
    if outcome.encoder_id is None:
        return 3
    return 0 if outcome.accepted else 4
