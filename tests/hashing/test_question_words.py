import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hashing.question_words import CHAR_DIM, CHARS_LIMIT, WORDS_LIMIT, is_number, is_word, spelling, words_of


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("What's new?", ["what", "is", "new", "?"]),
        ("I can't, cannot and won't!", ["i", "can", "not", ",", "can", "not", "and", "will", "not", "!"]),
        ("It isn\N{RIGHT SINGLE QUOTATION MARK}t", ["it", "is", "not"]),
        ("Bob's car", ["bob", "is", "car"]),  # "'s" is read as "is" everywhere: no grammar tells them apart
        ("C++ in 2016_17", ["c", "+", "+", "in", "2016", "_", "17"]),
        ("n't o'clock 's", ["n't", "o'clock", "'", "s"]),
        ("", []),
        (" \t\n", []),
        ("你好 ok", ["你好", "ok"]),
    ],
)
def test_texts_become_words(text: str, words: list[str]) -> None:
    assert [word for word, _ in words_of(text)] == words


def test_capitals_are_kept_apart_from_the_word() -> None:
    assert words_of("From Delhi to goa") == [("from", True), ("delhi", True), ("to", False), ("goa", False)]


def test_long_texts_are_cut() -> None:
    assert len(words_of("a " * 10_000)) == WORDS_LIMIT
    assert words_of(" " * CHARS_LIMIT + "late") == []


def test_numbers_and_marks_are_told() -> None:
    assert [is_number(word) for word in ("4", "4kg", "four", "for")] == [True, True, True, False]
    assert [is_word(word) for word in ("a", "4", "?", "_")] == [True, True, False, False]


def test_spelling_is_alike_for_words_that_are() -> None:
    alike = float(spelling("hollywood") @ spelling("holywood"))
    other = float(spelling("hollywood") @ spelling("beginner"))
    assert alike > 0.7 > other + 0.2


@given(st.text(min_size=1, max_size=30))
def test_spelling_is_a_unit_vector_of_any_word(word: str) -> None:
    vector = spelling(word)
    assert vector.shape == (CHAR_DIM,) and vector.dtype == np.float32
    assert np.linalg.norm(vector) == pytest.approx(1, abs=1e-5) or not vector.any()


@given(st.text())
def test_any_text_can_be_read(text: str) -> None:
    words = words_of(text)
    assert len(words) <= WORDS_LIMIT
    assert all(word and not word.isspace() for word, _ in words)
