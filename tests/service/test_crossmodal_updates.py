"""Updates and forgettings of an encoder of two modalities: its label parts learn and forget apart."""

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
from crossmodal_rows import (
    DIMS,
    content_of,
    put_views,
    states_of,
    train_on_both,
    two_modalities,
    views,
    weights_off,
)
from forgotten_rows_at_work import encoder_of, forget, learned_names, record_of
from hypothesis import given, settings
from hypothesis import strategies as st
from learning_rows import ENCODER, activate, active_id, check_label_codes, encoders, learn
from sqlalchemy import Engine
from store_rows import StoreCache

from hashing.checkpoint import dump_state
from hashing.errors import CheckpointError
from service import jobs, registry, store, tables
from service.check import check_cache
from service.config import Config, StoreConfig, UpdateConfig
from service.database import reading, writing
from service.forget_proof import LabelProof, prove_label_parts
from service.learning import train_from_store
from service.rows import read_cache
from service.update import UpdateOutcome, read_unlearned, run_update

Taught = tuple[StoreCache, int]


@pytest.fixture
def taught(shared_engine: Engine) -> Taught:
    """A cache with an active encoder of both modalities, which has learned the labels a and b."""
    cache, every = two_modalities(shared_engine)
    for modality in DIMS:
        put_views(cache, every, modality, "a", "b")
    train_on_both(cache)
    return cache, every


def learned_of(cache: StoreCache, encoder_id: str | None = None) -> dict[str, list[str]]:
    """Names of the rows that the active encoder has learned, by modality."""
    names = learned_names(cache, encoder_id)
    return {own: [name for name in names if name.startswith(own)] for own in DIMS}


def proofs(cache: StoreCache) -> dict[str, LabelProof]:
    with reading(cache.engine) as connection:
        found = prove_label_parts(connection, record_of(cache), str(active_id(cache)))
    return {proof.modality: proof for proof in found}


def unlearned_count(cache: StoreCache) -> int:
    with reading(cache.engine) as connection:
        return read_unlearned(connection, read_cache(connection, cache.name)).row_count


def problems(cache: StoreCache, config_of: Callable[[StoreConfig], Config], folder: object) -> str:
    config = config_of(StoreConfig(url="sqlite:///unused", data_dir=str(folder)))
    return "\n".join(check_cache(cache.engine, cache.name, config).problems)


def right_share(cache: StoreCache, modality: str, *labels: str) -> float:
    """Of new rows of the labels: the share whose best class, by the codes of all, is their own."""
    encoder = encoder_of(cache)
    signs = np.where(encoder.class_bits([[label] for label in encoder.labels]), 1, -1)
    right = []
    for label in labels:
        rows = views(modality, label, 20, seed=99).astype(np.float32)
        best = np.argmax(encoder.label_values(rows, modality=modality) @ signs.T, axis=1)
        right += [encoder.labels[i] == label for i in best]
    return float(np.mean(right))


def as_of_before(cache: StoreCache) -> None:
    """Leave the first modality's state alone, as encoders were kept before."""
    content = dump_state(states_of(cache)["image"])
    columns = tables.encoders.c
    with writing(cache.engine) as connection:
        own = (columns.cache_id == cache.id, columns.encoder_id == active_id(cache))
        connection.execute(tables.encoders.update().where(*own).values(learning_state=content))


def test_labels_of_both_modalities_are_learned_and_share_their_codes(
    taught: Taught, config_of: Callable[[StoreConfig], Config], tmp_path: object
) -> None:
    cache, every = taught
    parent = str(active_id(cache))
    before = {row.name: (row.code, row.vector) for row in cache.entries()}
    for modality in DIMS:
        put_views(cache, every, modality, "b", "late", seed=1)
    assert unlearned_count(cache) == 48
    outcome = learn(cache, max_map_drop=0.01)
    assert (outcome.accepted, outcome.new_labels, outcome.reasons) == (True, ("late",), ())
    assert outcome.new_map_after is not None and outcome.new_map_after > 0.9
    assert outcome.other_figures["text.new_map_after"] > 0.9
    found = encoders(cache)[str(outcome.encoder_id)]
    assert found.metrics["text.new_map_after"] == pytest.approx(outcome.other_figures["text.new_map_after"])
    assert (found.parent_id, found.watermark, found.class_count) == (parent, 96, 3)
    assert unlearned_count(cache) == 0
    names = learned_of(cache)
    assert outcome.labelled_row_count == sum(name.split("-")[2] == "1" for name in learned_names(cache))
    assert {own: state.row_count for own, state in states_of(cache).items()} == {
        own: len(rows) for own, rows in names.items()
    }
    assert max(weights_off(cache).values()) < 1e-5
    assert [right_share(cache, own, "a", "b", "late") > 0.9 for own in DIMS] == [True, True]
    assert {row.name: (row.code, row.vector) for row in cache.entries() if row.name in before} == before
    check_label_codes(cache)
    assert {row.label_code for row in cache.entries() if row.labels == ("late",)} != {None}
    assert len({row.label_code for row in cache.entries() if row.labels == ("late",)}) == 1
    assert problems(cache, config_of, tmp_path) == ""


