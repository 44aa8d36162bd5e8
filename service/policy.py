"""Policies of categories: fields, defaults and rules; how a category comes by what it does not set itself.

A category keeps the fields that it sets (its own policy), as a JSON object. What holds for it is resolved
along the chain of its parents: the nearest category that sets a field decides, without one the default.
"""

import json
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

from service.errors import DamagedPolicyError, InvalidRequestError
from service.promise import BASES, HITS, Target

DEPTH_MOST = 8
MODEL_BYTES = 256
"""Categories from a root down to the deepest one below it."""

TTL_MODE_NAMES = ("absolute", "sliding")
EVICTIONS = ("lru", "lfu", "fifo", "cost")
WRONG_ACTIONS = ("keep", "demote", "remove")

TARGET_THRESHOLD = 0.5
"""Default threshold of a category with a target: beyond it entries say nothing of each other."""

Value = float | int | bool | str
OwnPolicy = Mapping[str, Value]
"""Fields that a category sets itself, by name. A key that is no field is of a later version: kept, and
ignored."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """What holds for a category; as it stands, the defaults. `threshold` is a cosine distance; 0 in a limit
    or a least cost means none.

    min_probability: in (0, 1], at which a verifier consents to a hit; None: none is asked. refresh_after_ms:
    age from which an entry is due for a refresh; None: never. stale_while_revalidate: then it is served all
    the same. second_sighting: a request is stored only when it is seen again. max_wrong: share of wrong
    answers, of `max_wrong_of`, that is promised with `confidence`; None: nothing is, and the threshold alone
    decides. exploration: share of would-be hits that are computed to learn from. cold_threshold: decides
    while too little is known. compare_responses: a response that is stored for a lookup says, by being equal
    or not, whether what that lookup found would have been right. load_model: whose load counts
    (service.load); empty: none does. At a load of 1 hold max_threshold_at_load, max_wrong_at_load and
    refresh_after_at_load_ms; None: the same as without load. lookup_cost, hit_cost, model_cost: of a search,
    of serving, of computing, in one unit; a model_cost of 0 is not known. auto_bypass: nothing is searched
    while that does not pay (service.break_even).
    """

    threshold: float = 0.10
    min_probability: float | None = None
    ttl_ms: int | None = None
    ttl_mode: str = "absolute"  # of TTL_MODE_NAMES
    refresh_after_ms: int | None = None
    stale_while_revalidate: bool = False
    max_entries: int = 0
    max_bytes: int = 0
    eviction: str = "lru"  # of EVICTIONS
    shadow: bool = False
    min_cost: float = 0.0
    second_sighting: bool = False
    on_wrong: str = "keep"  # of WRONG_ACTIONS
    max_wrong: float | None = None
    max_wrong_of: str = HITS  # of BASES
    confidence: float = 0.95
    exploration: float = 0.02
    cold_threshold: float = 0.02
    compare_responses: bool = False
    load_model: str = ""
    max_threshold_at_load: float | None = None
    max_wrong_at_load: float | None = None
    refresh_after_at_load_ms: int | None = None
    lookup_cost: float = 0.0
    hit_cost: float = 0.0
    model_cost: float = 0.0
    auto_bypass: bool = False

    @property
    def target(self) -> Target | None:
        """What the operator asks for in the place of a threshold; None: the threshold decides."""
        if self.max_wrong is None:
            return None
        return Target(wrong_share=self.max_wrong, basis=self.max_wrong_of, confidence=self.confidence)

    @property
    def target_at_load(self) -> Target | None:
        """What is asked for at a load of 1; None: the same as without load."""
        target = self.target
        if target is None or self.max_wrong_at_load is None:
            return None
        return replace(target, wrong_share=self.max_wrong_at_load)


class _Rule(NamedTuple):
    """What a value of a field must be. reason: of the error where a caller's is not."""

    holds: Callable[[Value], bool]
    meaning: str
    reason: str


def _is_number(value: Value) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _number(holds: Callable[[float], bool]) -> Callable[[Value], bool]:
    return lambda value: not isinstance(value, str) and _is_number(value) and holds(value)


def _whole(holds: Callable[[int], bool]) -> Callable[[Value], bool]:
    return lambda value: type(value) is int and holds(value)


def _duration(reason: str) -> _Rule:
    return _Rule(_whole(lambda value: value > 0), "at least 1 ms", reason)


