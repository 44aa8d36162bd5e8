"""The label part on CLINC150, ten domains that arrive one after the other."""

import json
from pathlib import Path

import numpy as np
import pytest

from hashing import (
    EncoderConfig,
    LabelledRows,
    empty_state,
    evaluate_label_update,
    train_encoder,
    update_labels,
)

DATA = Path(__file__).parents[2].parent / "shared" / "data"

pytestmark = pytest.mark.skipif(
    not (DATA / "intents.npz").exists(), reason="development data (intents.npz) is not beside the project"
)


@pytest.fixture(scope="module")
def intents():
    with np.load(DATA / "intents.npz") as content:
        rows = content["embeddings"].astype(np.float32)
        intent, split = content["intent"], content["split"]
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    domains = json.loads((DATA / "intent_domains.json").read_text())
    return rows, intent, split, domains


def test_ten_domains_in_steps_reach_the_map_of_training_at_once(intents) -> None:
    rows, intent, split, domains = intents
    config = EncoderConfig(itq_iterations=2)
    train, test = np.flatnonzero(split == "train"), np.flatnonzero(split == "test")[::4]
    encoder = train_encoder(rows[train], config=config).encoder
    state = empty_state(rows.shape[1], config=config)
    for names in domains.values():
        step = train[np.isin(intent[train], names)]
        result = update_labels(
            encoder,
            {"text": state},
            embeddings={"text": rows[step]},
            labels={"text": [[name] for name in intent[step]]},
        )
        encoder, state = result.encoder, result.states["text"]
    stored = LabelledRows(
        rows[train], [[name] for name in intent[train]], rows[test], [[name] for name in intent[test]]
    )
    report = evaluate_label_update(encoder, encoder, old_rows=None, new_rows=stored)
    assert len(encoder.labels) == 150
    assert report.new_map_after > 0.94


def test_new_domain_is_farther_from_the_training_data_than_held_out_rows(intents) -> None:
    rows, intent, split, domains = intents
    unseen = np.isin(intent, domains["travel"])
    encoder = train_encoder(
        rows[(split == "train") & ~unseen], config=EncoderConfig(itq_iterations=2)
    ).encoder
    rng = np.random.default_rng(0)
    known_test, unseen_test = (np.flatnonzero((split == "test") & chosen) for chosen in (~unseen, unseen))
    known = [encoder.drift_score(rows[rng.choice(known_test, 50)]) for _ in range(20)]
    shifted = [encoder.drift_score(rows[rng.choice(unseen_test, 50)]) for _ in range(20)]
    assert max(known) < min(shifted)
