"""Decisions in words: a sentence for every reason, with the figures that decided."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from service.decision_rules import DecisionRule, RuleSource
from service.embedding import Input
from service.explaining import explain
from service.lookup import Found, Lookup, LookupQuery, LookupReason
from service.policy import Policy
from service.promise import Target
from service.records import CategoryRecord
from service.risk import Risk, no_evidence

COUNTS = ("entry_count", "size_bytes", "hit_count", "miss_count", "shadow_hit_count", "bypass_count")
HITS = (LookupReason.FINGERPRINT, LookupReason.WITHIN_THRESHOLD)
RULE = DecisionRule(
    source=RuleSource.LEARNED,
    model=no_evidence(),
    risk_limit=0.08,
    target=Target(wrong_share=0.02),
    judged_count=12_345,
    wrong_count=67,
)


def told(
    reason: LookupReason,
    *,
    found: dict[str, Any] | None = None,
    rule: DecisionRule | None = RULE,
    **policy: Any,
) -> str:
    """The sentence; found: what differs from an entry at 0.123."""
    costs = {"lookup_cost": 1.0, "model_cost": 10.0}
    category = CategoryRecord(
        id=1,
        cache_id=1,
        name="faq",
        policy=Policy(**{"threshold": 0.25, **costs, **policy}),
        own_policy={},
        parent_id=None,
        parent="",
        **dict.fromkeys(COUNTS, 0),
        create_ms=0,
        version=1,
    )
    query = LookupQuery(category="faq", source=Input(embedding=np.ones(4, dtype=np.float32)))
    lookup = Lookup(query, category, (), 0.25, None, None)
    return explain(
        reason,
        lookup,
        Found(**{"match": None, "reason": reason, "distance": 0.123, **(found or {})}),
        rule=rule,
    )


@pytest.mark.parametrize("reason", list(LookupReason))
def test_every_reason_has_one_sentence_that_says_hit_or_miss(reason: LookupReason) -> None:
    sentence = told(reason, max_wrong=0.02)
    assert sentence.startswith("hit: " if reason in HITS else "miss")
    assert "None" not in sentence and "unknown" not in sentence
    assert "\n" not in sentence and not sentence.endswith(".") and ". " not in sentence


def test_no_two_reasons_are_told_alike() -> None:
    assert len({told(reason, max_wrong=0.02) for reason in LookupReason}) == len(LookupReason)


@pytest.mark.parametrize("reason", [LookupReason.WITHIN_THRESHOLD, LookupReason.RISKY])
@pytest.mark.parametrize("source", [RuleSource.LEARNED, RuleSource.BORROWED])
def test_a_learned_decision_names_risk_limit_and_evidence(reason: LookupReason, source: RuleSource) -> None:
    found = {"risk": Risk(0.0512, 0.01, 0.2), "risk_limit": 0.08, "rule_source": source}
    sentence = told(reason, found=found, rule=replace(RULE, source=source), max_wrong=0.02)
    owner = "its own" if source is RuleSource.LEARNED else "its parent's"
    for words in (
        "0.123 away",
        "5.12% (1% to 20%)",
        "8%",
        f"12,345 of {owner}",
        "67 wrong",
        "2% of all hits",
    ):
        assert words in sentence


def test_a_cold_decision_names_the_threshold_that_holds_meanwhile() -> None:
    cold = {"rule_source": RuleSource.COLD}
    for reason in (LookupReason.WITHIN_THRESHOLD, LookupReason.RISKY):
        sentence = told(reason, found=cold, max_wrong=0.03, cold_threshold=0.015)
        assert "0.015" in sentence and "too little is known to promise" in sentence
    assert "3% wrong" in told(LookupReason.RISKY, found=cold, max_wrong=0.03)


def test_a_fixed_threshold_is_named_and_the_verifiers_word_too() -> None:
    fixed = {"rule_source": RuleSource.FIXED}
    assert "0.123 away, within 0.250" in told(LookupReason.WITHIN_THRESHOLD, found=fixed)
    assert "0.090" in told(LookupReason.BEYOND_THRESHOLD, found={"mapped_threshold": 0.09})
    assert "no entry is within 0.250" in told(LookupReason.BEYOND_THRESHOLD, found={"distance": None})
    asked = {**fixed, "probability": 0.875}
    assert "gives it 87.5%" in told(LookupReason.WITHIN_THRESHOLD, found=asked, min_probability=0.5)
    asked = {"probability": 0.4}
    refused = told(LookupReason.UNVERIFIED, found=asked, min_probability=0.5)
    assert "40%, less than 50%" in refused
    assert "could not be asked" in told(LookupReason.UNVERIFIED, min_probability=0.5)


def test_what_was_not_looked_for_needs_nothing_found() -> None:
    query = LookupQuery(category="faq", source=Input(embedding=np.ones(4, dtype=np.float32)))
    lookup = Lookup(query, None, (), 0.25, None, None)  # type: ignore[arg-type]
    assert explain(LookupReason.BYPASS, lookup, None, rule=None).startswith("miss")


def test_a_rule_that_went_meanwhile_is_said_to_be_gone() -> None:
    found = {"risk": Risk(0.1, 0.0, 0.2), "risk_limit": 0.08}
    assert "gone" in told(LookupReason.RISKY, found=found, rule=None, max_wrong=0.02)
