"""How categories decide that were given a target instead of a threshold: learned rules, as they are kept.

A rule is learned from judged lookups (service.rule_learning), kept in the store under a version, and taken
over by every replica: lookups read it, and change nothing of it.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum

import numpy as np
from sqlalchemy import Connection, and_, insert, select, update

from service.evidence import NO_JUDGE
from service.load import between
from service.policy import Policy
from service.registry import lock_cache
from service.risk import FEATURES, RiskModel
from service.tables import decision_rules


class RuleSource(Enum):
    """What a category decides by. COLD: there is too little evidence, what is nearest must be nearly equal.
    BORROWED: by the evidence of its parent and that one's other descendants. LEARNED: by its own as well."""

    FIXED = "fixed"
    COLD = "cold"
    BORROWED = "borrowed"
    LEARNED = "learned"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class DecisionRule:
    """Serve what has at most a risk of `risk_limit`; at a load of 1, of `risk_limit_at_load`, no less.

    judge: of the verifier whose word the model reads, see `evidence`. judged_count, wrong_count: of the
    evidence that the rule was learned from, its own and what it borrowed. learned_to: the last verdict's row
    id.
    """

    source: RuleSource
    model: RiskModel
    risk_limit: float
    judge: bytes = NO_JUDGE
    judged_count: int = 0
    wrong_count: int = 0
    learned_to: int = 0
    version: int = 0
    risk_limit_at_load: float | None = None  # None: none was learned, the limit stays


def limit_at(rule: DecisionRule, policy: Policy, load: float) -> float:
    """The risk up to which is served at a load, between two limits that keep what is promised for each."""
    busy = rule.risk_limit_at_load
    if not load or busy is None or policy.max_wrong_at_load is None:
        return rule.risk_limit
    return between(rule.risk_limit, max(busy, rule.risk_limit), load)


def read_rules(
    connection: Connection, cache_id: int, known: Mapping[int, DecisionRule]
) -> dict[int, DecisionRule]:
    """The rules of a cache by row id of the category; of `known` those that are still the ones kept.

    A row that is damaged, or of another version of this program, is no rule: the category is cold until it
    learns.
    """
    versions = select(decision_rules.c.category_id, decision_rules.c.version).where(
        decision_rules.c.cache_id == cache_id
    )
    found: dict[int, DecisionRule] = {}
    for category_id, version in connection.execute(versions).all():
        rule = known.get(category_id)
        if rule is None or rule.version != version:
            content = connection.execute(
                select(decision_rules.c.content).where(decision_rules.c.category_id == category_id)
            ).scalar()
            rule = _load(content or "", version)
        if rule is not None:
            found[category_id] = rule
    return found


def read_rule(connection: Connection, category_id: int) -> DecisionRule | None:
    """The rule of one category; None: as read_rules."""
    row = connection.execute(
        select(decision_rules.c.content, decision_rules.c.version).where(
            decision_rules.c.category_id == category_id
        )
    ).one_or_none()
    return None if row is None else _load(row.content, row.version)


def write_rule(
    connection: Connection, cache_id: int, category_id: int, rule: DecisionRule, *, now_ms: int
) -> bool:
    """Keep a rule; False where another replica was first.

    rule.version: the one known before. Raises: NotFoundError: the cache was deleted.
    """
    lock_cache(connection, cache_id)  # as every transaction does before it touches a category
    own = decision_rules.c.category_id == category_id
    known = connection.execute(select(decision_rules.c.version).where(own)).scalar()
    values = {"content": _dump(rule), "version": rule.version + 1, "update_ms": now_ms}
    if known is None:
        keys = {"cache_id": cache_id, "category_id": category_id}
        connection.execute(insert(decision_rules).values(**keys, **values))
        return True
    same = and_(own, decision_rules.c.version == rule.version)
    return connection.execute(update(decision_rules).where(same).values(**values)).rowcount == 1


def _dump(rule: DecisionRule) -> str:
    return json.dumps(
        {
            "features": list(FEATURES),
            "source": rule.source.value,
            "weights": rule.model.weights.tolist(),
            "covariance": rule.model.covariance.tolist(),
            "risk_limit": rule.risk_limit,
            "risk_limit_at_load": rule.risk_limit_at_load,
            "judge": rule.judge.hex(),
            "judged_count": rule.judged_count,
            "wrong_count": rule.wrong_count,
            "learned_to": rule.learned_to,
        }
    )


def _load(content: str, version: int) -> DecisionRule | None:
    try:
        read = json.loads(content)
        weights = np.array(read["weights"], dtype=np.float64)
        covariance = np.array(read["covariance"], dtype=np.float64)
        count = len(FEATURES)
        if read["features"] != list(FEATURES) or weights.shape != (count,):
            return None
        if covariance.shape != (count, count) or not np.isfinite(covariance).all():
            return None
        if not np.isfinite(weights).all() or not 0.0 <= read["risk_limit"] <= 1.0:
            return None
        busy = read.get("risk_limit_at_load")  # absent from rules of before
        if busy is not None and not 0.0 <= busy <= 1.0:
            return None
        return DecisionRule(
            source=RuleSource(read["source"]),
            model=RiskModel(weights, covariance),
            risk_limit=float(read["risk_limit"]),
            judge=bytes.fromhex(read["judge"]),
            judged_count=int(read["judged_count"]),
            wrong_count=int(read["wrong_count"]),
            learned_to=int(read["learned_to"]),
            version=version,
            risk_limit_at_load=None if busy is None else float(busy),
        )
    except (ValueError, KeyError, TypeError):
        return None
