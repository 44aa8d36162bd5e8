"""The job queue, training from the store, and the update that learns what arrived since."""

import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from numpy.typing import NDArray
from sqlalchemy import Engine, delete, select
from store_rows import StoreCache, is_blocked, make_cache, new_entry, second_engine, storing_after
from waiting import eventually

from hashing.checkpoint import load_encoder
from hashing.config import EncoderConfig
from hashing.errors import EmbeddingsError, TrainingDataError
from service import jobs, registry, store, tables
from service.coding import code_rows, label_codes_of
from service.config import Config, UpdateConfig
from service.database import reading, writing
from service.errors import NotFoundError, PreconditionError
from service.learning import UpdateOutcome, count_unlearned, run_update, train_from_store
from service.records import EncoderRecord, JobRecord
from service.rows import read_cache, read_encoders, read_weights
from service.worker import Worker

DIM = 16
ENCODER = EncoderConfig(code_bits=64, label_bits=64, itq_iterations=2, feature_count=128)
LEASE_MS = 100


@pytest.fixture
def cache(shared_engine: Engine) -> StoreCache:
    """An empty cache."""
    return make_cache(shared_engine, dim=DIM)


@pytest.fixture
def queue(cache: StoreCache) -> Iterator[StoreCache]:
    """A cache of a database without jobs."""
    with writing(cache.engine) as connection:
        connection.execute(delete(tables.jobs))
    yield cache
    with writing(cache.engine) as connection:
        connection.execute(delete(tables.jobs))


def cluster(label: str, count: int) -> NDArray[np.float16]:
    """Unit vectors float16 [count, DIM] around a centre of the label's own."""
    rng = np.random.default_rng([*label.encode()])
    rows = rng.standard_normal(DIM) + 0.15 * rng.standard_normal((count, DIM))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float16)


def fill(cache: StoreCache, category_id: int, *labels: str, count: int = 15) -> None:
    """Store `count` rows of each label ("": without one), coded by the active encoder as a server does."""
    with reading(cache.engine) as connection:
        record = read_cache(connection, cache.name)
        active = record.active_encoder_id
        encoder = load_encoder(read_weights(connection, cache.id, active)) if active else None
    items = []
    for label in labels:
        own = (label,) if label else ()
        vectors = cluster(label, count)
        codings = (
            code_rows(encoder, vectors, modality="text", labels=[own] * count) if encoder else [None] * count
        )
        items += [
            new_entry(category_id, vector=vector, labels=own, coding=coding)
            for vector, coding in zip(vectors, codings, strict=True)
        ]
    cache.mutate(partial(store.store_entries, items=items))


def train(cache: StoreCache, config: EncoderConfig = ENCODER) -> EncoderRecord:
    """Train on what is stored."""
    return train_from_store(cache.engine, cache.name, config=config, modality="text", progress=None, now_ms=1)


def activate(cache: StoreCache, encoder_id: str) -> None:
    """Make an encoder the active one."""
    with writing(cache.engine) as connection:
        registry.activate_encoder(connection, cache.id, encoder_id, max_live_encoders=4)


def learned(cache: StoreCache, *labels: str) -> int:
    """Store rows of the labels, train and activate; returns the category."""
    faq = cache.category("faq")
    fill(cache, faq, *labels)
    activate(cache, train(cache).encoder_id)
    return faq


def learn(cache: StoreCache, *, max_map_drop: float = 1.0, **rest: object) -> UpdateOutcome:
    """Run an update."""
    return run_update(
        cache.engine,
        cache.name,
        config=UpdateConfig(max_map_drop=max_map_drop),
        max_live_encoders=4,
        clock=lambda: 2,
        **rest,  # type: ignore[arg-type]
    )


def active_id(cache: StoreCache) -> str | None:
    """The active encoder."""
    with reading(cache.engine) as connection:
        return read_cache(connection, cache.name).active_encoder_id


def encoders(cache: StoreCache) -> dict[str, EncoderRecord]:
    """All encoders by id."""
    with reading(cache.engine) as connection:
        return {record.encoder_id: record for record in read_encoders(connection, cache.id)}


def check_label_codes(cache: StoreCache) -> None:
    """Every row whose labels the active encoder knows has its code for them."""
    with reading(cache.engine) as connection:
        encoder = load_encoder(read_weights(connection, cache.id, str(active_id(cache))))
    rows = cache.entries()
    expected = label_codes_of(encoder, [row.labels for row in rows])
    assert [row.label_code for row in rows] == expected