@pytest.mark.parametrize(("fresh", "other"), [("image", "text"), ("text", "image")])
def test_rows_of_one_modality_change_that_label_part_alone(taught: Taught, fresh: str, other: str) -> None:
    cache, every = taught
    before, states = encoder_of(cache), states_of(cache)
    learned = learned_of(cache)
    put_views(cache, every, fresh, "late", seed=1)
    put_views(cache, every, other, "", seed=1, count=3)
    assert unlearned_count(cache) == 12
    outcome = learn(cache, max_map_drop=0.01)
    assert outcome.accepted
    after = encoder_of(cache)
    assert after.labels == (*before.labels, "late")
    rows = views(other, "a", 5, seed=7).astype(np.float32)
    unchanged = after.label_values(rows, modality=other)
    np.testing.assert_allclose(unchanged, before.label_values(rows, modality=other), atol=1e-5)
    assert states_of(cache)[other].row_count == states[other].row_count
    assert states_of(cache)[other].class_codes.labels == after.labels
    assert learned_of(cache)[other] == learned[other]
    assert len(learned_of(cache)[fresh]) > len(learned[fresh])
    assert right_share(cache, fresh, "a", "b", "late") > 0.9
    assert max(weights_off(cache).values()) < 1e-5
    put_views(cache, every, other, "late", seed=2)  # the code is there; now the other learns it too
    assert learn(cache).new_labels == ()
    assert right_share(cache, other, "a", "b", "late") > 0.9
    assert encoder_of(cache).labels == after.labels


def test_an_update_of_few_rows_leaves_the_others_of_either_modality_to_the_next(taught: Taught) -> None:
    cache, every = taught
    before = Counter(learned_names(cache))
    for seed in (1, 2):
        for modality in DIMS:
            put_views(cache, every, modality, "c", seed=seed, count=5)
    config, counts = UpdateConfig(max_map_drop=1, max_flips=1, max_update_rows=8), []
    while outcome_of(cache, config).encoder_id:
        counts.append(unlearned_count(cache))
    assert counts == [12, 4, 0]
    added = Counter(learned_names(cache)) - before
    assert set(added.values()) == {1} and sum(added.values()) > 12
    assert max(weights_off(cache).values()) < 1e-5


def outcome_of(cache: StoreCache, config: UpdateConfig) -> UpdateOutcome:
    return run_update(cache.engine, cache.name, config=config, max_live_encoders=4, clock=lambda: 2)


@pytest.mark.parametrize("modality", list(DIMS))
def test_one_modality_that_got_worse_has_the_update_rejected(taught: Taught, modality: str) -> None:
    cache, every = taught
    before = (active_id(cache), content_of(cache), cache.seq())
    other = next(own for own in DIMS if own != modality)
    put_views(cache, every, other, "late", seed=1)
    for label, wrong in ("ab", "ba"):
        put_views(cache, every, modality, label, seed=2, count=60, labels=(wrong,))
    stored = cache.seq()
    outcome = learn(cache, max_map_drop=0.01)
    assert not outcome.accepted and outcome.label_codes_issued == 0
    prefix = "" if modality == "image" else "text: "
    assert outcome.reasons[0].startswith(f"{prefix}mAP on old rows falls")
    assert all(reason.startswith(prefix) for reason in outcome.reasons)
    assert (active_id(cache), content_of(cache), cache.seq()) == (*before[:2], stored)
    assert unlearned_count(cache) == 0


