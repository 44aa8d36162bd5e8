"""The loop of a training by gradient: going on after an interruption, early stopping, averaging, seeds."""

import tracemalloc
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from hashing import ConfigError, TrainedEncoder, TrainingDataError

torch = pytest.importorskip("torch", reason="torch is not installed")

from hashing.deep.config import TrainingConfig, parse_config  # noqa: E402
from hashing.deep.training import train  # noqa: E402
from hashing.deep.training_set import TrainingSet  # noqa: E402

EVERYTHING = parse_config("""
code_bits = 64
[losses.pairs]
logistic = 1.0
info_nce = 0.1
snr = 0.1
mined_negatives = 2
closure = true
[losses.labels]
likelihood = 0.1
central = 0.1
[losses.neighbours]
distance = 0.1
[losses.matches]
info_nce = 0.1
likelihood = 0.1
reconstruct = 0.3
[tower]
hidden_width = 8
[optimiser]
batch_size = 256
epochs = 4
patience = 9
learning_rate = 3e-3
averaging = 0.8
""")
SIMPLE = parse_config("""
code_bits = 64
[losses.neighbours]
distance = 1.0
[tower]
hidden_width = 8
[optimiser]
batch_size = 256
epochs = 4
""")


def _draw(count: int, dim: int, *, seed: int = 0) -> NDArray[np.float32]:
    rows = np.random.default_rng(seed).standard_normal((count, dim))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def _set() -> TrainingSet:
    """Pairs, labels and items of 240 texts and 200 images, 150 of them of the same items."""
    pairs = np.column_stack([np.arange(0, 200, 2), np.arange(1, 201, 2), np.arange(100) % 2])
    chained = np.column_stack([np.arange(0, 180, 4), np.arange(4, 184, 4), np.arange(45) % 3 > 0])
    return TrainingSet(
        embeddings={"text": _draw(240, 32), "image": _draw(200, 16, seed=1)},
        pairs=np.concatenate([pairs, chained]),
        labels={
            "text": [[f"c{row % 3}"] if row % 5 else [] for row in range(240)],
            "image": [[f"c{(row + 90) % 3}"] for row in range(200)],
        },
        items={"text": np.arange(240), "image": np.arange(90, 290)},
    )


class InterruptedError_(Exception):
    """Whoever trains ended the process."""


def _interrupt_after(step: int) -> Any:
    def progress(stage: str, done: int, _total: int) -> None:
        if stage == "train" and done == step:
            raise InterruptedError_

    return progress


def _steps(config: TrainingConfig, training_set: TrainingSet) -> int:
    totals = []
    train(
        training_set,
        config=config,
        device="cpu",
        progress=lambda stage, _done, total: totals.append(total) if stage == "train" else None,
    )
    return totals[0]


def _id(trained: TrainedEncoder) -> str:
    return trained.encoder.encoder_id


@pytest.fixture(scope="module")
def uninterrupted() -> TrainedEncoder:
    return train(_set(), config=EVERYTHING, device="cpu")


