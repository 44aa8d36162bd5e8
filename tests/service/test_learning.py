"""Training from the store, and the update that learns what arrived since."""

from dataclasses import replace
from functools import partial

import pytest
from learning_rows import (
    DIM,
    ENCODER,
    activate,
    active_id,
    check_label_codes,
    cluster,
    encoders,
    fill,
    learn,
    learned,
    train,
)
from sqlalchemy import Engine
from store_rows import StoreCache, make_cache, new_entry, second_engine, storing_after

from hashing.checkpoint import load_encoder
from hashing.errors import EmbeddingsError, TrainingDataError
from service import jobs, registry, store, tables
from service.coding import code_rows
from service.config import UpdateConfig
from service.database import reading, writing
from service.errors import NotFoundError, PreconditionError
from service.rows import read_cache, read_weights
from service.update import UpdateOutcome, read_unlearned, run_update


@pytest.fixture
def cache(shared_engine: Engine) -> StoreCache:
    """An empty cache."""
    return make_cache(shared_engine, dim=DIM)


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


@pytest.mark.parametrize(
    ("tolerated", "reason"),
    [({"max_map_drop": 0.01}, "mAP on old rows falls"), ({"max_flips": 0.02}, "old answers turn wrong")],
)
def test_a_rejected_update_leaves_everything_as_it_was(
    cache: StoreCache, tolerated: dict[str, float], reason: str
) -> None:
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
    outcome = learn(cache, **tolerated)
    assert (outcome.accepted, outcome.label_codes_issued) == (False, 0)
    assert [own for own in outcome.reasons if reason in own] == list(outcome.reasons)
    assert (active_id(cache), cache.entries(), cache.seq()) == (parent, before, seq)
    rejected = encoders(cache)[str(outcome.encoder_id)]
    assert (rejected.state, rejected.reason) == (registry.REJECTED, "; ".join(outcome.reasons))


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
        assert read_unlearned(connection, read_cache(connection, cache.name)).row_count == 0


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


@pytest.mark.parametrize("at", ["read", "learn", "judge", "activate"])
def test_a_progress_that_raises_at_any_stage_ends_the_update(cache: StoreCache, at: str) -> None:
    faq = learned(cache, "a", "b")
    fill(cache, faq, "c")
    before = (encoders(cache), cache.entries(), cache.seq())
    told: list[str] = []

    def lost(stage: str, done: int, total: int) -> None:
        assert 0 <= done <= total
        told.append(stage)
        if stage == at:
            raise jobs.LeaseLostError("taken over")

    with pytest.raises(jobs.LeaseLostError):
        learn(cache, progress=lost)
    assert told[-1] == at and told.count(at) == 1
    assert (encoders(cache), cache.entries(), cache.seq()) == before


def test_an_update_does_not_undo_an_activation_made_meanwhile(cache: StoreCache) -> None:
    faq = learned(cache, "a", "b")
    fill(cache, faq, "c")
    other = train(cache, replace(ENCODER, seed=1)).encoder_id

    def activate_other(stage: str, done: int, total: int) -> None:
        if active_id(cache) != other:
            activate(cache, other)

    with pytest.raises(PreconditionError) as raised:
        learn(cache, progress=activate_other)
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


def unlearned_count(cache: StoreCache) -> int:
    with reading(cache.engine) as connection:
        return read_unlearned(connection, read_cache(connection, cache.name)).row_count


@pytest.mark.parametrize("steps", [1, 2])
def test_rows_learned_before_a_rollback_make_no_update_due_but_one_by_hand_learns_them(
    cache: StoreCache, steps: int
) -> None:
    faq = learned(cache, "a", "b")
    for label in "cd"[:steps]:
        fill(cache, faq, label)
        learn(cache)
    for _ in range(steps):
        with writing(cache.engine) as connection:
            registry.roll_back_encoder(connection, cache.id)
        assert unlearned_count(cache) == 0
    fill(cache, faq, "e", count=4)
    assert unlearned_count(cache) == 4
    assert learn(cache).new_labels == (*"cd"[:steps], "e")


def test_a_destroyed_child_and_one_without_labels_count_no_row_as_seen(cache: StoreCache) -> None:
    faq = learned(cache, "a", "b")
    fill(cache, faq, "c", count=5)
    learn(cache)
    child = active_id(cache)
    with writing(cache.engine) as connection:
        registry.roll_back_encoder(connection, cache.id)
    for changed in ({"learning_state": None}, {"learning_state": b"", "state": registry.DESTROYED}):
        with writing(cache.engine) as connection:
            same = (tables.encoders.c.cache_id == cache.id, tables.encoders.c.encoder_id == child)
            connection.execute(tables.encoders.update().where(*same).values(**changed))
        assert unlearned_count(cache) == 5


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
            return read_unlearned(connection, read_cache(connection, cache.name)).row_count

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