@pytest.mark.parametrize("at", ["learn", "judge", "activate", "conclude"])
def test_an_update_that_ends_early_changes_nothing(taught: Taught, at: str) -> None:
    cache, every = taught
    for modality in DIMS:
        put_views(cache, every, modality, "late", seed=1)
    before = (active_id(cache), encoders(cache), cache.entries(), cache.seq(), learned_names(cache))
    told: list[str] = []

    def lost(stage: str, done: int, total: int) -> None:
        assert 0 <= done <= total
        told.append(stage)
        if stage == at and told.count(at) > 1:
            raise jobs.LeaseLostError("taken over")

    def refuse(connection: object, outcome: UpdateOutcome) -> None:
        raise jobs.LeaseLostError("cancelled")

    if at == "activate":
        lost("activate", 0, 1)
    with pytest.raises(jobs.LeaseLostError):
        learn(cache, progress=lost, conclude=refuse)
    assert (active_id(cache), encoders(cache), cache.entries(), cache.seq(), learned_names(cache)) == before
    assert learn(cache).accepted
    assert max(weights_off(cache).values()) < 1e-5


def test_after_a_rollback_the_rows_wait_for_an_update_by_hand(taught: Taught) -> None:
    cache, every = taught
    parent, learned = active_id(cache), learned_names(cache)
    for modality in DIMS:
        put_views(cache, every, modality, "late", seed=1)
    learn(cache)
    again = learned_names(cache)
    with writing(cache.engine) as connection:
        registry.roll_back_encoder(connection, cache.id)
    assert (active_id(cache), learned_names(cache), unlearned_count(cache)) == (parent, learned, 0)
    assert max(weights_off(cache).values()) < 1e-5
    put_views(cache, every, "text", "more", seed=1)
    assert unlearned_count(cache) == 12
    assert learn(cache).new_labels == ("late", "more")
    assert set(again) < set(learned_names(cache))
    assert max(weights_off(cache).values()) < 1e-5


@pytest.mark.parametrize("modality", list(DIMS))
def test_a_forgotten_row_leaves_its_modality_and_no_other(
    taught: Taught, config_of: Callable[[StoreConfig], Config], tmp_path: object, modality: str
) -> None:
    cache, every = taught
    for own in DIMS:
        put_views(cache, every, own, "late", seed=1)
    learn(cache)
    before, learned = encoder_of(cache), learned_of(cache)
    codes = {row.name: (row.code, row.label_code) for row in cache.entries()}
    gone = [name for name in learned[modality] if "late" in name][:3] + learned[modality][:2]
    changes = forget(cache, names=gone)
    assert (changes.learned_row_count, before.encoder_id in changes.destroyed) == (5, True)
    after = encoder_of(cache)
    assert after.label_modalities == before.label_modalities == ("image", "text")
    rest = {own: [name for name in names if name not in gone] for own, names in learned.items()}
    assert learned_of(cache) == rest
    assert max(weights_off(cache).values()) < 1e-5
    other = next(own for own in DIMS if own != modality)
    for own, changed in ((other, False), (modality, True)):
        rows = views(own, "late", 9, seed=7).astype(np.float32)
        difference = np.abs(after.label_values(rows, modality=own) - before.label_values(rows, modality=own))
        assert bool(difference.max() > 1e-3) is changed
    found = proofs(cache)
    assert {own: proof.row_count for own, proof in found.items()} == {own: len(rest[own]) for own in DIMS}
    assert [(proof.problem, proof.query_bits_changed) for proof in found.values()] == [("", 0)] * 2
    assert all(proof.max_difference is not None and proof.max_difference < 1e-4 for proof in found.values())
    left = {name: code for name, code in codes.items() if name not in gone}
    assert {row.name: (row.code, row.label_code) for row in cache.entries()} == left
    destroyed = encoders(cache)[before.encoder_id]
    assert not [name for name in destroyed.metrics if "old_map" in name or "new_map" in name]
    assert problems(cache, config_of, tmp_path) == ""


@pytest.mark.parametrize("modality", list(DIMS))
def test_a_modality_of_which_all_is_forgotten_may_learn_again(
    taught: Taught, config_of: Callable[[StoreConfig], Config], tmp_path: object, modality: str
) -> None:
    cache, every = taught
    other = next(own for own in DIMS if own != modality)
    features, kept = states_of(cache)[modality].features, learned_of(cache)[other]
    forget(cache, names=learned_of(cache)[modality][::2])
    forget(cache, names=learned_of(cache)[modality])  # in other sums than they were added in
    child = encoder_of(cache)
    assert child.label_modalities == (other,)
    empty = states_of(cache)[modality]
    assert (empty.row_count, bool(empty.gram.any()), bool(empty.cross.any())) == (0, False, False)
    assert learned_names(cache) == kept
    assert list(proofs(cache)) == [other] and proofs(cache)[other].problem == ""
    assert child.can_cross(modality, target=other)
    assert problems(cache, config_of, tmp_path) == ""
    put_views(cache, every, modality, "a", "b", "late", seed=3)
    outcome = learn(cache)
    assert (outcome.accepted, outcome.new_labels) == (True, ("late",))
    assert encoder_of(cache).label_modalities == ("image", "text")
    np.testing.assert_array_equal(states_of(cache)[modality].features.omega, features.omega)
    assert max(weights_off(cache).values()) < 1e-5
    assert right_share(cache, modality, "a", "b", "late") > 0.9
    assert problems(cache, config_of, tmp_path) == ""