def enqueue(cache: StoreCache, *, now_ms: int = 0) -> JobRecord:
    """Queue an update."""
    with writing(cache.engine) as connection:
        return jobs.enqueue(connection, cache.id, kind=jobs.UPDATE, now_ms=now_ms)


def lease(cache: StoreCache, owner: str, *, now_ms: int = 0) -> JobRecord | None:
    """Take a job."""
    with writing(cache.engine) as connection:
        return jobs.lease(connection, owner=owner, now_ms=now_ms, lease_ms=LEASE_MS)


def state_of(cache: StoreCache, job: JobRecord) -> str:
    """Where a job stands."""
    with reading(cache.engine) as connection:
        return jobs.read_job(connection, read_cache(connection, cache.name), job.name).state


def cancel(cache: StoreCache, job: JobRecord) -> JobRecord:
    """Cancel a job."""
    with writing(cache.engine) as connection:
        return jobs.cancel(connection, read_cache(connection, cache.name), job.name, now_ms=7)


def test_a_job_that_waits_is_returned_instead_of_a_second(queue: StoreCache) -> None:
    assert enqueue(queue).name == enqueue(queue, now_ms=5).name


def test_beside_a_running_job_no_second_one_is_queued(queue: StoreCache) -> None:
    first = enqueue(queue)
    lease(queue, "worker")
    assert enqueue(queue).name == first.name


def test_two_processes_that_queue_at_once_get_one_job(queue: StoreCache) -> None:
    engine = second_engine(queue.engine)
    made: list[JobRecord] = []
    other = threading.Thread(target=lambda: made.append(enqueue(replace(queue, engine=engine))))
    with writing(queue.engine) as connection:
        made.append(jobs.enqueue(connection, queue.id, kind=jobs.UPDATE, now_ms=0))
        other.start()
        if engine.dialect.name == "postgresql":  # SQLite has one lock for all
            eventually(lambda: is_blocked(queue.engine) or not other.is_alive())
    other.join()
    engine.dispose()
    assert made[0].name == made[1].name


def test_jobs_of_two_caches_are_taken_oldest_first_and_once(queue: StoreCache) -> None:
    other = make_cache(queue.engine)
    made = [enqueue(queue).name, enqueue(other).name]
    taken = [lease(queue, "worker") for _ in range(3)]
    assert [job and job.name for job in taken] == [*made, None]


def test_a_lease_is_taken_over_once_it_has_expired(queue: StoreCache) -> None:
    enqueue(queue)
    lease(queue, "dead", now_ms=0)
    assert lease(queue, "other", now_ms=LEASE_MS - 1) is None
    taken = lease(queue, "other", now_ms=LEASE_MS)
    assert taken is not None and taken.owner == "other"


def test_an_extended_lease_is_not_taken_over(queue: StoreCache) -> None:
    enqueue(queue)
    job = lease(queue, "worker")
    assert job is not None
    with writing(queue.engine) as connection:
        jobs.extend_lease(connection, job, now_ms=50, lease_ms=LEASE_MS)
    assert lease(queue, "other", now_ms=LEASE_MS) is None


@pytest.mark.parametrize("change", ["extend", "finish"])
def test_a_worker_whose_job_was_taken_over_learns_of_it(queue: StoreCache, change: str) -> None:
    enqueue(queue)
    lost = lease(queue, "slow", now_ms=0)
    taken = lease(queue, "other", now_ms=LEASE_MS)
    assert lost is not None and taken is not None
    with pytest.raises(jobs.LeaseLostError), writing(queue.engine) as connection:
        if change == "extend":
            jobs.extend_lease(connection, lost, now_ms=LEASE_MS, lease_ms=LEASE_MS)
        else:
            jobs.finish(connection, lost, state=jobs.SUCCEEDED, now_ms=LEASE_MS)
    assert state_of(queue, taken) == jobs.RUNNING


def test_a_finished_job_keeps_its_report_and_is_not_taken_again(queue: StoreCache) -> None:
    enqueue(queue)
    job = lease(queue, "worker")
    assert job is not None
    with writing(queue.engine) as connection:
        jobs.finish(connection, job, state=jobs.SUCCEEDED, report="{}", now_ms=9)
    with reading(queue.engine) as connection:
        ended = jobs.read_job(connection, read_cache(connection, queue.name), job.name)
    assert (ended.state, ended.report, ended.end_ms) == (jobs.SUCCEEDED, "{}", 9)
    assert lease(queue, "other", now_ms=10**9) is None


