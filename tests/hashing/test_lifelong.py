from dataclasses import replace

import numpy as np
import pytest

from hashing import (
    Encoder,
    EncoderConfig,
    LabelledRows,
    LabelState,
    NothingToLearnError,
    StateMismatchError,
    TrainedEncoder,
    UnknownModalityError,
    empty_state,
    evaluate_label_update,
    renew_encoder,
    train_encoder,
    update_labels,
)
from hashing.lifelong import retrained
from hashing.metrics import ClassRetrieval


def _of_classes(rows, labels, names: set[str]):
    chosen = [row for row, own in enumerate(labels) if own[0] in names]
    return rows[chosen], [labels[row] for row in chosen]


@pytest.fixture
def new_domain(draw_clusters):
    """Rows of the classes c8..c11, which the trained encoder has not seen."""
    rows, labels = draw_clusters(class_count=12, rows_per_class=30, seed=4)
    return _of_classes(rows, labels, {"c8", "c9", "c10", "c11"})


@pytest.fixture
def old_rows(draw_clusters) -> LabelledRows:
    rows, labels = draw_clusters(class_count=8, rows_per_class=75)
    queries, query_labels = draw_clusters(class_count=8, rows_per_class=20, seed=11)
    return LabelledRows(rows, labels, queries, query_labels)


def test_update_equals_training_on_old_and_new_together(
    trained: TrainedEncoder, new_domain, draw_clusters, small_config
) -> None:
    rows, labels = draw_clusters(class_count=8, rows_per_class=75)
    result = update_labels(
        trained.encoder, trained.states, embeddings={"text": new_domain[0]}, labels={"text": new_domain[1]}
    )
    together = LabelState.empty(32, config=small_config)
    together = together.add(np.concatenate([rows, new_domain[0]]), [*labels, *new_domain[1]])
    assert result.encoder.labels == together.class_codes.labels
    np.testing.assert_allclose(result.encoder.label_head.weight, together.solve(), atol=1e-3)


@pytest.mark.parametrize("block", [1, 7, 120, 1000])
def test_update_in_blocks_of_rows_learns_what_one_block_does(
    trained: TrainedEncoder, new_domain, monkeypatch: pytest.MonkeyPatch, block: int
) -> None:
    rows, labels = new_domain[0], [[], *new_domain[1][1:]]
    at_once = update_labels(
        trained.encoder, trained.states, embeddings={"text": rows}, labels={"text": labels}
    )
    monkeypatch.setattr("hashing.lifelong.LEARN_ROWS", block)
    told: list[tuple[str, int, int]] = []
    in_blocks = update_labels(
        trained.encoder,
        trained.states,
        embeddings={"text": rows},
        labels={"text": labels},
        progress=lambda *at: told.append(at),
    )
    assert told == [*(("learn", done, 119) for done in range(0, 119, block)), ("learn", 119, 119)]
    assert in_blocks.report == at_once.report
    assert in_blocks.encoder.labels == at_once.encoder.labels
    np.testing.assert_allclose(
        in_blocks.encoder.label_head.weight, at_once.encoder.label_head.weight, atol=1e-5
    )


def test_judging_tells_the_queries_of_all_four_measurements(
    trained: TrainedEncoder, new_domain, old_rows: LabelledRows
) -> None:
    new = update_labels(
        trained.encoder, trained.states, embeddings={"text": new_domain[0]}, labels={"text": new_domain[1]}
    ).encoder
    told: list[tuple[str, int, int]] = []
    new_rows = LabelledRows(*new_domain, new_domain[0][:9], new_domain[1][:9])
    evaluate_label_update(
        trained.encoder, new, old_rows=old_rows, new_rows=new_rows, progress=lambda *at: told.append(at)
    )
    assert told == [("judge", done, 489) for done in (0, 160, 320, 480, 489)]


def test_update_keeps_instance_part_and_names_the_parent(trained: TrainedEncoder, new_domain) -> None:
    old = trained.encoder
    new = update_labels(
        old, trained.states, embeddings={"text": new_domain[0]}, labels={"text": new_domain[1]}
    ).encoder
    assert (new.parent_id, new.instance_id) == (old.encoder_id, old.instance_id)
    assert new.encoder_id != old.encoder_id
    assert new.radius_table == old.radius_table


def test_update_keeps_issued_class_codes(trained: TrainedEncoder, new_domain) -> None:
    old = trained.encoder
    new = update_labels(
        old, trained.states, embeddings={"text": new_domain[0]}, labels={"text": new_domain[1]}
    ).encoder
    issued = [[label] for label in old.labels]
    np.testing.assert_array_equal(new.class_bits(issued), old.class_bits(issued))


