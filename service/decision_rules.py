"""How categories decide that were given a target instead of a threshold: learned rules, as they are kept.

A rule is learned from judged lookups (service.rule_learning), kept in the store under a version, and taken
over by every replica: lookups read it, and change nothing of it.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from enum import Enum

import numpy as np
from sqlalchemy import Connection, and_, insert, select, update

from service.evidence import NO_JUDGE
from service.load import between
from service.policy import Policy
from service.promise import Target
from service.registry import lock_cache
from service.risk import FEATURES, RiskModel, no_evidence
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

    target, target_at_load, explored_share: that the limits were chosen for; None: for none. judge: of the
    distances and the verifier that the model reads, see `evidence`. judged_count, wrong_count: of the
    evidence that the rule was learned from, its own and what it borrowed. learned_to: the last verdict's row
    id.
    """

    source: RuleSource
    model: RiskModel
    risk_limit: float
    target: Target | None = None
    target_at_load: Target | None = None
    explored_share: float = 0.0
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

    A row that is damaged, emptied, or of another version of this program, is a cold one.
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
    connection: Connection,
    cache_id: int,
    category_id: int,
    rule: DecisionRule,
    *,
    config_version: int,
    now_ms: int,
) -> bool:
    """Keep a rule; False where another replica was first, or the cache's settings are no longer the ones that
    it was learned at: the category may be gone or ask for something else, verdicts may be forgotten.

    rule.version: the one known before. Raises: NotFoundError: the cache was deleted.
    """
    # As every transaction does before it touches a category.
    if lock_cache(connection, cache_id).config_version != config_version:
        return False
    own = decision_rules.c.category_id == category_id
    known = connection.execute(select(decision_rules.c.version).where(own)).scalar()
    values = {"content": _dump(rule), "version": rule.version + 1, "update_ms": now_ms}
    if known is None:
        keys = {"cache_id": cache_id, "category_id": category_id}
        connection.execute(insert(decision_rules).values(**keys, **values))
        return True
    same = and_(own, decision_rules.c.version == rule.version)
    return connection.execute(update(decision_rules).where(same).values(**values)).rowcount == 1


def empty_rules(connection: Connection, cache_id: int, *, now_ms: int) -> None:
    """Keep nothing of the rules of a cache: all of its categories are cold until they learn again."""
    of_cache = decision_rules.c.cache_id == cache_id
    # Not deleted: a version that is used again would be taken for the rule that it was of.
    values = {"content": "", "version": decision_rules.c.version + 1, "update_ms": now_ms}
    connection.execute(update(decision_rules).where(of_cache).values(**values))


def _dump(rule: DecisionRule) -> str:
    return json.dumps(
        {
            "features": list(FEATURES),
            "source": rule.source.value,
            "weights": rule.model.weights.tolist(),
            "covariance": rule.model.covariance.tolist(),
            "risk_limit": rule.risk_limit,
            "risk_limit_at_load": rule.risk_limit_at_load,
            "target": None if rule.target is None else asdict(rule.target),
            "target_at_load": None if rule.target_at_load is None else asdict(rule.target_at_load),
            "explored_share": rule.explored_share,
            "judge": rule.judge.hex(),
            "judged_count": rule.judged_count,
            "wrong_count": rule.wrong_count,
            "learned_to": rule.learned_to,
        }
    )


def _load(content: str, version: int) -> DecisionRule:
    read = _loaded(content, version)
    if read is None:
        return DecisionRule(source=RuleSource.COLD, model=no_evidence(), risk_limit=0.0, version=version)
    return read


def _loaded(content: str, version: int) -> DecisionRule | None:
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
            target=None if read["target"] is None else Target(**read["target"]),
            target_at_load=None if read["target_at_load"] is None else Target(**read["target_at_load"]),
            explored_share=float(read["explored_share"]),
            judge=bytes.fromhex(read["judge"]),
            judged_count=int(read["judged_count"]),
            wrong_count=int(read["wrong_count"]),
            learned_to=int(read["learned_to"]),
            version=version,
            risk_limit_at_load=None if busy is None else float(busy),
        )
    except (ValueError, KeyError, TypeError):
        return None
