"""Decisions in words."""

from collections.abc import Callable

from service.break_even import break_even_hit_rate
from service.decision_rules import DecisionRule, RuleSource
from service.lookup import Found, Lookup, LookupReason


def explain(reason: LookupReason, lookup: Lookup, found: Found | None, *, rule: DecisionRule | None) -> str:
    """Why a lookup was a hit or a miss, in a sentence; rule: of its category."""
    return _SENTENCES[reason](lookup, found, rule)


def _by_distance(lookup: Lookup, found: Found | None, rule: DecisionRule | None) -> str:
    assert found is not None  # it was searched for
    if found.risk is not None:
        limit = _percent(found.risk_limit)
        return f"hit: {_risk_of(found)}, and up to {limit} is served; {_evidence(lookup, rule)}"
    if found.rule_source is RuleSource.COLD:
        limit = _far(lookup.category.policy.cold_threshold)
        return (
            f"hit: the entry is {_far(found.distance)} away, within the {limit} that holds while too little"
            " is known to promise anything"
        )
    consent = (
        "" if found.probability is None else f", and the verifier gives it {_percent(found.probability)}"
    )
    return f"hit: the entry is {_far(found.distance)} away, within {_far(_limit(lookup, found))}{consent}"


def _risky(lookup: Lookup, found: Found | None, rule: DecisionRule | None) -> str:
    assert found is not None  # it was searched for
    if found.risk is None:
        policy = lookup.category.policy
        return (
            f"miss: the best entry is {_far(found.distance)} away; while too little is known to promise at"
            f" most {_percent(policy.max_wrong)} wrong, only what is within {_far(policy.cold_threshold)} is"
            " served"
        )
    limit = _percent(found.risk_limit)
    return f"miss: {_risk_of(found)}, and at most {limit} is served; {_evidence(lookup, rule)}"


def _beyond(lookup: Lookup, found: Found | None, _rule: DecisionRule | None) -> str:
    assert found is not None  # it was searched for
    nearest = (
        "no entry is" if found.distance is None else f"the nearest entry is {_far(found.distance)} away, not"
    )
    return f"miss: {nearest} within {_far(_limit(lookup, found))}"


def _unverified(lookup: Lookup, found: Found | None, _rule: DecisionRule | None) -> str:
    assert found is not None  # it was searched for
    if found.probability is None:
        return "miss: entries are within the threshold, and the verifier could not be asked"
    least = lookup.category.policy.min_probability
    return (
        f"miss: the verifier gives the best entry {_percent(found.probability)}, less than {_percent(least)}"
    )


def _distrusted(lookup: Lookup, found: Found | None, _rule: DecisionRule | None) -> str:
    assert found is not None  # it was searched for
    return (
        f"miss: the nearest entry is {_far(found.distance)} away, within {_far(lookup.threshold)}, but near"
        " this question a wrong answer was served"
    )


def _unprofitable(lookup: Lookup, _found: Found | None, _rule: DecisionRule | None) -> str:
    least = break_even_hit_rate(lookup.category.policy)
    return (
        f"miss: nothing was searched, as searching pays from a hit rate of {_percent(least)} on, and the"
        " category's is lower"
    )


def _always(sentence: str) -> Callable[[Lookup, Found | None, DecisionRule | None], str]:
    return lambda _lookup, _found, _rule: sentence


_SENTENCES = {
    LookupReason.FINGERPRINT: _always("hit: the entry is of the very request"),
    LookupReason.WITHIN_THRESHOLD: _by_distance,
    LookupReason.BEYOND_THRESHOLD: _beyond,
    LookupReason.NO_CANDIDATE: _always("miss: there is no entry of this scope"),
    LookupReason.BYPASS: _always("miss: nothing was searched for, as was asked"),
    LookupReason.REFRESH: _always("miss, as was asked: the entry would have been served"),
    LookupReason.SHADOW: _always(
        "miss: the category serves nothing (shadow); the entry would have been served"
    ),
    LookupReason.UNVERIFIED: _unverified,
    LookupReason.LEASED: _always("miss: another caller computes the same question"),
    LookupReason.STALE: _always("miss: the entry that would have been served is too old"),
    LookupReason.EXPLORED: _always(
        "miss: the entry would have been served, but it is to be learned whether it is right"
    ),
    LookupReason.RISKY: _risky,
    LookupReason.UNPROFITABLE: _unprofitable,
    LookupReason.DISTRUSTED: _distrusted,
}


def _risk_of(found: Found) -> str:
    assert found.risk is not None  # a rule decided
    probability, low, high = found.risk
    return (
        f"the best entry, {_far(found.distance)} away, is wrong with an estimated probability of"
        f" {_percent(probability)} ({_percent(low)} to {_percent(high)})"
    )


def _evidence(lookup: Lookup, rule: DecisionRule | None) -> str:
    target = lookup.category.policy.target
    if rule is None or target is None:
        return "by a rule that is gone"
    owner = "its own" if rule.source is RuleSource.LEARNED else "its parent's"
    at_load = lookup.category.policy.target_at_load
    busy = (
        ""
        if not lookup.load or at_load is None
        else f", at full load {_percent(at_load.wrong_share)}; the load is {_percent(lookup.load)}"
    )
    return (
        f"learned from {rule.judged_count:,} of {owner} judged lookups ({rule.wrong_count:,} wrong), so that"
        f" at most {_percent(target.wrong_share)} of all {target.basis} are wrong{busy}"
    )


def _limit(lookup: Lookup, found: Found) -> float:
    return lookup.threshold if found.mapped_threshold is None else found.mapped_threshold


def _far(distance: float | None) -> str:
    return "unknown" if distance is None else f"{distance:.3f}"


def _percent(share: float | None) -> str:
    return "unknown" if share is None else f"{100 * share:.3g}%"