def test_update_changes_neither_argument(trained: TrainedEncoder, new_domain) -> None:
    encoder_id, row_count = trained.encoder.encoder_id, trained.state.row_count
    update_labels(
        trained.encoder, trained.states, embeddings={"text": new_domain[0]}, labels={"text": new_domain[1]}
    )
    assert (trained.encoder.encoder_id, trained.state.row_count) == (encoder_id, row_count)


def test_report_counts_rows_and_names_new_labels(trained: TrainedEncoder, new_domain) -> None:
    labels = [[], *new_domain[1][1:]]
    report = update_labels(
        trained.encoder, trained.states, embeddings={"text": new_domain[0]}, labels={"text": labels}
    ).report
    assert (report.row_count, report.skipped_row_count) == (119, 1)
    assert report.new_labels == tuple(dict.fromkeys(label for own in labels for label in own))


@pytest.mark.parametrize("label", ["c0", "never seen"])
def test_single_row_is_enough(trained: TrainedEncoder, new_domain, label: str) -> None:
    result = update_labels(
        trained.encoder, trained.states, embeddings={"text": new_domain[0][:1]}, labels={"text": [[label]]}
    )
    assert result.states["text"].row_count == 601
    assert label in result.encoder.labels


def test_child_drops_metrics_of_the_parents_label_part(trained: TrainedEncoder, new_domain) -> None:
    metrics = update_labels(
        trained.encoder, trained.states, embeddings={"text": new_domain[0]}, labels={"text": new_domain[1]}
    ).encoder.metrics
    assert "label_map" not in metrics
    assert metrics["labelled_row_count"] == 720
    assert metrics["recall_at_10_in_100"] == trained.encoder.metrics["recall_at_10_in_100"]


def test_first_labels_give_an_unlabelled_encoder_its_label_part(
    new_domain, small_config: EncoderConfig
) -> None:
    unlabelled = train_encoder(new_domain[0], config=small_config, modality="image").encoder
    state = LabelState.empty(32, config=small_config)
    result = update_labels(
        unlabelled, {"image": state}, embeddings={"image": new_domain[0]}, labels={"image": new_domain[1]}
    )
    assert result.encoder.label_head.modality == "image"
    assert set(result.encoder.labels) == {"c8", "c9", "c10", "c11"}


def test_first_labels_of_an_unknown_modality_are_refused(new_domain, small_config: EncoderConfig) -> None:
    unlabelled = train_encoder(new_domain[0], config=small_config, modality="image").encoder
    state = LabelState.empty(32, config=small_config)
    with pytest.raises(UnknownModalityError):
        update_labels(
            unlabelled, {"text": state}, embeddings={"text": new_domain[0]}, labels={"text": new_domain[1]}
        )


def test_update_without_a_label_says_there_is_nothing_to_learn(trained: TrainedEncoder, new_domain) -> None:
    with pytest.raises(NothingToLearnError, match="without labels there is nothing to learn") as caught:
        update_labels(
            trained.encoder, trained.states, embeddings={"text": new_domain[0]}, labels={"text": [[]] * 120}
        )
    assert caught.value.row_count == 120


@pytest.mark.parametrize(
    ("change", "message"), [({"seed": 1}, "features"), ({"label_bits": 128}, "class codes")]
)
def test_state_of_another_encoder_is_refused(
    trained: TrainedEncoder, new_domain, small_config, change, message: str
) -> None:
    foreign = LabelState.empty(32, config=replace(small_config, **change))
    with pytest.raises(StateMismatchError, match=message):
        update_labels(
            trained.encoder,
            {"text": foreign},
            embeddings={"text": new_domain[0]},
            labels={"text": new_domain[1]},
        )


def test_state_of_another_width_is_refused(new_domain, small_config: EncoderConfig) -> None:
    unlabelled = train_encoder(new_domain[0], config=small_config).encoder
    with pytest.raises(StateMismatchError, match="16 dimensions against 32"):
        renew_encoder(unlabelled, {"text": LabelState.empty(16, config=small_config)})


def test_forgetting_a_class_leaves_the_others(trained: TrainedEncoder, old_rows: LabelledRows) -> None:
    rows, labels = _of_classes(old_rows.embeddings, old_rows.labels, {"c3"})
    forgotten = renew_encoder(trained.encoder, {"text": trained.state.remove(rows, labels)})
    queries, _ = _of_classes(old_rows.query_embeddings, old_rows.query_labels, {"c3"})
    signs = np.where(forgotten.class_bits([[label] for label in forgotten.labels]), 1, -1)
    best = np.argmax(forgotten.label_values(queries) @ signs.T, axis=1)
    assert np.mean([forgotten.labels[index] == "c3" for index in best]) < 0.2
    assert forgotten.labels == trained.encoder.labels