def test_with_all_labels_forgotten_both_modalities_begin_anew(
    taught: Taught, config_of: Callable[[StoreConfig], Config], tmp_path: object
) -> None:
    cache, every = taught
    forget(cache, names=learned_names(cache))
    assert (encoder_of(cache).label_modalities, content_of(cache), proofs(cache)) == ((), None, {})
    for modality in DIMS:
        put_views(cache, every, modality, "b", "c", seed=1)
    assert learn(cache).new_labels == ("a", "b", "c")  # of a there are rows that were held out of learning
    assert encoder_of(cache).label_modalities == ("image", "text")
    assert encoder_of(cache).labels == ("a", "b", "c")
    assert max(weights_off(cache).values()) < 1e-5
    assert [right_share(cache, own, "b", "c") > 0.9 for own in DIMS] == [True, True]
    assert problems(cache, config_of, tmp_path) == ""


def test_an_encoder_of_pairs_begins_with_the_labels_of_either_modality(shared_engine: Engine) -> None:
    cache, every = two_modalities(shared_engine)
    for i in range(24):
        for modality in DIMS:
            put_views(cache, every, modality, "", seed=i, count=1, source=f"page {i}")
    train_on_both(cache)
    assert encoder_of(cache).label_modalities == ()
    put_views(cache, every, "text", "a", "b", seed=1)
    assert learn(cache).accepted
    assert encoder_of(cache).label_modalities == ("text",)
    put_views(cache, every, "image", "b", "c", seed=1)
    assert learn(cache).accepted
    assert encoder_of(cache).label_modalities == ("image", "text")
    assert right_share(cache, "text", "a", "b") > 0.9 and right_share(cache, "image", "b", "c") > 0.9
    assert max(weights_off(cache).values()) < 1e-5


@settings(max_examples=3, deadline=None)
@given(draw=st.randoms(use_true_random=False))
def test_any_order_of_updates_and_forgettings_equals_training_on_the_rest(
    shared_engine: Engine, draw: Any
) -> None:
    cache, every = two_modalities(shared_engine)
    for modality in DIMS:
        put_views(cache, every, modality, "a", "b")
    train_on_both(cache)
    for step in range(1, 6):
        if draw.random() < 0.5:
            for modality in draw.choice((["image"], ["text"], [*DIMS])):
                put_views(cache, every, modality, draw.choice("abcd"), seed=step, count=6)
            learn(cache, max_map_drop=1.0)
        else:
            forget(cache, names=draw.sample(sorted(learned_names(cache)), 4))
        assert max(weights_off(cache).values()) < 1e-5
    for modality, proof in proofs(cache).items():
        assert (proof.problem, proof.row_count) == ("", len(learned_of(cache)[modality]))


@pytest.mark.parametrize("header_bytes", [64, 2**16])
def test_an_encoder_of_before_learns_the_modality_whose_state_it_kept(
    taught: Taught,
    config_of: Callable[[StoreConfig], Config],
    tmp_path: object,
    monkeypatch: pytest.MonkeyPatch,
    header_bytes: int,
) -> None:
    cache, every = taught
    monkeypatch.setattr("service.update._HEADER_BYTES", header_bytes)
    as_of_before(cache)
    before = encoder_of(cache)
    put_views(cache, every, "text", "late", seed=1)
    assert unlearned_count(cache) == 0
    assert learn(cache).encoder_id is None
    put_views(cache, every, "image", "late", seed=1)
    assert unlearned_count(cache) == 12
    assert learn(cache, max_map_drop=0.01).accepted
    after = encoder_of(cache)
    assert (after.label_modalities, list(states_of(cache))) == (("image", "text"), ["image"])
    rows = views("text", "a", 9, seed=7).astype(np.float32)
    kept = after.label_values(rows, modality="text")
    np.testing.assert_array_equal(kept, before.label_values(rows, modality="text"))
    assert right_share(cache, "image", "a", "b", "late") > 0.9
    check_label_codes(cache)
    assert problems(cache, config_of, tmp_path) == ""
    found = proofs(cache)
    assert (found["image"].problem, "is not kept" in found["text"].problem) == ("", True)


