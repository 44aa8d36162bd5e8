"""The demo's corpus is clean, and its handwritten questions agree with it."""

import json
import string
import sys
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scripts.demo_corpus import (
    CorpusEntry,
    DemoQuestion,
    load_corpus,
    load_questions,
    parse_question,
    question_key,
    select_entries,
)

REPHRASING = {
    "question": "how old are you?",
    "category": "botprofile",
    "kind": "rephrasing",
    "expected_question": "What is your age",
}

texts = st.text(string.ascii_letters + string.digits + " .,?!'\u2019\t\n", max_size=12)
conversations = st.lists(st.lists(texts | st.none(), max_size=3) | texts, max_size=20)


@pytest.fixture(scope="module")
def corpus() -> list[CorpusEntry]:
    pytest.importorskip("yaml", reason="the demo corpus needs the extra `demo`: pyyaml")
    pytest.importorskip(
        "chatterbot_corpus", reason="the demo corpus needs the extra `demo`: chatterbot-corpus"
    )
    return load_corpus()


@pytest.fixture(scope="module")
def questions() -> list[DemoQuestion]:
    return load_questions()


def test_corpus_holds_more_than_600_entries(corpus: list[CorpusEntry]) -> None:
    assert len(corpus) > 600


def test_corpus_questions_are_distinct(corpus: list[CorpusEntry]) -> None:
    assert len({question_key(entry.question) for entry in corpus}) == len(corpus)


def test_corpus_questions_are_single_spaced_lines(corpus: list[CorpusEntry]) -> None:
    assert [entry.question for entry in corpus] == [" ".join(entry.question.split()) for entry in corpus]


def test_corpus_order_is_the_same_at_every_call(corpus: list[CorpusEntry]) -> None:
    assert load_corpus() == corpus


def test_categories_are_the_topic_files_in_snake_case(corpus: list[CorpusEntry]) -> None:
    categories = {entry.category for entry in corpus}
    assert {"ai", "coding", "tech_support", "trivia"} <= categories
    assert all(question_key(category).replace(" ", "_") == category for category in categories)


def test_code_answers_keep_their_indentation(corpus: list[CorpusEntry]) -> None:
    answer = next(entry.answer for entry in corpus if entry.question == "can you write bubble sort?")
    assert "\n    n = len(arr)\n    for i in range(n):\n        for j in range" in answer


def test_a_later_answer_replaces_a_non_answer(corpus: list[CorpusEntry]) -> None:
    answer = next(entry.answer for entry in corpus if entry.question == "how far is the sun")
    assert answer == "the sun is about 93 million miles from earth."


@pytest.mark.parametrize("package", ["yaml", "chatterbot_corpus"])
def test_missing_package_names_the_extra(
    corpus: list[CorpusEntry], monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ModuleNotFoundError, match=rf"needs {package}: pip install '\.\[demo\]'"):
        load_corpus()


def test_first_of_equal_questions_is_kept_over_all_categories() -> None:
    pairs = {"a": [["Can't you?", "first"]], "b": [["  can\u2019t\nYOU", "second"], ["Can you?", "third"]]}
    assert select_entries(pairs) == [
        CorpusEntry("Can't you?", "first", "a"),
        CorpusEntry("Can you?", "third", "b"),
    ]


def test_only_the_first_two_turns_become_an_entry() -> None:
    assert select_entries({"a": [["one", "two", "three", "four"]]}) == [CorpusEntry("one", "two", "a")]


@pytest.mark.parametrize(
    "turns",
    ["not a list", [], ["alone"], ["?!", "answer"], ["question", " \n"], [1, "answer"], ["question", 2]],
)
def test_unusable_conversations_are_dropped(turns: object) -> None:
    assert select_entries({"a": [turns, ["kept", "answer"]]}) == [CorpusEntry("kept", "answer", "a")]


@pytest.mark.parametrize(
    "pair",
    [
        ["Have you felt", "Yes."],
        ["can you write a map in Python?", "numbers ="],
        ["tell me about venus", "what is venus"],
    ],
)
def test_fragments_and_non_answers_are_dropped(pair: list[str]) -> None:
    assert select_entries({"a": [pair]}) == []


@given(conversations)
def test_selected_entries_select_to_themselves(turns: list[object]) -> None:
    entries = select_entries({"a": turns})
    assert select_entries({"a": [[entry.question, entry.answer] for entry in entries]}) == entries


@given(conversations)
def test_every_pair_of_texts_is_represented_once(turns: list[object]) -> None:
    pairs = [turn[:2] for turn in turns if isinstance(turn, list) and len(turn) >= 2 and None not in turn[:2]]
    expected = {question_key(question) for question, answer in pairs if answer.strip()} - {""}
    assert sorted(question_key(entry.question) for entry in select_entries({"a": turns})) == sorted(expected)


@given(texts)
def test_question_key_ignores_case_and_punctuation(question: str) -> None:
    assert question_key(f"¿{question.swapcase()}?!") == question_key(question)


def test_questions_are_about_a_hundred_of_three_kinds(questions: list[DemoQuestion]) -> None:
    assert Counter(question.kind for question in questions) == {
        "rephrasing": 59,
        "near_miss": 32,
        "unrelated": 15,
    }


def test_no_question_is_asked_twice(questions: list[DemoQuestion]) -> None:
    assert len({question_key(question.question) for question in questions}) == len(questions)


def test_rephrasings_ask_for_different_entries_of_ten_categories(questions: list[DemoQuestion]) -> None:
    rephrasings = [question for question in questions if question.kind == "rephrasing"]
    assert len({question.expected_question for question in rephrasings}) == len(rephrasings)
    assert len({question.category for question in rephrasings}) >= 10


def test_every_expected_question_is_stored_in_its_category(
    corpus: list[CorpusEntry], questions: list[DemoQuestion]
) -> None:
    stored = {(entry.category, entry.question) for entry in corpus}
    asked = {
        (question.category, question.expected_question)
        for question in questions
        if question.expected_question
    }
    assert asked - stored == set()


def test_every_category_asked_for_exists(corpus: list[CorpusEntry], questions: list[DemoQuestion]) -> None:
    assert {question.category for question in questions} <= {entry.category for entry in corpus}


def test_no_question_is_stored_as_it_is_asked(
    corpus: list[CorpusEntry], questions: list[DemoQuestion]
) -> None:
    stored = {question_key(entry.question) for entry in corpus}
    assert [question.question for question in questions if question_key(question.question) in stored] == []


def test_a_valid_line_becomes_a_question() -> None:
    question = parse_question(json.dumps(REPHRASING), line_number=1)
    assert question == DemoQuestion("how old are you?", "botprofile", "rephrasing", "What is your age")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"kind": "guess"}, "unknown kind 'guess'"),
        ({"question": " "}, "question and category must be text"),
        ({"category": None}, "question and category must be text"),
        ({"expected_question": None}, "a rephrasing, and nothing else"),
        ({"kind": "near_miss"}, "a rephrasing, and nothing else"),
        ({"distance": 0.1}, "expected an object with the fields"),
    ],
)
def test_an_invalid_field_is_refused_with_its_line(change: dict[str, object], reason: str) -> None:
    with pytest.raises(ValueError, match=f"line 7: {reason}"):
        parse_question(json.dumps(REPHRASING | change), line_number=7)


@pytest.mark.parametrize("line", ["", "{", "[]", "{}"])
def test_a_line_that_is_no_question_is_refused(line: str) -> None:
    with pytest.raises(ValueError, match="line 3: "):
        parse_question(line, line_number=3)
