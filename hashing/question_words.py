"""Words of a text, as a verifier reads them."""

from __future__ import annotations

import re
import zlib
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

CHARS_LIMIT = 2000
"""Characters of a text that are read; what follows is not."""

WORDS_LIMIT = 64
"""Words and marks of a text that are compared; the work of a pair grows with their product."""

CHAR_DIM = 32
"""Width of a word's spelling vector: one of 32 signs for each bit of a character sequence's hash."""

SPELLINGS_LIMIT = 16_384
"""Spelling vectors of words outside a table that are kept; 128 bytes each."""

NEGATIONS = frozenset(
    [
        "not",
        "no",
        "never",
        "none",
        "nothing",
        "without",
        "nor",
        "neither",
        "nobody",
        "nowhere",
        "non",
        "isnt",
        "dont",
        "doesnt",
        "wont",
        "didnt",
        "cant",
    ]
)
QUESTION_WORDS = frozenset(["what", "who", "whom", "whose", "which", "when", "where", "why", "how"])
FUNCTION_WORDS = frozenset(
    [
        "is",
        "are",
        "was",
        "were",
        "am",
        "be",
        "been",
        "do",
        "does",
        "did",
        "can",
        "could",
        "will",
        "would",
        "should",
        "shall",
        "may",
        "might",
        "must",
        "has",
        "have",
        "had",
        "i",
        "you",
        "he",
        "she",
        "it",
        "we",
        "they",
        "me",
        "my",
        "your",
        "his",
        "her",
        "our",
        "their",
        "one",
        "us",
        "him",
        "them",
    ]
)
NUMBER_WORDS = frozenset(
    [
        "one",
        "two",
        "three",
        "four",
        "five",
        "six",
        "seven",
        "eight",
        "nine",
        "ten",
        "first",
        "second",
        "third",
        "hundred",
        "thousand",
        "million",
        "billion",
    ]
)

_CURLY = "\N{RIGHT SINGLE QUOTATION MARK}"
_WORD = re.compile(rf"[^\W_]+(?:['{_CURLY}][^\W_]+)?|[^\w\s]|_")
_IRREGULAR = {"can't": "can", "won't": "will", "shan't": "shall"}
_ENDINGS = {"s": "is", "m": "am", "re": "are", "ve": "have", "ll": "will", "d": "would"}
_GRAM_LENGTHS = (2, 3, 4)


def words_of(text: str) -> list[tuple[str, bool]]:
    """Return the first WORDS_LIMIT words and marks as (lower case, whether it began with a capital).

    Contractions are taken apart: "what's" is "what", "is"; "can't" is "can", "not".
    """
    words: list[tuple[str, bool]] = []
    for match in _WORD.finditer(text[:CHARS_LIMIT]):
        surface = match.group()
        lower = surface.lower()
        if len(lower) > 2 and not lower.isalnum():
            words += _apart(lower.replace(_CURLY, "'"), capital=surface[0].isupper())
        elif lower == "cannot":
            words += [("can", surface[0].isupper()), ("not", False)]
        else:
            words.append((lower, surface[0].isupper()))
        if len(words) >= WORDS_LIMIT:
            break
    return words[:WORDS_LIMIT]


def is_word(word: str) -> bool:
    """Say whether it is a word or a number, not a mark."""
    return word[0].isalnum()


def is_number(word: str) -> bool:
    """Say whether it is a number in digits (units may follow) or in letters."""
    return word[0].isdigit() or word in NUMBER_WORDS


@lru_cache(maxsize=SPELLINGS_LIMIT)
def spelling(word: str) -> NDArray[np.float32]:
    """Return the spelling vector, float32 [CHAR_DIM] of length 1: words spelled alike have similar ones.

    The sum over the sequences of 2 to 4 characters of signs that are the bits of the sequence's hash (random
    indexing; Kanerva et al. 2000).
    """
    framed = f"<{word}>"
    grams = [
        framed[start : start + length]
        for length in _GRAM_LENGTHS
        for start in range(len(framed) - length + 1)
    ]
    hashes = np.array([zlib.crc32(gram.encode("utf-8", "surrogatepass")) for gram in grams], dtype=np.uint32)
    hashes *= np.uint32(0x85EBCA6B)  # CRC is linear in its input; the product mixes its bits
    hashes ^= hashes >> np.uint32(15)
    hashes *= np.uint32(0xC2B2AE35)
    hashes ^= hashes >> np.uint32(13)
    bits = (hashes[:, None] >> np.arange(CHAR_DIM, dtype=np.uint32)) & np.uint32(1)
    total = 2.0 * bits.sum(axis=0) - len(grams)
    vector: NDArray[np.float32] = (total / max(np.linalg.norm(total), 1e-9)).astype(np.float32)
    vector.setflags(write=False)
    return vector


def _apart(lower: str, *, capital: bool) -> list[tuple[str, bool]]:
    if lower.endswith("n't") and lower != "n't":
        return [(_IRREGULAR.get(lower, lower[:-3]), capital), ("not", False)]
    stem, _, ending = lower.partition("'")
    if ending in _ENDINGS:
        return [(stem, capital), (_ENDINGS[ending], False)]
    return [(lower, capital)]