def test_an_encoder_of_before_loses_a_label_part_of_which_no_state_was_kept(
    taught: Taught, config_of: Callable[[StoreConfig], Config], tmp_path: object
) -> None:
    cache, every = taught
    as_of_before(cache)
    learned = learned_of(cache)
    forget(cache, names=learned["image"][:1])
    assert encoder_of(cache).label_modalities == ("image", "text")
    forget(cache, names=learned["text"][:1])
    assert encoder_of(cache).label_modalities == ("image",)
    assert learned_names(cache) == learned["image"][1:]
    assert problems(cache, config_of, tmp_path) == ""
    put_views(cache, every, "text", "a", "b", seed=1)
    assert learn(cache).accepted
    assert encoder_of(cache).label_modalities == ("image", "text")
    assert right_share(cache, "text", "a", "b") > 0.9
    assert max(weights_off(cache).values()) < 1e-5
    assert problems(cache, config_of, tmp_path) == ""


def test_an_encoder_of_before_that_forgets_all_it_kept_goes_on_with_the_other_modality(
    taught: Taught, config_of: Callable[[StoreConfig], Config], tmp_path: object
) -> None:
    cache, every = taught
    as_of_before(cache)
    forget(cache, names=learned_of(cache)["image"])
    assert encoder_of(cache).label_modalities == ("text",)
    assert right_share(cache, "text", "a", "b") > 0.9
    put_views(cache, every, "image", "b", "late", seed=1)
    assert learn(cache).accepted
    assert encoder_of(cache).label_modalities == ("image", "text")
    assert problems(cache, config_of, tmp_path) == ""


def test_rows_of_a_modality_without_a_tower_are_not_learned(shared_engine: Engine) -> None:
    cache, every = two_modalities(shared_engine)
    put_views(cache, every, "text", "a", "b")
    trained = train_from_store(
        cache.engine,
        cache.name,
        config=replace(ENCODER, code_bits=128, feature_count=32),
        modality="text",
        progress=None,
        now_ms=1,
    )
    activate(cache, trained.encoder_id)
    put_views(cache, every, "image", "late", seed=1)
    assert unlearned_count(cache) == 0
    assert learn(cache).encoder_id is None
    put_views(cache, every, "text", "c", seed=1)
    outcome = outcome_of(cache, UpdateConfig(max_map_drop=1, max_flips=1, max_update_rows=8))
    assert (outcome.new_labels, outcome.other_figures) == (("c",), {})  # not held up by the others' rows
    assert encoder_of(cache).label_modalities == ("text",)
    assert {name.split("-")[0] for name in learned_names(cache)} == {"text"}


@pytest.mark.parametrize("damaged", [b"\xff" * 8, b"\xff" * 100])
def test_a_damaged_state_is_named(
    taught: Taught, config_of: Callable[[StoreConfig], Config], tmp_path: object, damaged: bytes
) -> None:
    cache, every = taught
    put_views(cache, every, "text", "late", seed=1)
    columns = tables.encoders.c
    with writing(cache.engine) as connection:
        own = (columns.cache_id == cache.id, columns.encoder_id == active_id(cache))
        connection.execute(tables.encoders.update().where(*own).values(learning_state=damaged))
    for refused in (unlearned_count, learn, proofs, partial(forget, names=learned_names(cache)[:1])):
        with pytest.raises(CheckpointError):
            refused(cache)
    assert f"the learning state of encoder {active_id(cache)}: " in problems(cache, config_of, tmp_path)


def test_a_check_names_the_modality_whose_rows_are_miscounted(
    taught: Taught, config_of: Callable[[StoreConfig], Config], tmp_path: object
) -> None:
    cache, _ = taught
    row = next(row for row in cache.entries() if row.name in learned_of(cache)["text"])
    with writing(cache.engine) as connection:
        own = (tables.learned_by.c.cache_id == cache.id, tables.learned_by.c.row_id == row.id)
        connection.execute(tables.learned_by.delete().where(*own))
    count = states_of(cache)["text"].row_count
    assert f"has learned {count} rows of 'text', {count - 1} are known" in problems(
        cache, config_of, tmp_path
    )


def test_a_row_deleted_before_it_is_forgotten_is_subtracted_all_the_same(taught: Taught) -> None:
    cache, _ = taught
    gone = learned_of(cache)["text"][:2]
    cache.mutate(partial(store.invalidate, selection=store.Selection(names=tuple(gone))))
    changes = forget(cache, names=gone)
    assert (changes.entry_count, changes.learned_row_count) == (0, 2)
    assert not set(gone) & set(learned_names(cache))
    assert max(weights_off(cache).values()) < 1e-5
