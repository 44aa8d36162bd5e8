"""Which of the entries that are near enough is served, if any.

Demoted entries and those near false hits drop out, then stale ones where others are fresh. Of the rest a
category with a fixed threshold serves the nearest, one that asks for consent the most probable, and one with
a target the one that most speaks for, if the estimated risk is within the limit that was learned.
"""

import hashlib
from collections.abc import Sequence

from index.requests import Match
from service.consent import probabilities_of
from service.decision_rules import DecisionRule, RuleSource, limit_at
from service.evidence import judge_of, sketch_of
from service.expiration import Freshness, freshness
from service.false_hits import NOTHING, Memory
from service.lookup import Found, Lookup, LookupReason
from service.payload import Facts, payload_facts, response_key
from service.replica import CacheState
from service.risk import weigh
from service.threshold import decide

VERIFIED = 8
"""Of the nearest entries, that a verifier is asked about where a rule is to be learned."""


def choose(
    state: CacheState, lookup: Lookup, found: Found, matches: Sequence[Match], *, now_ms: int
) -> Found:
    """What is found, as the category decides.

    found: the nearest entry within reach. matches: ascending by distance, with vectors where a verifier is
    asked.
    """
    within = [match for match in matches if decide(match.cosine_distance, reach(lookup)).within]
    trusted = [match for match in within if not payload_facts(match.payload).is_demoted]
    if not trusted:  # all that are near enough were judged wrong: they are as good as beyond
        return found._replace(match=None, reason=LookupReason.BEYOND_THRESHOLD, distance=None)
    memory = _memory(state, lookup)
    if memory.strictness < 1.0:
        near = trusted
        limit = reach(lookup) * (1.0 if is_learned(lookup) else memory.strictness)
        trusted = [
            match
            for match in near
            if match.entry_id not in memory.entry_ids and match.cosine_distance <= limit
        ]
        if not trusted:
            return found._replace(
                match=None, reason=LookupReason.DISTRUSTED, distance=near[0].cosine_distance
            )
    fresh = [match for match in trusted if _freshness(lookup, match, now_ms=now_ms) is not Freshness.STALE]
    candidates = fresh or trusted
    if is_learned(lookup):
        chosen = _by_rule(state, lookup, found, candidates, memory)
    elif asks_consent(lookup):
        chosen = _by_consent(state, lookup, found, candidates)
    else:
        chosen = _served(found, candidates[0], source=RuleSource.FIXED)
    if chosen.reason is not LookupReason.WITHIN_THRESHOLD:
        return chosen
    return aged(lookup, chosen, now_ms=now_ms)


def asks_consent(lookup: Lookup) -> bool:
    """Whether a hit by distance needs a verifier's consent."""
    return lookup.category.policy.min_probability is not None and not lookup.is_mapped


def is_learned(lookup: Lookup) -> bool:
    """Whether a learned rule decides; of mapped distances none is learned."""
    return lookup.category.policy.max_wrong is not None and not lookup.is_mapped


def reach(lookup: Lookup) -> float:
    """Cosine distance within which entries are looked at. A rule learns from all within the category's
    threshold: to one that asks for nearer ones, those beyond must still speak against."""
    return lookup.category.policy.threshold if is_learned(lookup) else lookup.threshold


def sure_threshold(lookup: Lookup) -> float:
    """Cosine distance within which an entry is a hit whatever else is known, but for a verifier's consent."""
    policy = lookup.category.policy
    return lookup.threshold if policy.max_wrong is None else min(lookup.threshold, policy.cold_threshold)


def is_served(state: CacheState, lookup: Lookup, match: Match, *, now_ms: int) -> bool:
    """Whether an entry that is near enough may be a hit by distance."""
    if _freshness(lookup, match, now_ms=now_ms) is Freshness.STALE or payload_facts(match.payload).is_demoted:
        return False
    return match.entry_id not in _memory(state, lookup).entry_ids


def aged(lookup: Lookup, found: Found, *, now_ms: int) -> Found:
    """What is found, as the age of its entry lets it be served."""
    assert found.match is not None  # what has an age
    age = _freshness(lookup, found.match, now_ms=now_ms)
    if age is Freshness.STALE:
        return found._replace(reason=LookupReason.STALE)
    return found._replace(refresh_due=True) if age is Freshness.DUE else found


def _freshness(lookup: Lookup, match: Match, *, now_ms: int) -> Freshness:
    policy, max_age_ms = lookup.category.policy, lookup.query.max_age_ms
    if max_age_ms is None and policy.refresh_after_ms is None:  # as most are
        return Freshness.FRESH
    facts: Facts = payload_facts(match.payload)
    return freshness(facts.create_ms, policy, now_ms=now_ms, max_age_ms=max_age_ms, load=lookup.load or 0.0)


def _served(found: Found, match: Match, *, source: RuleSource) -> Found:
    return found._replace(match=match, distance=match.cosine_distance, rule_source=source)