@pytest.mark.parametrize("passes", [1, 2, 3])
def test_interrupted_training_ends_as_one_that_was_not(
    tmp_path: Path, uninterrupted: TrainedEncoder, passes: int
) -> None:
    checkpoint = tmp_path / "state.pt"
    per_pass = _steps(replace(EVERYTHING, optimiser=replace(EVERYTHING.optimiser, epochs=1)), _set())
    with pytest.raises(InterruptedError_):
        train(
            _set(),
            config=EVERYTHING,
            device="cpu",
            checkpoint=checkpoint,
            progress=_interrupt_after(passes * per_pass + per_pass // 2),
        )
    done: list[int] = []
    resumed = train(
        _set(),
        config=EVERYTHING,
        device="cpu",
        checkpoint=checkpoint,
        progress=lambda stage, own, _total: done.append(own) if stage == "train" else None,
    )
    assert done[0] == passes * per_pass + 1
    assert _id(resumed) == _id(uninterrupted)
    assert resumed.encoder.metrics == uninterrupted.encoder.metrics
    for modality, own in resumed.encoder.projections.items():
        other = uninterrupted.encoder.projections[modality]
        for name, array in own.arrays().items():  # type: ignore[union-attr]
            np.testing.assert_array_equal(array, other.arrays()[name])  # type: ignore[union-attr]
    assert [own.name for own in tmp_path.iterdir()] == ["state.pt"]


def test_checkpoint_of_a_training_that_ended_gives_its_encoder_at_once(tmp_path: Path) -> None:
    stages: list[tuple[str, int]] = []
    first, second = (
        train(
            TrainingSet(embeddings={"text": _draw(200, 32)}),
            config=SIMPLE,
            device="cpu",
            checkpoint=tmp_path / "state.pt",
            progress=lambda stage, done, _total: stages.append((stage, done)),
        )
        for _ in range(2)
    )
    assert _id(first) == _id(second)
    assert [stage for stage, _ in stages[-7:]] == ["fit"] * 2 + ["train"] + ["calibrate"] * 2 + [
        "evaluate"
    ] * 2


OTHER_ROWS = TrainingSet(embeddings={"text": _draw(200, 32, seed=9)})
ROWS = TrainingSet(embeddings={"text": _draw(200, 32)})


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("checkpoints") / "state.pt"
    train(ROWS, config=SIMPLE, device="cpu", checkpoint=path)
    return path


@pytest.mark.parametrize(
    ("training_set", "config"),
    [
        (OTHER_ROWS, SIMPLE),
        (ROWS, replace(SIMPLE, seed=1)),
        (ROWS, replace(SIMPLE, tower=replace(SIMPLE.tower, hidden_width=9))),
        (TrainingSet(embeddings={"image": _draw(200, 32)}), SIMPLE),
        (replace(ROWS, view_dims=(16, 16)), SIMPLE),
        (replace(ROWS, labels={"text": [[f"c{row % 2}"] for row in range(200)]}), SIMPLE),
    ],
    ids=["rows", "seed", "tower", "modality", "views", "labels"],
)
def test_checkpoint_of_another_training_is_refused_before_time_is_spent(
    checkpoint: Path, training_set: TrainingSet, config: TrainingConfig
) -> None:
    stages: list[str] = []
    with pytest.raises(TrainingDataError, match="is of another training"):
        train(
            training_set,
            config=config,
            checkpoint=checkpoint,
            progress=lambda stage, _done, _total: stages.append(stage),
        )
    assert stages == []


@pytest.mark.parametrize("keep", [0, 10, 1000, -100], ids=lambda keep: f"{keep} bytes")
def test_truncated_checkpoint_is_refused(checkpoint: Path, tmp_path: Path, keep: int) -> None:
    cut = tmp_path / "cut.pt"
    cut.write_bytes(checkpoint.read_bytes()[:keep])
    with pytest.raises(TrainingDataError, match=r"cut\.pt cannot be read"):
        train(ROWS, config=SIMPLE, checkpoint=cut)


def test_checkpoint_in_no_folder_is_refused_before_time_is_spent(tmp_path: Path) -> None:
    stages: list[str] = []
    with pytest.raises(TrainingDataError, match="there is no folder"):
        train(
            ROWS,
            config=SIMPLE,
            checkpoint=tmp_path / "no" / "state.pt",
            progress=lambda stage, _done, _total: stages.append(stage),
        )
    assert stages == []


def test_equal_seeds_give_equal_encoders_whatever_torch_drew_before(uninterrupted: TrainedEncoder) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(123)
        assert _id(train(_set(), config=EVERYTHING, device="cpu")) == _id(uninterrupted)


def test_another_seed_gives_another_encoder() -> None:
    assert _id(train(ROWS, config=SIMPLE)) != _id(train(ROWS, config=replace(SIMPLE, seed=1)))


def test_training_leaves_the_global_generators_alone() -> None:
    before, numpy_before = torch.random.get_rng_state(), np.random.get_state()[1].tolist()  # noqa: NPY002
    train(ROWS, config=SIMPLE)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert np.random.get_state()[1].tolist() == numpy_before  # noqa: NPY002


def test_training_stops_when_nothing_gets_better() -> None:
    optimiser = replace(SIMPLE.optimiser, epochs=60, patience=2, learning_rate=0.1)
    config = replace(SIMPLE, optimiser=optimiser)
    last: list[tuple[int, int]] = []
    trained = train(
        ROWS,
        config=config,
        progress=lambda stage, done, total: last.append((done, total)) if stage == "train" else None,
    )
    assert 3 <= trained.encoder.metrics["epoch_count"] < 60
    assert last[-1][0] == last[-1][1]


def test_best_pass_is_kept_not_the_last() -> None:
    # A rate that wrecks the codes: the passes get worse, and what one pass gives is kept.
    optimiser = replace(SIMPLE.optimiser, epochs=6, patience=6, learning_rate=1.0, warmup_share=0.9)
    config = replace(SIMPLE, optimiser=optimiser)
    long = train(ROWS, config=config).encoder.metrics
    best = max(
        train(ROWS, config=replace(config, optimiser=replace(optimiser, patience=patience))).encoder.metrics[
            "recall_at_10_in_100"
        ]
        for patience in (1, 2)
    )
    assert long["epoch_count"] == 6
    assert long["recall_at_10_in_100"] >= best


def test_average_of_the_weights_is_what_is_kept() -> None:
    def weights(averaging: float) -> NDArray[np.float32]:
        optimiser = replace(SIMPLE.optimiser, epochs=1, learning_rate=0.01, averaging=averaging)
        encoder = train(ROWS, config=replace(SIMPLE, optimiser=optimiser)).encoder
        return encoder.projections["text"].arrays()["hidden"]  # type: ignore[union-attr]

    # One pass of few steps: the average keeps near the first step where its decay is close to 1.
    last, slow, slower = weights(0.0), weights(0.5), weights(0.999)
    assert not np.array_equal(last, slow)
    assert np.linalg.norm(slow - last) < np.linalg.norm(slower - last)


def test_mixed_precision_changes_nothing_without_a_gpu() -> None:
    precise = replace(SIMPLE, optimiser=replace(SIMPLE.optimiser, mixed_precision=False))
    first, second = (train(ROWS, config=own, device="cpu").encoder for own in (SIMPLE, precise))
    assert first.encoder_id == second.encoder_id


@pytest.mark.parametrize("batch_size", [2, 3])
def test_batches_that_leave_one_row_over_are_learned_from(batch_size: int) -> None:
    labels = [["a"] if row < 5 else ["b"] if row < 9 else [] for row in range(200)]
    text = f"""
code_bits = 64
[losses.labels]
central = 1.0
[losses.pairs]
info_nce = 1.0
mined_negatives = 1
[tower]
hidden_width = 4
[optimiser]
epochs = 2
batch_size = {batch_size}
"""
    pairs = np.column_stack([np.arange(50), 100 + np.arange(50), np.arange(50) % 2])
    training_set = TrainingSet(embeddings=ROWS.embeddings, pairs=pairs, labels={"text": labels})
    encoder = train(training_set, config=parse_config(text)).encoder
    assert np.isfinite(encoder.instance_values(ROWS.embeddings["text"])).all()


def test_held_out_part_without_any_label_judges_nothing() -> None:
    labels = [["a"], ["b"], ["a"]] + [[]] * 197
    training_set = TrainingSet(embeddings=ROWS.embeddings, labels={"text": labels})
    text = (
        "code_bits = 64\n[losses.labels]\ncentral = 1.0\n[tower]\nhidden_width = 4\n[optimiser]\nepochs = 5\n"
    )
    config = replace(parse_config(text), validation_share=0.01)
    ended = [train(training_set, config=replace(config, seed=seed)).encoder.metrics for seed in range(4)]
    unjudged = [metrics for metrics in ended if "validation_map_text" not in metrics]
    assert unjudged
    assert all(metrics["epoch_count"] == 5 for metrics in unjudged)
    assert not any(np.isnan(value) for metrics in ended for value in metrics.values())


@pytest.mark.parametrize("kind", ["linear", "residual"])
@pytest.mark.parametrize("learning_rate", [1e10, 1e30])
def test_training_that_diverges_names_the_learning_rate(kind: Any, learning_rate: float) -> None:
    config = replace(
        SIMPLE,
        tower=replace(SIMPLE.tower, kind=kind),
        optimiser=replace(SIMPLE.optimiser, learning_rate=learning_rate),
    )
    with pytest.raises(ConfigError, match=r"optimiser\.learning_rate must be smaller: the training diverged"):
        train(ROWS, config=config, device="cpu")


def test_labels_that_no_loss_reads_take_no_matrix() -> None:
    row_count = 4000
    embeddings = {"text": _draw(200, 8), "image": _draw(row_count, 8)}
    labels = {"image": [[f"c{row}"] for row in range(row_count)]}
    items = {"text": np.arange(200), "image": np.arange(row_count)}
    config = parse_config("code_bits = 64\n[losses.matches]\ninfo_nce = 1.0\n[optimiser]\nepochs = 1\n")
    plain = TrainingSet(embeddings=embeddings, items=items)
    train(plain, config=config, device="cpu")  # what torch imports late
    tracemalloc.start()
    train(replace(plain, labels=labels), config=config, device="cpu")
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak_bytes < 30_000_000  # a matrix of rows and classes would take 58


def test_bits_split_the_real_rows_evenly_whatever_is_rebuilt() -> None:
    config = parse_config("code_bits = 64\n[losses.matches]\ninfo_nce = 1.0\nreconstruct = 0.3\n")
    config = replace(config, optimiser=replace(config.optimiser, epochs=1, batch_size=64))
    rows = {"image": _draw(400, 80) + np.float32(0.05), "text": _draw(400, 70, seed=1) + np.float32(0.05)}
    items = {"image": np.arange(400), "text": np.where(np.arange(400) < 60, np.arange(400), -np.arange(400))}
    trained = train(TrainingSet(embeddings=rows, items=items), config=config, device="cpu")
    for modality, own in rows.items():
        means = trained.encoder.projections[modality].project(own).mean(axis=0)
        assert np.abs(means).mean() < 0.1
