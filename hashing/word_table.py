"""What a verifier knows of words: rarity, meaning, and what each says where only one text has it."""

from __future__ import annotations

import zlib
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from hashing.question_words import (
    CHAR_DIM,
    FUNCTION_WORDS,
    NEGATIONS,
    QUESTION_WORDS,
    is_number,
    is_word,
    spelling,
    words_of,
)

ATTRIBUTES = (
    "words",
    "rarity",
    "numbers",
    "names",
    "negations",
    "question_words",
    "function_words",
    "marks",
    "head",
    "tail",
)
"""Weights of a token that its gaps are summed by. names: capitals that do not begin the text; head, tail:
rarity by nearness to the beginning and the end."""

_RARITY = ATTRIBUTES.index("rarity")
_NAMES = ATTRIBUTES.index("names")
_HEAD = ATTRIBUTES.index("head")
_TAIL = ATTRIBUTES.index("tail")
_FIXED_COUNT = _HEAD  # attributes before it depend on the word alone, names apart
EVIDENCE_COLUMNS = 2
TEXT_FIGURES = 4
TAGS = 4


@dataclass(frozen=True, slots=True, eq=False)
class PreparedText:
    """What is compared of one text of t tokens.

    ids: int64 [t], equal for equal words, at least 0 for those of the table. meaning: float32 [t, word_dim],
    of length 1, 0 for other words. spelling: float32 [t, CHAR_DIM]. weights: float32 [t, attributes + 2],
    ATTRIBUTES and then the evidence of the word unmatched and matched. position: float32 [t], in (0, 1).
    figures: float32 [TEXT_FIGURES + attributes], of the whole text. tags: int64 [TAGS], ids of the question
    word, the first, second and last word.
    """

    ids: NDArray[np.int64]
    meaning: NDArray[np.float32]
    spelling: NDArray[np.float32]
    weights: NDArray[np.float32]
    position: NDArray[np.float32]
    figures: NDArray[np.float32]
    tags: NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class WordTable:
    """words: v distinct words in lower case. rarity: float32 [v], log of texts a text with it (IDF). meaning:
    float32 [v, word_dim], of length 1. evidence: float32 [v, 2], log odds of the same for each time that the
    word is in one of the texts only, and in both."""

    words: tuple[str, ...]
    rarity: NDArray[np.float32]
    meaning: NDArray[np.float32]
    evidence: NDArray[np.float32]
    _place: dict[str, int] = field(init=False, repr=False)
    _spelling: NDArray[np.float32] = field(init=False, repr=False)
    _fixed: NDArray[np.float32] = field(init=False, repr=False)
    _most_rarity: float = field(init=False, repr=False)

    def __post_init__(self) -> None:
        spelled = [spelling(word) for word in self.words]
        most = float(self.rarity.max(initial=1.0))
        fixed = [
            _fixed_weights(word, float(rarity)) for word, rarity in zip(self.words, self.rarity, strict=True)
        ]
        set_field = object.__setattr__
        set_field(self, "_place", {word: place for place, word in enumerate(self.words)})
        set_field(self, "_spelling", np.array(spelled, dtype=np.float32).reshape(-1, CHAR_DIM))
        set_field(self, "_fixed", np.array(fixed, dtype=np.float32).reshape(-1, _FIXED_COUNT))
        set_field(self, "_most_rarity", most)
        for array in (self.rarity, self.meaning, self.evidence):
            array.setflags(write=False)

    def prepare(self, text: str) -> PreparedText | None:
        """Read a text; None where it has neither a word nor a mark."""
        tokens = words_of(text)
        if not tokens:
            return None
        count = len(tokens)
        places = np.array([self._place.get(word, -1) for word, _ in tokens])
        if len(self.words):
            meaning = self.meaning[places]
            spelled = self._spelling[places]
            weights = np.zeros((count, len(ATTRIBUTES) + EVIDENCE_COLUMNS), dtype=np.float32)
            weights[:, :_FIXED_COUNT] = self._fixed[places]
            weights[:, len(ATTRIBUTES) :] = self.evidence[places]
        else:
            meaning = np.zeros((count, self.meaning.shape[1]), dtype=np.float32)
            spelled = np.zeros((count, CHAR_DIM), dtype=np.float32)
            weights = np.zeros((count, len(ATTRIBUTES) + EVIDENCE_COLUMNS), dtype=np.float32)
        ids = places.astype(np.int64)
        for token in np.flatnonzero(places < 0).tolist():
            word = tokens[token][0]
            ids[token] = -1 - zlib.crc32(word.encode("utf-8", "surrogatepass"))
            meaning[token] = 0
            spelled[token] = spelling(word)
            weights[token, :_FIXED_COUNT] = _fixed_weights(word, self._most_rarity)
            weights[token, len(ATTRIBUTES) :] = 0
        position = ((np.arange(count) + 0.5) / count).astype(np.float32)
        names = [capital and token > 0 and word != "i" for token, (word, capital) in enumerate(tokens)]
        rarity = weights[:, _RARITY]
        weights[:, _NAMES] = rarity * names
        weights[:, _HEAD] = rarity * (1 - position)
        weights[:, _TAIL] = rarity * position
        return PreparedText(
            ids=ids,
            meaning=meaning,
            spelling=spelled,
            weights=weights,
            position=position,
            figures=_figures(text, tokens, weights),
            tags=_tags(tokens, ids),
        )


def _fixed_weights(word: str, rarity: float) -> list[float]:
    word_like = is_word(word)
    rarity = rarity if word_like else 0.0
    return [
        float(word_like),
        rarity,
        rarity if is_number(word) else 0.0,
        0.0,
        float(word in NEGATIONS),
        float(word in QUESTION_WORDS),
        float(word in FUNCTION_WORDS),
        float(not word_like),
    ]


def _figures(text: str, tokens: list[tuple[str, bool]], weights: NDArray[np.float32]) -> NDArray[np.float32]:
    sentences = text.count(".") + text.count("?") + text.count("!")
    chars = sum(len(word) for word, _ in tokens)  # white space says nothing
    known = (len(tokens), chars, sentences, sum(capital for _, capital in tokens))
    return np.concatenate([np.array(known, dtype=np.float32), weights[:, : len(ATTRIBUTES)].sum(axis=0)])


def _tags(tokens: list[tuple[str, bool]], ids: NDArray[np.int64]) -> NDArray[np.int64]:
    asks = [int(ids[token]) for token, (word, _) in enumerate(tokens) if word in QUESTION_WORDS]
    own = [int(ids[token]) for token, (word, _) in enumerate(tokens) if is_word(word)]
    own = own or [int(ids[0])]
    return np.array([asks[0] if asks else -1, own[0], own[min(1, len(own) - 1)], own[-1]], dtype=np.int64)