def _by_consent(state: CacheState, lookup: Lookup, found: Found, candidates: Sequence[Match]) -> Found:
    """The entry that the verifier says is most probable to fit, of equal ones the nearest."""
    min_probability = lookup.category.policy.min_probability
    assert min_probability is not None  # it was asked for
    probabilities = _probabilities(state, lookup, candidates)
    if probabilities is None:
        return found._replace(match=None, reason=LookupReason.UNVERIFIED)
    best = max(range(len(candidates)), key=probabilities.__getitem__)  # the first of equal ones
    chosen = _served(found, candidates[best], source=RuleSource.FIXED)
    chosen = chosen._replace(probability=probabilities[best])
    if probabilities[best] < min_probability:
        return chosen._replace(match=None, distance=found.distance, reason=LookupReason.UNVERIFIED)
    return chosen


def _by_rule(
    state: CacheState, lookup: Lookup, found: Found, candidates: Sequence[Match], memory: Memory
) -> Found:
    """The entry that most speaks for, where the category's rule serves it."""
    policy, embedded = lookup.category.policy, lookup.embedded
    assert embedded is not None  # it was searched for
    verifier = state.verifiers.get(embedded.space)
    probabilities = None
    if verifier is not None:
        candidates = candidates[:VERIFIED]
        probabilities = _probabilities(state, lookup, candidates)
    weighed = weigh(
        [match.cosine_distance for match in candidates],
        [response_key(match.payload) for match in candidates],
        probabilities,
    )
    match = candidates[weighed.position]
    probability = None if probabilities is None else probabilities[weighed.position]
    verifier_id = "" if verifier is None or probabilities is None else verifier.verifier_id
    judge = judge_of(embedded.space, verifier_id)
    chosen = _served(found, match, source=RuleSource.COLD)._replace(
        candidate=match, features=weighed.features, judge=judge, probability=probability
    )
    if not decide(match.cosine_distance, lookup.threshold).within:
        return chosen._replace(match=None, reason=LookupReason.BEYOND_THRESHOLD)
    if policy.min_probability is not None and (probability is None or probability < policy.min_probability):
        return chosen._replace(match=None, reason=LookupReason.UNVERIFIED)
    rule = state.rules.get(lookup.category.id)
    # What was learned for another target, or of other distances, promises nothing.
    promises = rule is not None and (rule.judge, rule.target) == (judge, policy.target)
    if rule is None or rule.source is RuleSource.COLD or not promises:
        is_hit = match.cosine_distance <= policy.cold_threshold * memory.strictness
        return chosen if is_hit else chosen._replace(match=None, reason=LookupReason.RISKY)
    return _within_limit(lookup, chosen, rule, memory)


def _within_limit(lookup: Lookup, chosen: Found, rule: DecisionRule, memory: Memory) -> Found:
    """What was chosen, where its risk is within the limit; of these some are explored."""
    policy, match, embedded = lookup.category.policy, chosen.match, lookup.embedded
    assert policy.target is not None and match is not None and embedded is not None  # else there is no rule
    risk = rule.model.risk(chosen.features, z=policy.target.z)
    load = lookup.load if rule.target_at_load == policy.target_at_load else None
    limit = limit_at(rule, policy, load or 0.0) * memory.strictness
    chosen = chosen._replace(rule_source=rule.source, risk=risk, risk_limit=limit)
    if not risk.probability <= limit:  # nor where it is no number
        return chosen._replace(match=None, reason=LookupReason.RISKY)
    if _is_explored(lookup, share=policy.exploration):
        return chosen._replace(reason=LookupReason.EXPLORED)
    return chosen


def _is_explored(lookup: Lookup, *, share: float) -> bool:
    """Whether this lookup is one to learn from: the same at the same state, and another at another."""
    if not share:
        return False
    assert lookup.embedded is not None  # what a rule decides on was searched for
    told = b"%d:%d:" % (lookup.category.id, lookup.seq) + lookup.embedded.vector.tobytes()
    drawn = int.from_bytes(hashlib.blake2b(told, digest_size=8).digest(), "little")
    return drawn < share * 2**64


def _probabilities(state: CacheState, lookup: Lookup, candidates: Sequence[Match]) -> list[float] | None:
    """A verifier's word on each entry; None where there is none, or it fails."""
    assert lookup.embedded is not None  # it was searched for
    verifier = state.verifiers.get(lookup.embedded.space)
    if verifier is None:
        return None
    text = lookup.query.source.text
    return probabilities_of(verifier, candidates, vector=lookup.embedded.vector, text=text)


def _memory(state: CacheState, lookup: Lookup) -> Memory:
    """What is remembered of wrong answers near the query."""
    false_hits = state.false_hits.get(lookup.category.id)
    if false_hits is None or lookup.embedded is None:
        return NOTHING
    near = false_hits.near(sketch_of(lookup.embedded.vector))
    if lookup.mapped_from is None:
        return near
    # Verdicts keep the sketch of what was asked, now or when the embedder before was asked.
    asked = false_hits.near(sketch_of(lookup.mapped_from.vector))
    return Memory(near.entry_ids | asked.entry_ids, min(near.strictness, asked.strictness))