def test_retrained_state_is_that_of_the_rows_alone(trained: TrainedEncoder, old_rows: LabelledRows) -> None:
    rows, labels = _of_classes(old_rows.embeddings, old_rows.labels, {"c3"})
    alone = retrained(trained.state, rows, labels)
    twice = retrained(trained.state.add(rows, labels), rows, labels)
    assert (alone.row_count, alone.class_codes.labels) == (len(rows), trained.state.class_codes.labels)
    np.testing.assert_array_equal(alone.solve(), twice.solve())
    assert not np.allclose(alone.solve(), trained.state.solve(), atol=1e-3)


@pytest.mark.parametrize("nothing", ["no state", "an empty state"])
def test_child_of_a_label_part_without_rows_has_none(
    trained: TrainedEncoder, old_rows: LabelledRows, nothing: str
) -> None:
    empty = retrained(trained.state, old_rows.embeddings[:0], [])
    states = {} if nothing == "no state" else {"text": empty}
    child = renew_encoder(trained.encoder, states, dropped={"text"})
    assert (child.label_head, child.parent_id) == (None, trained.encoder.encoder_id)
    assert child.instance_id == trained.encoder.instance_id
    assert not [name for name in child.metrics if name.startswith("label")]
    kept = renew_encoder(trained.encoder, {}).label_head
    np.testing.assert_array_equal(kept.weight, trained.encoder.label_head.weight)


def test_gate_accepts_an_update_that_forgets_nothing(
    trained: TrainedEncoder, new_domain, old_rows: LabelledRows, draw_clusters
) -> None:
    new = update_labels(
        trained.encoder, trained.states, embeddings={"text": new_domain[0]}, labels={"text": new_domain[1]}
    ).encoder
    queries = _of_classes(
        *draw_clusters(class_count=12, rows_per_class=10, seed=9), {"c8", "c9", "c10", "c11"}
    )
    report = evaluate_label_update(
        trained.encoder, new, old_rows=old_rows, new_rows=LabelledRows(*new_domain, *queries)
    )
    assert report.accepted and report.reasons == ()
    assert report.old_map_before > 0.95 and report.old_map_after > 0.94 and report.new_map_after > 0.9
    assert report.stored_bits_changed == 0


def test_gate_measures_old_map_with_each_encoder(trained: TrainedEncoder, old_rows: LabelledRows) -> None:
    blind = _with_weight(trained, np.zeros_like(trained.encoder.label_head.weight))
    report = evaluate_label_update(trained.encoder, blind, old_rows=old_rows, new_rows=old_rows)
    assert report.old_map_before > 0.95
    assert report.old_map_after < 0.3
    assert not report.accepted
    assert "mAP on old rows falls" in report.reasons[0]


def test_gate_tolerates_a_loss_up_to_the_tolerance(trained: TrainedEncoder, old_rows: LabelledRows) -> None:
    blind = _with_weight(trained, np.zeros_like(trained.encoder.label_head.weight))
    report = evaluate_label_update(
        trained.encoder, blind, old_rows=old_rows, new_rows=old_rows, map_tolerance=1.0, flip_tolerance=1.0
    )
    assert report.accepted


def test_gate_refuses_changed_instance_bits(trained: TrainedEncoder, old_rows: LabelledRows) -> None:
    projection = trained.encoder.projections["text"]
    weight = projection.weight.copy()
    weight[:, 5] *= -1
    other = replace(trained.encoder, projections={"text": replace(projection, weight=weight)})
    report = evaluate_label_update(trained.encoder, other, old_rows=old_rows, new_rows=old_rows)
    assert (report.stored_bits_changed, report.accepted) == (600, False)


def test_gate_refuses_changed_class_codes(trained: TrainedEncoder, old_rows: LabelledRows) -> None:
    head = trained.encoder.label_head
    bits = head.class_codes.bits.copy()
    bits[:, 7] ^= True
    other = replace(
        trained.encoder, label_head=replace(head, class_codes=replace(head.class_codes, bits=bits))
    )
    report = evaluate_label_update(trained.encoder, other, old_rows=old_rows, new_rows=old_rows)
    assert (report.stored_bits_changed, report.accepted) == (600, False)


def test_gate_without_old_rows_judges_the_new_alone(trained: TrainedEncoder, old_rows: LabelledRows) -> None:
    report = evaluate_label_update(trained.encoder, trained.encoder, old_rows=None, new_rows=old_rows)
    assert report.accepted and report.new_map_after > 0.95
    assert np.isnan(report.old_map_before) and np.isnan(report.old_map_after)


