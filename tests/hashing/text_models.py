"""A tiny BERT with random weights, and texts whose pairs can be learned."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

TOPIC_COUNT, TOPIC_WORDS, FILLER_WORDS = 6, 6, 24
WORDS = [f"w{number}" for number in range(TOPIC_COUNT * TOPIC_WORDS + FILLER_WORDS)]


def write_tiny_bert(folder: Path, *, layers: int = 3, seed: int = 0) -> None:
    """Write config.json, model.safetensors and tokenizer.json of a random BERT of 32 dimensions."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import BertConfig, BertModel

    vocabulary = {word: place for place, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS])}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = BertModel(
            BertConfig(
                vocab_size=len(vocabulary),
                hidden_size=32,
                num_hidden_layers=layers,
                num_attention_heads=4,
                intermediate_size=64,
                max_position_embeddings=40,
                initializer_range=0.2,
            ),
            add_pooling_layer=False,
        )
    model.save_pretrained(folder)
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer.save(str(folder / "tokenizer.json"))


def texts_and_pairs(
    *, pair_count: int = 300, unpaired: int = 80, seed: int = 0
) -> tuple[list[str], NDArray[np.int64]]:
    """Pairs of texts that are similar where most words are of the same topic."""
    rng = np.random.default_rng(seed)
    texts: list[str] = []
    pairs = []
    for _ in range(pair_count):
        topic, similar = int(rng.integers(TOPIC_COUNT)), int(rng.integers(2))
        other = topic if similar else (topic + 1 + int(rng.integers(TOPIC_COUNT - 1))) % TOPIC_COUNT
        texts += [_text(topic, rng), _text(other, rng)]
        pairs.append((len(texts) - 2, len(texts) - 1, similar))
    texts += [_text(int(rng.integers(TOPIC_COUNT)), rng) for _ in range(unpaired)]
    return texts, np.array(pairs, dtype=np.int64)


def _text(topic: int, rng: np.random.Generator) -> str:
    """Three of the topic's words and one to three that say nothing, shuffled."""
    own = [TOPIC_WORDS * topic + number for number in rng.integers(TOPIC_WORDS, size=3)]
    filler = TOPIC_WORDS * TOPIC_COUNT + rng.integers(FILLER_WORDS, size=rng.integers(1, 4))
    return " ".join(WORDS[number] for number in rng.permutation([*own, *filler]))
