"""What the commands show of jobs: one as it runs, and as values."""

import sys
import time
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Engine

from scripts.arguments import ProgressBars
from service import jobs
from service.database import reading
from service.records import JobRecord
from service.rows import read_cache

_POLL_SECONDS = 0.5
_HINT_SECONDS = 10.0


def follow_job(engine: Engine, cache: str, name: str, *, progress: ProgressBars) -> JobRecord:
    """Show a job's progress until it has ended. Raises: NotFoundError: the cache was deleted."""
    started = time.monotonic()
    hinted = False
    while True:
        with reading(engine) as connection:
            job = jobs.read_job(connection, read_cache(connection, cache), name)
        if job.stage is not None and job.state == jobs.RUNNING:
            progress(job.stage, job.done_count or 0, job.total_count or 1)
        if job.state not in (jobs.QUEUED, jobs.RUNNING):
            progress.close()
            return job
        if job.state == jobs.QUEUED and not hinted and time.monotonic() - started > _HINT_SECONDS:
            print(f"job {name} still waits: does a `nearhit worker` run?", file=sys.stderr)
            hinted = True
        time.sleep(_POLL_SECONDS)


def job_values(job: JobRecord) -> dict[str, Any]:
    """A job as a command prints it; times in ISO 8601, UTC."""
    return {
        "job": job.name,
        "kind": job.kind,
        "source": job.source,
        "state": job.state,
        "stage": job.stage,
        "done_count": job.done_count,
        "total_count": job.total_count,
        "attempt_count": job.attempt_count,
        "created": _time(job.create_ms),
        "ended": None if job.end_ms is None else _time(job.end_ms),
        "report": job.report,
        "error": job.error,
    }


def _time(ms: int) -> str:
    return datetime.fromtimestamp(ms / 1000, tz=UTC).isoformat(timespec="seconds")