def _with_weight(trained: TrainedEncoder, weight: np.ndarray):
    return replace(trained.encoder, label_head=replace(trained.encoder.label_head, weight=weight))


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("method", ["regression", "discriminant"])
def test_gate_refuses_a_label_part_that_is_not_finite(
    trained: TrainedEncoder, old_rows: LabelledRows, small_config: EncoderConfig, value: float, method: str
) -> None:
    head = trained.encoder.label_head
    weight = np.array(head.weight)
    weight[0, 0] = value
    broken = replace(head, weight=weight)
    if method == "discriminant":
        config = replace(small_config, label_method="discriminant")
        state = empty_state(32, config=config)
        head = state.add(old_rows.embeddings, old_rows.labels).head(modality="text")
        bias = np.array(head.class_bias)
        bias[0] = value
        broken = replace(head, class_bias=bias)
    old = replace(trained.encoder, label_head=head)
    for before in (old_rows, None):
        report = evaluate_label_update(
            old,
            replace(old, label_head=broken),
            old_rows=before,
            new_rows=old_rows,
            map_tolerance=1.0,
            flip_tolerance=1.0,
        )
        assert not report.accepted and "the label part is not finite" in report.reasons
    assert evaluate_label_update(old, old, old_rows=old_rows, new_rows=old_rows).accepted


def test_gate_refuses_values_that_overflow(trained: TrainedEncoder, old_rows: LabelledRows) -> None:
    head = trained.encoder.label_head
    weight = np.full_like(head.weight, 3e38)
    with np.errstate(all="ignore"):
        report = evaluate_label_update(
            trained.encoder, _with_weight(trained, weight), old_rows=None, new_rows=old_rows
        )
    assert report.reasons == ("the label part is not finite",)


def test_gate_refuses_a_map_that_cannot_be_measured_any_more(
    trained: TrainedEncoder, old_rows: LabelledRows, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = np.ones(160, dtype=np.bool_)
    found = iter(ClassRetrieval(np.full(160, value), right) for value in (0.9, np.nan, 0.9, 0.9))
    monkeypatch.setattr("hashing.label_gate.class_retrieval", lambda *_, **__: next(found))
    report = evaluate_label_update(trained.encoder, trained.encoder, old_rows=old_rows, new_rows=old_rows)
    assert not report.accepted and "falls from 0.9000 to nan" in report.reasons[0]


def test_gate_counts_answers_that_turn_among_all_rows(
    trained: TrainedEncoder, old_rows: LabelledRows
) -> None:
    """The new rows are the old ones of class c0 under another label: half of its answers, at most, stay."""
    of_first = [i for i, own in enumerate(old_rows.labels) if list(own) == ["c0"]]
    renamed = LabelledRows(
        old_rows.embeddings[of_first],
        [["again"]] * len(of_first),
        old_rows.embeddings[of_first],
        [["again"]] * len(of_first),
    )
    new = update_labels(
        trained.encoder,
        trained.states,
        embeddings={"text": renamed.embeddings},
        labels={"text": renamed.labels},
    ).encoder
    report = evaluate_label_update(
        trained.encoder, new, old_rows=old_rows, new_rows=renamed, map_tolerance=1.0, flip_tolerance=0.01
    )
    rows, labels = old_rows.embeddings, [own[0] for own in old_rows.labels]
    labels += ["again"] * len(of_first)
    codes = new.class_bits([[label] for label in labels]).astype(np.float32) * 2 - 1

    def right(encoder: Encoder, count: int) -> np.ndarray:
        best = (encoder.label_values(old_rows.query_embeddings) @ codes[:count].T).argmax(axis=1)
        return np.array([labels[row] for row in best]) == np.ravel(old_rows.query_labels)

    before, after = right(trained.encoder, len(rows)), right(new, len(labels))
    assert report.right_before == before.mean()
    assert report.negative_flips == (before & ~after).mean() > 0.02
    assert report.positive_flips == (~before & after).mean()
    old_bits, new_bits = (e.label_values(old_rows.query_embeddings) > 0 for e in (trained.encoder, new))
    assert report.query_drift == (old_bits != new_bits).mean() > 0
    assert report.reasons == (f"{(before & ~after).sum()} of 160 old answers turn wrong, tolerance 0.01",)
    assert evaluate_label_update(
        trained.encoder, new, old_rows=old_rows, new_rows=renamed, map_tolerance=1.0, flip_tolerance=0.2
    ).accepted


def test_gate_lets_a_flip_pass_that_may_be_chance(
    trained: TrainedEncoder, old_rows: LabelledRows, monkeypatch: pytest.MonkeyPatch
) -> None:
    for flips, accepted in ((6, True), (7, False)):  # of 160: surely above .02 from 7 on
        before, after = np.ones(160, dtype=np.bool_), np.ones(160, dtype=np.bool_)
        after[:flips] = False
        found = iter(ClassRetrieval(np.full(160, 0.9), right) for right in (before, before, after, before))
        monkeypatch.setattr("hashing.label_gate.class_retrieval", lambda *_, found=found, **__: next(found))
        report = evaluate_label_update(trained.encoder, trained.encoder, old_rows=old_rows, new_rows=old_rows)
        assert (report.negative_flips, report.accepted) == (flips / 160, accepted)
