"""Text towers trained on a tiny random backbone: what they learn, keep and refuse."""
# ruff: noqa: E402

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

for package in ("torch", "tokenizers", "transformers"):
    pytest.importorskip(package, reason="needs the extras train and minilm")

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from text_models import texts_and_pairs, write_tiny_bert

from hashing import dump_encoder, load_encoder
from hashing.deep import losses
from hashing.deep.text_checkpoint import read_checkpoint
from hashing.deep.text_config import TextTowerConfig
from hashing.deep.text_loss import PairBatch, weighted_info_nce, weighted_logistic
from hashing.deep.text_training import CHECKPOINT_FILE, TrainedTextTower, train_text_tower
from hashing.errors import CheckpointError, ConfigError, TrainingDataError
from hashing.metrics import pair_auc
from hashing.projection import Projection
from hashing.text.backbone import Backbone, read_backbone
from hashing.text.embedding import load_text_tower
from hashing.text.tower import TextTowerShape

CONFIG = TextTowerConfig(
    shape=TextTowerShape(kind="upper", upper_layers=2, side_width=32, max_tokens=20),
    code_bits=64,
    epochs=4,
    patience=4,
    batch_size=32,
    learning_rate=1e-2,
    head_learning_rate=3e-3,
    averaging=0.9,
    precision="float32",
)
LADDER = replace(CONFIG, shape=replace(CONFIG.shape, kind="ladder"))
SHORT = replace(CONFIG, epochs=2)


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    folder = tmp_path_factory.mktemp("bert")
    write_tiny_bert(folder)
    return read_backbone(folder)


Train = Callable[..., TrainedTextTower]


@pytest.fixture
def train(backbone: Backbone, tmp_path: Path) -> Train:
    """Trains on the same 150 pairs; states and checkpoint lie in the test's folder."""

    def trained(config: TextTowerConfig = SHORT, *, folder: str = "training") -> TrainedTextTower:
        texts, pairs = texts_and_pairs(pair_count=150)
        return train_text_tower(
            texts, pairs, backbone=backbone, config=config, folder=tmp_path / folder, device="cpu"
        )

    return trained


@pytest.mark.parametrize("config", [CONFIG, LADDER], ids=["upper", "ladder"])
def test_tower_tells_pairs_that_its_backbone_cannot(
    config: TextTowerConfig, backbone: Backbone, tmp_path: Path
) -> None:
    texts, pairs = texts_and_pairs(pair_count=300)
    trained = train_text_tower(texts, pairs, backbone=backbone, config=config, folder=tmp_path, device="cpu")
    metrics = trained.encoder.metrics
    assert metrics["validation_auc_cosine"] < 0.65
    assert metrics["validation_auc_embedding"] > 0.7
    assert metrics["validation_auc_64"] > 0.7
    fresh, fresh_pairs = texts_and_pairs(pair_count=200, unpaired=0, seed=5)
    values = trained.encoder.instance_values(trained.tower.embed(fresh))
    scores = (values[fresh_pairs[:, 0]] * np.sign(values[fresh_pairs[:, 1]])).sum(axis=1)
    assert pair_auc(scores, fresh_pairs[:, 2] == 1) > 0.6


def test_encoder_is_a_projection_that_any_server_reads(train: Train) -> None:
    encoder = train().encoder
    assert isinstance(encoder.projections["text"], Projection)
    assert load_encoder(dump_encoder(encoder)).encoder_id == encoder.encoder_id
    assert 0 < encoder.radii(0.05)[64] < 64
    assert encoder.metrics["held_out_row_count"] > 80


def test_training_twice_gives_the_same_tower(train: Train) -> None:
    first = train(folder="a")
    state = torch.random.get_rng_state()
    torch.manual_seed(123)
    second = train(folder="b")
    torch.random.set_rng_state(state)
    assert second.tower.embedder_id == first.tower.embedder_id
    assert second.encoder.encoder_id == first.encoder.encoder_id