def test_a_cancelled_job_is_not_taken(queue: StoreCache) -> None:
    cancelled = cancel(queue, enqueue(queue))
    assert (cancelled.state, cancelled.end_ms) == (jobs.CANCELLED, 7)
    assert lease(queue, "worker") is None


def test_a_worker_whose_job_was_cancelled_learns_of_it(queue: StoreCache) -> None:
    enqueue(queue)
    job = lease(queue, "worker")
    assert job is not None
    cancel(queue, job)
    with pytest.raises(jobs.LeaseLostError), writing(queue.engine) as connection:
        jobs.finish(connection, job, state=jobs.SUCCEEDED, now_ms=0)
    assert state_of(queue, job) == jobs.CANCELLED


def test_a_job_that_has_ended_cannot_be_cancelled(queue: StoreCache) -> None:
    job = enqueue(queue)
    cancel(queue, job)
    with pytest.raises(PreconditionError) as raised:
        cancel(queue, job)
    assert raised.value.reason == "JOB_FINISHED"


def test_a_job_of_another_cache_is_not_found(queue: StoreCache) -> None:
    job = enqueue(make_cache(queue.engine))
    with pytest.raises(NotFoundError):
        cancel(queue, job)


def test_training_needs_the_bits_of_the_cache(cache: StoreCache) -> None:
    fill(cache, cache.category("faq"), "a", "b")
    with pytest.raises(PreconditionError) as raised:
        train(cache, replace(ENCODER, code_bits=128))
    assert raised.value.reason == "BITS_MISMATCH"


def test_training_an_unknown_cache_is_refused(cache: StoreCache) -> None:
    with pytest.raises(NotFoundError):
        train(replace(cache, name="gone"))


@pytest.mark.parametrize("count", [0, 1])
def test_training_on_too_few_rows_is_refused(cache: StoreCache, count: int) -> None:
    if count:
        fill(cache, cache.category("faq"), "", count=count)
    with pytest.raises((TrainingDataError, EmbeddingsError)):
        train(cache)
    assert encoders(cache) == {}


def test_training_keeps_a_candidate_and_activates_nothing(cache: StoreCache) -> None:
    fill(cache, cache.category("faq"), "a", "b")
    trained = train(cache)
    assert (trained.state, trained.watermark, trained.class_count) == (registry.CANDIDATE, 30, 2)
    assert active_id(cache) is None


@pytest.mark.parametrize("labels", [("", ""), ("a", "a")])
def test_training_on_fewer_than_two_classes_makes_no_label_codes(
    cache: StoreCache, labels: tuple[str, ...]
) -> None:
    faq = cache.category("faq")
    for label in labels:
        fill(cache, faq, label)
    trained = train(cache)
    assert (trained.label_bits, trained.class_count) == (0, 0)


def test_training_on_the_same_rows_gives_the_same_encoder(cache: StoreCache) -> None:
    fill(cache, cache.category("faq"), "a", "b")
    assert train(cache) == train(cache)
    assert len(encoders(cache)) == 1


def test_an_update_without_active_encoder_is_refused(cache: StoreCache) -> None:
    fill(cache, cache.category("faq"), "a", "b")
    with pytest.raises(PreconditionError) as raised:
        learn(cache)
    assert raised.value.reason == "NO_ACTIVE_ENCODER"


@pytest.mark.parametrize("unlabelled", [0, 9])
def test_an_update_without_labelled_rows_has_nothing_to_learn(cache: StoreCache, unlabelled: int) -> None:
    faq = learned(cache, "a", "b")
    before = active_id(cache)
    if unlabelled:
        fill(cache, faq, "", count=unlabelled)
    concluded: list[UpdateOutcome] = []
    outcome = learn(cache, conclude=lambda connection, outcome: concluded.append(outcome))
    assert (outcome.accepted, outcome.encoder_id, outcome.unlabelled_row_count) == (False, None, unlabelled)
    assert "no labelled rows" in outcome.reasons[0]
    assert (outcome.drift_score is None) == (unlabelled == 0)
    assert concluded == [outcome]
    assert (active_id(cache), len(encoders(cache))) == (before, 1)


