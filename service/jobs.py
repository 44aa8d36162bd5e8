"""The queue of work for worker processes: a leased row per job. A dead worker's lease expires."""

import secrets
from collections.abc import Collection
from typing import Any

from sqlalchemy import ColumnElement, Connection, and_, func, insert, or_, select, update

from service.errors import NotFoundError, PreconditionError
from service.keys import child_name
from service.records import CacheRecord, JobRecord
from service.tables import caches, jobs

UPDATE, LOAD, LEARN_PAIRS, REEMBED = "update", "load", "learn-pairs", "reembed"
QUEUED, RUNNING, SUCCEEDED, FAILED, CANCELLED = "queued", "running", "succeeded", "failed", "cancelled"

MAX_ATTEMPTS = 3


class LeaseLostError(Exception):
    """The job was cancelled, or another worker took it after the lease had expired."""


def enqueue(
    connection: Connection, cache_id: int, *, kind: str, source: str | None = None, now_ms: int
) -> JobRecord:
    """Queue a job; one of its kind and source that waits or runs is returned instead.

    Raises: NotFoundError.
    """
    locked = select(caches.c.id).where(caches.c.id == cache_id).with_for_update()
    if connection.execute(locked).first() is None:
        raise NotFoundError("the cache was deleted", reason="CACHE_NOT_FOUND")
    same = _same_work(cache_id, kind=kind, source=source)
    waiting = select(jobs).where(same, jobs.c.state.in_((QUEUED, RUNNING)))
    found = connection.execute(waiting).first()
    if found is not None:
        return JobRecord(**found._mapping)
    name = secrets.token_hex(8)
    connection.execute(
        insert(jobs).values(
            cache_id=cache_id,
            name=name,
            kind=kind,
            source=source,
            state=QUEUED,
            attempt_count=0,
            report="",
            error="",
            create_ms=now_ms,
        )
    )
    return _read(connection, jobs.c.name == name)


def lease(
    connection: Connection,
    *,
    owner: str,
    now_ms: int,
    lease_ms: int,
    kinds: Collection[str] = (UPDATE, LOAD),
    embedder_id: str | None = None,
) -> JobRecord | None:
    """Take the oldest job of these kinds that waits or whose worker died; None where there is none.

    embedder_id: also of those that embed by it. A job whose workers died MAX_ATTEMPTS times fails.
    """
    died = and_(jobs.c.state == RUNNING, jobs.c.lease_ms <= now_ms, jobs.c.attempt_count >= MAX_ATTEMPTS)
    gave_up = f"its worker died {MAX_ATTEMPTS} times"
    connection.execute(update(jobs).where(died).values(state=FAILED, error=gave_up, end_ms=now_ms))
    wanted = or_(jobs.c.kind.in_(kinds), and_(jobs.c.kind == REEMBED, jobs.c.source == embedder_id))
    oldest = select(jobs.c.id).where(_takable(now_ms), wanted).order_by(jobs.c.id).limit(1)
    job_id = connection.execute(oldest.with_for_update(skip_locked=True)).scalar()
    if job_id is None:
        return None
    taken = update(jobs).where(jobs.c.id == job_id)
    held = {"state": RUNNING, "owner": owner, "lease_ms": now_ms + lease_ms}
    connection.execute(taken.values(attempt_count=jobs.c.attempt_count + 1, **held))
    return _read(connection, jobs.c.id == job_id)


def extend_lease(connection: Connection, job: JobRecord, *, now_ms: int, lease_ms: int) -> None:
    """Keep the job. Raises: LeaseLostError."""
    _change(connection, job, lease_ms=now_ms + lease_ms)


def record_progress(
    connection: Connection,
    job: JobRecord,
    *,
    stage: str,
    done: int,
    total: int,
    report: str = "",
    now_ms: int,
    lease_ms: int,
) -> None:
    """Say how far the job is, and keep it. Raises: LeaseLostError."""
    progress = {"stage": stage, "done_count": done, "total_count": total, "report": report}
    _change(connection, job, lease_ms=now_ms + lease_ms, **progress)


def finish(
    connection: Connection,
    job: JobRecord,
    *,
    state: str,
    report: str | None = None,
    error: str = "",
    now_ms: int,
) -> None:
    """End the job; what it changed belongs in the same transaction. report: None: as its progress left it.

    Raises: LeaseLostError.
    """
    reported = {} if report is None else {"report": report}
    _change(connection, job, state=state, error=error, end_ms=now_ms, lease_ms=None, **reported)


