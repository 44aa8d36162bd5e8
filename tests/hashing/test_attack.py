"""The attack on label codes, and training against it."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hashing import ConfigError, EncoderConfig, LabelState, TrainingDataError
from hashing.projection import Projection
from hashing.tower import Tower

torch = pytest.importorskip("torch", reason="torch is not installed")

from hashing.deep.attack import attack_rows, head_values, map_values, onto_cap  # noqa: E402
from hashing.deep.labelled import LabelledConfig, train_labelled  # noqa: E402

SLACK = 1e-5


def _unit(rows):
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def _tower(rng: np.random.Generator) -> Tower:
    def draw(*shape: int):
        return rng.standard_normal(shape, dtype=np.float32)

    return Tower(
        linear=draw(16, 64), hidden=draw(16, 8), hidden_bias=draw(8), output=draw(8, 64), offset=draw(64)
    )


@settings(deadline=None, max_examples=40)
@given(
    seed=st.integers(0, 2**32 - 1),
    eps=st.floats(1e-3, 1.5),
    steps=st.integers(1, 8),
    scale=st.floats(1e-3, 1e3),
)
def test_attacked_rows_are_unit_and_within_the_ball(seed: int, eps: float, steps: int, scale: float) -> None:
    rng = np.random.default_rng(seed)
    rows = scale * rng.standard_normal((5, 16)).astype(np.float32)
    class_bits = rng.random((4, 64)) < 0.5
    attacked = attack_rows(
        rows,
        rng.integers(0, 4, size=5),
        class_bits=class_bits,
        values=map_values(_tower(rng)),
        eps=eps,
        steps=steps,
    )
    assert np.allclose(np.linalg.norm(attacked, axis=1), 1, atol=SLACK)
    assert np.linalg.norm(attacked - _unit(rows), axis=1).max() <= eps + SLACK


@settings(deadline=None)
@given(seed=st.integers(0, 2**32 - 1), eps=st.floats(0.01, 1.9))
def test_cap_leaves_what_is_inside_and_brings_the_rest_to_its_border(seed: int, eps: float) -> None:
    rng = np.random.default_rng(seed)
    rows, near = (_unit(rng.standard_normal((20, 6))).astype(np.float64) for _ in range(2))
    rows, near = (values / np.linalg.norm(values, axis=1, keepdims=True) for values in (rows, near))
    moved = onto_cap(torch.from_numpy(near), torch.from_numpy(rows), eps=eps).numpy()
    before, after = (np.linalg.norm(values - rows, axis=1) for values in (near, moved))
    assert np.allclose(after, np.minimum(before, eps), atol=1e-6)
    assert np.allclose(moved[before < eps - 1e-6], near[before < eps - 1e-6])


def test_forward_of_tensors_is_that_of_the_arrays(draw_clusters, small_config: EncoderConfig) -> None:
    rng = np.random.default_rng(0)
    rows, labels = draw_clusters(class_count=3, rows_per_class=20)
    head = LabelState.empty(32, config=small_config).add(rows, labels).head(modality="text")
    assert np.allclose(head_values(head)(torch.from_numpy(rows)).numpy(), head.values(rows), atol=1e-5)
    other = rows[:, :16].copy()
    projection = Projection(
        mean=rng.random(16, dtype=np.float32), weight=rng.random((16, 64), dtype=np.float32)
    )
    for label_map in (_tower(rng), projection):
        values = map_values(label_map)(torch.from_numpy(other)).numpy()
        assert np.allclose(values, label_map.project(other), atol=1e-4)


def test_attack_on_a_linear_map_moves_straight_to_the_target() -> None:
    # Of two classes the margin is linear in the row: the best point of the ball lies along its gradient.
    rng = np.random.default_rng(1)
    weight = rng.standard_normal((16, 64)).astype(np.float32)
    class_bits = rng.random((2, 64)) < 0.5
    rows = _unit(rng.standard_normal((6, 16)))
    values = map_values(Projection(mean=np.zeros(16, np.float32), weight=weight))
    targets = np.array([0, 1] * 3)
    attacked = attack_rows(rows, targets, class_bits=class_bits, values=values, eps=0.3, steps=50)
    direction = weight @ (np.where(class_bits[0], 2.0, 0.0) - np.where(class_bits[1], 2.0, 0.0))
    for row, moved, target in zip(rows, attacked, targets, strict=True):
        aside = (direction if target == 0 else -direction) - row * (direction @ row) * (
            1 if target == 0 else -1
        )
        cosine = 1 - 0.3**2 / 2
        best = cosine * row + np.sqrt(1 - cosine**2) * aside / np.linalg.norm(aside)
        assert moved @ best > 0.999


def test_equal_seed_gives_an_equal_attack_and_targets_are_checked() -> None:
    rng = np.random.default_rng(2)
    rows, class_bits, values = (
        rng.standard_normal((4, 16)),
        rng.random((3, 64)) < 0.5,
        map_values(_tower(rng)),
    )
    targets = np.array([0, 1, 2, 0])

    def attack(wanted=targets, codes=class_bits, eps: float = 0.2, steps: int = 3):
        return attack_rows(rows, wanted, class_bits=codes, values=values, eps=eps, steps=steps)

    assert np.array_equal(attack(), attack())
    assert attack_rows(rows[:0], targets[:0], class_bits=class_bits, values=values, eps=0.1).shape == (0, 16)
    for wanted in (targets[:3], targets + 1, -targets, targets.astype(float)):
        with pytest.raises(TrainingDataError, match="targets"):
            attack(wanted=wanted)
    with pytest.raises(TrainingDataError, match="one class only"):
        attack(codes=class_bits[:1])
    for change, key in (({"eps": 0.0}, "eps"), ({"eps": 2.5}, "eps"), ({"steps": 0}, "steps")):
        with pytest.raises(ConfigError, match=key):
            attack(**change)


def test_adversarial_training_lowers_the_share_of_attacked_rows(draw_clusters) -> None:
    # Many dimensions tell classes apart a little, one does so well: a plain tower leans on all of them.
    rows, labels = draw_clusters(class_count=6, rows_per_class=60, spread=0.6)
    fresh, own = draw_clusters(class_count=6, rows_per_class=20, spread=0.6, seed=7)
    shares = []
    for adversarial_eps in (0.0, 0.4):
        config = LabelledConfig(
            hidden_width=32, epochs=20, batch_size=64, learning_rate=3e-3, adversarial_eps=adversarial_eps
        )
        trained = train_labelled(rows, labels, config=config, device="cpu")
        codes = trained.class_codes
        positions = np.array([codes.position(label) for (label,) in own])
        targets = (positions + 1) % len(codes)
        attacked = attack_rows(
            fresh, targets, class_bits=codes.bits, values=map_values(trained.label_map), eps=0.6
        )
        scores = trained.label_map.project(attacked) @ np.where(codes.bits, 1, -1).T
        shares.append(float(np.mean(scores.argmax(axis=1) == targets)))
        clean = trained.label_map.project(fresh) @ np.where(codes.bits, 1, -1).T
        assert np.mean(clean.argmax(axis=1) == positions) > 0.9
    assert shares[1] < shares[0] - 0.05