def test_an_update_learns_new_labels_and_issues_their_codes(cache: StoreCache) -> None:
    faq = learned(cache, "a", "b")
    parent = active_id(cache)
    fill(cache, faq, "c", "d")
    outcome = learn(cache)
    assert (outcome.accepted, set(outcome.new_labels)) == (True, {"c", "d"})
    assert active_id(cache) == outcome.encoder_id != parent
    made = encoders(cache)[str(outcome.encoder_id)]
    assert (made.parent_id, made.class_count, made.watermark) == (parent, 4, 60)
    check_label_codes(cache)
    cache.check()


def test_an_update_tells_apart_what_it_learned(cache: StoreCache) -> None:
    faq = learned(cache, "a", "b")
    fill(cache, faq, "c", "d")
    outcome = learn(cache, max_map_drop=0.01)
    assert outcome.accepted
    assert outcome.new_map_after is not None and outcome.new_map_after > 0.9
    assert outcome.old_map_before is not None and outcome.old_map_after is not None
    assert outcome.old_map_after >= outcome.old_map_before - 0.01


def test_an_update_changes_no_stored_instance_code(cache: StoreCache) -> None:
    faq = learned(cache, "a", "b")
    fill(cache, faq, "c")
    before = [(row.id, row.code, row.encoder_id, row.vector, row.seq) for row in cache.entries()]
    assert learn(cache).accepted
    assert [(row.id, row.code, row.encoder_id, row.vector, row.seq) for row in cache.entries()] == before
    assert [row[1] for row in before].count(None) == 30


def test_queries_of_an_updated_encoder_may_search_its_parents_codes(cache: StoreCache) -> None:
    faq = learned(cache, "a", "b")
    parent = str(active_id(cache))
    fill(cache, faq, "c")
    child = str(learn(cache).encoder_id)
    with reading(cache.engine) as connection:
        assert registry.trusted_by(connection, cache.id, child) == {child, parent}
        assert registry.trusted_by(connection, cache.id, parent) == {child, parent}


def test_each_issued_label_code_is_a_change_that_followers_see(cache: StoreCache) -> None:
    faq = learned(cache, "a", "b")
    fill(cache, faq, "c", count=6)
    before = cache.seq()
    issued = learn(cache).label_codes_issued
    assert issued == 36  # the rows of "a" and "b" were stored before there was an encoder
    assert [operation for _, operation, _ in cache.feed()[before:]] == [store.Operation.UPSERT] * issued


def test_a_second_update_learns_only_what_is_new(cache: StoreCache) -> None:
    faq = learned(cache, "a", "b")
    fill(cache, faq, "c")
    learn(cache)
    assert learn(cache).encoder_id is None
    fill(cache, faq, "d", count=10)
    outcome = learn(cache)
    assert outcome.new_labels == ("d",)
    assert outcome.labelled_row_count <= 10


def test_a_row_stored_while_the_update_reads_is_left_to_the_next_one(cache: StoreCache) -> None:
    faq = learned(cache, "a", "b")
    fill(cache, faq, "c")
    engine = second_engine(cache.engine)
    elsewhere = replace(cache, engine=engine)
    with storing_after(cache.engine, "FROM caches", partial(fill, elsewhere, faq, "d", count=5)):
        first = learn(cache)
    engine.dispose()
    second = learn(cache)
    assert (first.new_labels, second.new_labels) == (("c",), ("d",))
    check_label_codes(cache)


def test_a_rejected_update_leaves_everything_as_it_was(cache: StoreCache) -> None:
    faq = learned(cache, "a", "b", "c", "d")
    parent = active_id(cache)
    # The old classes under each other's names: what was right before is wrong after.
    with reading(cache.engine) as connection:
        encoder = load_encoder(read_weights(connection, cache.id, str(parent)))
    for label, other in ("ab", "ba", "cd", "dc"):
        vectors = cluster(label, 80)
        codings = code_rows(encoder, vectors, modality="text", labels=[(other,)] * 80)
        items = [
            new_entry(faq, vector=vector, labels=(other,), coding=coding)
            for vector, coding in zip(vectors, codings, strict=True)
        ]
        cache.mutate(partial(store.store_entries, items=items))
    before, seq = cache.entries(), cache.seq()
    outcome = learn(cache, max_map_drop=0.01)
    assert (outcome.accepted, outcome.label_codes_issued) == (False, 0)
    assert "mAP on old rows falls" in outcome.reasons[0]
    assert (active_id(cache), cache.entries(), cache.seq()) == (parent, before, seq)
    rejected = encoders(cache)[str(outcome.encoder_id)]
    assert (rejected.state, rejected.reason) == (registry.REJECTED, outcome.reasons[0])


