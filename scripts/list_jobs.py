"""List the jobs of a cache, newest first, or cancel one.

A queued job that is cancelled never begins; a running one stops within about two seconds, and what serves is
as it was before. Rows that a load had stored by then stay, and so do entries that were embedded anew.
"""

import argparse

from scripts.arguments import add_config, add_json, print_result, read_config
from scripts.follow_job import job_values
from service import jobs
from service.application import clock_ms
from service.database import check_schema, open_engine, reading, writing
from service.records import JobRecord
from service.rows import read_cache, read_jobs


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    add_config(parser)
    add_json(parser)
    parser.add_argument("--cache", required=True)
    parser.add_argument("--cancel", metavar="JOB", help="cancel this one")


def run(arguments: argparse.Namespace) -> int:
    """List, or cancel."""
    engine = open_engine(read_config(arguments).store)
    check_schema(engine)
    if arguments.cancel is not None:
        with writing(engine) as connection:
            cache = read_cache(connection, arguments.cache)
            cancelled = jobs.cancel(connection, cache, arguments.cancel, now_ms=clock_ms())
        print_result(job_values(cancelled), as_json=arguments.json)
        return 0
    with reading(engine) as connection:
        found = read_jobs(connection, read_cache(connection, arguments.cache).id)
    if arguments.json:
        print_result({"cache": arguments.cache, "jobs": [job_values(job) for job in found]}, as_json=True)
        return 0
    for job in found:
        print(_line(job))
    return 0


def _line(job: JobRecord) -> str:
    """One line; what comes last is the longest."""
    values = job_values(job)
    at = f"{job.stage} {job.done_count}/{job.total_count}" if job.stage is not None else "-"
    said = job.error or job.report or job.source or ""
    return f"{job.name}  {job.kind:<11}  {job.state:<9}  {values['created']}  {at:<22}  {said}".rstrip()
