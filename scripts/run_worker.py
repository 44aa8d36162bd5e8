"""Run jobs until SIGTERM or SIGINT: updates that were asked for, and those that new labelled entries are due.

Runs beside the servers, never inside one; several workers may share a store.
"""

import argparse
import os
import signal
import threading

from scripts.arguments import add_config, configure_logging, read_config
from service.application import clock_ms
from service.database import check_schema, open_engine
from service.worker import Worker

_NICENESS = 10


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    add_config(parser)
    parser.add_argument("--once", action="store_true", help="run what is due or queued, then end")


def run(arguments: argparse.Namespace) -> int:
    """Work."""
    config = read_config(arguments)
    configure_logging(config)
    engine = open_engine(config.store)
    check_schema(engine)
    os.nice(_NICENESS)
    worker = Worker(engine, config, clock=clock_ms)
    if arguments.once:
        worker.enqueue_due()
        while worker.run_one():
            pass
        return 0
    stopped = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda _number, _frame: stopped.set())
    worker.run(stopped)
    return 0