def test_rows_of_a_rejected_update_are_not_learned_again(cache: StoreCache) -> None:
    faq = learned(cache, "a", "b", "c", "d")
    for label, other in ("ab", "ba", "cd", "dc"):
        items = [new_entry(faq, vector=vector, labels=(other,)) for vector in cluster(label, 80)]
        cache.mutate(partial(store.store_entries, items=items))
    fill(cache, faq, "e")
    config = UpdateConfig(max_map_drop=0.01, max_update_rows=320)
    rejected, accepted = (
        run_update(cache.engine, cache.name, config=config, max_live_encoders=4, clock=lambda: 2)
        for _ in range(2)
    )
    assert (rejected.accepted, accepted.accepted, accepted.new_labels) == (False, True, ("e",))
    with reading(cache.engine) as connection:
        assert count_unlearned(connection, read_cache(connection, cache.name)) == 0


def test_a_rejected_encoder_cannot_be_activated(cache: StoreCache) -> None:
    learned(cache, "a", "b")
    with writing(cache.engine) as connection:
        condition = tables.encoders.c.cache_id == cache.id
        connection.execute(tables.encoders.update().where(condition).values(state=registry.REJECTED))
    with pytest.raises(PreconditionError) as raised:
        activate(cache, str(active_id(cache)))
    assert raised.value.reason == "ENCODER_REJECTED"


def test_an_update_that_cannot_conclude_changes_nothing(cache: StoreCache) -> None:
    faq = learned(cache, "a", "b")
    fill(cache, faq, "c")
    before = (active_id(cache), encoders(cache), cache.entries(), cache.seq())

    def refuse(connection: object, outcome: UpdateOutcome) -> None:
        raise jobs.LeaseLostError("cancelled")

    with pytest.raises(jobs.LeaseLostError):
        learn(cache, conclude=refuse)
    assert (active_id(cache), encoders(cache), cache.entries(), cache.seq()) == before


def test_a_heartbeat_that_raises_ends_the_update(cache: StoreCache) -> None:
    faq = learned(cache, "a", "b")
    fill(cache, faq, "c")
    before = encoders(cache)

    def lost() -> None:
        raise jobs.LeaseLostError("taken over")

    with pytest.raises(jobs.LeaseLostError):
        learn(cache, heartbeat=lost)
    assert encoders(cache) == before


def test_an_update_does_not_undo_an_activation_made_meanwhile(cache: StoreCache) -> None:
    faq = learned(cache, "a", "b")
    fill(cache, faq, "c")
    other = train(cache, replace(ENCODER, seed=1)).encoder_id

    def activate_other() -> None:
        if active_id(cache) != other:
            activate(cache, other)

    with pytest.raises(PreconditionError) as raised:
        learn(cache, heartbeat=activate_other)
    assert raised.value.reason == "ACTIVE_ENCODER_CHANGED"
    assert active_id(cache) == other


def test_after_a_rollback_label_codes_follow_the_next_update(cache: StoreCache) -> None:
    faq = learned(cache, "a", "b")
    parent = active_id(cache)
    fill(cache, faq, "c", "d")
    learn(cache)
    with writing(cache.engine) as connection:
        registry.roll_back_encoder(connection, cache.id)
    assert active_id(cache) == parent
    lost = tuple(row.name for row in cache.entries() if row.labels == ("c",))
    cache.mutate(partial(store.invalidate, selection=store.Selection(names=lost)))
    assert learn(cache).new_labels == ("d",)  # with the code that it had: "c" keeps its own
    check_label_codes(cache)


def test_rolling_back_needs_an_encoder_before(cache: StoreCache) -> None:
    with pytest.raises(PreconditionError), writing(cache.engine) as connection:
        registry.roll_back_encoder(connection, cache.id)
    learned(cache, "a", "b")
    with pytest.raises(PreconditionError), writing(cache.engine) as connection:
        registry.roll_back_encoder(connection, cache.id)


def test_an_encoder_whose_codes_would_be_one_set_too_many_is_not_activated(cache: StoreCache) -> None:
    faq = learned(cache, "a", "b")
    fill(cache, faq, "", count=3)
    other = train(cache, replace(ENCODER, seed=1)).encoder_id
    with pytest.raises(PreconditionError) as raised, writing(cache.engine) as connection:
        registry.activate_encoder(connection, cache.id, other, max_live_encoders=1)
    assert raised.value.reason == "TOO_MANY_LIVE_ENCODERS"
    with writing(cache.engine) as connection:
        registry.activate_encoder(connection, cache.id, other, max_live_encoders=2)
    assert active_id(cache) == other


