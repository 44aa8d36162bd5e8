"""Learn what arrived since the active encoder was trained, without touching a stored code.

Takes entries with labels that were stored since, of all modalities of a cross-modal encoder. The new encoder
is activated if it finds old entries of each as well as before on rows that no encoder has seen, and rejected
with the figures otherwise; a running server picks it up at once. Entries without labels only feed the drift
figure. With --queue a worker does it; --follow shows how far it is, and an interrupt ends the showing alone.
Exit status 0 activated (with --queue alone: queued), 3 nothing to learn, 4 rejected, 1 failed or cancelled.

With --pairs it learns labelled pairs instead, by gradient (extra `train`), so that instance codes go on
learning: new entries and queries get codes of the new encoder, whose queries search the stored ones too. It
is activated if it finds neighbours and held-out duplicates on stored codes as well as before, and serves
answers as right at the threshold of every category. With --verdicts the pairs are verdicts that
RecordFeedback got with a query, 25 right and 25 wrong ones at least that it has not read yet; a worker learns
them by itself once `[update] min_verdicts` wait.

Examples:
  nearhit update --cache faq
  nearhit update --cache faq --queue --follow
  nearhit update --cache faq --pairs pairs.jsonl
  nearhit update --cache faq --verdicts
  nearhit jobs --cache faq
"""

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from sqlalchemy import Engine

from scripts.arguments import CommandError, ProgressBars, add_config, add_json, print_result, read_config
from scripts.follow_job import follow_job, job_values
from scripts.pair_update import update_with_pairs, update_with_verdicts
from service import jobs
from service.application import clock_ms
from service.database import check_schema, open_engine, writing
from service.rows import read_cache
from service.update import run_update


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    add_config(parser)
    add_json(parser)
    parser.add_argument("--cache", required=True)
    source = parser.add_mutually_exclusive_group()
    source.add_argument(
        "--pairs", type=Path, metavar="FILE", help="labelled pairs, as of `nearhit train --pairs`"
    )
    source.add_argument(
        "--verdicts", action="store_true", help="verdicts with a query, as RecordFeedback got"
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="of --pairs and --verdicts, without --queue; default %(default)s"
    )
    parser.add_argument("--queue", action="store_true", help="leave it to a worker")
    parser.add_argument("--follow", action="store_true", help="with --queue: show its progress until it ends")


def run(arguments: argparse.Namespace) -> int:
    """Update."""
    if arguments.follow and not arguments.queue:
        raise CommandError("--follow goes with --queue")
    if arguments.pairs is not None and arguments.queue:
        raise CommandError("--pairs does not go with --queue: no worker reads the file")
    config = read_config(arguments)
    engine = open_engine(config.store)
    check_schema(engine)
    if arguments.queue:
        return _queue(engine, arguments)
    progress = ProgressBars(silent=arguments.json)
    if arguments.pairs is not None or arguments.verdicts:
        rest: dict[str, Any] = {"config": config, "seed": arguments.seed, "progress": progress}
        if arguments.verdicts:
            learned = update_with_verdicts(engine, arguments.cache, **rest)
        else:
            learned = update_with_pairs(engine, arguments.cache, arguments.pairs, **rest)
        progress.close()
        return _print(learned, as_json=arguments.json)
    outcome = run_update(
        engine,
        arguments.cache,
        config=config.update,
        max_live_encoders=config.search.max_live_encoders,
        clock=clock_ms,
        progress=progress,
    )
    progress.close()
    return _print(asdict(outcome), as_json=arguments.json)


def _queue(engine: Engine, arguments: argparse.Namespace) -> int:
    with writing(engine) as connection:
        cache = read_cache(connection, arguments.cache)
        kind = jobs.LEARN_PAIRS if arguments.verdicts else jobs.UPDATE
        job = jobs.enqueue(connection, cache.id, kind=kind, now_ms=clock_ms())
    if not arguments.follow:
        print_result(job_values(job), as_json=arguments.json)
        return 0
    ended = follow_job(engine, arguments.cache, job.name, progress=ProgressBars(silent=arguments.json))
    if ended.state != jobs.SUCCEEDED:
        why = f": {ended.error}" if ended.error else ""
        raise CommandError(f"job {ended.name} {ended.state}{why}")
    return _print(json.loads(ended.report), as_json=arguments.json)


def _print(outcome: dict[str, Any], *, as_json: bool) -> int:
    print_result(outcome, as_json=as_json)
    if outcome["encoder_id"] is None:
        return 3
    return 0 if outcome["accepted"] else 4