def test_training_that_was_cut_off_goes_on_from_its_last_pass(
    train: Train, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    whole = train(folder="whole")

    class Interrupted(Exception):
        pass

    def interrupt(stage: str, done: int, total: int) -> None:
        if stage == "train" and done > 0.7 * total:
            raise Interrupted

    texts, pairs = texts_and_pairs(pair_count=150)
    backbone = whole.tower.backbone
    with pytest.raises(Interrupted):
        train_text_tower(
            texts,
            pairs,
            backbone=backbone,
            config=SHORT,
            folder=tmp_path / "cut",
            device="cpu",
            progress=interrupt,
        )
    steps: list[int] = []
    resumed = train_text_tower(
        texts,
        pairs,
        backbone=backbone,
        config=SHORT,
        folder=tmp_path / "cut",
        device="cpu",
        progress=lambda stage, done, _total: steps.append(done) if stage == "train" else None,
    )
    assert resumed.tower.embedder_id == whole.tower.embedder_id
    assert resumed.encoder.encoder_id == whole.encoder.encoder_id
    assert steps[0] > 3  # the first pass was not made again


def test_checkpoint_of_another_training_or_a_damaged_one_is_not_used(train: Train, tmp_path: Path) -> None:
    first = train()
    path = tmp_path / "training" / CHECKPOINT_FILE
    assert read_checkpoint(path, key="another") is None
    assert train(replace(SHORT, seed=1)).tower.embedder_id != first.tower.embedder_id
    path.write_bytes(path.read_bytes()[:1000])
    assert read_checkpoint(path, key="another") is None
    assert train().tower.embedder_id == first.tower.embedder_id


@pytest.mark.parametrize(
    "change",
    [
        {"precision": "bfloat16"},
        {"token_dropout": 0.2},
        {"averaging": 0.0},
        {"implied_weight": 0.0},
        {"info_nce_weight": 0.0, "code_info_nce_weight": 0.0},
        {"code_logistic_weight": 0.0},
        {"logistic_weight": 0.0},
        {"code_bits": 128},
        {"shape": replace(CONFIG.shape, upper_layers=3)},
    ],
    ids=str,
)
def test_every_part_can_be_chosen(train: Train, change: dict) -> None:
    metrics = train(replace(SHORT, epochs=1, **change)).encoder.metrics
    assert 0 < metrics["validation_auc_64"] <= 1


@pytest.mark.parametrize("config", [SHORT, replace(LADDER, epochs=1)], ids=["upper", "ladder"])
def test_tower_file_gives_the_tower_back(train: Train, tmp_path: Path, config: TextTowerConfig) -> None:
    tower = train(config).tower
    path = tmp_path / "tower.safetensors"
    path.write_bytes(tower.dump())
    loaded = load_text_tower(path, backbone=tower.backbone)
    texts = ["w1 w2 w3", "w40", "", "w1 " * 50]
    assert loaded.embedder_id == tower.embedder_id
    assert loaded.embedder_id.startswith("text-tower-")
    np.testing.assert_array_equal(loaded.embed(texts), tower.embed(texts))
    np.testing.assert_allclose(loaded.embed(texts[:1]), tower.embed(texts)[:1], atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(loaded.embed(texts), axis=1), 1, atol=1e-5)
    assert loaded.embed([]).shape == (0, 32)


@pytest.mark.parametrize("spoil", ["short", "foreign", "altered", "renamed"])
def test_spoilt_tower_file_is_refused(train: Train, tmp_path: Path, spoil: str) -> None:
    tower = train(replace(SHORT, epochs=1)).tower
    content, path = tower.dump(), tmp_path / "tower.safetensors"
    if spoil == "short":
        path.write_bytes(content[:-7])
    elif spoil == "foreign":
        save_file({"a": torch.zeros(2)}, path)
    elif spoil == "altered":
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    else:
        path.write_bytes(content)
        with safe_open(str(path), framework="pt") as opened:
            metadata = opened.metadata()
            tensors = {name + "x": opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
        save_file(tensors, path, metadata=metadata)
    with pytest.raises(CheckpointError):
        load_text_tower(path, backbone=tower.backbone)


def test_tower_of_another_backbone_is_refused(train: Train, tmp_path: Path) -> None:
    path = tmp_path / "tower.safetensors"
    path.write_bytes(train(replace(SHORT, epochs=1)).tower.dump())
    write_tiny_bert(tmp_path / "other", seed=1)
    with pytest.raises(CheckpointError, match="was trained on backbone"):
        load_text_tower(path, backbone=read_backbone(tmp_path / "other"))


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"code_bits": 100}, "code_bits"),
        ({"precision": "float16"}, "precision"),
        ({"layer_decay": 1.5}, "layer_decay"),
        ({"logistic_weight": 0.0, "code_logistic_weight": 0.0}, "logistic_weight"),
        ({"averaging": 1.0}, "averaging"),
        ({"epochs": 0}, "epochs"),
        ({"temperature": 0.0}, "temperature"),
    ],
    ids=str,
)
def test_setting_out_of_range_is_refused_by_name(change: dict, key: str) -> None:
    with pytest.raises(ConfigError, match=key):
        TextTowerConfig(**change)


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"kind": "lora"}, "kind"),
        ({"upper_layers": 0}, "upper_layers"),
        ({"side_width": 30}, "side_width"),
        ({"max_tokens": 2}, "max_tokens"),
        ({"upper_layers": 4}, "upper_layers"),
        ({"max_tokens": 64}, "max_tokens"),
    ],
    ids=str,
)
def test_shape_that_does_not_fit_is_refused_by_name(backbone: Backbone, change: dict, key: str) -> None:
    with pytest.raises(ConfigError, match=key):
        TextTowerShape(**{"max_tokens": 20, "upper_layers": 2, **change}).depths(backbone.shape)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda pairs: pairs[pairs[:, 2] == 1], "one class only"),
        (lambda pairs: pairs + np.array([0, 1000, 0]), "refers to rows"),
        (lambda pairs: pairs * [0, 1, 1], "linked into 1 groups"),
    ],
    ids=["one class", "missing text", "one component"],
)
def test_pairs_that_cannot_be_learned_are_refused_before_states_are_computed(
    backbone: Backbone, tmp_path: Path, spoil, message: str
) -> None:
    texts, pairs = texts_and_pairs(pair_count=100)
    with pytest.raises(TrainingDataError, match=message):
        train_text_tower(
            texts, spoil(pairs), backbone=backbone, config=CONFIG, folder=tmp_path / "t", device="cpu"
        )
    assert not (tmp_path / "t").exists()