def cancel(connection: Connection, cache: CacheRecord, name: str, *, now_ms: int) -> JobRecord:
    """Cancel a job. Raises: NotFoundError, PreconditionError: it has finished."""
    connection.execute(select(caches.c.id).where(caches.c.id == cache.id).with_for_update())
    job = read_job(connection, cache, name)
    cancelled = update(jobs).where(jobs.c.id == job.id, jobs.c.state.in_((QUEUED, RUNNING)))
    if not connection.execute(cancelled.values(state=CANCELLED, end_ms=now_ms)).rowcount:
        raise PreconditionError(
            f"{child_name(cache.name, 'jobs', name)} has {job.state} already", reason="JOB_FINISHED"
        )
    return _read(connection, jobs.c.id == job.id)


def cancel_all(connection: Connection, cache_id: int, *, kind: str, now_ms: int) -> None:
    """Cancel the jobs of a kind that have not finished; the caller holds the cache's lock."""
    unfinished = (jobs.c.cache_id == cache_id, jobs.c.kind == kind, jobs.c.state.in_((QUEUED, RUNNING)))
    connection.execute(update(jobs).where(*unfinished).values(state=CANCELLED, end_ms=now_ms))


def is_waiting(connection: Connection, *, kind: str, now_ms: int) -> bool:
    """Whether a job of this kind waits, or its worker died, in any cache."""
    query = select(jobs.c.id).where(jobs.c.kind == kind, _takable(now_ms))
    return connection.execute(query.limit(1)).first() is not None


def ended_without_success(
    connection: Connection,
    cache_id: int,
    *,
    kind: str,
    source: str | None = None,
    after_ms: int,
    queued_from_ms: int = 0,
) -> JobRecord | None:
    """The last job of this kind and source, queued at `queued_from_ms` or later, that failed or was cancelled
    after `after_ms`."""
    ended = jobs.c.state.in_((FAILED, CANCELLED))
    query = select(jobs).where(
        _same_work(cache_id, kind=kind, source=source),
        ended,
        jobs.c.end_ms > after_ms,
        jobs.c.create_ms >= queued_from_ms,
    )
    found = connection.execute(query.order_by(jobs.c.id.desc()).limit(1)).first()
    return None if found is None else JobRecord(**found._mapping)


def newest_ms(connection: Connection, cache_id: int, *, kind: str) -> int:
    """When the newest job of this kind was queued; 0 where there was none."""
    query = select(func.max(jobs.c.create_ms)).where(jobs.c.cache_id == cache_id, jobs.c.kind == kind)
    return connection.execute(query).scalar() or 0


def read_job(connection: Connection, cache: CacheRecord, name: str) -> JobRecord:
    """One job. Raises: NotFoundError."""
    found = connection.execute(select(jobs).where(jobs.c.cache_id == cache.id, jobs.c.name == name)).first()
    if found is None:
        raise NotFoundError(f"{child_name(cache.name, 'jobs', name)} does not exist", reason="JOB_NOT_FOUND")
    return JobRecord(**found._mapping)


def last_at_stage(connection: Connection, job: JobRecord, *, stage: str) -> JobRecord | None:
    """The last job of the same work that came to a stage and is or ended there, this one included."""
    same = _same_work(job.cache_id, kind=job.kind, source=job.source)
    query = select(jobs).where(same, jobs.c.stage == stage, jobs.c.id <= job.id)
    found = connection.execute(query.order_by(jobs.c.id.desc()).limit(1)).first()
    return None if found is None else JobRecord(**found._mapping)


def _takable(now_ms: int) -> ColumnElement[bool]:
    return or_(jobs.c.state == QUEUED, and_(jobs.c.state == RUNNING, jobs.c.lease_ms <= now_ms))


def _same_work(cache_id: int, *, kind: str, source: str | None) -> ColumnElement[bool]:
    same_source = jobs.c.source.is_(None) if source is None else jobs.c.source == source
    return and_(jobs.c.cache_id == cache_id, jobs.c.kind == kind, same_source)


def _change(connection: Connection, job: JobRecord, **values: Any) -> None:
    held = update(jobs).where(jobs.c.id == job.id, jobs.c.state == RUNNING, jobs.c.owner == job.owner)
    if not connection.execute(held.values(**values)).rowcount:
        raise LeaseLostError(f"job {job.name} is no longer held by {job.owner}")


def _read(connection: Connection, condition: Any) -> JobRecord:
    return JobRecord(**connection.execute(select(jobs).where(condition)).one()._mapping)
