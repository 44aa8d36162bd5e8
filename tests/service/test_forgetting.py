"""Forgetting in the store: rows, what encoders learned of them, and who must not bring them back."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
from forgotten_rows_at_work import (
    count_rows,
    encoder_of,
    forget,
    learned_names,
    put,
    record_of,
    scores_off,
    stored_states,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from learning_rows import DIM, ENCODER, activate, active_id, encoders, learn, train
from sqlalchemy import Connection, Engine, select
from store_rows import StoreCache, make_cache

import service.learning as learning
import service.update as update
from hashing.checkpoint import load_encoder
from hashing.config import EncoderConfig
from hashing.label_gate import LabelGateReport
from hashing.trainer import TrainedEncoder, train_encoder
from service import judging, registry, store, tables
from service.check import check_cache
from service.config import Config, SearchConfig, StoreConfig
from service.database import reading, writing
from service.errors import InvalidRequestError, NotFoundError, PreconditionError
from service.forget_proof import LabelProof, prove_label_parts
from service.forgetting import ForgetSelection, preview
from service.learning import keep_encoder
from service.replica import CacheReplica
from service.rows import read_weights
from service.stand_ins import stand_ins

A, B, C = (tuple(f"{label}{i}" for i in range(12)) for label in "abc")


@pytest.fixture
def cache(shared_engine: Engine) -> StoreCache:
    """An empty cache."""
    return make_cache(shared_engine, dim=DIM)


@pytest.fixture
def few_features(monkeypatch: pytest.MonkeyPatch) -> None:
    """Label parts that an update begins are small, and quick to solve."""
    monkeypatch.setattr(update, "EncoderConfig", partial(EncoderConfig, feature_count=32))


def taught(cache: StoreCache) -> int:
    """Labelled rows a0 to b11 that the active encoder has learned, most of them; returns the category."""
    faq = cache.category("faq")
    put(cache, faq, "a", *A)
    put(cache, faq, "b", *B)
    activate(cache, train(cache).encoder_id)
    return faq


def rows_by_name(cache: StoreCache) -> tuple[dict[str, bytes], dict[str, tuple[str, ...]]]:
    """Vectors and labels of all entries."""
    rows = cache.entries()
    return {row.name: row.vector for row in rows}, {row.name: row.labels for row in rows}


def taken(values: dict[str, Any], names: list[str]) -> dict[str, Any]:
    return {name: values[name] for name in names}


def prove_one(connection: Connection, cache: StoreCache, encoder_id: str) -> LabelProof:
    (proof,) = prove_label_parts(connection, record_of(cache), encoder_id)
    return proof


def problems(cache: StoreCache, config_of: Callable[[StoreConfig], Config], folder: object) -> str:
    config = config_of(StoreConfig(url="sqlite:///unused", data_dir=str(folder)))
    return "\n".join(check_cache(cache.engine, cache.name, config).problems)


def test_what_is_selected_goes_with_all_that_is_of_it_and_the_rest_stays(cache: StoreCache) -> None:
    faq = cache.category("faq")
    asked = {"request_id": "r1", "request_digest": bytes(16), "tags": ("t",)}
    put(cache, faq, "", "gone", **asked)
    put(cache, faq, "", "kept", **{**asked, "request_id": "r2"})
    for row in cache.entries():
        verdict = {
            "category_id": faq,
            "lookup_digest": row.id.to_bytes(16, "little"),
            "entry_id": row.id,
            "verdict": "good",
            "distance": 0.0,
            "threshold": 0.1,
            "query_code": None,
            "generation": "",
            "seq": 1,
        }
        cache.mutate(partial(judging.record_feedback, values=verdict))
    changes = forget(cache, names=["gone"])
    assert (changes.entry_count, changes.feedback_count, changes.answer_count) == (1, 1, 1)
    assert (changes.learned_row_count, changes.destroyed, changes.renewed) == (0, (), {})
    assert [cache.names(), count_rows(cache, "entry_tags")] == [["kept"], 1]
    assert (count_rows(cache, "feedback"), count_rows(cache, "requests")) == (1, 1)
    assert cache.feed()[-1][1] == store.Operation.DELETE
    cache.check()


@pytest.mark.parametrize(
    ("selection", "names"),
    [
        ({"names": ["n0", "n2"]}, {"n0", "n2"}),
        ({"tags": ["t1"]}, {"n1"}),
        ({"sources": ["s0", "s3"]}, {"n0", "n3"}),
        ({"labels": ["l2", "l3"]}, {"n2", "n3"}),
        ({"names": ["n0"], "tags": ["t3"]}, {"n0", "n3"}),
        ({"names": ["none"], "tags": ["none"], "sources": ["none"], "labels": ["none"]}, set()),
    ],
)
def test_any_value_selects_live_and_expired_entries(
    cache: StoreCache, selection: dict[str, list[str]], names: set[str]
) -> None:
    faq = cache.category("faq")
    for i in range(4):
        expiry = {"ttl_ms": 1} if i % 2 else {}
        put(cache, faq, f"l{i}", f"n{i}", tags=(f"t{i}",), source=f"s{i}", **expiry)
    assert forget(cache, **selection).entry_count == len(names)
    assert set(cache.names()) == {"n0", "n1", "n2", "n3"} - names


def test_entries_of_another_cache_stay(cache: StoreCache, shared_engine: Engine) -> None:
    other = make_cache(shared_engine, dim=DIM)
    taught(cache)
    taught(other)
    forget(cache, names=A)
    assert (len(other.entries()), len(encoders(other))) == (24, 1)
    assert set(learned_names(other)) & set(A)


def test_a_forgotten_row_leaves_the_label_part_as_if_it_had_never_been(cache: StoreCache) -> None:
    taught(cache)
    before, learned = str(active_id(cache)), learned_names(cache)
    vectors, labels = rows_by_name(cache)
    assert scores_off(cache, taken(vectors, learned), labels) < 1e-5
    gone = [name for name in learned if name[0] == "a"][:3]
    changes = forget(cache, names=gone)
    rest = [name for name in learned if name not in gone]
    assert (changes.learned_row_count, changes.destroyed) == (3, (before,))
    assert changes.renewed == {before: active_id(cache)}
    assert learned_names(cache) == rest
    assert scores_off(cache, taken(vectors, rest), labels) < 1e-5
    assert scores_off(cache, taken(vectors, learned), labels) > 1e-3


def test_a_destroyed_encoder_keeps_its_lineage_and_nothing_else(cache: StoreCache) -> None:
    taught(cache)
    before = str(active_id(cache))
    forget(cache, names=learned_names(cache)[:1])
    found = encoders(cache)[before]
    assert (found.state, found.label_bits, found.class_count) == (registry.DESTROYED, 0, 0)
    assert "forgotten" in found.reason
    assert not [name for name in found.metrics if "label" in name or "map" in name]
    assert found.metrics["row_count"] == 24
    columns = tables.encoders.c
    with reading(cache.engine) as connection:
        query = select(columns.weights, columns.learning_state).where(columns.encoder_id == before)
        assert tuple(connection.execute(query).one()) == (b"", None)
        with pytest.raises(PreconditionError) as raised:
            read_weights(connection, cache.id, before)
    assert raised.value.reason == "ENCODER_DESTROYED"
    made = encoders(cache)[str(active_id(cache))]
    assert (made.parent_id, made.state, made.previous_id) == (before, registry.ACTIVE, None)


def test_stored_codes_stay_and_the_renewed_encoder_searches_them(
    cache: StoreCache, config_of: Callable[[StoreConfig], Config], tmp_path: object
) -> None:
    faq = taught(cache)
    put(cache, faq, "a", "coded1", "coded2", coded=True)
    before, gone = str(active_id(cache)), learned_names(cache)[0]
    codes = {row.name: (row.code, row.label_code, row.encoder_id) for row in cache.entries()}
    forget(cache, names=[gone])
    assert {row.name: (row.code, row.label_code, row.encoder_id) for row in cache.entries()} == {
        name: code for name, code in codes.items() if name != gone
    }
    child = encoder_of(cache)
    with reading(cache.engine) as connection:
        assert registry.trusted_by(connection, cache.id, child.encoder_id) == {child.encoder_id, before}
    replica = CacheReplica(cache.engine, record_of(cache), search=SearchConfig(), data_dir=str(tmp_path))
    serving = replica.state.encoders
    assert serving.active is not None and serving.active.encoder_id == child.encoder_id
    assert {own.encoder_id for own in serving.by_id.values()} == {child.encoder_id}
    assert serving.query_encoder(before) is serving.active
    assert problems(cache, config_of, tmp_path) == ""


def test_a_running_replica_lets_go_of_a_destroyed_encoder(cache: StoreCache, tmp_path: object) -> None:
    faq = taught(cache)
    put(cache, faq, "a", "coded", coded=True)
    replica = CacheReplica(cache.engine, record_of(cache), search=SearchConfig(), data_dir=str(tmp_path))
    forget(cache, names=learned_names(cache)[:1])
    replica.refresh_settings()
    assert {own.encoder_id for own in replica.state.encoders.by_id.values()} == {active_id(cache)}


def test_only_encoders_that_hold_the_row_are_destroyed(cache: StoreCache) -> None:
    faq = taught(cache)
    first = str(active_id(cache))
    put(cache, faq, "c", *C)
    second = str(learn(cache).encoder_id)
    vectors, labels = rows_by_name(cache)
    of_second = [name for name in learned_names(cache, second) if name in C]
    changes = forget(cache, names=of_second[:2])
    third = str(active_id(cache))
    assert changes.destroyed == (second,)
    assert encoders(cache)[first].state == registry.RETIRED
    left = [*learned_names(cache, first), *of_second[2:]]
    assert learned_names(cache) == sorted(left)
    assert scores_off(cache, taken(vectors, left), labels) < 1e-5
    # And of what an ancestor had added: all descendants go, also the renewed one.
    changes = forget(cache, names=learned_names(cache, first)[:1])
    assert changes.destroyed == tuple(sorted((first, third)))
    assert list(changes.renewed) == [third]
    assert scores_off(cache, taken(vectors, learned_names(cache)), labels) < 1e-5
    assert len(learned_names(cache)) == len(left) - 1


def test_rollback_and_activation_of_a_destroyed_encoder_are_refused(cache: StoreCache) -> None:
    faq = taught(cache)
    first = str(active_id(cache))
    other = train(cache, replace(ENCODER, seed=1)).encoder_id
    put(cache, faq, "c", *C)
    activate(cache, str(learn(cache).encoder_id))
    forget(cache, names=[next(name for name in learned_names(cache) if name not in C)])
    for encoder_id in (first, other):
        with pytest.raises(PreconditionError) as raised:
            activate(cache, encoder_id)
        assert raised.value.reason == "ENCODER_DESTROYED"
    with pytest.raises(PreconditionError) as raised, writing(cache.engine) as connection:
        registry.roll_back_encoder(connection, cache.id)
    assert raised.value.reason == "NO_PREVIOUS_ENCODER"


def test_a_renewed_encoder_is_rolled_back_to_what_survives(cache: StoreCache) -> None:
    faq = taught(cache)
    first = str(active_id(cache))
    put(cache, faq, "c", *C)
    activate(cache, str(learn(cache).encoder_id))
    changes = forget(cache, names=[next(name for name in learned_names(cache) if name in C)])
    assert len(changes.destroyed) == 1 and first not in changes.destroyed
    with writing(cache.engine) as connection:
        assert registry.roll_back_encoder(connection, cache.id).encoder_id == first
    assert active_id(cache) == first


def test_rollback_from_a_surviving_encoder_to_a_destroyed_one_is_refused(cache: StoreCache) -> None:
    taught(cache)
    put(cache, cache.category("other"), "", *(f"plain{i}" for i in range(5)))
    first, row = str(active_id(cache)), learned_names(cache)[0]
    cache.mutate(partial(store.invalidate, selection=store.Selection(names=(row,))))
    second = train(cache, replace(ENCODER, seed=1)).encoder_id  # without the row
    activate(cache, second)
    assert forget(cache, names=[row]).destroyed == (first,)
    assert active_id(cache) == second
    with pytest.raises(PreconditionError) as raised, writing(cache.engine) as connection:
        registry.roll_back_encoder(connection, cache.id)
    assert raised.value.reason == "ENCODER_DESTROYED"


def test_a_candidate_that_nobody_needs_is_destroyed_and_its_rows_are_let_go(cache: StoreCache) -> None:
    faq = cache.category("faq")
    put(cache, faq, "a", *A)
    put(cache, faq, "b", *B)
    candidate = train(cache).encoder_id
    changes = forget(cache, names=learned_names(cache, candidate)[:1])
    assert (changes.destroyed, changes.renewed) == ((candidate,), {})
    assert (count_rows(cache, "learned_rows"), count_rows(cache, "learned_by")) == (0, 0)


def test_a_rejected_update_is_destroyed_too(cache: StoreCache, monkeypatch: pytest.MonkeyPatch) -> None:
    faq = taught(cache)
    first = str(active_id(cache))
    put(cache, faq, "c", *C)
    refusal = LabelGateReport(reasons=("worse",))
    monkeypatch.setattr("service.update_gate.evaluate_label_update", lambda *_, **__: refusal)
    rejected = str(learn(cache).encoder_id)
    assert encoders(cache)[rejected].state == registry.REJECTED
    of_rejected = next(name for name in learned_names(cache, rejected) if name in C)
    changes = forget(cache, names=[of_rejected])
    assert (changes.destroyed, changes.renewed, active_id(cache)) == ((rejected,), {}, first)
    assert count_rows(cache, "learned_rows") == len(learned_names(cache, first))  # the others' are let go
    assert encoders(cache)[rejected].state == registry.DESTROYED


@pytest.mark.parametrize("kind", ["names", "tags", "sources", "labels"])
def test_what_was_learned_is_forgotten_also_after_the_entry_is_gone(cache: StoreCache, kind: str) -> None:
    faq = taught(cache)
    put(cache, faq, "left", *(f"left{i}" for i in range(3)), tags=("t",), source="s")
    learn(cache)
    gone = [name for name in learned_names(cache) if name.startswith("left")]
    assert gone
    cache.mutate(partial(store.invalidate, selection=store.Selection(tags=("t",))))
    chosen = {"names": gone, "tags": ["t"], "sources": ["s"], "labels": ["left"]}[kind]
    changes = forget(cache, **{kind: chosen})
    assert (changes.entry_count, changes.learned_row_count) == (0, len(gone))
    assert not set(gone) & set(learned_names(cache))


def test_an_unlabelled_row_costs_no_encoder(cache: StoreCache) -> None:
    faq = taught(cache)
    put(cache, faq, "", "plain")
    before, version = active_id(cache), record_of(cache).config_version
    assert forget(cache, names=["plain"]).destroyed == ()
    assert active_id(cache) == before
    assert record_of(cache).config_version > version  # replicas look for generations to remove


@pytest.mark.usefixtures("few_features")
def test_with_all_labels_forgotten_there_is_no_label_part_until_new_ones_arrive(
    cache: StoreCache, config_of: Callable[[StoreConfig], Config], tmp_path: object
) -> None:
    faq = taught(cache)
    put(cache, faq, "", *(f"plain{i}" for i in range(4)), coded=True)
    forget(cache, names=learned_names(cache))
    child = encoder_of(cache)
    assert (child.label_head, stored_states(cache, child.encoder_id)) == (None, {})
    assert problems(cache, config_of, tmp_path) == ""  # rows held out of learning keep their label codes
    forget(cache, labels=["a", "b"])
    put(cache, faq, "c", *C)
    assert learn(cache).new_labels == ("c",)
    assert set(learned_names(cache)) <= set(C)
    assert problems(cache, config_of, tmp_path) == ""


def test_codes_that_no_surviving_encoder_may_search_get_a_renewed_one(
    cache: StoreCache, config_of: Callable[[StoreConfig], Config], tmp_path: object
) -> None:
    faq = taught(cache)
    put(cache, faq, "a", "old1", "old2", coded=True)
    first = str(active_id(cache))
    second = train(cache, replace(ENCODER, seed=1)).encoder_id
    activate(cache, second)
    common = set(learned_names(cache, first)) & set(learned_names(cache, second))
    vectors, _ = rows_by_name(cache)
    changes = forget(cache, names=[sorted(common)[0]])
    assert changes.destroyed == tuple(sorted((first, second)))
    assert set(changes.renewed) == {first, second}
    with reading(cache.engine) as connection:
        assert stand_ins(connection, cache.id) == changes.renewed
        for child in changes.renewed.values():
            assert prove_one(connection, cache, child).problem == ""
    replica = CacheReplica(cache.engine, record_of(cache), search=SearchConfig(), data_dir=str(tmp_path))
    row = next(row for row in cache.entries() if row.name == "old1")
    query = np.frombuffer(vectors["old1"], dtype=np.float16).astype(np.float32)
    code = replica.state.encoders.query_codes(query, [first], modality="text")[first]
    assert code.tobytes() == row.code
    assert problems(cache, config_of, tmp_path) == ""


@settings(max_examples=3, deadline=None)
@given(draw=st.randoms(use_true_random=False))
def test_any_order_of_updates_and_forgettings_equals_training_on_the_rest(
    shared_engine: Engine, draw: Any
) -> None:
    cache = make_cache(shared_engine, dim=DIM)
    faq = taught(cache)
    vectors, labels = rows_by_name(cache)
    for step in range(4):
        if draw.random() < 0.5:
            names = [f"new{step}-{i}" for i in range(5)]
            put(cache, faq, draw.choice("abc"), *names)
            learn(cache)
            vectors |= rows_by_name(cache)[0]
            labels |= rows_by_name(cache)[1]
        else:
            forget(cache, names=draw.sample(sorted(learned_names(cache)), 3))
    learned = learned_names(cache)
    assert scores_off(cache, taken(vectors, learned), labels) < 1e-5
    assert stored_states(cache, str(active_id(cache)))["text"].row_count == len(learned)


def test_a_preview_says_what_forgetting_does_and_changes_nothing(cache: StoreCache) -> None:
    taught(cache)
    before = (cache.entries(), encoders(cache), cache.seq())
    chosen = ForgetSelection(names=(learned_names(cache)[0], "none"))
    promised = preview(cache.engine, cache.name, chosen)
    assert (cache.entries(), encoders(cache), cache.seq()) == before
    done = forget(cache, names=chosen.names)
    assert replace(done, renewed=dict.fromkeys(done.renewed, "")) == promised


def test_bad_selections_are_refused(cache: StoreCache) -> None:
    with pytest.raises(InvalidRequestError):
        forget(cache)
    with pytest.raises(NotFoundError):
        forget(replace(cache, name="none"), names=["a"])
    assert forget(cache, names=["none"]).selects_nothing
    assert forget(cache, labels=["none"]).selects_nothing


def test_forgetting_twice_is_forgetting_once(cache: StoreCache) -> None:
    taught(cache)
    gone = learned_names(cache)[:2]
    forget(cache, names=gone)
    before = (active_id(cache), encoders(cache), cache.seq())
    assert forget(cache, names=gone).selects_nothing
    assert (active_id(cache), encoders(cache), cache.seq()) == before


def test_a_training_that_read_a_forgotten_row_is_not_kept(
    cache: StoreCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    faq = cache.category("faq")
    put(cache, faq, "a", *A)
    put(cache, faq, "b", *B)
    train(cache)

    def train_meanwhile(*arguments: Any, **named: Any) -> TrainedEncoder:
        forget(cache, names=[*A[:6], *B[:6]])
        return train_encoder(*arguments, **named)

    monkeypatch.setattr(learning, "train_encoder", train_meanwhile)
    with pytest.raises(PreconditionError) as raised:
        train(cache, replace(ENCODER, seed=1))
    assert raised.value.reason == "ROWS_FORGOTTEN"
    assert {own.state for own in encoders(cache).values()} == {registry.DESTROYED}


@pytest.mark.parametrize("gone", ["plain", "held out"])
def test_a_training_that_read_a_forgotten_row_without_its_labels_is_not_kept(
    cache: StoreCache, monkeypatch: pytest.MonkeyPatch, gone: str
) -> None:
    faq = cache.category("faq")
    put(cache, faq, "a", *A)
    put(cache, faq, "b", *B)
    put(cache, faq, "", "plain")
    first = train(cache).encoder_id
    held_out = sorted({*A, *B} - set(learned_names(cache, first)))
    name = "plain" if gone == "plain" else held_out[0]

    def train_meanwhile(*arguments: Any, **named: Any) -> TrainedEncoder:
        assert forget(cache, names=[name]).entry_count == 1
        return train_encoder(*arguments, **named)

    monkeypatch.setattr(learning, "train_encoder", train_meanwhile)
    with pytest.raises(PreconditionError) as raised:
        train(cache, replace(ENCODER, seed=1))
    assert raised.value.reason == "ROWS_FORGOTTEN"
    assert list(encoders(cache)) == [first]


def test_a_training_that_read_a_row_deleted_since_keeps_what_it_learned(
    cache: StoreCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    faq = cache.category("faq")
    put(cache, faq, "a", *A)
    put(cache, faq, "b", *B)

    def train_meanwhile(*arguments: Any, **named: Any) -> TrainedEncoder:
        cache.mutate(partial(store.invalidate, selection=store.Selection(names=(*A, *B))))
        return train_encoder(*arguments, **named)

    monkeypatch.setattr(learning, "train_encoder", train_meanwhile)
    activate(cache, train(cache).encoder_id)
    assert set(learned_names(cache)) & set(A)
    learned_of_a = [name for name in learned_names(cache) if name in A]
    assert forget(cache, labels=["a"]).learned_row_count == len(learned_of_a)


@pytest.mark.parametrize(("row", "reason"), [("old", "ACTIVE_ENCODER_CHANGED"), ("new", "ROWS_FORGOTTEN")])
def test_an_update_during_which_a_row_is_forgotten_is_not_kept_and_may_be_repeated(
    cache: StoreCache, row: str, reason: str
) -> None:
    faq = taught(cache)
    old = learned_names(cache)[0]
    put(cache, faq, "c", *C)
    pending = [[old] if row == "old" else [*C[:8]]]

    def meanwhile(stage: str, _done: int, _total: int) -> None:
        if stage == "judge" and pending:
            forget(cache, names=pending.pop())

    with pytest.raises(PreconditionError) as raised:
        learn(cache, progress=meanwhile)
    assert raised.value.reason == reason
    assert learn(cache).accepted
    assert not {old if row == "old" else C[0]} & set(learned_names(cache))


def test_a_verdict_on_a_forgotten_entry_is_refused(cache: StoreCache) -> None:
    faq = cache.category("faq")
    put(cache, faq, "", "gone")
    row_id = cache.entries()[0].id
    forget(cache, names=["gone"])
    values = {"category_id": faq, "entry_id": row_id, "lookup_digest": bytes(16)}
    with pytest.raises(NotFoundError):
        cache.mutate(partial(judging.record_feedback, values=values))


@pytest.mark.usefixtures("few_features")
def test_an_encoder_of_before_loses_its_label_part_and_learns_it_anew(cache: StoreCache) -> None:
    faq = taught(cache)
    before = str(active_id(cache))
    with writing(cache.engine) as connection:
        for table in (tables.learned_by, tables.learned_rows):
            connection.execute(table.delete().where(table.c.cache_id == cache.id))
        of_cache = tables.encoders.c.cache_id == cache.id
        connection.execute(tables.encoders.update().where(of_cache).values(untraced_row_count=None))
    put(cache, faq, "", "plain")
    assert forget(cache, names=["plain"]).destroyed == ()
    assert forget(cache, names=["a0"]).destroyed == (before,)
    assert encoder_of(cache).label_head is None
    assert learn(cache).accepted
    assert learned_names(cache) and "a0" not in learned_names(cache)


def test_rows_of_files_stay_in_the_label_part_and_are_counted(cache: StoreCache) -> None:
    faq = cache.category("faq")
    put(cache, faq, "a", *A)
    put(cache, faq, "b", *B)
    vectors, labels = rows_by_name(cache)
    rows = np.stack([np.frombuffer(vectors[name], dtype=np.float16) for name in vectors]).astype(np.float32)
    trained = train_encoder(rows, config=ENCODER, modality="text", labels=list(labels.values()))
    kept = keep_encoder(cache.engine, record_of(cache), trained, watermark=0, now_ms=1)
    assert encoders(cache)[kept.encoder_id].untraced_row_count == 24
    activate(cache, kept.encoder_id)
    learn(cache)
    forget(cache, names=learned_names(cache)[:1])
    made = str(active_id(cache))
    state = stored_states(cache, made)["text"]
    assert encoders(cache)[made].untraced_row_count == 24
    assert state.row_count == 24 + len(learned_names(cache))
    with reading(cache.engine) as connection:
        assert "never had" in prove_one(connection, cache, made).problem


def test_a_proof_names_a_label_part_that_holds_more_than_it_says(cache: StoreCache) -> None:
    taught(cache)
    with reading(cache.engine) as connection:
        assert prove_one(connection, cache, str(active_id(cache))).problem == ""
    with writing(cache.engine) as connection:
        columns = tables.learned_by.c
        some = (
            connection.execute(select(columns.row_id).where(columns.cache_id == cache.id)).scalars().first()
        )
        connection.execute(tables.learned_by.delete().where(columns.row_id == some))
    with reading(cache.engine) as connection:
        proof = prove_one(connection, cache, str(active_id(cache)))
    assert "off training on the rest" in proof.problem


@pytest.mark.parametrize(
    ("table", "values", "finding"),
    [
        ("encoders", {"weights": b"x"}, "was destroyed, and its weights are there"),
        ("encoders", {"learning_state": b"x"}, "was destroyed, and its weights are there"),
    ],
)
def test_a_check_names_what_a_destroyed_encoder_keeps(
    cache: StoreCache,
    config_of: Callable[[StoreConfig], Config],
    tmp_path: object,
    table: str,
    values: dict[str, Any],
    finding: str,
) -> None:
    taught(cache)
    forget(cache, names=learned_names(cache)[:1])
    found = tables.metadata.tables[table]
    with writing(cache.engine) as connection:
        destroyed = (found.c.cache_id == cache.id, found.c.state == registry.DESTROYED)
        connection.execute(found.update().where(*destroyed).values(**values))
    assert finding in problems(cache, config_of, tmp_path)


def test_a_check_names_forgotten_and_miscounted_rows(
    cache: StoreCache, config_of: Callable[[StoreConfig], Config], tmp_path: object
) -> None:
    taught(cache)
    row = next(row for row in cache.entries() if row.name in learned_names(cache))
    with writing(cache.engine) as connection:
        connection.execute(tables.forgotten_rows.insert().values(cache_id=cache.id, row_id=row.id))
        connection.execute(tables.learned_by.delete().where(tables.learned_by.c.row_id == row.id))
    found = problems(cache, config_of, tmp_path)
    assert "1 rows of entries were forgotten" in found
    assert "1 rows of learned_rows were forgotten" in found
    assert "rows of 'text', " in found and "are known" in found


def test_the_same_encoder_trained_again_takes_the_place_of_the_destroyed_one(cache: StoreCache) -> None:
    faq = taught(cache)
    put(cache, faq, "a", "coded", coded=True)
    encoder = encoder_of(cache)
    first, child = encoder.encoder_id, None
    forget(cache, names=learned_names(cache)[:1])
    child = str(active_id(cache))
    trained = TrainedEncoder(encoder=encoder, state=None)
    keep_encoder(cache.engine, record_of(cache), trained, watermark=0, now_ms=1)
    assert encoders(cache)[first].state == registry.CANDIDATE
    with reading(cache.engine) as connection:
        assert load_encoder(read_weights(connection, cache.id, first)).encoder_id == first
        assert registry.trusted_by(connection, cache.id, child) == {first, child}
