import numpy as np
import pytest

from hashing.counterfactuals import (
    RULES,
    change_contraction,
    change_unit,
    counterfactuals,
    negate,
    renumber,
    swap_arguments,
)

RNG = np.random.default_rng(0)


@pytest.mark.parametrize(
    ("rule", "text", "changed"),
    [
        (swap_arguments, "How do I get from New York to Boston?", "How do I get from Boston to New York?"),
        (swap_arguments, "Is Java better than C++?", "Is C++ better than Java?"),
        (swap_arguments, "Why do cats hate dogs?", "Why do dogs hate cats?"),
        (swap_arguments, "How are you?", None),
        (negate, "Can I swim?", "Can I not swim?"),
        (negate, "Why isn't it red?", "Why is it red?"),
        (negate, "Why can't I sleep?", "Why can I sleep?"),
        (negate, "Can\N{RIGHT SINGLE QUOTATION MARK}t you?", "Can you?"),
        (negate, "I cannot sleep", "I can sleep"),
        (negate, "Is nothing red?", "Is not nothing red?"),
        (negate, "Why do people not vote?", "Why do not people not vote?"),
        (negate, "Best food in Rome?", None),
        (change_unit, "How to lose 5 kg in 3 weeks?", "How to lose 5 lbs in 3 weeks?"),
        (change_unit, "How many kg is it?", None),
        (change_contraction, "What is it?", "What's it?"),
        (change_contraction, "Why don't they?", "Why do not they?"),
        (change_contraction, "Why so?", None),
        (renumber, "No number?", None),
    ],
)
def test_rules_by_example(rule, text: str, changed: str | None) -> None:
    assert rule(text, RNG) == changed


@pytest.mark.parametrize("text", ["In 2016?", "0 or more", "Take 15 pills"])
def test_renumbered_text_has_another_number(text: str) -> None:
    for _ in range(50):
        assert renumber(text, RNG) not in (text, None)


def test_every_rule_says_whether_it_is_the_same() -> None:
    texts = ["Isn't Java better than Python in 2016, at 5 kg?", "What is a cat?"]
    made = list(counterfactuals(texts, np.random.default_rng(0)))
    assert {each.kind for each in made} == set(RULES)
    for each in made:
        assert each.original in texts and each.changed != each.original
        assert each.same == (each.kind in ("letter case", "punctuation", "white space", "contraction"))


def test_equal_seeds_make_equal_texts() -> None:
    texts = ["What happened in 2016?"] * 9
    first, second = (list(counterfactuals(texts, np.random.default_rng(4))) for _ in range(2))
    assert first == second
