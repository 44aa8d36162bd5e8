"""How categories come by what they do not set themselves: against a naive oracle, and in the store."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import Engine, select, update
from store_rows import StoreCache, make_cache, new_entry

from service import store
from service.categories import create_category, delete_category, inheritors, update_category
from service.database import reading, writing
from service.errors import (
    DamagedPolicyError,
    InvalidRequestError,
    NotFoundError,
    PreconditionError,
)
from service.eviction import POLICIES
from service.policy import (
    DEPTH_MOST,
    EVICTIONS,
    FIELDS,
    TARGET_THRESHOLD,
    Policy,
    below,
    chain_of,
    check_own,
    check_parent,
    check_policy,
    dump_own,
    load_own,
    resolve,
)
from service.policy_changes import RETAINED_MOST, read_changes, record_change
from service.promise import BASES
from service.records import CategoryRecord
from service.tables import categories, policy_changes

VALUES: dict[str, st.SearchStrategy[Any]] = {
    "threshold": st.floats(0, 2),
    "min_probability": st.floats(0.1, 1),
    "ttl_ms": st.integers(1, 10**9),
    "ttl_mode": st.sampled_from(["absolute", "sliding"]),
    "refresh_after_ms": st.integers(1, 10**9),
    "stale_while_revalidate": st.booleans(),
    "max_entries": st.integers(0, 10**12),
    "max_bytes": st.integers(0, 10**12),
    "eviction": st.sampled_from(EVICTIONS),
    "shadow": st.booleans(),
    "min_cost": st.floats(0, 1e9),
    "second_sighting": st.booleans(),
    "on_wrong": st.sampled_from(["keep", "demote", "remove"]),
    "max_wrong": st.floats(0.001, 0.5),
    "max_wrong_of": st.sampled_from(BASES),
    "confidence": st.floats(0.5, 0.99),
    "exploration": st.floats(0, 0.5),
    "cold_threshold": st.floats(0, 2),
    "compare_responses": st.booleans(),
    "load_model": st.sampled_from(["", "m"]),
    "max_threshold_at_load": st.floats(0, 2),
    "max_wrong_at_load": st.floats(0.001, 0.5),
    "refresh_after_at_load_ms": st.integers(1, 10**9),
    "lookup_cost": st.floats(0, 1e9),
    "hit_cost": st.floats(0, 1e9),
    "model_cost": st.floats(0, 1e9),
    "auto_bypass": st.booleans(),
}
OWN = st.fixed_dictionaries({}, optional=VALUES)
TREE = st.lists(st.tuples(OWN, st.integers(0, 20)), min_size=1, max_size=12)


@pytest.fixture
def cache(shared_engine: Engine) -> StoreCache:
    """An empty cache."""
    return make_cache(shared_engine)


def records(cache: StoreCache) -> dict[str, CategoryRecord]:
    """The categories by name."""
    return {record.name: record for record in cache.categories().values()}


def create(cache: StoreCache, name: str, *, parent: str = "", **own: Any) -> CategoryRecord:
    """Create a category."""
    with writing(cache.engine) as connection:
        return create_category(connection, cache.name, name, own=own, parent=parent, now_ms=7)


def change(cache: StoreCache, name: str, *, parent: str | None = None, **changed: Any) -> CategoryRecord:
    """Change fields of a category; None: inherited from then on."""
    with writing(cache.engine) as connection:
        return update_category(
            connection, cache.name, name, etag="", changed=changed, parent=parent, now_ms=8
        )


def drop(cache: StoreCache, name: str) -> None:
    """Delete a category."""
    with writing(cache.engine) as connection:
        delete_category(connection, cache.name, name, etag="", now_ms=9)


def naive(parents: Mapping[int, int | None], own: Mapping[int, Mapping[str, Any]], key: int) -> Any:
    """What holds, by asking the parent for everything and overwriting it."""
    found = overwritten(parents, own, key)
    return {**asdict(Policy()), **({"threshold": TARGET_THRESHOLD} if "max_wrong" in found else {}), **found}


def overwritten(
    parents: Mapping[int, int | None], own: Mapping[int, Mapping[str, Any]], key: int | None
) -> dict[str, Any]:
    """What is set by the category or any above it."""
    return {} if key is None else {**overwritten(parents, own, parents[key]), **own[key]}


def test_every_field_is_drawn_here() -> None:
    assert set(VALUES) == set(FIELDS)
    assert set(EVICTIONS) == set(POLICIES)


@given(tree=TREE)
def test_the_nearest_category_that_sets_a_field_decides(tree: list[tuple[dict[str, Any], int]]) -> None:
    parents: dict[int, int | None] = {}
    for key, (_, draw) in enumerate(tree):
        above = [*(up for up in parents if len(chain_of(parents, up)) < DEPTH_MOST), None]
        parents[key] = above[draw % len(above)]
    own = {key: found for key, (found, _) in enumerate(tree)}
    for key in parents:
        chain = chain_of(parents, key)
        assert asdict(resolve(own[up] for up in chain)) == naive(parents, own, key)
        assert set(below(parents, key)) == {
            other for other in parents if other != key and key in chain_of(parents, other)
        }


@given(own=OWN)
def test_an_own_policy_is_read_as_it_was_written(own: dict[str, Any]) -> None:
    check_own(own)
    assert load_own(dump_own(own), category="c") == own


def test_keys_of_a_later_version_are_kept_and_ignored() -> None:
    own = load_own('{"threshold": 0.2, "colour": [1]}', category="c")
    assert resolve([own]) == Policy(threshold=0.2)
    assert load_own(dump_own({**own, "shadow": True}), category="c")["colour"] == [1]


@pytest.mark.parametrize(
    "stored",
    [
        *("", "{", "[]", "null", '"x"', '{"threshold": NaN}', '{"threshold": "0.1"}', '{"threshold": 2.1}'),
        *(
            '{"threshold": true}',
            '{"ttl_ms": 0}',
            '{"ttl_ms": 1.5}',
            '{"max_entries": -1}',
            '{"eviction": "x"}',
        ),
        *('{"shadow": 1}', '{"min_cost": Infinity}', '{"min_probability": 0}', '{"on_wrong": null}'),
        *('{"ttl_mode": []}', '{"threshold": {}}', '{"max_bytes": []}', '{"on_wrong": {}}'),
    ],
)
def test_a_damaged_value_is_an_error_by_name(stored: str) -> None:
    with pytest.raises(DamagedPolicyError, match="billing"):
        load_own(stored, category="billing")


@pytest.mark.parametrize(
    ("own", "reason"),
    [
        ({"threshold": float("nan")}, "INVALID_THRESHOLD"),
        ({"min_probability": 0.0}, "INVALID_PROBABILITY"),
        ({"ttl_ms": 0}, "INVALID_TTL"),
        ({"refresh_after_ms": -1}, "INVALID_REFRESH"),
        ({"max_entries": -1}, "INVALID_QUOTA"),
        ({"min_cost": float("inf")}, "INVALID_COST"),
        ({"eviction": "best"}, "UNKNOWN_VALUE"),
        ({"shadow": 1}, "INVALID_VALUE"),
        ({"colour": 1}, "UNKNOWN_VALUE"),
    ],
)
def test_a_value_that_cannot_be_is_refused(own: dict[str, Any], reason: str) -> None:
    with pytest.raises(InvalidRequestError) as raised:
        check_own(own)
    assert raised.value.reason == reason


def test_no_entry_is_due_later_than_it_expires() -> None:
    check_policy(Policy(ttl_ms=5, refresh_after_ms=5), category="c")
    check_policy(Policy(refresh_after_ms=5), category="c")
    with pytest.raises(InvalidRequestError) as raised:
        check_policy(Policy(ttl_ms=5, refresh_after_ms=6), category="c")
    assert raised.value.reason == "INVALID_REFRESH"


def test_a_ring_has_no_root() -> None:
    with pytest.raises(DamagedPolicyError):
        chain_of({1: 2, 2: 1}, 1)
    with pytest.raises(DamagedPolicyError):
        chain_of({1: 3}, 1)
    assert below({1: 2, 2: 1}, 1)  # ends


def test_levels_are_counted_from_the_root_to_the_deepest_child() -> None:
    line: dict[int, int | None] = {key: key - 1 if key > 1 else None for key in range(1, 6)}  # 5 levels
    check_parent({**line, 10: None, 11: 10, 12: 11}, 10, 5)  # 8
    with pytest.raises(InvalidRequestError) as raised:
        check_parent({**line, 10: None, 11: 10, 12: 11, 13: 12}, 10, 5)
    assert raised.value.reason == "PARENT_TOO_DEEP"


def test_a_category_inherits_what_it_does_not_set(cache: StoreCache) -> None:
    create(cache, "root", threshold=0.3, max_entries=9)
    create(cache, "mid", parent="root", max_entries=4)
    leaf = create(cache, "leaf", parent="mid", shadow=True)
    assert leaf.policy == Policy(threshold=0.3, max_entries=4, shadow=True)
    assert (leaf.own_policy, leaf.parent) == ({"shadow": True}, "mid")


def test_a_change_above_holds_below_and_ends_where_a_category_sets_the_field(cache: StoreCache) -> None:
    create(cache, "root")
    create(cache, "own", parent="root", threshold=0.2)
    create(cache, "other", parent="root")
    change(cache, "root", threshold=0.5, on_wrong="remove")
    found = records(cache)
    assert (found["own"].policy.threshold, found["other"].policy.threshold) == (0.2, 0.5)
    assert found["own"].policy.on_wrong == "remove"
    assert change(cache, "own", threshold=None).policy.threshold == 0.5
    assert change(cache, "own", parent="").policy == Policy()


def test_a_category_gets_no_parent_that_makes_a_ring_or_a_ninth_level(cache: StoreCache) -> None:
    names = [f"c{level}" for level in range(1, DEPTH_MOST + 1)]
    for above, name in zip(["", *names], names, strict=False):
        create(cache, name, parent=above)
    create(cache, "lone")
    for call, reason in (
        (lambda: change(cache, "c1", parent="c1"), "PARENT_CYCLE"),
        (lambda: change(cache, "c1", parent="c8"), "PARENT_CYCLE"),
        (lambda: create(cache, "deep", parent="c8"), "PARENT_TOO_DEEP"),
        (lambda: change(cache, "lone", parent="c8"), "PARENT_TOO_DEEP"),
        (lambda: change(cache, "c1", parent="lone"), "PARENT_TOO_DEEP"),
    ):
        with pytest.raises(InvalidRequestError) as raised:
            call()
        assert raised.value.reason == reason
    with pytest.raises(NotFoundError):
        create(cache, "x", parent="none")
    assert change(cache, "c8", parent="c1").parent == "c1"


def test_a_parent_cannot_be_deleted_until_its_children_are_gone(cache: StoreCache) -> None:
    create(cache, "root")
    create(cache, "leaf", parent="root")
    with pytest.raises(PreconditionError) as raised:
        drop(cache, "root")
    assert raised.value.reason == "CATEGORY_HAS_CHILDREN"
    drop(cache, "leaf")
    drop(cache, "root")
    assert records(cache) == {}


def test_what_holds_below_is_checked_with_what_changes_above(cache: StoreCache) -> None:
    create(cache, "root")
    create(cache, "leaf", parent="root", ttl_ms=100)
    with pytest.raises(InvalidRequestError, match="category leaf"):
        change(cache, "root", refresh_after_ms=101)
    with pytest.raises(PreconditionError) as raised:  # no verifier
        change(cache, "root", min_probability=0.5)
    assert raised.value.reason == "NO_ACTIVE_VERIFIER"
    change(cache, "root", refresh_after_ms=100)
    with pytest.raises(InvalidRequestError):
        change(cache, "leaf", ttl_ms=99)
    assert records(cache)["leaf"].policy == Policy(ttl_ms=100, refresh_after_ms=100)


def test_a_smaller_inherited_quota_evicts_below(cache: StoreCache) -> None:
    create(cache, "root")
    leaf = create(cache, "leaf", parent="root")
    cache.mutate(lambda tx: store.store_entries(tx, [new_entry(leaf.id, name) for name in "abc"]))
    root = change(cache, "root", max_entries=1)
    known = list(cache.categories().values())
    for category_id in inheritors(known, root.id):
        cache.mutate(lambda tx, key=category_id: store.shrink_to_quota(tx, key))  # type: ignore[misc]
    assert cache.names() == ["c"]
    cache.check()


def test_a_damaged_stored_policy_is_named(cache: StoreCache) -> None:
    create(cache, "root")
    with writing(cache.engine) as connection:
        mine = categories.c.cache_id == cache.id
        connection.execute(update(categories).where(mine).values(policy='{"threshold": 7}'))
    with pytest.raises(DamagedPolicyError, match="the policy of category root has the threshold 7"):
        records(cache)


def test_every_change_is_written_down_with_what_it_changed(cache: StoreCache) -> None:
    create(cache, "root", threshold=0.3)
    made = create(cache, "leaf", parent="root")
    change(cache, "leaf", parent="", max_entries=4)
    drop(cache, "leaf")
    again = create(cache, "leaf")
    with pytest.raises(InvalidRequestError):
        change(cache, "leaf", threshold=9.0)  # what is refused leaves none
    with reading(cache.engine) as connection:
        found = read_changes(connection, cache.id, category="leaf", size=10)
        everything = read_changes(connection, cache.id, size=10)
    assert [
        (row.operation, row.before, row.after, row.version, row.create_ms, row.category_id, row.principal)
        for row in reversed(found)
    ] == [
        ("create", "", '{"parent": "root"}', 1, 7, made.id, ""),
        ("update", '{"parent": "root"}', '{"max_entries": 4}', 2, 8, made.id, ""),
        ("delete", '{"max_entries": 4}', "", 2, 9, made.id, ""),
        ("create", "", "{}", 1, 7, again.id, ""),
    ]
    assert [row.category for row in everything] == ["leaf", "leaf", "leaf", "leaf", "root"]


def test_of_a_cache_the_last_changes_are_kept(cache: StoreCache) -> None:
    made = create(cache, "root")
    other = make_cache(cache.engine)
    create(other, "kept")
    first = {"cache_id": cache.id, "category_id": made.id, "category": "root", "version": 1, "create_ms": 0}
    first["principal"] = ""
    filled = [{**first, "operation": "update", "before": "", "after": str(i)} for i in range(RETAINED_MOST)]
    with writing(cache.engine) as connection:
        connection.execute(policy_changes.insert(), filled)
        record_change(connection, before=made, after=made, now_ms=0, principal="me")
        kept = select(policy_changes.c.after, policy_changes.c.principal)
        rows = connection.execute(
            kept.where(policy_changes.c.cache_id == cache.id).order_by(policy_changes.c.id)
        ).all()
        others = read_changes(connection, other.id, size=10)
    assert (len(rows), rows[0].after, rows[-1].principal) == (RETAINED_MOST, "1", "me")
    assert len(others) == 1