def _batch() -> tuple[torch.Tensor, PairBatch]:
    generator = torch.Generator().manual_seed(0)
    batch = PairBatch(
        first=torch.tensor([0, 2, 4]),
        second=torch.tensor([1, 3, 5]),
        similarity=torch.tensor([1.0, 0.0, 1.0]),
        weights=torch.ones(3),
        group=torch.tensor([0, 0, 2, 3, 4, 4]),
    )
    return torch.randn(6, 8, generator=generator), batch


def test_weighted_losses_of_equal_weights_are_the_plain_ones() -> None:
    values, batch = _batch()
    first, second = values[batch.first], values[batch.second]
    scale, bias = torch.tensor(3.0), torch.tensor(-1.0)
    plain = losses.pair_logistic(first, second, similarity=batch.similarity, scale=scale, bias=bias)
    weighted = weighted_logistic(
        first, second, similarity=batch.similarity, weights=batch.weights, scale=scale, bias=bias
    )
    torch.testing.assert_close(weighted, plain)


def test_info_nce_is_that_of_a_naive_loop() -> None:
    values, batch = _batch()
    unit = torch.nn.functional.normalize(values, dim=1)
    expected = []
    for query, key in ((0, 1), (1, 0), (4, 5), (5, 4)):
        others = [row for row in range(6) if batch.group[row] != batch.group[query]]
        logits = torch.stack([unit[query] @ unit[row] for row in [key, *others]]) / 0.1
        expected.append(torch.logsumexp(logits, dim=0) - logits[0])
    found = weighted_info_nce(values, values, batch, temperature=0.1)
    torch.testing.assert_close(found, torch.stack(expected).mean())


def test_info_nce_without_similar_pairs_is_zero() -> None:
    values, batch = _batch()
    batch = replace(batch, similarity=torch.zeros(3))
    assert weighted_info_nce(values, values, batch, temperature=0.1) == 0