def _limit() -> _Rule:
    return _Rule(_whole(lambda value: value >= 0), "a whole number and not negative", "INVALID_QUOTA")


def _flag() -> _Rule:
    return _Rule(lambda value: isinstance(value, bool), "true or false", "INVALID_VALUE")


def _cost() -> _Rule:
    return _Rule(_number(lambda value: value >= 0), "finite and not negative", "INVALID_COST")


def _is_model(value: Value) -> bool:
    return isinstance(value, str) and len(value.encode()) <= MODEL_BYTES and "\0" not in value


def _one_of(names: tuple[str, ...]) -> _Rule:
    return _Rule(lambda value: value in names, f"one of {', '.join(names)}", "UNKNOWN_VALUE")


_RULES = {
    "threshold": _Rule(
        _number(lambda value: 0 <= value <= 2), "a cosine distance in [0, 2]", "INVALID_THRESHOLD"
    ),
    "min_probability": _Rule(_number(lambda value: 0 < value <= 1), "in (0, 1]", "INVALID_PROBABILITY"),
    "ttl_ms": _duration("INVALID_TTL"),
    "ttl_mode": _one_of(TTL_MODE_NAMES),
    "refresh_after_ms": _duration("INVALID_REFRESH"),
    "stale_while_revalidate": _flag(),
    "max_entries": _limit(),
    "max_bytes": _limit(),
    "eviction": _one_of(EVICTIONS),
    "shadow": _flag(),
    "min_cost": _cost(),
    "second_sighting": _flag(),
    "on_wrong": _one_of(WRONG_ACTIONS),
    "max_wrong": _Rule(_number(lambda value: 0 < value <= 0.5), "in (0, 0.5]", "INVALID_TARGET"),
    "max_wrong_of": _one_of(BASES),
    "confidence": _Rule(_number(lambda value: 0.5 <= value < 1), "in [0.5, 1)", "INVALID_TARGET"),
    "exploration": _Rule(_number(lambda value: 0 <= value <= 0.5), "in [0, 0.5]", "INVALID_TARGET"),
    "cold_threshold": _Rule(
        _number(lambda value: 0 <= value <= 2), "a cosine distance in [0, 2]", "INVALID_THRESHOLD"
    ),
    "compare_responses": _flag(),
    "load_model": _Rule(_is_model, f"at most {MODEL_BYTES} bytes, without NUL", "INVALID_VALUE"),
    "max_threshold_at_load": _Rule(
        _number(lambda value: 0 <= value <= 2), "a cosine distance in [0, 2]", "INVALID_THRESHOLD"
    ),
    "max_wrong_at_load": _Rule(_number(lambda value: 0 < value <= 0.5), "in (0, 0.5]", "INVALID_TARGET"),
    "refresh_after_at_load_ms": _duration("INVALID_REFRESH"),
    "lookup_cost": _cost(),
    "hit_cost": _cost(),
    "model_cost": _cost(),
    "auto_bypass": _flag(),
}
FIELDS = tuple(Policy.__dataclass_fields__)
assert tuple(_RULES) == FIELDS  # every field has a rule


def check_own(own: OwnPolicy) -> None:
    """Raise InvalidRequestError unless every field has a value that it can have."""
    for name, value in own.items():
        rule = _RULES.get(name)
        if rule is None:
            raise InvalidRequestError(f"{name!r} is no field of a policy", reason="UNKNOWN_VALUE", field=name)
        if not rule.holds(value):
            raise InvalidRequestError(
                f"{name} must be {rule.meaning}, is {value}", reason=rule.reason, field=name
            )


