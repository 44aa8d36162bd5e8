"""Run jobs until SIGTERM or SIGINT: updates that were asked for or are due, and files of the inbox.

Also texts of entries are embedded anew by the configured embedder (`nearhit migrate-embedder --reembed`). An
update is due once enough labelled entries wait, or one of them for long, or one at an alarm that what is
looked up has shifted (`nearhit categories`); files that appear in the folder `[update] inbox` are loaded.
With the extra `train` instance codes learn from verdicts once `[update] min_verdicts` of them wait.
Runs beside the servers, never inside one, at low priority; several workers may share a store, and the inbox.
"""

import argparse
import importlib.util
import logging
import os
import signal
import threading
from functools import partial
from pathlib import Path

from scripts.arguments import add_config, configure_logging, read_config
from scripts.inbox_rows import load_inbox_file
from scripts.pair_update import update_with_verdicts
from service.application import clock_ms
from service.config import Config
from service.database import check_schema, open_engine
from service.embedder import Embedder, patient
from service.verdicts import PairLearner
from service.worker import Worker

_NICENESS = 10

logger = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    add_config(parser)
    parser.add_argument(
        "--once", action="store_true", help="run what is due, queued or in the inbox, and end"
    )


def run(arguments: argparse.Namespace) -> int:
    """Work."""
    config = read_config(arguments)
    configure_logging(config)
    engine = open_engine(config.store)
    check_schema(engine)
    os.nice(_NICENESS)
    if config.update.inbox:
        Path(config.update.inbox).mkdir(parents=True, exist_ok=True)
    embedder = Embedder(patient(config.embedder)) if config.embedder.model else None
    worker = Worker(
        engine,
        config,
        clock=clock_ms,
        load_file=partial(load_inbox_file, config=config),
        learn_pairs=_pair_learner(config),
        embedder=embedder,
    )
    stopped = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda _number, _frame: stopped.set())
    try:
        if arguments.once:
            _work_once(worker, config, stopped)
        else:
            worker.run(stopped)
    finally:
        if embedder is not None:
            embedder.stop()
    return 0


def _pair_learner(config: Config) -> PairLearner | None:
    """What learns from verdicts; None without torch, which is imported once there is something to learn."""
    if importlib.util.find_spec("torch") is None:
        logger.info("torch is not installed: learning from verdicts is left to other workers")
        return None
    return partial(update_with_verdicts, config=config)


def _work_once(worker: Worker, config: Config, stopped: threading.Event) -> None:
    """Files first: what they bring may be due then."""
    if config.update.inbox:
        worker.enqueue_files()
        stopped.wait(config.update.poll_seconds)  # a file that still grows is left alone
        worker.enqueue_files()
    while not stopped.is_set() and (worker.run_one() or (worker.enqueue_due() and worker.run_one())):
        pass
