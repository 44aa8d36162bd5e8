"""What is compared of two texts, beside a plain loop over their words."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hashing.pair_features import FEATURE_NAMES, GAPS, pair_features
from hashing.word_table import ATTRIBUTES, TEXT_FIGURES, PreparedText, WordTable

WORDS = ("a", "b", "is", "not", "two", "what", "delhi", "2016", "better")


def _table(words: tuple[str, ...] = WORDS) -> WordTable:
    rng = np.random.default_rng(0)
    meaning = rng.standard_normal((len(words), 6)).astype(np.float32)
    return WordTable(
        words=words,
        rarity=np.linspace(1, 4, len(words), dtype=np.float32),
        meaning=meaning / np.maximum(np.linalg.norm(meaning, axis=1, keepdims=True), 1e-9),
        evidence=rng.standard_normal((len(words), 2)).astype(np.float32),
    )


TABLE = _table()


def _prepared(text: str, table: WordTable = TABLE) -> PreparedText:
    prepared = table.prepare(text)
    assert prepared is not None
    return prepared


def _named(query: str, row: str) -> dict[str, float]:
    features, _ = pair_features(_prepared(query), [_prepared(row)])
    return dict(zip(FEATURE_NAMES, features[0].tolist(), strict=True))


def _by_loops(query: PreparedText, row: PreparedText) -> tuple[dict[str, float], float]:
    """The gaps of every token and attribute, the moved words and the evidence, one step after another."""

    def alike(one: PreparedText, i: int, other: PreparedText, j: int) -> list[float]:
        if one.ids[i] == other.ids[j]:
            return [1.0] * 4
        meaning = float(one.meaning[i] @ other.meaning[j])
        spelled = float(one.spelling[i] @ other.spelling[j])
        return [0.0, max(meaning, 0.0), max(spelled, 0.0), max(meaning, spelled, 0.0)]

    def gaps(one: PreparedText, other: PreparedText) -> np.ndarray:
        return np.array(
            [
                1 - np.max([alike(one, i, other, j) for j in range(other.ids.size)], axis=0)
                for i in range(one.ids.size)
            ]
        ).T  # [gaps, tokens]

    figures: dict[str, float] = {}
    own, other = gaps(row, query), gaps(query, row)
    for number, gap in enumerate(GAPS):
        for column, name in enumerate(ATTRIBUTES):
            sums = (own[number] @ row.weights[:, column], other[number] @ query.weights[:, column])
            figures[f"least_{gap}_{name}"], figures[f"most_{gap}_{name}"] = min(sums), max(sums)
    query_ids, row_ids = query.ids.tolist(), row.ids.tolist()
    places = [query_ids.index(token) for token in row_ids if token in query_ids]
    figures["matched"] = len(places)
    figures["inversions"] = sum(later < sooner for sooner, later in itertools.pairwise(places))
    bigrams = set(itertools.pairwise(query_ids))
    figures["common_bigrams"] = sum(pair in bigrams for pair in itertools.pairwise(row_ids))
    unmatched, matched = len(ATTRIBUTES), len(ATTRIBUTES) + 1
    evidence = 0.0
    for one, gap in ((row, own[0]), (query, other[0])):
        evidence += float(gap @ one.weights[:, unmatched] + (1 - gap) @ one.weights[:, matched] / 2)
    return figures, evidence


TEXTS = st.lists(
    st.sampled_from([*WORDS, "Delhi", "unseen", "unsent", "?", "3"]), min_size=1, max_size=9
).map(" ".join)


@given(query=TEXTS, row=TEXTS)
@settings(max_examples=60, deadline=None)
def test_features_equal_the_loop_over_words(query: str, row: str) -> None:
    first, second = _prepared(query), _prepared(row)
    expected, evidence = _by_loops(first, second)
    features, got_evidence = pair_features(first, [second])
    got = dict(zip(FEATURE_NAMES, features[0].tolist(), strict=True))
    for name, value in expected.items():
        assert got[name] == pytest.approx(value, abs=1e-4), name
    assert got_evidence[0] == pytest.approx(evidence, abs=1e-4)


@given(query=TEXTS, rows=st.lists(TEXTS, min_size=1, max_size=5))
@settings(max_examples=60, deadline=None)
def test_what_is_said_of_a_row_depends_on_no_other_row(query: str, rows: list[str]) -> None:
    together, evidence = pair_features(_prepared(query), [_prepared(row) for row in rows])
    for number, row in enumerate(rows):
        alone, own_evidence = pair_features(_prepared(query), [_prepared(row)])
        np.testing.assert_allclose(together[number], alone[0], atol=1e-4)
        assert evidence[number] == pytest.approx(float(own_evidence[0]), abs=1e-4)


def test_equal_texts_have_no_gap() -> None:
    named = _named("What is better, Delhi or 2016?", "what is better Delhi or 2016")
    assert named["most_exact_words"] == 0 and named["most_meaning_rarity"] == pytest.approx(0, abs=1e-6)
    assert named["most_exact_marks"] == 2
    assert named["inversions"] == 0 and named["same_question_word"] == 1


def test_swapped_words_are_an_inversion() -> None:
    named = _named("is a better than b", "is b better than a")
    assert named["most_exact_words"] == 0
    assert named["inversions"] > 0 and named["shift"] > 0 and named["common_bigrams"] == 1


def test_number_negation_and_name_show_as_their_kind() -> None:
    other_number = _named("a in 2016", "a in 2017")
    assert other_number["least_exact_numbers"] > 0 and other_number["most_exact_negations"] == 0
    assert _named("is a", "is not a")["most_exact_negations"] == 1
    assert _named("a in Delhi", "a in Goa")["most_exact_names"] > 0
    assert _named("what is a", "two is a")["most_exact_question_words"] == 1


def test_words_outside_the_table_are_equal_to_themselves_only() -> None:
    assert _named("unseen", "unseen")["most_exact_words"] == 0
    assert _named("unseen", "others")["most_exact_words"] == 1
    close = _named("hollywood", "holywood")
    assert close["most_spelling_words"] < 0.4 and close["most_exact_words"] == 1


def test_text_of_a_table_without_words_is_read() -> None:
    features, evidence = pair_features(
        _prepared("a b", _table(())), [_prepared("b c", _table(())), _prepared("!", _table(()))]
    )
    assert np.isfinite(features).all() and not evidence.any()


def test_prepared_text_counts_what_it_holds() -> None:
    prepared = _prepared("Is Delhi not two? Yes.")
    assert prepared.figures[:TEXT_FIGURES].tolist() == [7, 18, 2, 3]
    totals = dict(zip(ATTRIBUTES, prepared.figures[TEXT_FIGURES:].tolist(), strict=True))
    assert totals["words"] == 5 and totals["negations"] == 1 and totals["marks"] == 2
    assert totals["head"] + totals["tail"] == pytest.approx(totals["rarity"], abs=1e-4)
    assert TABLE.prepare("") is None and TABLE.prepare("  ") is None


@given(st.text(max_size=60), st.text(max_size=60))
@settings(deadline=None)
def test_any_texts_can_be_compared(query: str, row: str) -> None:
    first, second = TABLE.prepare(query), TABLE.prepare(row)
    if first is None or second is None:
        return
    features, evidence = pair_features(first, [second, first])
    assert features.shape == (2, len(FEATURE_NAMES)) and features.dtype == np.float32
    assert np.isfinite(features).all() and np.isfinite(evidence).all()
    names = dict(zip(FEATURE_NAMES, features[1].tolist(), strict=True))
    assert all(abs(names[f"most_{gap}_words"]) < 1e-4 for gap in GAPS)