def check_policy(policy: Policy, *, category: str) -> None:
    """Raise InvalidRequestError unless what holds for the category goes together."""
    refresh_ms, ttl_ms = policy.refresh_after_ms, policy.ttl_ms
    if refresh_ms is not None and ttl_ms is not None and refresh_ms > ttl_ms:
        raise InvalidRequestError(
            f"category {category}: refresh_after is {refresh_ms} ms, more than the ttl of {ttl_ms} ms",
            reason="INVALID_REFRESH",
            field="refresh_after",
            category=category,
        )
    busy_ms = policy.refresh_after_at_load_ms
    if busy_ms is not None and ttl_ms is not None and busy_ms > ttl_ms:
        raise _clash("refresh_after_at_load", f"is over the ttl of {ttl_ms} ms", "INVALID_REFRESH", category)
    if busy_ms is not None and refresh_ms is not None and busy_ms < refresh_ms:
        raise _clash(
            "refresh_after_at_load", f"is under refresh_after, {refresh_ms} ms", "INVALID_REFRESH", category
        )
    most = policy.max_threshold_at_load
    if most is not None and policy.max_wrong is None and most < policy.threshold:
        raise _clash(
            "max_threshold_at_load",
            f"is under the threshold, {policy.threshold}",
            "INVALID_THRESHOLD",
            category,
        )
    wrong, busy_wrong = policy.max_wrong, policy.max_wrong_at_load
    if wrong is not None and busy_wrong is not None and busy_wrong < wrong:
        raise _clash("max_wrong_at_load", f"is under max_wrong, {wrong}", "INVALID_TARGET", category)
    if policy.model_cost and policy.hit_cost >= policy.model_cost:
        raise _clash("hit_cost", f"is no less than model_cost, {policy.model_cost}", "INVALID_COST", category)


def _clash(field: str, problem: str, reason: str, category: str) -> InvalidRequestError:
    return InvalidRequestError(
        f"category {category}: {field} {problem}", reason=reason, field=field, category=category
    )


def changed_own(own: OwnPolicy, changed: Mapping[str, Value | None]) -> dict[str, Value]:
    """The own policy after a change; None: the field is inherited from then on."""
    merged = {**own, **changed}
    return {name: value for name, value in merged.items() if value is not None}


def resolve(chain: Iterable[OwnPolicy]) -> Policy:
    """What holds for the first of these categories, each of which is the child of the next."""
    found: dict[str, Value] = {}
    for own in chain:
        for name in FIELDS:
            if name in own:
                found.setdefault(name, own[name])
    if "max_wrong" in found:
        found.setdefault("threshold", TARGET_THRESHOLD)
    return Policy(**found)  # type: ignore[arg-type]  # the rules have looked at each value


def dump_own(own: OwnPolicy) -> str:
    """The JSON that the store keeps."""
    return json.dumps(own, sort_keys=True)


def load_own(text: str, *, category: str) -> dict[str, Value]:
    """What `dump_own` wrote. Raises: DamagedPolicyError, naming the category and the field."""
    try:
        own = json.loads(text)
    except ValueError as error:
        raise DamagedPolicyError(category, f"is not JSON: {error}") from error
    if not isinstance(own, dict):
        raise DamagedPolicyError(category, "is no JSON object")
    for name, value in own.items():
        rule = _RULES.get(name)
        if rule is not None and not rule.holds(value):
            raise DamagedPolicyError(category, f"has the {name} {value!r}, which must be {rule.meaning}")
    return own


def chain_of(parents: Mapping[int, int | None], category_id: int) -> list[int]:
    """The category, its parent, and so on to the root.

    parents: of all categories of a cache, by row id. Raises: DamagedPolicyError: there is no root.
    """
    chain: list[int] = []
    current: int | None = category_id
    while current is not None:
        if current not in parents or len(chain) == DEPTH_MOST:
            raise DamagedPolicyError(
                str(category_id), f"comes from more than {DEPTH_MOST} levels, or from none"
            )
        chain.append(current)
        current = parents[current]
    return chain


def below(parents: Mapping[int, int | None], category_id: int) -> list[int]:
    """The categories that inherit from this one, itself left out; parents before their children."""
    found: list[int] = []
    level = {category_id}
    while level:
        level = {child for child, parent in parents.items() if parent in level} - set(found)
        found += sorted(level)
    return found


def check_parent(parents: Mapping[int, int | None], category_id: int, parent_id: int) -> None:
    """Raise InvalidRequestError where a category cannot get this parent: a cycle, or too many levels."""
    moved = {category_id, *below(parents, category_id)}
    if parent_id in moved:
        raise InvalidRequestError(
            "a category cannot inherit from itself, nor from one below it",
            reason="PARENT_CYCLE",
            field="parent",
        )
    after = {**parents, category_id: parent_id}
    height = max(_depth(after, key) for key in moved)
    if height > DEPTH_MOST:
        raise InvalidRequestError(
            f"categories inherit over at most {DEPTH_MOST} levels, not {height}",
            reason="PARENT_TOO_DEEP",
            field="parent",
        )


def _depth(parents: Mapping[int, int | None], category_id: int) -> int:
    depth, current = 0, parents.get(category_id)
    while current is not None:
        depth, current = depth + 1, parents.get(current)
    return depth + 1