def test_unlearned_rows_are_counted_from_the_newest_encoder(cache: StoreCache) -> None:
    def count() -> int:
        with reading(cache.engine) as connection:
            return count_unlearned(connection, read_cache(connection, cache.name))

    faq = cache.category("faq")
    fill(cache, faq, "a", "b")
    counts = [count()]
    activate(cache, train(cache).encoder_id)
    counts.append(count())
    fill(cache, faq, "c", "", count=4)
    counts.append(count())
    learn(cache)
    counts.append(count())
    assert counts == [0, 0, 4, 0]


@pytest.fixture
def worked(engine: Engine) -> tuple[StoreCache, Callable[[], Worker]]:
    """A cache alone in its database, with something to learn, and workers of it."""
    cache = make_cache(engine, dim=DIM)
    faq = learned(cache, "a", "b")
    fill(cache, faq, "c", count=6)
    config = Config(update=UpdateConfig(min_labelled_rows=6, max_map_drop=1.0))
    return cache, lambda: Worker(engine, config, clock=lambda: 3)


def test_a_worker_queues_what_is_due_once_and_learns_it(
    worked: tuple[StoreCache, Callable[[], Worker]],
) -> None:
    cache, make_worker = worked
    worker = make_worker()
    assert (worker.enqueue_due(), worker.enqueue_due()) == (1, 1)
    assert (worker.run_one(), worker.run_one()) == (True, False)
    with reading(cache.engine) as connection:
        (state, report), *rest = connection.execute(select(tables.jobs.c.state, tables.jobs.c.report)).all()
    assert (state, rest) == (jobs.SUCCEEDED, [])
    assert json.loads(report)["encoder_id"] == active_id(cache)
    assert worker.enqueue_due() == 0


def test_a_worker_whose_job_is_cancelled_meanwhile_activates_nothing(
    worked: tuple[StoreCache, Callable[[], Worker]],
) -> None:
    cache, make_worker = worked
    job, before = enqueue(cache), active_id(cache)
    with storing_after(cache.engine, "encoders.learning_state", lambda: _cancel_elsewhere(cache, job)):
        assert make_worker().run_one()
    assert (state_of(cache, job), active_id(cache), len(encoders(cache))) == (jobs.CANCELLED, before, 1)


def _cancel_elsewhere(cache: StoreCache, job: JobRecord) -> None:
    engine = second_engine(cache.engine)
    cancel(replace(cache, engine=engine), job)
    engine.dispose()


def test_a_job_that_cannot_be_done_fails_with_its_reason(engine: Engine) -> None:
    cache = make_cache(engine, dim=DIM)
    job = enqueue(cache)
    worker = Worker(engine, Config(), clock=lambda: 3)
    assert worker.run_one()
    with reading(engine) as connection:
        failed = jobs.read_job(connection, read_cache(connection, cache.name), job.name)
    assert failed.state == jobs.FAILED
    assert "no active encoder" in failed.error


def test_a_worker_goes_on_beside_a_cache_whose_encoder_is_damaged(
    worked: tuple[StoreCache, Callable[[], Worker]],
) -> None:
    cache, make_worker = worked
    damaged = make_cache(cache.engine, dim=DIM)
    learned(damaged, "a", "b")
    fill(damaged, next(iter(damaged.categories())), "c", count=6)
    with writing(cache.engine) as connection:
        of_cache = tables.encoders.c.cache_id == damaged.id
        connection.execute(tables.encoders.update().where(of_cache).values(weights=b"none"))
    worker = make_worker()
    assert (worker.enqueue_due(), worker.run_one()) == (1, True)


def test_a_cancelled_update_is_not_queued_again_at_once(
    worked: tuple[StoreCache, Callable[[], Worker]],
) -> None:
    cache, make_worker = worked
    worker = make_worker()
    assert worker.enqueue_due() == 1
    with reading(cache.engine) as connection:
        record = read_cache(connection, cache.name)
        (name,) = connection.execute(select(tables.jobs.c.name)).scalars()
    with writing(cache.engine) as connection:
        jobs.cancel(connection, record, name, now_ms=3)
    assert worker.enqueue_due() == 0
